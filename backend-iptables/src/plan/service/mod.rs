//! Writes one Service port as rules: its own chains in table `nat`, and its lines in the dispatch chains.
//!
//! Rules and their order within a chain are those of kube-proxy 1.36 (pkg/proxy/iptables/proxier.go, syncProxyRules).
//! Each is written exactly as `iptables-save` prints it, so that what is there already is known by comparing text.

mod chains;
mod dispatch;
mod named;
pub(crate) mod rules;
mod writer;

use proxy_core::{model::ServicePortName, route::Route};

use rules::{Context, Rules};
use writer::Writer;

/// All rules of one Service port.
pub(crate) fn write(name: &ServicePortName, route: &Route, context: Context<'_>) -> Rules {
    let writer = Writer::new(name, route, context);
    let mut rules = Rules::of(writer.dispatch());
    if route.any_endpoint {
        rules.text.reserve(1024 + 384 * writer.endpoints.len());
        writer.chains_into(&mut rules);
    }
    rules
}
