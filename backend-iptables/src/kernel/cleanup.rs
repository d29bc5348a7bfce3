//! Removes what kube-proxy's iptables and ipvs modes (and we) put into the tables of one family: jumps, then chains.
//! Chains that kubelet shares (`KUBE-FIREWALL`) and everybody else's stay.

use proxy_core::{
    backend::{ApplyError, Executor as _},
    model::Family,
};

use crate::{
    kernel::{executor::Executor, variant},
    plan::removal::plan,
    schema::found::Host,
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
    let found = executor.read_tables(Host::default())?;
    let plan = plan(&found);
    if plan.is_empty() { Ok(()) } else { executor.apply(&plan).map(|_| ()) }
}
