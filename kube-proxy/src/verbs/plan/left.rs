//! What other modes and kube-proxy have in the kernel, and would be removed. Reads only.

use std::collections::BTreeMap;

use insight::state::Mode;
use proxy_core::model::Family;
use serde::Serialize;

/// Something that would be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Left {
    pub(crate) what: String,
    pub(crate) family: String,
    /// Chains, rules, sets, virtual servers, addresses.
    pub(crate) objects: usize,
    /// Service ports that it was written for, as far as it says so.
    pub(crate) services: usize,
    /// Who wrote it, where that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<&'static str>,
    /// What could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unread: Option<String>,
}

/// What is there of modes other than this one (`None`: of all), of these families.
pub(crate) fn left(but: Option<Mode>, families: impl Iterator<Item = Family>) -> Vec<Left> {
    let mut all = Vec::new();
    for family in families {
        if but != Some(Mode::Iptables) {
            iptables(family, but == Some(Mode::Ipvs), &mut all);
        }
        if but != Some(Mode::Nftables) {
            table(family, backend_nft::standing(family), &mut all);
        }
        if but != Some(Mode::Ipvs) {
            ipvs(family, &mut all);
        }
    }
    all
}

fn iptables(family: Family, spares_forwarding: bool, all: &mut Vec<Left>) {
    for variant in backend_iptables::variant::installed(family) {
        let what = format!("chains KUBE-* and the jumps to them in iptables ({variant})");
        match backend_iptables::removals(family, variant) {
            Ok(removals) if removals.is_empty() => {}
            Ok(mut removals) => {
                // Of the ipvs modes, which have them too.
                removals.retain(|removal| !spares_forwarding || !removal.what.contains("KUBE-FORWARD"));
                let owners: BTreeMap<&str, ()> =
                    removals.iter().filter_map(|removal| Some((removal.owner.as_deref()?, ()))).collect();
                let objects = removals.iter().map(|removal| removal.rules.max(1)).sum();
                all.push(Left {
                    what,
                    family: family.to_string(),
                    objects,
                    services: owners.len(),
                    by: None,
                    unread: None,
                });
            }
            Err(error) => all.push(unread(what, family, error.to_string())),
        }
    }
}

fn table(
    family: Family,
    standing: Result<Option<backend_nft::Standing>, proxy_core::difference::Unreadable>,
    all: &mut Vec<Left>,
) {
    let what = "the nftables table kube-proxy".to_owned();
    match standing {
        Ok(None) => {}
        Ok(Some(standing)) => all.push(Left {
            what,
            family: family.to_string(),
            objects: standing.chains + standing.rules + standing.sets,
            services: 0,
            by: Some(if standing.ours { "Switchyard" } else { "kube-proxy" }),
            unread: None,
        }),
        Err(error) => all.push(unread(what, family, error.to_string())),
    }
}

fn ipvs(family: Family, all: &mut Vec<Left>) {
    // Without IPVS in the kernel there is nothing of it; asking would load the module.
    if !std::path::Path::new("/proc/net/ip_vs").exists() {
        return;
    }
    let what = "virtual servers, and the addresses of kube-ipvs0".to_owned();
    match backend_ipvs::survey(family, &backend_ipvs::Settings::default()) {
        Ok(found) => {
            let owned = found.owned(&[]);
            let servers: usize = owned.iter().map(|server| 1 + server.destinations.len()).sum();
            let objects = servers + found.routes.len() + found.addresses.len();
            if objects > 0 {
                all.push(Left {
                    what,
                    family: family.to_string(),
                    objects,
                    services: owned.len(),
                    by: None,
                    unread: None,
                });
            }
        }
        Err(error) => all.push(unread(what, family, error.to_string())),
    }
}

fn unread(what: String, family: Family, error: String) -> Left {
    Left { what, family: family.to_string(), objects: 0, services: 0, by: None, unread: Some(error) }
}
