//! Which feature gates exist, and which are on.
//!
//! Nearly all of them mean nothing here, but a cluster's configuration may name any that its Kubernetes knows, so all
//! known names are accepted and an unknown one is refused, as kube-proxy does.

use std::{collections::BTreeMap, sync::LazyLock};

use super::version;

mod known;

/// The gates of the release that this program stands in for, sorted by name.
static GATES: LazyLock<Vec<Gate>> = LazyLock::new(|| of_release(version::MINOR));

/// The gates as a minor release has them. Those that only a later one has are known too, as that one has them first: a
/// cluster's configuration may be ahead of its nodes.
fn of_release(minor: u32) -> Vec<Gate> {
    let mut gates: BTreeMap<&'static str, Gate> = BTreeMap::new();
    gates.extend(known::KNOWN.iter().map(|gate| (gate.name, *gate)));
    for (from, gate) in known::LATER {
        if *from <= minor || !gates.contains_key(gate.name) {
            gates.insert(gate.name, *gate);
        }
    }
    gates.into_values().collect()
}

/// How far along a feature is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Alpha,
    Beta,
    Stable,
    Deprecated,
}

impl Stage {
    /// The `stage` label of `kubernetes_feature_enabled`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Stable => "",
            Self::Deprecated => "DEPRECATED",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gate {
    name: &'static str,
    stage: Stage,
    default: bool,
    locked: bool,
}

/// A gate that changes what this program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feature {
    /// Off: `spec.externalIPs` of Services is ignored (KEP-5707).
    AllowServiceExternalIPs,
    /// Off: `/statusz` is not served.
    ComponentStatusz,
    /// Off: `/flagz` is not served.
    ComponentFlagz,
    /// NodePorts on localhost in nftables mode (KEP-6032): see [`FeatureGates::chosen`].
    KubeProxyNFTablesLocalhostNodePorts,
    /// On: the alpha logging options may be set.
    LoggingAlphaOptions,
}

impl Feature {
    fn name(self) -> &'static str {
        match self {
            Self::AllowServiceExternalIPs => "AllowServiceExternalIPs",
            Self::ComponentStatusz => "ComponentStatusz",
            Self::ComponentFlagz => "ComponentFlagz",
            Self::KubeProxyNFTablesLocalhostNodePorts => "KubeProxyNFTablesLocalhostNodePorts",
            Self::LoggingAlphaOptions => "LoggingAlphaOptions",
        }
    }
}

/// The gates as configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FeatureGates {
    set: BTreeMap<&'static str, bool>,
}

impl FeatureGates {
    /// Takes what was configured. The errors name the gate; the second value is what deserves a line in the log.
    pub(crate) fn new(wanted: &BTreeMap<String, bool>) -> Result<(Self, Vec<String>), Vec<String>> {
        let mut set = BTreeMap::new();
        let mut errors = Vec::new();
        let mut notices = Vec::new();
        for (name, &value) in wanted {
            let Some(gate) = find(name) else {
                errors.push(format!("unrecognized feature gate: {name}"));
                continue;
            };
            if gate.locked && gate.default != value {
                errors.push(format!(
                    "cannot set feature gate {name} to {value}, feature is locked to {}",
                    gate.default
                ));
                continue;
            }
            let kind = match gate.stage {
                Stage::Stable => Some("GA"),
                Stage::Deprecated => Some("deprecated"),
                Stage::Alpha | Stage::Beta => None,
            };
            if let Some(kind) = kind {
                notices.push(format!("Warning: setting {kind} feature gate {name}={value}"));
            }
            set.insert(gate.name, value);
        }
        if errors.is_empty() { Ok((Self { set }, notices)) } else { Err(errors) }
    }

    pub(crate) fn enabled(&self, feature: Feature) -> bool {
        find(feature.name()).is_some_and(|gate| self.resolve(gate))
    }

    /// What the configuration says of a feature, by its own gate or by that of its stage; `None`: nothing.
    pub(crate) fn chosen(&self, feature: Feature) -> Option<bool> {
        find(feature.name()).and_then(|gate| self.said_of(gate))
    }

