//! Questions whose answers are the layers of one whole.

use crate::scale::results::Results;

use super::{MEDIAN, Question, Unit, question};

/// Layers that add up, shown as shares of their sum.
#[derive(Debug)]
pub struct Stack {
    /// A name for anchors and files.
    pub(crate) slug: &'static str,
    pub(crate) title: &'static str,
    pub(crate) how: &'static str,
    /// Named by their titles.
    pub(crate) layers: &'static [Question],
}

/// In the order of a report; each follows the question whose whole it divides.
pub(crate) const STACKS: &[(&str, Stack)] = &[
    (
        "first-sync",
        Stack {
            slug: "first-sync-phases",
            title: "First sync: where does the time go?",
            how: "The process's own account (switchyard_first_sync_seconds) of the time until every Service works: waiting for the API server's lists and decoding them (of Services or EndpointSlices, whichever took longer), planning, encoding for the kernel, waiting for the kernel or for iptables-restore. The rest is starting, reading the Node, taking in what was decoded, and waiting for a CPU. kube-proxy keeps no such account.",
            layers: &[
                layer("first-sync-list", "list"),
                layer("first-sync-decode", "decode"),
                layer("first-sync-plan", "plan"),
                layer("first-sync-encode", "encode"),
                layer("first-sync-kernel", "kernel"),
                layer("first-sync-rest", "the rest"),
            ],
        },
    ),
    (
        "objects",
        Stack {
            slug: "objects-by-kind",
            title: "What is in the kernel?",
            how: "Counted in what the administrator's tools print.",
            layers: &[
                objects("objects-tables", "tables"),
                objects("objects-chains", "chains"),
                objects("objects-rules", "rules"),
                objects("objects-sets", "sets"),
                objects("objects-maps", "maps"),
                objects("objects-elements", "elements"),
                objects("objects-virtual-servers", "virtual servers"),
                objects("objects-destinations", "destinations"),
                objects("objects-addresses", "routes and addresses"),
            ],
        },
    ),
];

const fn layer(measure: &'static str, name: &'static str) -> Question {
    question(measure, name, "", Unit::Seconds, MEDIAN)
}

const fn objects(measure: &'static str, name: &'static str) -> Question {
    question(measure, name, "", Unit::Count, MEDIAN)
}

impl Stack {
    /// Contenders that tell any layer.
    pub(crate) fn contenders<'a>(&self, results: &'a Results) -> Vec<&'a str> {
        let tells = |name: &&str| {
            self.layers.iter().any(|layer| results.contenders_of(&layer.measure).contains(name))
        };
        results.all_names().into_iter().filter(tells).collect()
    }

    /// Workloads of which any layer is told.
    pub(crate) fn workloads<'a>(&self, results: &'a Results) -> Vec<&'a str> {
        let told =
            |name: &&str| self.layers.iter().any(|layer| results.workloads_of(&layer.measure).contains(name));
        results.all_workloads().into_iter().filter(told).collect()
    }
}
