//! Which feature gates exist, and which are on.
//!
//! Nearly all of them mean nothing here, but a cluster's configuration may name any that its Kubernetes knows, so all
//! known names are accepted and an unknown one is refused, as kube-proxy does.

use std::collections::BTreeMap;

mod known;

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
    /// On: the alpha logging options may be set.
    LoggingAlphaOptions,
}

impl Feature {
    fn name(self) -> &'static str {
        match self {
            Self::AllowServiceExternalIPs => "AllowServiceExternalIPs",
            Self::ComponentStatusz => "ComponentStatusz",
            Self::ComponentFlagz => "ComponentFlagz",
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

    /// Every known gate: name, stage, whether it is on. Sorted by name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> {
        known::KNOWN.iter().map(|gate| (gate.name, gate.stage, self.resolve(gate)))
    }

    fn resolve(&self, gate: &Gate) -> bool {
        if let Some(&value) = self.set.get(gate.name) {
            return value;
        }
        let group = match gate.stage {
            Stage::Alpha => self.set.get("AllAlpha"),
            Stage::Beta => self.set.get("AllBeta"),
            Stage::Stable | Stage::Deprecated => None,
        };
        group.copied().unwrap_or(gate.default)
    }
}

fn find(name: &str) -> Option<&'static Gate> {
    known::KNOWN.binary_search_by(|gate| gate.name.cmp(name)).ok().map(|at| &known::KNOWN[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(pairs: &[(&str, bool)]) -> Result<(FeatureGates, Vec<String>), Vec<String>> {
        FeatureGates::new(&pairs.iter().map(|&(name, value)| (name.to_owned(), value)).collect())
    }

    #[test]
    fn the_table_is_sorted_and_without_repetition() {
        assert!(known::KNOWN.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn every_feature_that_matters_here_is_known() {
        for feature in [
            Feature::AllowServiceExternalIPs,
            Feature::ComponentStatusz,
            Feature::ComponentFlagz,
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
