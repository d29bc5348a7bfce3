//! Removes what kube-proxy's iptables and ipvs modes (and we) put into the tables of one family: jumps, then chains.
//! Chains that kubelet shares (`KUBE-FIREWALL`) and everybody else's stay.

use proxy_core::{
    backend::{ApplyError, Executor as _, Plan, Step},
    model::Family,
};

use crate::{
    chains::{FIXED_CHAINS, IPVS_CHAINS, IPVS_JUMPS, JUMPS, ServiceChain, Table, is_service_chain},
    kernel::Executor,
    restore::{BLOCK_CHAINS, Op},
    survey::Found,
    variant,
};

/// Why rules may have been left behind.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {variant} iptables rules of {family}: {source}")]
pub struct CleanupError {
    pub family: Family,
    pub variant: variant::Variant,
    pub source: ApplyError,
}

/// Cleans the tables of every variant whose programs are installed; one that fails does not keep the other from it.
pub fn cleanup(family: Family) -> Result<(), Vec<CleanupError>> {
    let errors: Vec<CleanupError> = variant::installed(family)
        .into_iter()
        .filter_map(|variant| {
            clean_variant(family, variant).err().map(|source| CleanupError { family, variant, source })
        })
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn clean_variant(family: Family, variant: variant::Variant) -> Result<(), ApplyError> {
    let mut executor = Executor::for_cleanup(family, variant)?;
    let found = executor.survey()?;
    let plan = plan(&found);
    if plan.is_empty() { Ok(()) } else { executor.apply(&plan).map(|_| ()) }
}

/// What removes all that was found.
pub(crate) fn plan(found: &Found) -> Plan<Op> {
    let mut step = Step::default();
    for jump in JUMPS.iter().chain(&IPVS_JUMPS).filter(|jump| found.has_jump(jump)) {
        step.push(Op::Remove(*jump), None);
    }
    let mut services: Vec<ServiceChain> = found.service_chains().collect();
    services.sort_unstable();
    for chains in services.chunks(BLOCK_CHAINS) {
        step.push(Op::Drop { chains: chains.into() }, None);
    }
    let misnamed = found.other_chains(Table::Nat).filter(|chain| is_service_chain(chain));
    let mut chains: Vec<(Table, &str)> = misnamed.map(|chain| (Table::Nat, chain)).collect();
    chains.sort_unstable();
    chains.extend(
        FIXED_CHAINS.into_iter().chain(IPVS_CHAINS).filter(|(table, chain)| found.has_chain(*table, chain)),
    );
    for (table, chain) in chains {
        step.push(Op::DropNamed { table, chain: chain.into() }, None);
    }
    Plan { steps: if step.ops.is_empty() { Vec::new() } else { vec![step] } }
}
