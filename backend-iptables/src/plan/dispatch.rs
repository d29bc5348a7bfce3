//! The chains that all Services share are written whole, from the lines that are remembered of every Service port.
//!
//! A new flow must meet what table `filter` does to its frontend until table `nat` translates it, and again from the moment
//! on at which `nat` no longer does: what passes untranslated in between is remembered so by connection tracking, and is never
//! translated while its client goes on sending. So lines of `filter` that come are committed before `nat`, and those that go
//! after it.

use std::collections::{BTreeMap, HashSet};

use proxy_core::{
    backend::{Owned, Step},
    model::ServicePortName,
};

use crate::{
    plan::service::rules::{Dispatch, EndpointComments},
    schema::{
        chains::{Dispatcher, Table},
        op::Op,
    },
};

/// What must be known of a Service port that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    /// Its lines in the dispatch chains: those are written whole.
    pub(super) dispatch: Dispatch,
    /// As its own chains were written last: when the cluster becomes large, those that do not change stay as they are.
    pub(super) comments: EndpointComments,
}

/// How the lines of one dispatch chain of table `filter` change.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Some are new.
    comes: bool,
    /// Those that are no longer wanted.
    goes: String,
}

impl Turn {
    /// The chain is to be written though no line may differ.
    pub(super) fn renewed(self) -> Self {
        Self { comes: true, ..self }
    }

    pub(super) fn add<'a>(
        &mut self,
        before: impl Iterator<Item = &'a str> + Clone,
        after: impl Iterator<Item = &'a str> + Clone,
    ) {
        self.comes |= after.clone().any(|line| before.clone().all(|old| old != line));
        for line in before.filter(|old| after.clone().all(|line| line != *old)) {
            self.goes.push_str(line);
            self.goes.push('\n');
        }
    }

    /// The same, of whole chains.
    pub(super) fn add_sets(&mut self, before: &HashSet<&str>, after: &HashSet<&str>) {
        self.comes |= after.iter().any(|line| !before.contains(line));
        let mut goes: Vec<&str> = before.difference(after).copied().collect();
        goes.sort_unstable();
        goes.iter().for_each(|line| {
            self.goes.push_str(line);
            self.goes.push('\n');
        });
    }

    /// Writes the chain into `early`, which is committed before `nat`, or into `late`, or both.
    pub(super) fn write(
        self,
        (early, late): (&mut Step<Op>, &mut Step<Op>),
        dispatcher: Dispatcher,
        ports: &BTreeMap<ServicePortName, Port>,
        owner: impl Fn(usize, &ServicePortName) -> Option<u32>,
    ) {
        let Self { comes, goes } = self;
        let stays = goes.is_empty();
        if comes || stays {
            write_dispatcher(early, dispatcher, ports, "", &owner);
        }
        if !stays {
            if comes {
                let (table, chain) = (dispatcher.table(), dispatcher.chain());
                early.push(Op::Append { table, chain, rules: goes.into() }, None);
            }
            write_dispatcher(late, dispatcher, ports, "", &owner);
        }
    }
}

/// The lines of a port in a dispatch chain.
pub(super) fn lines(port: Option<&Port>, of: Dispatcher) -> impl Iterator<Item = &str> + Clone {
    port.and_then(|port| port.dispatch.lines(of)).into_iter().flat_map(|lines| lines.lines())
}

/// What of a step is committed late follows the rest; without anything in `nat` to wait for, all goes at once.
pub(super) fn touches_nat(step: &Step<Op>) -> bool {
    step.ops.iter().any(|owned| owned.op.table() == Some(Table::Nat))
}

pub(super) fn commit_after(step: &mut Step<Op>, late: Step<Op>) {
    if !late.ops.is_empty() {
        step.push(Op::Then, None);
        step.ops.extend(late.ops);
    }
}

/// Writes a dispatch chain whole, from the remembered lines; `owner` gets the number and the name of a port.
pub(super) fn write_dispatcher(
    step: &mut Step<Op>,
    dispatcher: Dispatcher,
    ports: &BTreeMap<ServicePortName, Port>,
    to_node_ports: &str,
    owner: impl Fn(usize, &ServicePortName) -> Option<u32>,
) {
    let (table, chain) = (dispatcher.table(), dispatcher.chain());
    step.push(Op::Declare { table, chain }, None);
    step.ops.extend(ports.iter().enumerate().filter_map(|(at, (name, port))| {
        let rules = port.dispatch.lines(dispatcher)?.clone();
        Some(Owned { op: Op::Append { table, chain, rules }, owner: owner(at, name) })
    }));
    if !to_node_ports.is_empty() {
        step.push(Op::Append { table, chain, rules: to_node_ports.into() }, None);
    }
}
