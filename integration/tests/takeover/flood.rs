//! New connections at a steady rate, while something happens to the rules that they pass. What is judged does not depend on
//! how busy the machine is: each must be answered however late, and no packet of its opening may get lost on the way.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use integration::lab::Lab;
use integration::network::Place;

use super::crossing::Crossing;

/// Longer than any machine takes: a connection that takes longer is never answered.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections may wait for each other no longer than this many threads allow.
const THREADS: u32 = 8;

/// Runs until it is asked for its result.
#[derive(Debug)]
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<String>>>,
    ended: Arc<AtomicUsize>,
    crossing: Crossing,
}

impl Flood {
    /// Begins `per_second` connections a second to `to`, as far as the machine has the time, and reads an answer on each.
    pub(crate) fn start(lab: &Lab, from: Place, to: SocketAddr, per_second: u32) -> Self {
        let crossing = Crossing::watch(lab, from, to);
        let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let begin = |number: u32| {
            let (stop, ended) = (Arc::clone(&stop), Arc::clone(&ended));
            move || {
                // The threads' connections are spread over the time between two of one thread's.
                let pause = Duration::from_secs(1) * THREADS / per_second;
                let mut next = now() + pause * number / THREADS;
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(next.saturating_duration_since(now()));
                    next = (next + pause).max(now());
                    failures.extend(connect(to).err());
                    ended.fetch_add(1, Ordering::Relaxed);
                }
                failures
            }
        };
        // A thread is in the namespace of the thread that started it.
        let spawn = || (0..THREADS).map(|number| thread::spawn(begin(number))).collect();
        let threads = lab.network.namespace(from).run(spawn).expect("a namespace can be entered");
        Self { stop, threads, ended, crossing }
    }

    /// How many connections have ended.
    pub(crate) fn so_far(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits until so many more have.
    pub(crate) fn wait_for(&self, more: usize) {
        let (wanted, deadline) = (self.so_far() + more, now() + 2 * PATIENCE);
        while self.so_far() < wanted {
            assert!(now() < deadline, "no connection comes to an end");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// How many SYNs have left.
    pub(crate) fn sent(&self, lab: &Lab) -> u64 {
        self.crossing.sent(lab)
    }

    /// Ends it. Returns how many connections there were; an error if one failed, or lost a packet.
    pub(crate) fn stop(self, lab: &Lab) -> Result<usize, String> {
        self.stop.store(true, Ordering::Relaxed);
        let count = self.ended;
        let join = |thread: JoinHandle<Vec<String>>| thread.join().expect("a flood's thread does not panic");
        let failures: Vec<String> = self.threads.into_iter().flat_map(join).collect();
        let count = count.load(Ordering::Relaxed);
        let lost = self.crossing.lost(lab);
        if failures.is_empty() && lost == 0 {
            return Ok(count);
        }
        Err(format!(
            "of {count} connections {} failed, and {lost} SYNs and answers got lost: {failures:#?}",
            failures.len()
        ))
    }
}

fn connect(to: SocketAddr) -> Result<(), String> {
    let attempt = || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)
    };
    match attempt() {
        Ok(0) => Err("closed without an answer".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[expect(clippy::disallowed_methods, reason = "a rate of connections is a matter of real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
