//! The socket: root's alone, taken over from a predecessor that is dead, never from one that lives.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::unistd::geteuid;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Sources, answer};

/// So many clients are answered at a time; others wait in the kernel's queue.
const MOST_CLIENTS: usize = 4;
/// How long one answer may take, whatever is asked.
const LONGEST_ANSWER: Duration = Duration::from_secs(300);
/// Between two attempts to get the socket: another process may have it for as long as it lives.
const RETRY: Duration = Duration::from_secs(30);
/// After a client could not be taken in (no files are left, say).
const PAUSE: Duration = Duration::from_secs(1);

/// Answers for as long as the process lives. What goes wrong is told once.
pub(crate) async fn serve(sources: Sources) {
    let Some(path) = sources.path.clone() else { return std::future::pending().await };
    let mut told = false;
    let listener = loop {
        match bind(&path).await {
            Ok(listener) => break listener,
            Err(error) if !told => {
                told = true;
                tracing::warn!(path = %path.display(), %error, "Nobody can ask this process what it knows; it goes on trying");
            }
            Err(error) => tracing::debug!(path = %path.display(), %error, "The insight socket"),
        }
        sleep(RETRY).await;
    };
    tracing::debug!(path = %path.display(), "Questions are answered");
    accept(&listener, Arc::new(sources)).await;
}

async fn accept(listener: &UnixListener, sources: Arc<Sources>) {
    let clients = Arc::new(Semaphore::new(MOST_CLIENTS));
    let mut running = JoinSet::new();
    loop {
        // Nobody closes it.
        let Ok(place) = clients.clone().acquire_owned().await else { return };
        while let Some(ended) = running.try_join_next() {
            // An extra: a mistake in it ends nobody's traffic.
            if let Err(error) = ended {
                tracing::error!(%error, "An answer on the insight socket");
            }
        }
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "The insight socket");
                sleep(PAUSE).await;
                continue;
            }
        };
        if !may_ask(&stream) {
            continue;
        }
        let sources = sources.clone();
        running.spawn(async move {
            let _place = place;
            match timeout(LONGEST_ANSWER, answer::answer(stream, sources)).await {
                Ok(Ok(())) => {}
                // It has gone, or is too slow.
                Ok(Err(error)) => tracing::debug!(%error, "A client of the insight socket"),
                Err(_) => tracing::debug!("A client of the insight socket takes too long"),
            }
        });
    }
}

/// Root, or whoever this process runs as: the kernel says who has connected.
fn may_ask(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

/// Binds the socket with mode 0600. A file that a dead predecessor left is replaced at once, so that there is no moment without.
async fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        fs::DirBuilder::new().mode(0o700).create(folder)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("there is a file of that name that is no socket"));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Ok(_) => return Err(io::Error::other("another process that lives answers there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Under another name until nobody else may connect.
    let new = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    let placed =
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).and_then(|()| fs::rename(&new, path));
    if let Err(error) = placed {
        drop(fs::remove_file(&new));
        return Err(error);
    }
    Ok(listener)
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
