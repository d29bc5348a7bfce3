//! Which changes of the configuration file take effect in the running process, and which need a new one.

use serde_json::Value;

/// Fields that the process can exchange while it runs; all others need a restart. A path stands for all below it.
const LIVE: &[&str] = &[
    "clusterCIDR",
    "conntrack",
    "detectLocal",
    "detectLocalMode",
    "iptables.localhostNodePorts",
    "iptables.masqueradeAll",
    "iptables.masqueradeBit",
    "iptables.minSyncPeriod",
    "iptables.syncPeriod",
    "ipvs.minSyncPeriod",
    "ipvs.syncPeriod",
    "logging.verbosity",
    "logging.vmodule",
    "nftables.masqueradeAll",
    "nftables.masqueradeBit",
    "nftables.minSyncPeriod",
    "nftables.syncPeriod",
    "nodePortAddresses",
    "oomScoreAdj",
];

/// Fields that mean nothing here, whatever they say.
const WITHOUT_EFFECT: &[&str] = &[
    "clientConnection.acceptContentTypes",
    "clientConnection.burst",
    "clientConnection.contentType",
    "clientConnection.qps",
    "logging.flushFrequency",
    "portRange",
    "winkernel",
    "windowsRunAsService",
];

/// What differs between two configurations, by what it takes to follow.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    /// Can be exchanged now.
    pub(crate) live: Vec<String>,
    /// Need a new process.
    pub(crate) restart: Vec<String>,
}

/// Compares two public objects (`Settings::document`).
pub(crate) fn differences(old: &Value, new: &Value) -> Differences {
    let mut found = Differences::default();
    compare("", old, new, &mut found);
    found
}

fn compare(path: &str, old: &Value, new: &Value, found: &mut Differences) {
    if old == new {
        return;
    }
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let (old, new) = (old.get(name).unwrap_or(&Value::Null), new.get(name).unwrap_or(&Value::Null));
            compare(&below, old, new, found);
        }
        return;
    }
    if !covers(WITHOUT_EFFECT, path) {
        let list = if covers(LIVE, path) { &mut found.live } else { &mut found.restart };
        list.push(path.to_owned());
    }
}

fn covers(list: &[&str], path: &str) -> bool {
    list.iter()
        .any(|field| path.strip_prefix(field).is_some_and(|below| below.is_empty() || below.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_objects_have_no_differences() {
        let object = json!({ "mode": "nftables", "iptables": { "masqueradeBit": 14 } });
        assert_eq!(differences(&object, &object.clone()), Differences::default());
    }

    #[test]
    fn live_fields_are_told_from_those_that_need_a_restart() {
        let old = json!({
            "mode": "iptables", "logging": { "verbosity": 0, "format": "text" },
            "nodePortAddresses": null, "conntrack": { "min": 1 }, "portRange": "",
        });
        let new = json!({
            "mode": "nftables", "logging": { "verbosity": 4, "format": "text", "vmodule": [] },
            "nodePortAddresses": ["primary"], "conntrack": { "min": 2 }, "portRange": "1-2",
        });
        let found = differences(&old, &new);
        assert_eq!(
            found.live,
            ["conntrack.min", "logging.verbosity", "logging.vmodule", "nodePortAddresses"]
        );
        assert_eq!(found.restart, ["mode"]);
    }

    #[test]
    fn a_field_is_not_live_because_its_name_begins_like_one_that_is() {
        let found = differences(&json!({ "clusterCIDRs": 1 }), &json!({ "clusterCIDRs": 2 }));
        assert_eq!(found.restart, ["clusterCIDRs"]);
    }
}
