//! Removes what kube-proxy's iptables and ipvs modes (and we) put into the tables of one family: jumps, then chains.
//! Chains that kubelet shares (`KUBE-FIREWALL`) stay, and so do those to which rules of others lead, and everybody else's.

use std::{
    collections::BTreeSet,
    sync::{LazyLock, Mutex, PoisonError},
};

use proxy_core::{
    backend::{ApplyError, Executor as _},
    model::Family,
};

use crate::{
    kernel::{executor::Executor, variant},
    plan::removal::plan,
    schema::found::{Found, Host},
};

/// Why rules may have been left behind.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {variant} iptables rules of {family}: {source}")]
pub struct CleanupError {
    /// Whose rules.
    pub family: Family,
    /// In which of the two sets of tables.
    pub variant: variant::Variant,
    /// What the programs said.
    pub source: ApplyError,
}

/// Cleans the tables of every variant whose programs are installed; one that fails does not keep the other from it.
pub fn cleanup(family: Family) -> Result<(), Vec<CleanupError>> {
    cleanup_but(family, |_| &[])
}

/// The same, but chains of the filter table that are `spared` in a variant stay, and so do the jumps to them.
pub fn cleanup_but(
    family: Family,
    spared: impl Fn(variant::Variant) -> &'static [&'static str],
) -> Result<(), Vec<CleanupError>> {
    let clean = |variant| clean_variant(family, variant, spared(variant));
    let errors: Vec<CleanupError> = variant::installed(family)
        .into_iter()
        .filter_map(|variant| clean(variant).err().map(|source| CleanupError { family, variant, source }))
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn clean_variant(family: Family, variant: variant::Variant, spared: &[&str]) -> Result<(), ApplyError> {
    let mut executor = Executor::for_cleanup(family, variant)?;
    let found = executor.read_tables(Host::default())?;
    name_what_stays(family, &found);
    let plan = plan(&found, spared);
    if plan.is_empty() { Ok(()) } else { executor.apply(&plan).map(|_| ()) }
}

/// Each once in the life of the process: a cleanup may be tried again.
fn name_what_stays(family: Family, found: &Found) {
    static NAMED: LazyLock<Mutex<BTreeSet<String>>> = LazyLock::new(Mutex::default);
    for (table, chain, rule) in found.used_by_others() {
        let named = format!("{family} {table} {chain}");
        if NAMED.lock().unwrap_or_else(PoisonError::into_inner).insert(named) {
            tracing::warn!(%family, %table, chain, rule, "this chain stays, since a rule of others leads to it");
        }
    }
}
