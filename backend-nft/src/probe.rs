//! Asks the kernel, before anything is installed, for each part of nf_tables that our rules use.

use netlink::{Protocol, Socket};
use nft_netlink::{
    Batch, Chain, ChainKind, CommitError, Expression, Field, Hook, Register, Rule, Set, Table,
    expression::{self as step, ConntrackKey, conntrack_has, conntrack_state},
};
use proxy_core::model::Family;

use crate::encode::encoding;

/// A part of the kernel that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The kernel's configuration option.
    pub option: &'static str,
    /// What does not work without it.
    pub feature: &'static str,
    /// What the kernel answered.
    pub reason: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the kernel lacks {}: {} ({})", self.option, self.feature, self.reason)
    }
}

/// A table that exists only within one transaction, which also deletes it.
const PROBE: &str = "kube-proxy-probe";
const CHAIN: &str = "probe";
const SET: &str = "probe";
const R0: Register = Register::R0;

/// What the kernel lacks for this family; empty if all is well.
pub fn probe(family: Family) -> Result<Vec<Missing>, netlink::Error> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let table = Table::new(encoding(family), PROBE);
    let v4 = family == Family::V4;
    let mut missing = Vec::new();
    let mut ask = |option, feature, fill: &dyn Fn(&mut Batch)| -> Result<bool, netlink::Error> {
        let mut batch = Batch::new();
        batch.add_table(table, None);
        fill(&mut batch);
        batch.delete_table(table);
        match batch.commit(&mut socket) {
            Ok(()) => Ok(true),
            Err(CommitError::Refused(refusals)) => {
                let reason = refusals.first().map_or_else(String::new, ToString::to_string);
                missing.push(Missing { option, feature, reason });
                Ok(false)
            }
            Err(CommitError::Lost(error) | CommitError::Invalid(error)) => Err(error),
        }
    };
    let tables = ask("CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4/IPV6", "everything", &|_| {})?;
    if !tables {
        return Ok(missing);
    }
    let rule = |kind, hook, expressions: Vec<Expression>| {
        move |batch: &mut Batch| {
            batch.add_chain(table, &Chain::base(CHAIN, kind, hook, 0));
            batch.append_rule(table, CHAIN, &Rule::new().with_all(expressions.clone()));
        }
    };
    let nat = |expressions| rule(ChainKind::Nat, Hook::Prerouting, expressions);
    let filter = |expressions| rule(ChainKind::Filter, Hook::Forward, expressions);
    ask("CONFIG_NF_NAT", "translation to endpoints", &nat(Vec::new()))?;
    ask(
        "CONFIG_NFT_NAT",
        "translation to endpoints",
        &nat(vec![
            step::immediate(R0, if v4 { vec![127, 0, 0, 1] } else { vec![0; 16] }),
            step::immediate(Register::R4, [0, 80]),
            step::dnat(table.family, R0, Register::R4),
        ]),
    )?;
    ask("CONFIG_NFT_NUMGEN", "the choice of an endpoint", &nat(vec![step::random(2, R0)]))?;
    let masquerade = vec![step::masquerade_fully_random()];
    ask("CONFIG_NFT_MASQ", "masquerading", &rule(ChainKind::Nat, Hook::Postrouting, masquerade))?;
    let fib = if v4 { "CONFIG_NFT_FIB_IPV4" } else { "CONFIG_NFT_FIB_IPV6" };
    ask(
        fib,
        "NodePorts, and externalTrafficPolicy Local",
        &nat(vec![step::destination_type(R0), step::is_local(R0)]),
    )?;
    ask(
        "CONFIG_NFT_CT",
        "everything",
        &filter(conntrack_has(ConntrackKey::State, conntrack_state::NEW, R0).to_vec()),
    )?;
    let reject = if v4 { "CONFIG_NFT_REJECT_IPV4" } else { "CONFIG_NFT_REJECT_IPV6" };
    ask(
        reject,
        "refusing connections to Services without endpoints",
        &filter(vec![step::reject(table.family)]),
    )?;
    let address = if v4 { Field::IPV4_ADDRESS } else { Field::IPV6_ADDRESS };
    ask("Linux 5.6", "loadBalancerSourceRanges (sets of concatenated ranges)", &|batch| {
        batch.add_set(table, &Set::new(SET, &[address, Field::PROTOCOL, Field::PORT, address]).interval());
    })?;
    ask("Linux 4.3", "session affinity (maps that the packet path fills)", &|batch| {
        let source = if v4 { Field::IP_SOURCE } else { Field::IP6_SOURCE };
        let mut clients = Set::new(SET, &[Field::PRIORITY]).aging().dynamic();
        let key = [source, Field::PRIORITY];
        clients.key = &key;
        clients.data = Some(nft_netlink::Data::Value(&[Field::PRIORITY]));
        batch.add_set(table, &clients.size(1024));
        batch.add_chain(table, &Chain::regular(CHAIN));
        let words = if v4 { 1 } else { 4 };
        let (after, data) = (R0.after(words), R0.after(words + 1));
        batch.append_rule(
            table,
            CHAIN,
            &Rule::new().with_all([
                step::source(table.family, R0),
                step::priority(after),
                step::priority(data),
                step::update(SET, R0, Some(data), Some(std::time::Duration::from_secs(1))),
                step::delete(SET, R0, Some(data)),
            ]),
        );
    })?;
    Ok(missing)
}
