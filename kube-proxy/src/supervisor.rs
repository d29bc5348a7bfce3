//! The tasks and threads of the process. Each has a name, and one that ends, or panics, ends the process with its name
//! and the reason: a proxy that has lost its watch, or the thread that writes, looks well and is deaf.

use std::{
    any::Any,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use anyhow::anyhow;
use tokio::{runtime::Handle, sync::mpsc, task::JoinError};

/// How long after the first end others are waited for that end with it.
const COMPANY: Duration = Duration::from_millis(200);

/// Starts what runs for as long as the process. Clones start for the same process.
#[derive(Debug, Clone)]
pub(crate) struct Supervisor {
    runtime: Handle,
    ends: mpsc::UnboundedSender<Ended>,
}

/// Where it becomes known that something ended.
#[derive(Debug)]
pub(crate) struct Ends(mpsc::UnboundedReceiver<Ended>);

/// What ended, and why; the end of the process.
#[derive(Debug)]
struct Ended {
    name: &'static str,
    how: How,
}

#[derive(Debug)]
enum How {
    /// It came to its end, which it should not have.
    Returned,
    Failed(anyhow::Error),
    Panicked(String),
}

impl How {
    /// What says more goes first.
    fn weight(&self) -> u8 {
        match self {
            Self::Returned => 0,
            Self::Failed(_) => 1,
            Self::Panicked(_) => 2,
        }
    }
}

impl From<Ended> for anyhow::Error {
    fn from(Ended { name, how }: Ended) -> Self {
        match how {
            How::Returned => anyhow!("{name} ended"),
            How::Failed(error) => error.context(format!("{name} ended")),
            How::Panicked(message) => anyhow!("{name} panicked: {message}"),
        }
    }
}

/// What a task or thread may leave behind.
pub(crate) trait Ending {
    /// `None`: nothing to say.
    fn reason(self) -> Option<anyhow::Error>;
}

impl Ending for () {
    fn reason(self) -> Option<anyhow::Error> {
        None
    }
}

impl Ending for anyhow::Error {
    fn reason(self) -> Option<anyhow::Error> {
        Some(self)
    }
}

impl<E: Into<anyhow::Error>> Ending for Result<(), E> {
    fn reason(self) -> Option<anyhow::Error> {
        self.err().map(Into::into)
    }
}

impl Supervisor {
    /// For tasks on this runtime. Whoever holds the second half learns the first end.
    pub(crate) fn new(runtime: Handle) -> (Self, Ends) {
        let (ends, receiver) = mpsc::unbounded_channel();
        (Self { runtime, ends }, Ends(receiver))
    }

    /// A task that runs for as long as the process: its end is the end of the process.
    pub(crate) fn task<T: Ending + Send + 'static>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        let ends = self.ends.clone();
        let task = self.runtime.spawn(task);
        self.runtime.spawn(async move {
            let how = match task.await.map_err(JoinError::try_into_panic) {
                Ok(ending) => ending.reason().map_or(How::Returned, How::Failed),
                Err(Ok(panic)) => How::Panicked(message(panic.as_ref())),
                Err(Err(_)) => How::Returned,
            };
            // Once the process ends nobody listens any more; the same for threads.
            let _ = ends.send(Ended { name, how });
        });
    }

    /// A thread that runs for as long as the process: its end is the end of the process. The kernel shows the first
    /// 15 bytes of the name.
    pub(crate) fn thread<T: Ending>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<()> {
        self.start_thread(name, work, Some(How::Returned))
    }

    /// A thread that may come to its end when its work is done; a failure or a panic ends the process.
    pub(crate) fn errand<T: Ending>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<()> {
        self.start_thread(name, work, None)
    }

    /// `done`: what it means when the work ends without a reason.
    fn start_thread<T: Ending>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
        done: Option<How>,
    ) -> io::Result<()> {
        let ends = self.ends.clone();
        let work = move || {
            let how = match catch_unwind(AssertUnwindSafe(work)) {
                Ok(ending) => ending.reason().map(How::Failed).or(done),
                Err(panic) => Some(How::Panicked(message(panic.as_ref()))),
            };
            if let Some(how) = how {
                let _ = ends.send(Ended { name, how });
            }
        };
        thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
    }
}

