//! Removes what the modes have left in the kernel, kube-proxy's as well as ours: that of the other modes once the
//! present one works, or everything for `--cleanup`. What nobody but them makes is known by its name; the rest stays.

mod ipset;
mod ipvs;

use std::{fmt, thread, time::Duration};

use ipnet::IpNet;
use proxy_core::model::Family;

use crate::settings::effective::Mode;

/// How often the removal of leftovers is tried, and the pause between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(10);
/// How long connections through virtual servers may go on: nobody begins new ones.
const IPVS_DRAIN: Duration = Duration::from_secs(30);

/// Something that is removed by itself, whatever becomes of the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Chains and jumps in both variants.
    Iptables(Family),
    /// Referred to by rules of [`Part::Iptables`], hence after it.
    IpSets,
    /// Virtual servers, and the device that holds their addresses.
    Ipvs,
    /// The table `kube-proxy`.
    Nftables(Family),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iptables(family) => write!(f, "iptables rules of {family}"),
            Self::IpSets => f.write_str("ipsets"),
            Self::Ipvs => f.write_str("IPVS virtual servers"),
            Self::Nftables(family) => write!(f, "nftables rules of {family}"),
        }
    }
}

/// What a mode does not use (`None`: no mode is to be spared). Within its own objects a backend tidies up itself: the
/// iptables backend among all chains of this name, those of the ipvs mode included, and both others in the table.
fn parts_foreign_to(mode: Option<Mode>) -> Vec<Part> {
    let own = |part: &Part| match part {
        Part::Iptables(_) => mode == Some(Mode::Iptables),
        Part::Ipvs => mode == Some(Mode::Ipvs),
        Part::Nftables(_) => matches!(mode, Some(Mode::Nftables | Mode::Ipvs)),
        Part::IpSets => false,
    };
    let all = [
        Part::Iptables(Family::V4),
        Part::Iptables(Family::V6),
        Part::IpSets,
        Part::Ipvs,
        Part::Nftables(Family::V4),
        Part::Nftables(Family::V6),
    ];
    all.into_iter().filter(|part| !own(part)).collect()
}

/// `--cleanup`: removes everything of every mode. Tries all parts before it reports what failed.
pub(crate) fn everything(excluded: &[IpNet]) -> anyhow::Result<()> {
    let failures = remove(&parts_foreign_to(None), excluded, Duration::ZERO);
    let text: Vec<String> = failures.iter().map(|(part, error)| format!("{part}: {error}")).collect();
    anyhow::ensure!(
        failures.is_empty(),
        "encountered an error while tearing down rules: {}",
        text.join("; ")
    );
    Ok(())
}

/// Removes what other modes have left. Call it after the first successful sync and not before: until then these are the
/// rules that Services work by. It takes its time, on the calling thread.
pub(crate) fn leftovers(mode: Mode, excluded: &[IpNet]) {
    let mut parts = parts_foreign_to(Some(mode));
    for attempt in 1..=TRIES {
        let failures = remove(&parts, excluded, IPVS_DRAIN);
        for (part, error) in &failures {
            tracing::warn!(%part, attempt, error, "Could not remove what another mode has left");
        }
        if failures.is_empty() {
            tracing::debug!(mode = mode.as_str(), "Nothing of other modes is left");
            return;
        }
        parts = failures.into_iter().map(|(part, _)| part).collect();
        thread::sleep(PAUSE);
    }
}

/// Returns the parts that could not be removed, and why.
fn remove(parts: &[Part], excluded: &[IpNet], drain: Duration) -> Vec<(Part, String)> {
    // Its names tell which NodePorts kube-proxy's virtual servers had.
    let node_ports = ipset::node_ports();
    let attempt = |part: Part| -> Result<(), String> {
        match part {
            Part::Iptables(family) => backend_iptables::cleanup(family)
                .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
            Part::IpSets => ipset::destroy_all().map_err(|error| error.to_string()),
            Part::Ipvs => {
                let node_ports = node_ports.as_ref().map_err(ToString::to_string)?;
                ipvs::remove(node_ports, excluded, drain).map_err(|error| error.to_string())
            }
            Part::Nftables(family) => {
                backend_nft::cleanup(family).map(drop).map_err(|error| error.to_string())
            }
        }
    };
    parts.iter().filter_map(|part| attempt(*part).err().map(|error| (*part, error))).collect()
}

#[cfg(test)]
mod tests;
