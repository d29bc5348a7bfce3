//! Ends what was started when the user ends us: children and their files must not outlive a benchmark that is interrupted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::process_tree;

/// From one look at a dying child to the next.
const DYING: Duration = Duration::from_millis(20);

static CHILDREN: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static ASKED: AtomicBool = AtomicBool::new(false);

pub(crate) fn remember(child: u32) {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).push(child);
}

pub(crate) fn forget(child: u32) {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| *known != child);
}

/// A folder of temporary files, or a control group.
pub(crate) fn remember_folder(folder: &Path) {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
}

pub(crate) fn forget_folder(folder: &Path) {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| known != folder);
}

/// Whether the user asked to end, for those who called [`ask_once`].
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// From here on SIGINT and SIGTERM end the program at once, and all children and temporary folders with it.
pub fn end_children_too() -> io::Result<()> {
    watch(|signal| {
        for child in CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            process_tree::kill_all(*child);
        }
        for folder in FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // What a dying child still holds open goes with it; a control group goes after its last process, and cannot
            // be emptied file by file.
            if std::fs::remove_dir_all(folder).is_err() {
                let gone = || std::fs::remove_dir(folder).is_ok();
                let _ = (0..50).any(|_| {
                    gone() || {
                        thread::sleep(DYING);
                        false
                    }
                });
            }
        }
        std::process::exit(128 + signal);
    })
}

/// From here on the first SIGINT or SIGTERM is only noted; a second one ends the program.
pub fn ask_once() -> io::Result<()> {
    watch(|signal| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(128 + signal);
        }
    })
}

/// With handlers: a blocked signal would stay blocked in every child, and contenders are ended by SIGTERM.
fn watch(mut act: impl FnMut(i32) + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = runtime.block_on(async {
        io::Result::Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    })?;
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                let number = tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                };
                act(number.as_raw_value());
            }
        });
    });
    Ok(())
}
