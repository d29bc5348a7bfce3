//! One network namespace, held by a file descriptor, and work done inside it.
//!
//! A socket belongs to the namespace it was created in and can be used from anywhere afterwards.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

#[derive(Debug)]
pub struct Namespace {
    name: String,
    fd: OwnedFd,
}

impl Namespace {
    /// Makes a new, empty namespace with its loopback up. It goes with its last user.
    pub fn create(name: &str) -> io::Result<Self> {
        let fd = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })?;
        let namespace = Self { name: name.to_owned(), fd: fd.into() };
        namespace.ip(
            "link set lo up\n",
            &[
                // Addresses are usable at once: no duplicate address detection, nobody else is on these links.
                ("net/ipv6/conf/all/accept_dad", "0"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
                // Every refusal is to be seen: no rate limit, and no redirect that uses up its allowance.
                ("net/ipv4/icmp_ratemask", "0"),
                ("net/ipv6/icmp/ratelimit", "0"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/default/send_redirects", "0"),
            ],
        )?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which `ip link ... netns PATH` finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Runs `work` on a thread of its own inside the namespace. Threads started by it are inside too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_own_thread(|| {
            setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }

    /// Runs a command to its end and fails unless it succeeds.
    pub fn output(&self, command: &mut Command) -> io::Result<Output> {
        let output = self.run(|| command.stdin(Stdio::null()).output())??;
        if output.status.success() {
            return Ok(output);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!(
            "{command:?} in {}: {}: {}",
            self.name,
            output.status,
            complaint.trim()
        )))
    }

    /// Starts a command. It sees a `/run` of its own (locks, sockets) and the `/sys` of this namespace.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.run(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
            command.spawn()
        })?
    }

    /// Runs many `ip` commands in one process, after setting sysctls.
    pub fn ip(&self, batch: &str, sysctls: &[(&str, &str)]) -> io::Result<()> {
        self.run(|| {
            for (key, value) in sysctls {
                let path = format!("/proc/sys/{key}");
                fs::write(&path, value)
                    .map_err(|error| io::Error::new(error.kind(), format!("{path} = {value}: {error}")))?;
            }
            feed(Command::new("ip").args(["-batch", "-"]), batch)
        })?
        .map_err(|error| io::Error::new(error.kind(), format!("in {}: {error}", self.name)))
    }

    /// Loads nftables rules from text.
    pub fn nft(&self, rules: &str) -> io::Result<()> {
        self.run(|| feed(Command::new("nft").args(["-f", "-"]), rules))?
    }
}

/// Gives a command its input and waits for it.
fn feed(command: &mut Command, input: &str) -> io::Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}: {}", output.status, complaint.trim())))
}

/// The namespace of a thread is its own, so whoever changes it does so on a thread that ends afterwards.
fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}
