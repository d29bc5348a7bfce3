//! Removes what the modes have left in the kernel, kube-proxy's as well as ours: that of the other modes once the
//! present one works, or everything for `--cleanup`. What nobody but them makes is known by its name; the rest stays.
//!
//! What connections still need goes when they have ended: see [`backend_ipvs::leaving`].

use std::{
    fmt,
    thread::sleep,
    time::{Duration, Instant},
};

use backend_iptables::{CleanupError, variant::Variant};
use backend_ipvs::leaving::{self, Exit, ExitError, Remaining, ipset};
use ipnet::IpNet;
use proxy_core::model::Family;

use crate::{
    host::{
        accounting,
        forwarding::{self, Forwarding},
    },
    settings::effective::Mode,
};

/// The first pause between tries, and the longest: a chain to which somebody else's rule leads may stay for good.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// The same between looks for connections through virtual servers.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const RAREST_LOOK: Duration = Duration::from_secs(30);

/// Something that is removed by itself, whatever becomes of the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Chains and jumps in both variants.
    Iptables(Family),
    /// Referred to by rules of [`Part::Iptables`], hence after it.
    IpSets,
    /// Rules of our ipvs mode.
    IpvsRules(Family),
    /// The table of the nftables modes.
    Nftables(Family),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iptables(family) => write!(f, "iptables rules of {family}"),
            Self::IpSets => f.write_str("ipsets"),
            Self::IpvsRules(family) => write!(f, "rules of the ipvs mode of {family}"),
            Self::Nftables(family) => write!(f, "nftables rules of {family}"),
        }
    }
}

/// What a mode does not use (`None`: no mode is to be spared). Within its own objects a backend tidies up itself: the
/// iptables backend among all chains of this name, those of the ipvs mode included.
fn parts_foreign_to(mode: Option<Mode>) -> Vec<Part> {
    let own = |part: &Part| match part {
        Part::Iptables(_) => mode == Some(Mode::Iptables),
        Part::IpvsRules(_) => mode == Some(Mode::Ipvs),
        Part::Nftables(_) => mode == Some(Mode::Nftables),
        Part::IpSets => false,
    };
    let all = [
        Part::Iptables(Family::V4),
        Part::Iptables(Family::V6),
        Part::IpSets,
        Part::IpvsRules(Family::V4),
        Part::IpvsRules(Family::V6),
        Part::Nftables(Family::V4),
        Part::Nftables(Family::V6),
    ];
    all.into_iter().filter(|part| !own(part)).collect()
}

/// `--cleanup`: removes everything of every mode. Tries all parts before it reports what failed.
pub(crate) fn everything(excluded: &[IpNet]) -> anyhow::Result<()> {
    // Before the ipsets, which tell its NodePorts, go.
    let exit = Exit::open(excluded);
    let mut failures: Vec<String> = remove(&parts_foreign_to(None), None)
        .iter()
        .map(|(part, error)| format!("{part}: {error}"))
        .collect();
    if let Err(error) = exit.and_then(|mut exit| exit.look(true)) {
        failures.push(format!("IPVS virtual servers: {error}"));
    }
    if let Err(error) = localnet::leave() {
        failures.push(format!("what NodePorts on 127.0.0.1 needed: {error}"));
    }
    if let Err(error) = accounting::end() {
        failures.push(format!("conntrack's counting of bytes: {error}"));
    }
    anyhow::ensure!(
        failures.is_empty(),
        "encountered an error while tearing down rules: {}",
        failures.join("; ")
    );
    Ok(())
}

/// `--cleanup-own`: what our ipvs mode leaves that a kube-proxy in ipvs mode takes neither over nor away: rules, local
/// routes, virtual servers of marks. Connections go on.
pub(crate) fn own() -> anyhow::Result<()> {
    for family in Family::BOTH {
        leaving::remove_rules(family)?;
    }
    Ok(leaving::remove_unknown()?)
}

/// Removes what other modes have left. Call it after the first successful sync and not before: until then these are the
/// rules that Services work by. It takes its time, on the calling thread: connections through virtual servers may go on
/// for `limit`, if there is one. `told` hears of what is left of them.
pub(crate) fn leftovers(
    mode: Mode,
    excluded: &[IpNet],
    limit: Option<Duration>,
    told: impl FnMut(Remaining),
) {
    let mut leaving = (mode != Mode::Ipvs).then(|| Leaving::new(excluded, limit, told));
    let mut owed = Owed::new(mode);
    loop {
        // First: it marks what only the ipsets tell.
        if leaving.as_mut().is_some_and(Leaving::go_on) {
            leaving = None;
            owed.spare_nothing(mode);
        }
        if leaving.as_ref().is_some_and(|leaving| leaving.noted) && mode == Mode::Nftables {
            owed.spare_forwarding();
        }
        let noted = leaving.as_ref().is_none_or(|leaving| leaving.noted);
        owed.go_on(noted);
        let next = leaving.as_ref().map(|leaving| leaving.again.next);
        let Some(next) = next.into_iter().chain(owed.next()).min() else { break };
        sleep(next.saturating_duration_since(now()));
    }
    tracing::debug!(mode = mode.as_str(), "Nothing of other modes is left");
}

/// When something is tried again, ever more rarely.
struct Again {
    next: Instant,
    pause: Duration,
}

impl Again {
    fn new(pause: Duration) -> Self {
        Self { next: now(), pause }
    }

    fn is_due(&self) -> bool {
        self.next <= now()
    }

