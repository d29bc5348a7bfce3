//! A network namespace for one question: it is made, something is tried in it, and the kernel removes it with everything in
//! it when the thread ends.

use std::{io, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs `work` on a thread of its own, in a network namespace of its own. The caller's namespace is not touched.
///
/// # Errors
/// Where the namespace cannot be made (it takes `CAP_SYS_ADMIN`) or the work panics.
pub fn in_own_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("scratch-netns".to_owned()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            Ok(work())
        })?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("what was tried there panicked")))
    })
}

/// The same with a `/run` of its own, so that programs that take a lock there (iptables) take none of the host's.
///
/// # Errors
/// As [`in_own_namespace`].
pub fn with_own_run<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let entered = in_own_namespace(|| {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
        Ok::<T, nix::Error>(work())
    })?;
    entered.map_err(io::Error::from)
}