    /// Every known gate: name, stage, whether it is on. Sorted by name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> {
        GATES.iter().map(|gate| (gate.name, gate.stage, self.resolve(gate)))
    }

    fn resolve(&self, gate: &Gate) -> bool {
        self.said_of(gate).unwrap_or(gate.default)
    }

    fn said_of(&self, gate: &Gate) -> Option<bool> {
        let group = match gate.stage {
            Stage::Alpha => self.set.get("AllAlpha"),
            Stage::Beta => self.set.get("AllBeta"),
            Stage::Stable | Stage::Deprecated => None,
        };
        self.set.get(gate.name).or(group).copied()
    }
}

fn find(name: &str) -> Option<&'static Gate> {
    GATES.binary_search_by(|gate| gate.name.cmp(name)).ok().map(|at| &GATES[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(pairs: &[(&str, bool)]) -> Result<(FeatureGates, Vec<String>), Vec<String>> {
        FeatureGates::new(&pairs.iter().map(|&(name, value)| (name.to_owned(), value)).collect())
    }

    #[test]
    fn the_tables_are_sorted_and_without_repetition() {
        assert!(known::KNOWN.windows(2).all(|pair| pair[0].name < pair[1].name));
        let later = known::LATER.iter().map(|(from, gate)| (gate.name, *from));
        assert!(later.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn gates_have_the_stage_of_the_release() {
        for (name, minor, stage, default) in [
            ("NFTablesNetlink", 36, Stage::Beta, true),
            ("KubeProxyNFTablesLocalhostNodePorts", 36, Stage::Alpha, false),
            ("KubeProxyNFTablesLocalhostNodePorts", 37, Stage::Alpha, false),
            ("KubeProxyNFTablesLocalhostNodePorts", 38, Stage::Beta, true),
            ("KubeProxyIPVS", 37, Stage::Deprecated, true),
            ("KubeProxyIPVS", 39, Stage::Deprecated, true),
            ("KubeProxyIPVS", 40, Stage::Deprecated, false),
            ("AllowServiceExternalIPs", 39, Stage::Stable, true),
            ("AllowServiceExternalIPs", 40, Stage::Deprecated, false),
        ] {
            let gates = of_release(minor);
            let gate = gates.iter().find(|gate| gate.name == name).expect(name);
            assert_eq!((gate.stage, gate.default), (stage, default), "{name} in 1.{minor}");
        }
        let locked = of_release(43).into_iter().find(|gate| gate.name == "AllowServiceExternalIPs");
        assert!(locked.is_some_and(|gate| gate.locked));
    }

    #[test]
    fn every_feature_that_matters_here_is_known() {
        for feature in [
            Feature::AllowServiceExternalIPs,
            Feature::ComponentStatusz,
            Feature::ComponentFlagz,
            Feature::KubeProxyNFTablesLocalhostNodePorts,
            Feature::LoggingAlphaOptions,
        ] {
            assert!(find(feature.name()).is_some(), "{feature:?}");
        }
    }

    #[test]
    fn an_unknown_gate_is_refused_by_name() {
        assert_eq!(gates(&[("NoSuchGate", true)]).unwrap_err(), ["unrecognized feature gate: NoSuchGate"]);
    }

    #[test]
    fn a_locked_gate_keeps_its_value() {
        assert_eq!(
            gates(&[("NFTablesProxyMode", false)]).unwrap_err(),
            ["cannot set feature gate NFTablesProxyMode to false, feature is locked to true"]
        );
        assert!(gates(&[("NFTablesProxyMode", true)]).is_ok());
    }

    #[test]
    fn gates_of_other_components_and_of_the_next_release_are_accepted() {
        for name in ["InPlacePodVerticalScaling", "WatchListClient", "KubeProxyIPVS", "NFTablesNetlink"] {
            assert!(gates(&[(name, true)]).is_ok(), "{name}");
        }
    }

    #[test]
    fn groups_reach_the_gates_that_are_not_set_themselves() {
        let (gates, _) =
            gates(&[("AllBeta", false), ("ComponentFlagz", true), ("AllAlpha", true)]).expect("known gates");
        assert!(!gates.enabled(Feature::ComponentStatusz));
        assert!(gates.enabled(Feature::ComponentFlagz));
        assert!(gates.enabled(Feature::LoggingAlphaOptions));
        assert!(gates.enabled(Feature::AllowServiceExternalIPs));
    }

    #[test]
    fn setting_a_stable_gate_is_worth_a_line() {
        let (_, notices) = gates(&[("AllowServiceExternalIPs", false)]).expect("a known gate");
        assert_eq!(notices, ["Warning: setting GA feature gate AllowServiceExternalIPs=false"]);
    }
}
