//! Connections while something happens to the rules: new ones all the time, and old ones that are kept talking.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use crate::network::Namespace;

use super::connecting::{answered, identity, open};

/// An endpoint answers within microseconds; who is silent for so long is cut off.
const SILENCE: Duration = Duration::from_secs(2);

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
    /// `pause` between two connections: none to load the machine, some to watch only.
    pub(crate) fn start(client: &Namespace, to: Vec<SocketAddr>, pause: Duration) -> Result<Self> {
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
                    if !answered(*service) {
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

/// Connections that were there before.
#[derive(Debug)]
pub(crate) struct Held {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
    pub(crate) opened: usize,
}

impl Held {
    /// Opens one connection to each address and has each say something every 50 ms.
    pub(crate) fn open(client: &Namespace, to: &[SocketAddr]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let streams: Vec<TcpStream> =
            client.run(|| to.iter().map(|service| greet(*service)).collect::<io::Result<_>>())??;
        let opened = streams.len();
        let thread = thread::spawn(move || {
            let mut streams: Vec<Option<TcpStream>> = streams.into_iter().map(Some).collect();
            while !until.load(Ordering::Relaxed) {
                for slot in &mut streams {
                    if slot.as_mut().is_some_and(|stream| !talks(stream)) {
                        *slot = None;
                    }
                }
                thread::sleep(Duration::from_millis(50));
            }
            streams.iter().filter(|slot| slot.is_none()).count()
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

fn greet(service: SocketAddr) -> io::Result<TcpStream> {
    let (mut stream, _) = open(service, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    identity(&mut stream)?;
    Ok(stream)
}

fn talks(stream: &mut TcpStream) -> bool {
    let mut heard = [0_u8; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut heard).is_ok() && &heard == b"ping"
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use super::{Flood, Held};
    use crate::scale::site::{DIRECT, FLOOR, Site};

    #[test]
    fn connections_that_lose_their_translation_are_counted_and_others_are_not() {
        let site = Site::build().expect("a network; run as root");
        site.add_floor().expect("a rule");
        let held = Held::open(&site.client, &[FLOOR, FLOOR, DIRECT]).expect("all are answered");
        let flood = Flood::start(&site.client, vec![FLOOR], Duration::from_millis(1)).expect("it starts");
        thread::sleep(Duration::from_millis(300));
        site.remove_floor().expect("the rule is there");
        site.node.output(Command::new("conntrack").arg("-F")).expect("conntrack runs");
        thread::sleep(Duration::from_millis(300));
        let flooded = flood.stop();
        assert_eq!((held.opened, held.broken()), (3, 2));
        assert!(flooded.failed > 0 && flooded.tried > flooded.failed, "{flooded:?}");
    }

    #[test]
    fn where_nothing_happens_nothing_is_counted() {
        let site = Site::build().expect("a network; run as root");
        site.add_floor().expect("a rule");
        let held = Held::open(&site.client, &[FLOOR, DIRECT]).expect("all are answered");
        let flood = Flood::start(&site.client, vec![FLOOR, DIRECT], Duration::ZERO).expect("it starts");
        thread::sleep(Duration::from_millis(300));
        let flooded = flood.stop();
        assert_eq!((held.broken(), flooded.failed), (0, 0));
        assert!(flooded.tried > 100, "{flooded:?}");
    }
}