    fn later(&mut self, longest: Duration) {
        self.next = now() + self.pause;
        self.pause = (self.pause * 2).min(longest);
    }
}

/// Parts that are still there.
struct Owed {
    parts: Vec<Part>,
    again: Again,
    /// The last failures, so that each is said once.
    told: String,
    /// What forwards answers for connections through virtual servers: written where it was not, and spared.
    forwarding: Option<Forwarding>,
    /// The chains of [`forwarding::CHAINS`] are in use in this variant.
    spared: Option<Variant>,
}

impl Owed {
    fn new(mode: Mode) -> Self {
        Self {
            parts: parts_foreign_to(Some(mode)),
            again: Again::new(FIRST_PAUSE),
            told: String::new(),
            forwarding: None,
            // In the ipvs mode they are its own.
            spared: (mode == Mode::Ipvs).then(forwarding::variant).flatten(),
        }
    }

    /// Connections through virtual servers go on: what answers them is forwarded also where the host forwards nothing of
    /// its own accord.
    fn spare_forwarding(&mut self) {
        self.forwarding.get_or_insert_default().accept();
        self.spared = forwarding::variant();
    }

    /// Nobody needs it any more.
    fn spare_nothing(&mut self, mode: Mode) {
        if mode != Mode::Ipvs && self.spared.take().is_some() {
            self.forwarding = None;
            self.parts.extend(Family::BOTH.map(Part::Iptables));
            self.again = Again::new(FIRST_PAUSE);
        }
    }

    fn next(&self) -> Option<Instant> {
        (!self.parts.is_empty()).then_some(self.again.next)
    }

    /// `noted`: what the ipsets tell is known otherwise.
    fn go_on(&mut self, noted: bool) {
        if self.parts.is_empty() || !self.again.is_due() {
            return;
        }
        let (now, later): (Vec<Part>, Vec<Part>) =
            self.parts.drain(..).partition(|part| noted || *part != Part::IpSets);
        let failures = remove(&now, self.spared);
        let text: Vec<String> = failures.iter().map(|(part, error)| format!("{part}: {error}")).collect();
        let text = text.join("; ");
        if !text.is_empty() && text != self.told {
            tracing::warn!(error = text, "Could not remove all that another mode has left; trying again");
        }
        self.told = text;
        self.parts = failures.into_iter().map(|(part, _)| part).chain(later).collect();
        self.again.later(LONGEST_PAUSE);
    }
}

/// The ipvs mode whose connections go on.
struct Leaving<'a, F> {
    excluded: &'a [IpNet],
    limit: Option<Duration>,
    told: F,
    exit: Option<Exit>,
    began: Instant,
    again: Again,
    /// What kube-proxy's ipsets tell is marked in the virtual servers themselves.
    noted: bool,
    failure: String,
}

impl<'a, F: FnMut(Remaining)> Leaving<'a, F> {
    fn new(excluded: &'a [IpNet], limit: Option<Duration>, told: F) -> Self {
        let began = now();
        let again = Again::new(FIRST_LOOK);
        Self { excluded, limit, told, exit: None, began, again, noted: false, failure: String::new() }
    }

    /// Answers whether it is over.
    fn go_on(&mut self) -> bool {
        if !self.again.is_due() {
            return false;
        }
        let force = self.limit.is_some_and(|limit| self.began.elapsed() >= limit);
        self.again.later(RAREST_LOOK);
        match self.look(force) {
            Ok(remaining) => {
                (self.told)(remaining);
                if remaining.is_nothing() {
                    if self.noted || force {
                        tracing::info!(force, "Virtual servers of the ipvs mode are gone");
                    }
                } else if !self.noted {
                    let Remaining { servers, connections, .. } = remaining;
                    tracing::info!(
                        servers,
                        connections,
                        "Virtual servers of the ipvs mode stay until their connections have ended"
                    );
                }
                self.noted = true;
                remaining.is_nothing()
            }
            Err(error) => {
                let error = error.to_string();
                if error != self.failure {
                    tracing::warn!(error, "Virtual servers of the ipvs mode cannot be removed; trying again");
                }
                self.failure = error;
                false
            }
        }
    }

    fn look(&mut self, force: bool) -> Result<Remaining, ExitError> {
        match &mut self.exit {
            Some(exit) => exit.look(force),
            none => none.insert(Exit::open(self.excluded)?).look(force),
        }
    }
}

/// Returns the parts that could not be removed, and why. In a variant of iptables that is `spared`, what the ipvs mode has
/// there stays.
fn remove(parts: &[Part], spared: Option<Variant>) -> Vec<(Part, String)> {
    let attempt = |part: Part| -> Result<(), String> {
        match part {
            Part::Iptables(family) => clean_iptables(family, spared)
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
            Part::IpSets => ipset::destroy_all().map_err(|error| error.to_string()),
            Part::IpvsRules(family) => {
                leaving::remove_rules(family).map(drop).map_err(|error| error.to_string())
            }
            Part::Nftables(family) => {
                backend_nft::cleanup(family).map(drop).map_err(|error| error.to_string())
            }
        }
    };
    parts.iter().filter_map(|part| attempt(*part).err().map(|error| (*part, error))).collect()
}

fn clean_iptables(family: Family, spared: Option<Variant>) -> Result<(), Vec<CleanupError>> {
    backend_iptables::cleanup_but(
        family,
        |variant| {
            if Some(variant) == spared { &forwarding::CHAINS } else { &[] }
        },
    )
}

#[expect(clippy::disallowed_methods, reason = "waits for others")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
