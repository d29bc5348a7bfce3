//! New connections all the time while something happens to the rules: how many of them fail?

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use crate::network::Namespace;

use super::connecting::answered;

/// New connections, one after the other, until stopped.
#[derive(Debug)]
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Flooded>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Flooded {
    pub(crate) tried: usize,
    /// Neither accepted nor refused in time, or refused, although every endpoint is up.
    pub(crate) failed: usize,
}

impl Flood {
    /// `pause` between two connections: none to load the machine, some to watch only. One that is not answered within
    /// `patience` has failed.
    pub(crate) fn start(
        client: &Namespace,
        to: Vec<SocketAddr>,
        pause: Duration,
        patience: Duration,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = client.run(|| {
            thread::spawn(move || {
                let mut flooded = Flooded::default();
                for service in to.iter().cycle() {
                    if until.load(Ordering::Relaxed) {
                        break;
                    }
                    flooded.tried += 1;
                    if !answered(*service, patience) {
                        flooded.failed += 1;
                    }
                    thread::sleep(pause);
                }
                flooded
            })
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    pub(crate) fn stop(mut self) -> Flooded {
        self.end()
    }

    fn end(&mut self) -> Flooded {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use super::Flood;
    use crate::scale::connecting::BRIEF;
    use crate::scale::site::{DIRECT, FLOOR, Site};

    const PAUSE: Duration = Duration::from_millis(1);

    #[test]
    fn connections_without_translation_are_counted_as_failed() {
        let site = Site::build().expect("a network; run as root");
        site.add_floor().expect("a rule");
        let flood = Flood::start(&site.client, vec![FLOOR], PAUSE, BRIEF).expect("it starts");
        thread::sleep(Duration::from_millis(200));
        site.remove_floor().expect("the rule is there");
        site.node.output(Command::new("conntrack").arg("-F")).expect("conntrack runs");
        thread::sleep(Duration::from_millis(200));
        let flooded = flood.stop();
        assert!(flooded.failed > 0 && flooded.tried > flooded.failed, "{flooded:?}");
    }

    #[test]
    fn where_nothing_happens_none_fails() {
        let site = Site::build().expect("a network; run as root");
        site.add_floor().expect("a rule");
        // However late on a busy machine.
        let patience = Duration::from_secs(60);
        let to = vec![FLOOR, DIRECT];
        let flood = Flood::start(&site.client, to, Duration::ZERO, patience).expect("it starts");
        thread::sleep(Duration::from_millis(300));
        let flooded = flood.stop();
        assert_eq!(flooded.failed, 0);
        assert!(flooded.tried > 0, "{flooded:?}");
    }
}
