//! New connections at a steady rate, while something happens to the rules that they pass.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use integration::network::Namespace;

/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(3);
/// The kernel sends a lost SYN again after a second: whoever waited that long met an interval without a rule.
const LOST_PACKET: Duration = Duration::from_millis(900);
/// Connections may wait for each other no longer than this many threads allow.
const THREADS: u32 = 8;

/// Runs until it is asked for its result.
#[derive(Debug)]
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    outcomes: mpsc::Receiver<Attempt>,
    started: Instant,
    per_second: u32,
}

#[derive(Debug)]
struct Attempt {
    at: Instant,
    took: Duration,
    result: Result<(), String>,
}

impl Flood {
    /// Begins `per_second` connections a second to `to`, and reads an answer on each.
    pub(crate) fn start(from: &Namespace, to: SocketAddr, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, outcomes) = mpsc::channel();
        let started = now();
        let begin = |number: u32| {
            let (stop, sender) = (Arc::clone(&stop), sender.clone());
            move || {
                // The threads' connections are spread over the time between two of one thread's.
                let pause = Duration::from_secs(1) * THREADS / per_second;
                let mut next = now() + pause * number / THREADS;
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(next.saturating_duration_since(now()));
                    next = (next + pause).max(now());
                    let at = now();
                    let result = connect(to);
                    if sender.send(Attempt { at, took: at.elapsed(), result }).is_err() {
                        return;
                    }
                }
            }
        };
        // A thread is in the namespace of the thread that started it.
        let spawn = || (0..THREADS).map(|number| thread::spawn(begin(number))).collect();
        let threads = from.run(spawn).expect("a namespace can be entered");
        Self { stop, threads, outcomes, started, per_second }
    }

    /// Ends it. Returns how many connections there were; an error if one failed, or waited for a packet to be sent again.
    pub(crate) fn stop(self) -> Result<usize, String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a flood's thread does not panic");
        }
        let lasted = self.started.elapsed();
        let attempts: Vec<Attempt> = self.outcomes.try_iter().collect();
        let bad: Vec<String> = attempts
            .iter()
            .filter(|attempt| attempt.result.is_err() || attempt.took > LOST_PACKET)
            .map(|attempt| {
                let outcome = attempt.result.as_ref().err().map_or("answered late", String::as_str);
                format!("{:?} in: {outcome} after {:?}", attempt.at - self.started, attempt.took)
            })
            .collect();
        if !bad.is_empty() {
            return Err(format!("{} of {} connections failed: {bad:#?}", bad.len(), attempts.len()));
        }
        let expected = lasted.as_secs_f64() * f64::from(self.per_second);
        if (attempts.len() as f64) < expected * 0.7 {
            return Err(format!("only {} connections in {lasted:?}: too busy a machine", attempts.len()));
        }
        Ok(attempts.len())
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
