//! What removes chains and jumps: all of them, or those that are stale.

use proxy_core::backend::{Plan, Step};

use crate::schema::{
    chains::{
        FIXED_CHAINS, IPVS_CHAINS, IPVS_JUMPS, JUMPS, Jump, MARK_MASQUERADE, POSTROUTING, Role, ServiceChain,
        Table, is_service_chain,
    },
    found::Found,
    op::Op,
    restore::BLOCK_CHAINS,
};

/// What removes all that was found: first what leads to chains of Services, for their deletion may take several
/// transactions. `spared` chains of table `filter` stay with the jumps to them, and what others use stays: a rule of
/// theirs that marks packets for masquerading is to go on having that effect.
pub(crate) fn plan(found: &Found, spared: &[&str]) -> Plan<Op> {
    let marks = found.user_of(Table::Nat, MARK_MASQUERADE).is_some();
    let is_spared = |table: Table, chain: &str| match table {
        Table::Filter => spared.contains(&chain),
        Table::Nat => marks && matches!(chain, MARK_MASQUERADE | POSTROUTING),
        Table::Mangle => false,
    };
    let fixed = || {
        let all = FIXED_CHAINS.into_iter().chain(IPVS_CHAINS);
        all.filter(|(table, chain)| !is_spared(*table, chain) && found.has_chain(*table, chain))
    };
    let mut way_in = Step::default();
    let jumps = JUMPS.iter().chain(&IPVS_JUMPS);
    remove_jumps(&mut way_in, found, jumps.filter(|jump| !is_spared(jump.table, jump.to)));
    for (table, chain) in fixed().filter(|(table, chain)| !found.is_empty_chain(*table, chain)) {
        way_in.push(Op::Declare { table, chain }, None);
    }
    let mut chains = Step::default();
    drop_service_chains(&mut chains, found, found.service_chains());
    let misnamed = found.other_chains(Table::Nat).filter(|chain| is_service_chain(chain));
    let mut named: Vec<(Table, &str)> = misnamed.map(|chain| (Table::Nat, chain)).collect();
    named.sort_unstable();
    named.extend(fixed().map(|(table, chain)| (table, chain as &str)));
    for (table, chain) in named {
        drop_named(&mut chains, found, table, chain);
    }
    Plan { steps: [way_in, chains].into_iter().filter(|step| !step.ops.is_empty()).collect() }
}

/// Deletes a chain, or only empties it if a rule of others leads to it.
pub(crate) fn drop_named(step: &mut Step<Op>, found: &Found, table: Table, chain: &str) {
    if found.user_of(table, chain).is_none() {
        step.push(Op::DropNamed { table, chain: chain.into() }, None);
    } else if !found.is_empty_chain(table, chain) {
        step.push(Op::Empty { table, chain: chain.into() }, None);
    }
}

/// Deletes jumps, each as often as it is there: one that stays keeps the chain that it leads to.
pub(crate) fn remove_jumps<'a>(step: &mut Step<Op>, found: &Found, jumps: impl Iterator<Item = &'a Jump>) {
    for jump in jumps {
        for _ in 0..found.count_jumps(jump) {
            step.push(Op::Remove(*jump), None);
        }
    }
}

/// Deletes chains, those first that lead to others: a chain cannot go while a rule leads to it, and many chains take
/// more than one transaction.
pub(crate) fn drop_service_chains(
    step: &mut Step<Op>,
    found: &Found,
    chains: impl Iterator<Item = ServiceChain>,
) {
    let (used, mut chains): (Vec<ServiceChain>, Vec<ServiceChain>) =
        chains.partition(|chain| found.user_of(Table::Nat, &chain.to_string()).is_some());
    used.iter().for_each(|chain| drop_named(step, found, Table::Nat, &chain.to_string()));
    let depth = |chain: &ServiceChain| match chain.role {
        Role::Firewall => 0,
        Role::External => 1,
        Role::Cluster | Role::Local => 2,
        Role::Endpoint => 3,
    };
    chains.sort_unstable_by_key(|chain| (depth(chain), *chain));
    for chains in chains.chunks(BLOCK_CHAINS) {
        step.push(Op::Drop { chains: chains.into() }, None);
    }
}
