//! Ends what was started when the user ends us: children must not outlive a benchmark that is interrupted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

static CHILDREN: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static ASKED: AtomicBool = AtomicBool::new(false);

pub(crate) fn remember(child: u32) {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).push(child);
}

pub(crate) fn forget(child: u32) {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| *known != child);
}

/// Whether the user asked to end, for those who called [`ask_once`].
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// From here on SIGINT and SIGTERM end the program at once, and all contenders with it.
/// Call it before any thread is started: later ones inherit the blocked signals.
pub fn end_children_too() -> nix::Result<()> {
    watch(|signal| {
        for child in CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let Ok(child) = i32::try_from(*child) else { continue };
            // It may have ended just now.
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        std::process::exit(128 + signal as i32);
    })
}

/// From here on the first SIGINT or SIGTERM is only noted; a second one ends the program.
pub fn ask_once() -> nix::Result<()> {
    watch(|signal| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(128 + signal as i32);
        }
    })
}

fn watch(mut act: impl FnMut(Signal) + Send + 'static) -> nix::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            act(signal);
        }
    });
    Ok(())
}
