//! `bundle`: a folder with what a support case needs: the dump, what the process tells of itself, and the kernel's lists.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use insight::state::{Filter, Mode, State};

use super::common::Common;

/// Nothing that is collected is longer.
const LONGEST: u64 = 256 << 20;
/// How long the process may take to tell its metrics.
const PATIENCE: Duration = Duration::from_secs(20);

/// Collect what a support case needs in a new folder: the dump, metrics, and the kernel's lists
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The folder; it must not be there yet
    folder: PathBuf,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(common.is_live(), "a bundle is of a running node: run it there, without replay");
    let state = common.state(Filter::default())?;
    let folder = &options.folder;
    // It has the addresses of everything.
    let made = fs::DirBuilder::new().mode(0o700).create(folder);
    made.with_context(|| format!("{}", folder.display()))?;
    let mut told = String::new();
    let dump = create(folder, "dump.ndjson").and_then(|file| state.write(std::io::BufWriter::new(file)));
    dump.with_context(|| format!("{}", folder.join("dump.ndjson").display()))?;
    told += "dump.ndjson\n";
    for (name, command) in commands(state.header.mode) {
        told += &match collect(folder, name, command) {
            Ok(()) => format!("{name}\n"),
            // What is not there says something too.
            Err(error) => format!("{name}: left out: {error}\n"),
        };
    }
    if let Some(address) = metrics_address(&state) {
        for (name, path) in [("metrics.txt", "/metrics"), ("configz.json", "/configz")] {
            told += &match fetch(folder, name, address, path) {
                Ok(()) => format!("{name}\n"),
                Err(error) => format!("{name}: left out: {error}\n"),
            };
        }
    }
    common.print(&told)?;
    Ok(ExitCode::SUCCESS)
}

/// Programs that read and change nothing.
fn commands(mode: Mode) -> Vec<(&'static str, &'static [&'static str])> {
    let mut all: Vec<(&str, &[&str])> = vec![
        ("nft-ruleset.txt", &["nft", "list", "ruleset"]),
        ("addresses.txt", &["ip", "address"]),
        ("routes.txt", &["ip", "route", "show", "table", "all"]),
        ("routes-v6.txt", &["ip", "-6", "route", "show", "table", "all"]),
        ("rules.txt", &["ip", "rule"]),
        ("links.txt", &["ip", "-s", "link"]),
        ("kernel.txt", &["uname", "-a"]),
        ("modules.txt", &["cat", "/proc/modules"]),
        ("sysctl-net.txt", &["sysctl", "-a", "--pattern", "^net\\.(ipv4|ipv6|netfilter|core)\\."]),
    ];
    if mode == Mode::Iptables {
        all.push(("iptables-save.txt", &["iptables-save", "-c"]));
        all.push(("ip6tables-save.txt", &["ip6tables-save", "-c"]));
    }
    if mode == Mode::Ipvs {
        all.push(("ipvs.txt", &["ipvsadm", "-Ln", "--stats"]));
        all.push(("ipvs-proc.txt", &["cat", "/proc/net/ip_vs"]));
    }
    all
}

fn create(folder: &Path, name: &str) -> std::io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(folder.join(name))
}

fn collect(folder: &Path, name: &str, command: &[&str]) -> anyhow::Result<()> {
    let file = create(folder, name)?;
    let (program, arguments) = command.split_first().context("a program")?;
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(file.try_clone()?)
        .stdout(file)
        .status()
        .with_context(|| (*program).to_owned());
    let status = status.inspect_err(|_| drop(fs::remove_file(folder.join(name))))?;
    anyhow::ensure!(status.success(), "{program} ended with {status}; what it said is there");
    Ok(())
}

/// Where the process tells its metrics, as its configuration has it.
fn metrics_address(state: &State) -> Option<SocketAddr> {
    let address: SocketAddr = state.header.configuration["metricsBindAddress"].as_str()?.parse().ok()?;
    Some(match address.ip().is_unspecified() {
        true if address.is_ipv4() => SocketAddr::from(([127, 0, 0, 1], address.port())),
        true => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], address.port())),
        false => address,
    })
}

fn fetch(folder: &Path, name: &str, address: SocketAddr, path: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Nothing after the head is in pieces then.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = Vec::new();
    stream.take(LONGEST).read_to_end(&mut text)?;
    let end = text.windows(4).position(|four| four == b"\r\n\r\n").context("no answer of HTTP")?;
    let head = String::from_utf8_lossy(&text[..end]).into_owned();
    let first = head.lines().next().unwrap_or_default();
    anyhow::ensure!(first.contains(" 200 "), "{address}{path} says {first}");
    create(folder, name)?.write_all(&text[end + 4..])?;
    Ok(())
}
