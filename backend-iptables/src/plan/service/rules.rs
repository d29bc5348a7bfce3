//! One Service port as rules: what is written of it, and what that depends on beside the route.

use std::{
    collections::HashMap,
    ops::{AddAssign, Range, SubAssign},
    sync::Arc,
};

use proxy_core::environment::Environment;

use crate::schema::{
    chains::{Dispatcher, ServiceChain, Table},
    found::Host,
    op::Tally,
    stamp::Stamp,
};

/// All rules of one Service port.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// All chains, one after the other.
    pub(crate) text: String,
    chains: Vec<(ServiceChain, Range<usize>)>,
    pub(crate) dispatch: Dispatch,
}

impl Rules {
    /// Without chains so far.
    pub(super) fn of(dispatch: Dispatch) -> Self {
        Self { dispatch, ..Self::default() }
    }

    pub(super) fn add_chain(&mut self, chain: ServiceChain, write: impl FnOnce(&mut String)) {
        let start = self.text.len();
        write(&mut self.text);
        self.chains.push((chain, start..self.text.len()));
    }

    /// The chains of this port, each with its rules as restore lines.
    pub(crate) fn chains(&self) -> impl ExactSizeIterator<Item = (ServiceChain, &str)> {
        self.chains.iter().map(|(chain, range)| (*chain, &self.text[range.clone()]))
    }

    /// What they add to the sums over all Services.
    pub(crate) fn share(&self) -> Share {
        let mut share = Share::default();
        let mut uses: HashMap<ServiceChain, usize> = HashMap::with_capacity(self.chains.len());
        let mut name = String::new();
        for (chain, rules) in self.chains() {
            name.clear();
            chain.write(&mut name);
            share.stamp.add_chain(Table::Nat, &name);
            *uses.entry(chain).or_default() += 0;
            for (at, rule) in rules.lines().enumerate() {
                share.rules.nat += 1;
                share.stamp.add_rule(Table::Nat, Some(at), rule);
                *uses.entry(chain).or_default() += 1;
                count_target(rule, &mut uses);
            }
        }
        for (dispatcher, lines) in &self.dispatch.0 {
            let table = dispatcher.table();
            for rule in lines.lines() {
                share.rules.add(table, "\n");
                share.lines[*dispatcher as usize] += 1;
                share.stamp.add_rule(table, None, rule);
                count_target(rule, &mut uses);
            }
        }
        for (chain, uses) in uses {
            name.clear();
            chain.write(&mut name);
            share.stamp.add_uses(Table::Nat, &name, uses);
        }
        share
    }
}

/// A rule that leads to a chain of the Service is a use of that.
fn count_target(rule: &str, uses: &mut HashMap<ServiceChain, usize>) {
    if let Some((_, target)) = rule.rsplit_once(" -j ")
        && let Some(chain) = ServiceChain::parse(target)
    {
        *uses.entry(chain).or_default() += 1;
    }
}

/// What one Service port adds to the sums over all of them, or what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Share {
    pub(crate) rules: Tally,
    pub(crate) stamp: Stamp,
    /// Rules in each dispatch chain.
    pub(crate) lines: [usize; Dispatcher::ALL.len()],
}

impl AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.rules += other.rules;
        self.stamp += other.stamp;
        self.lines.iter_mut().zip(other.lines).for_each(|(all, lines)| *all += lines);
    }
}

impl SubAssign for Share {
    fn sub_assign(&mut self, other: Self) {
        self.rules -= other.rules;
        self.stamp -= other.stamp;
        self.lines.iter_mut().zip(other.lines).for_each(|(all, lines)| *all -= lines);
    }
}

/// One Service port's lines in the dispatch chains; a chain without lines is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dispatch(Vec<(Dispatcher, Arc<str>)>);

impl Dispatch {
    pub(super) fn new(lines: impl Iterator<Item = (Dispatcher, String)>) -> Self {
        let written = lines.filter(|(_, lines)| !lines.is_empty());
        Self(written.map(|(dispatcher, lines)| (dispatcher, lines.into())).collect())
    }

    pub(crate) fn lines(&self, of: Dispatcher) -> Option<&Arc<str>> {
        self.0.iter().find_map(|(dispatcher, lines)| (*dispatcher == of).then_some(lines))
    }
}

/// Whether rules carry comments that name endpoints. kube-proxy leaves them out above 1,000 endpoints, since they are
/// some 40 % of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndpointComments {
    Written,
    LeftOut,
}

/// What rules depend on beside the route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) host: Host,
    pub(crate) comments: EndpointComments,
}
