//! What the playground's shell offers: a small kubectl for the embedded API server, and questions by real packets. Each runs as a
//! process of its own, on the node or in another place.

mod client;
mod complete;
mod kubectl;

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

pub use kubectl::{kubeconfig, kubectl};

use crate::network::Place;

/// Where the shell's programs learn which namespace is whose: `pod-a=/proc/1/fd/3 ...`.
pub const PLACES: &str = "PLAYGROUND_PLACES";
/// More than a first packet that was lost takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Moves this thread, and what it starts, to a place.
pub fn enter(place: &str) -> Result<()> {
    let places = std::env::var(PLACES).context("this works in the playground's shell")?;
    let known = || places.split(' ').filter_map(|entry| entry.split_once('='));
    let Some((_, path)) = known().find(|(name, _)| *name == place) else {
        let names: Vec<&str> = known().map(|(name, _)| name).collect();
        bail!("{place}: there is no such place; there are {}", names.join(", "));
    };
    let namespace = File::open(path).with_context(|| format!("the namespace of {place}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {place}"))?;
    Ok(())
}

/// The value of [`PLACES`].
pub fn places(path: impl Fn(Place) -> String) -> String {
    let entries: Vec<String> =
        Place::ALL.iter().map(|place| format!("{}={}", place.name(), path(*place))).collect();
    entries.join(" ")
}

/// Connects so many times, and says who answered and whom they saw.
pub fn ask(address: &str, times: u32) -> Result<String> {
    let to: SocketAddr = address.parse().with_context(|| {
        format!("{address}: an address and a port, such as 172.30.0.1:80 or [fd00:30::1]:80")
    })?;
    let mut lines = Vec::new();
    for _ in 0..times {
        lines.push(match once(to) {
            Ok(text) => match text.split(' ').collect::<Vec<_>>().as_slice() {
                [by, port, seen] => format!("{by} answered on port {port}; it saw {seen}"),
                _ => format!("an answer: {text}"),
            },
            Err(error) => format!("no answer: {error}"),
        });
    }
    Ok(lines.join("\n"))
}

fn once(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}
