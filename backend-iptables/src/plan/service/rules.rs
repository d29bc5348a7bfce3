//! One Service port as rules: what is written of it, and what that depends on beside the route.

use std::{ops::Range, sync::Arc};

use proxy_core::environment::Environment;

use crate::schema::{
    chains::{Dispatcher, ServiceChain, Table},
    found::Host,
    op::Tally,
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

    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        tally.add(Table::Nat, &self.text);
        for (dispatcher, lines) in &self.dispatch.0 {
            tally.add(dispatcher.table(), lines);
        }
        tally
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
