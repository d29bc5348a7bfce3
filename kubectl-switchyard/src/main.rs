//! `kubectl switchyard VERB …`: the questions of `kube-proxy VERB …`, asked from outside of the cluster.
//!
//! kubectl finds the proxies' pods and runs the verb in them ([`kubectl`]), so that whoever may execute commands there
//! may ask, and nobody else; nothing listens on the network. [`arguments`] tells the plugin's own options from the verb's,
//! [`pods`] says which pods are asked, [`ask`] asks several nodes at once, [`merge`] makes one answer of theirs.

mod arguments;
mod ask;
mod kubectl;
mod merge;
mod pods;

use std::{io::Write as _, process::ExitCode};

use anyhow::bail;

use arguments::{Asked, FAILED, Options};
use kubectl::Kubectl;

fn main() -> ExitCode {
    let asked = match Asked::of(std::env::args_os().skip(1)) {
        Ok(asked) => asked,
        Err(code) => return code,
    };
    match answer(&asked) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "kubectl switchyard: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn answer(asked: &Asked) -> anyhow::Result<ExitCode> {
    let kubectl = Kubectl::new(&asked.options);
    let verb = pods::with_addresses(&kubectl, asked)?;
    let all = pods::of_proxies(&kubectl, &asked.options)?;
    let chosen = choose(&asked.options, all, verb.node.as_deref())?;
    match chosen.as_slice() {
        [] => bail!("no running pod answers"),
        [one] => ask::one(&kubectl, &asked.options, one, &verb.words),
        several => ask::several(&kubectl, &asked.options, several, &verb.words),
    }
}

/// Those that are to be asked; `of_client`: the node of the pod that the question is about.
fn choose(
    options: &Options,
    all: Vec<pods::Proxy>,
    of_client: Option<&str>,
) -> anyhow::Result<Vec<pods::Proxy>> {
    if options.all_nodes {
        return Ok(all);
    }
    let wanted: Vec<&str> = options.node.iter().map(String::as_str).chain(of_client).collect();
    let wanted = if options.node.is_empty() { &wanted[..] } else { &wanted[..options.node.len()] };
    if wanted.is_empty() {
        let total = all.len();
        let first: Vec<pods::Proxy> = all.into_iter().take(1).collect();
        if let ([one], true) = (first.as_slice(), total > 1) {
            let _ = writeln!(
                std::io::stderr(),
                "node {} of {total} answers; choose with --node NAME or --all-nodes",
                one.node
            );
        }
        return Ok(first);
    }
    let mut chosen = Vec::new();
    for name in wanted {
        match all.iter().find(|proxy| proxy.node == *name) {
            Some(proxy) => chosen.push(proxy.clone()),
            None => bail!(
                "no running pod of {} in namespace {} is on node {name}",
                options.selector,
                options.proxy_namespace
            ),
        }
    }
    Ok(chosen)
}
