//! Kernel settings of the network namespace that IPVS as a Service proxy needs.

use std::{fs, io, path::Path};

use proxy_core::model::Family;

use crate::settings::Settings;

/// Setting, value, and what it is for.
type Setting = (&'static str, &'static str);

const ALL: [Setting; 3] = [
    // Connections of IPVS are known to conntrack, without which they cannot be masqueraded.
    ("net/ipv4/vs/conntrack", "1"),
    // A packet of a connection whose endpoint is gone ends the connection, so that the client can make a new one;
    // otherwise it is dropped until the connection times out.
    ("net/ipv4/vs/expire_nodest_conn", "1"),
    // A client that affinity ties to an endpoint of weight 0 is given another.
    ("net/ipv4/vs/expire_quiescent_template", "1"),
];
const IPV4: [Setting; 1] = [("net/ipv4/ip_forward", "1")];
/// A virtual IP is announced on no interface but by who means to (MetalLB, kube-vip).
const STRICT_ARP: [Setting; 2] =
    [("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")];

/// What is to be set in a family.
fn wanted(settings: &Settings, family: Family) -> impl Iterator<Item = &'static Setting> {
    let ipv4 = if family == Family::V4 { &IPV4[..] } else { &[] };
    let strict = if settings.strict_arp && family == Family::V4 { &STRICT_ARP[..] } else { &[] };
    ALL.iter().chain(ipv4).chain(strict)
}

/// Settings that are not as they should be: their names below `/proc/sys`, the value wanted and the present one.
pub(crate) fn differing(settings: &Settings, family: Family) -> Vec<(&'static str, &'static str, String)> {
    wanted(settings, family)
        .filter_map(|(name, value)| {
            let is = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
            (is.trim() != *value).then(|| (*name, *value, is.trim().to_owned()))
        })
        .collect()
}

/// Writes what differs. What cannot be written is said, and no reason not to go on: in a container /proc/sys may be
/// read-only and yet right.
pub(crate) fn apply(settings: &Settings, family: Family) {
    for (name, value) in wanted(settings, family) {
        match set(name, value) {
            Ok(true) => tracing::info!(sysctl = name, value, "set"),
            Ok(false) => {}
            Err(error) => tracing::warn!(sysctl = name, value, %error, "cannot be set"),
        }
    }
}

/// While this is off, a packet of a connection whose endpoint is not there just now is dropped, and sent again by TCP,
/// where otherwise the connection would end.
pub(crate) fn expire_orphans(on: bool) -> io::Result<()> {
    set("net/ipv4/vs/expire_nodest_conn", if on { "1" } else { "0" }).map(drop)
}

/// Whether it had to be written. `conn_reuse_mode` stays at the kernel's 1: kube-proxy sets 0 only before Linux 5.9,
/// where a reused port cost a second.
fn set(name: &str, value: &str) -> io::Result<bool> {
    let path = Path::new("/proc/sys").join(name);
    if fs::read_to_string(&path)?.trim() == value {
        return Ok(false);
    }
    fs::write(path, value)?;
    Ok(true)
}
