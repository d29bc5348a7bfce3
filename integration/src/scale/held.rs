//! Connections that stand while something happens to the rules, and are kept talking: how many of them break?

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::network::Namespace;

use super::connecting::{identity, open};

/// An endpoint answers within microseconds, and on a machine that is busy with other work within seconds; who is silent for
/// so long is cut off.
const SILENCE: Duration = Duration::from_secs(10);
/// From one exchange on all connections to the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that were there before.
#[derive(Debug)]
pub(crate) struct Held {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
    pub(crate) opened: usize,
}

impl Held {
    /// Opens one connection to each address and has each say something again and again.
    pub(crate) fn open(client: &Namespace, to: &[SocketAddr]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let mut standing: Vec<TcpStream> =
            client.run(|| to.iter().map(|service| greet(*service)).collect::<io::Result<_>>())??;
        let opened = standing.len();
        let thread = thread::spawn(move || {
            loop {
                // Looked at before: every connection is tried once more after the end was asked for.
                let last = until.load(Ordering::Relaxed);
                exchange(&mut standing);
                if last {
                    return opened - standing.len();
                }
                thread::sleep(PAUSE);
            }
        });
        Ok(Self { stop, thread: Some(thread), opened })
    }

    /// How many were cut off.
    pub(crate) fn broken(mut self) -> usize {
        self.end()
    }

    fn end(&mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end();
    }
}

/// Says something on each connection, and then hears all answers: many silent ones take no longer than one. Those that
/// broke are dropped.
fn exchange(standing: &mut Vec<TcpStream>) {
    standing.retain_mut(|stream| stream.write_all(b"ping").is_ok());
    let begun = Instant::now();
    standing.retain_mut(|stream| {
        // Zero would mean no limit; an answer that is there is heard in any case.
        let wait = SILENCE.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
        let mut heard = [0_u8; 4];
        stream.set_read_timeout(Some(wait)).is_ok()
            && stream.read_exact(&mut heard).is_ok()
            && &heard == b"ping"
    });
}

fn greet(service: SocketAddr) -> io::Result<TcpStream> {
    let (mut stream, _) = open(service, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    identity(&mut stream)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use super::Held;
    use crate::scale::site::{DIRECT, FLOOR, Site};

    #[test]
    fn connections_that_lose_their_translation_are_counted_and_others_are_not() {
        let site = Site::build().expect("a network; run as root");
        site.add_floor().expect("a rule");
        let mut to = vec![FLOOR; 30];
        to.push(DIRECT);
        let held = Held::open(&site.client, &to).expect("all are answered");
        thread::sleep(Duration::from_millis(100));
        site.remove_floor().expect("the rule is there");
        site.node.output(Command::new("conntrack").arg("-F")).expect("conntrack runs");
        // Waited for one after the other they would take five minutes, and the test runner's patience with them.
        assert_eq!((held.opened, held.broken()), (31, 30));
    }

    #[test]
    fn where_nothing_happens_none_breaks() {
        let site = Site::build().expect("a network; run as root");
        site.add_floor().expect("a rule");
        let held = Held::open(&site.client, &[FLOOR, DIRECT]).expect("all are answered");
        thread::sleep(Duration::from_millis(300));
        assert_eq!(held.broken(), 0);
    }
}
