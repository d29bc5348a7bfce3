//! What the verbs share that watch packets and connections: the names of the moment, the clock, rules and interfaces.

use std::{
    cell::RefCell,
    collections::HashMap,
    os::fd::AsFd as _,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use insight::{
    engine::Engine,
    names::Names,
    state::{Filter, Mode, State},
    trace::{story::RuleAt, tell::Surroundings},
    traffic::View,
};
use netlink::{Protocol, Socket};
use nft_netlink::{Table, list};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::common::Common;
use crate::settings::go_text::GoDuration;

/// Bytes of events that may wait to be read.
pub(super) const BUFFER: usize = 8 << 20;
/// The size of a buffer can be chosen by the environment, for machines with little memory (and for tests of what happens when
/// it overflows).
const BUFFER_VARIABLE: &str = "SWITCHYARD_WATCH_BUFFER";
/// How long to wait for events before looking at the clock again.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// What the engine knew at one moment.
pub(super) struct Scene {
    pub(super) state: State,
    engine: Engine,
    names: Names,
    pub(super) taken: Instant,
}

impl Scene {
    /// Asks the running process.
    pub(super) fn load(common: &Common) -> anyhow::Result<Self> {
        ensure!(common.is_live(), "packets can be watched only on the node, not in a file");
        let state = common.state(Filter::default())?;
        let engine = common.engine(&state);
        let names = Names::of(&engine);
        Ok(Self { state, engine, names, taken: now() })
    }

    pub(super) fn view(&self) -> View<'_> {
        View { names: &self.names, look: &self.engine }
    }

    pub(super) fn is_ipvs(&self) -> bool {
        self.state.header.mode == Mode::Ipvs
    }
}

#[expect(clippy::disallowed_methods, reason = "who watches does so for a time")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a table's comment says until when it may stay")]
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether nobody reads what is printed any more: a verb that has nothing to print would not notice.
pub(super) fn nobody_reads() -> bool {
    let stdout = std::io::stdout();
    let mut polled = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
        && polled[0].revents().is_some_and(|revents| revents.intersects(gone))
}

/// A duration as in the configuration: `10s`, `1m30s`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 10s or 1m30s");
    let duration = GoDuration::parse(text).ok().and_then(GoDuration::to_std).ok_or_else(wrong)?;
    if duration.is_zero() { Err(wrong()) } else { Ok(duration) }
}

/// How many bytes of events may wait to be read.
pub(super) fn buffer() -> usize {
    std::env::var(BUFFER_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(BUFFER)
}

pub(super) fn netfilter() -> anyhow::Result<Socket> {
    Socket::open(Protocol::Netfilter)
        .context("no netlink socket (this needs CAP_NET_ADMIN, as root on the node)")
}

/// A family, a table of it, and a chain of that.
type ChainAt = (nft_netlink::Family, Box<str>, Box<str>);

/// Rules and interfaces, looked up once each.
#[derive(Default)]
pub(super) struct Kernel {
    chains: RefCell<HashMap<ChainAt, HashMap<u64, String>>>,
    interfaces: RefCell<Option<HashMap<u32, String>>>,
}

impl Surroundings for Kernel {
    fn rule(&self, at: &RuleAt) -> Option<String> {
        let mut chains = self.chains.borrow_mut();
        let key = (at.family, at.table.clone(), at.chain.clone());
        chains.entry(key).or_insert_with(|| rules(at)).get(&at.handle).cloned()
    }

    fn interface(&self, index: u32) -> Option<String> {
        let mut known = self.interfaces.borrow_mut();
        let known = known.get_or_insert_with(|| {
            let links = Socket::open(Protocol::Route).and_then(|mut socket| netlink::link::list(&mut socket));
            links.unwrap_or_default().into_iter().map(|link| (link.index, link.name.into())).collect()
        });
        known.get(&index).cloned()
    }
}

/// The rules of one chain by their handles: as `nft` writes them, or else what the kernel says of their parts.
fn rules(at: &RuleAt) -> HashMap<u64, String> {
    let mut rules = HashMap::new();
    let table = Table::new(at.family, &at.table);
    let listed = Socket::open(Protocol::Netfilter)
        .and_then(|mut socket| list::rules(&mut socket, table, Some(&at.chain)))
        .unwrap_or_default();
    for rule in listed {
        let text = match &rule.comment {
            Some(comment) => format!("{} # {comment}", rule.expressions.join(" ")),
            None => rule.expressions.join(" "),
        };
        rules.insert(rule.handle, text);
    }
    // Ours are many and large, and their chains' names say what they do.
    if !at.table.starts_with("kube-proxy") {
        rules.extend(by_nft(at));
    }
    rules
}

/// Without the elements of sets (`-t`), which can be many. Nothing where there is no `nft`.
fn by_nft(at: &RuleAt) -> HashMap<u64, String> {
    let output = Command::new("nft")
        .args(["-a", "-t", "list", "chain", at.family.name(), &at.table, &at.chain])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let rule = |line: &str| {
        let (rule, handle) = line.trim().rsplit_once(" # handle ")?;
        Some((handle.parse().ok()?, rule.to_owned()))
    };
    text.lines()
        .filter(|line| !line.trim_end().ends_with('{') && !line.contains("{ #"))
        .filter_map(rule)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_the_configuration() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        for text in ["10", "0s", "-1s", "soon"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