impl Ends {
    /// Waits for the first end, with its name in the error.
    pub(crate) async fn next(&mut self) -> anyhow::Error {
        let Some(mut ended) = self.0.recv().await else {
            // Nothing is left that could end: nobody would do anything any more.
            return anyhow!("every task ended");
        };
        // Who is talked to by nobody any more ends as well, and may be faster: the cause says most. This thread waits,
        // not the runtime, whose workers may all be held up.
        thread::sleep(COMPANY);
        while let Ok(other) = self.0.try_recv() {
            if other.how.weight() > ended.how.weight() {
                ended = other;
            }
        }
        ended.into()
    }
}

/// Panics go to the log, in its format and with their place, instead of to stderr as they are.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let at = panic.location().map(ToString::to_string);
        tracing::error!(thread = thread.name(), at, panic = message(panic.payload()), "Panic");
    }));
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is no text")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: &anyhow::Error) -> String {
        format!("{error:#}")
    }

    #[tokio::test]
    async fn whoever_ends_is_named_with_the_reason() {
        let (supervisor, mut ends) = Supervisor::new(Handle::current());
        supervisor.task("services watch", std::future::ready(()));
        assert_eq!(text(&ends.next().await), "services watch ended");
        supervisor.task("health server", std::future::ready(Err::<(), _>(io::Error::other("no port"))));
        assert_eq!(text(&ends.next().await), "health server ended: no port");
        supervisor.thread("engine", || anyhow!("no kernel")).expect("a thread");
        assert_eq!(text(&ends.next().await), "engine ended: no kernel");
        supervisor.thread("addresses", || ()).expect("a thread");
        assert_eq!(text(&ends.next().await), "addresses ended");
    }

    #[tokio::test]
    async fn a_panic_in_a_task_or_a_thread_is_an_end() {
        let (supervisor, mut ends) = Supervisor::new(Handle::current());
        let number = 7;
        supervisor.task("slices watch", async move {
            tokio::task::yield_now().await;
            assert!(number == 0, "slice {number}");
        });
        assert_eq!(text(&ends.next().await), "slices watch panicked: slice 7");
        supervisor.thread("conntrack", || -> () { panic!("bad flow") }).expect("a thread");
        assert_eq!(text(&ends.next().await), "conntrack panicked: bad flow");
        supervisor.errand("cleanup", || -> () { panic!("bad rule") }).expect("a thread");
        assert_eq!(text(&ends.next().await), "cleanup panicked: bad rule");
    }

    #[tokio::test]
    async fn the_cause_is_told_and_not_what_it_led_to() {
        let (supervisor, mut ends) = Supervisor::new(Handle::current());
        let (sender, receiver) = std::sync::mpsc::channel::<u8>();
        supervisor.task("services watch", async move {
            while sender.send(1).is_ok() {
                tokio::task::yield_now().await;
            }
        });
        supervisor
            .thread("engine", move || {
                // The receiver goes while it unwinds; whoever sends may notice before the end is told.
                assert_eq!(receiver.recv().expect("a message"), 2, "no such message");
            })
            .expect("a thread");
        let end = text(&ends.next().await);
        assert!(end.starts_with("engine panicked: ") && end.contains("no such message"), "{end}");
    }

    #[tokio::test]
    async fn an_errand_may_be_done() {
        let (supervisor, mut ends) = Supervisor::new(Handle::current());
        supervisor.errand("cleanup", || ()).expect("a thread");
        assert!(tokio::time::timeout(COMPANY * 2, ends.0.recv()).await.is_err(), "no end");
        supervisor.errand("cleanup", || anyhow!("not done")).expect("a thread");
        assert_eq!(text(&ends.next().await), "cleanup ended: not done");
    }

    /// The process must be able to end while all its workers are held up.
    #[test]
    fn an_end_is_heard_of_though_no_worker_of_the_runtime_is_free() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (supervisor, mut ends) = Supervisor::new(runtime.handle().clone());
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (busy, started) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            busy.send(()).expect("somebody waits");
            let _ = held.recv();
        });
        started.recv().expect("a task");
        supervisor.thread("engine", || -> () { panic!("now") }).expect("a thread");
        assert_eq!(text(&runtime.block_on(ends.next())), "engine panicked: now");
        drop(release);
    }
}
