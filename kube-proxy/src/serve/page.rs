//! A page that costs something to write: written by one at a time, and once for all who wait for it.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use hyper::body::Bytes;
use tokio::{sync::Mutex, time::Instant};

use super::gzip;

/// The page as it was at one moment.
#[derive(Debug)]
pub(super) struct Page {
    begun: Instant,
    text: Bytes,
    compressed: OnceLock<Option<Bytes>>,
}

impl Page {
    pub(super) fn text(&self) -> Bytes {
        self.text.clone()
    }

    pub(super) fn compressed(&self) -> Option<Bytes> {
        self.compressed.get_or_init(|| gzip::compressed(&self.text)).clone()
    }
}

/// Nobody gets a page that is older than the question, and however many ask at once, one thread writes.
#[derive(Debug, Default)]
pub(super) struct Pages {
    last: Mutex<Option<Arc<Page>>>,
    waiting: AtomicUsize,
}

/// Counts one who waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pages {
    pub(super) async fn get(&self, write: impl FnOnce() -> String) -> Arc<Page> {
        let asked = Instant::now();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        let mut last = self.last.lock().await;
        drop(waiting);
        let page = match last.take() {
            Some(page) if page.begun > asked => page,
            _ => {
                let begun = Instant::now();
                let text = Bytes::from(write());
                Arc::new(Page { begun, text, compressed: OnceLock::new() })
            }
        };
        // Kept only for those who wait: between two scrapes it would be so much memory for nothing.
        if self.waiting.load(Ordering::Relaxed) > 0 {
            *last = Some(Arc::clone(&page));
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_share_a_page_that_is_no_older_than_their_question() {
        let pages = Arc::new(Pages::default());
        let written = Arc::new(AtomicUsize::new(0));
        let held = pages.last.lock().await;
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            let (pages, written) = (Arc::clone(&pages), Arc::clone(&written));
            readers.spawn(async move {
                let write = || written.fetch_add(1, Ordering::Relaxed).to_string();
                pages.get(write).await.text()
            });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        drop(held);
        while let Some(text) = readers.join_next().await {
            assert_eq!(text.expect("a page"), "0");
        }
        assert_eq!(written.load(Ordering::Relaxed), 1);
        assert!(pages.last.lock().await.is_none(), "nobody waits for it");
        let page = pages.get(|| "new".to_owned()).await;
        assert_eq!(page.text(), "new", "asked later");
    }
}
