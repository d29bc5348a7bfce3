//! What this kernel's nf_tables can do, asked before relying on it.
//!
//! One batch uses everything in a table of its own and ends in a message that must fail. The kernel tells of every
//! message that failed, and since the last one did, nothing of it ever exists: no other program can see the table, and
//! the rule set's generation stays.

use std::{fmt, ops::Range, time::Duration};

use netlink::Socket;

use crate::{
    Batch, Chain, ChainKind, CommitError, Element, Expression, Family, Field, Hook, Refusal, Register, Rule,
    Set, Table,
    expression::{
        ConntrackKey, conntrack, delete, destination, destination_port, destination_type, dnat, jhash,
        l4proto, map, masquerade_fully_random, priority, random, reject, shift_left, source, update,
    },
};

/// Something that a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// Tables of the family. Without them nothing else is asked for.
    Tables,
    NatChain,
    Nat,
    Masquerade,
    Fib,
    Numgen,
    Hash,
    Conntrack,
    Reject,
    Counter,
    BitwiseShift,
    ConcatenatedMap,
    DynamicMap,
    IntervalConcatenation,
    /// Deleting what may not be there (Linux 6.3).
    Destroy,
}

impl Feature {
    /// The kernel's build option, or the version that has it.
    pub const fn wants(self, family: Family) -> &'static str {
        let ip6 = matches!(family, Family::Ip6);
        match self {
            Self::Tables if ip6 => "CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV6",
            Self::Tables => "CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4",
            Self::NatChain | Self::Nat => "CONFIG_NFT_NAT",
            Self::Masquerade => "CONFIG_NFT_MASQ",
            Self::Fib if ip6 => "CONFIG_NFT_FIB_IPV6",
            Self::Fib => "CONFIG_NFT_FIB_IPV4",
            Self::Numgen => "CONFIG_NFT_NUMGEN",
            Self::Hash => "CONFIG_NFT_HASH",
            Self::Conntrack => "CONFIG_NFT_CT",
            Self::Reject if ip6 => "CONFIG_NFT_REJECT and CONFIG_NFT_REJECT_IPV6",
            Self::Reject => "CONFIG_NFT_REJECT and CONFIG_NFT_REJECT_IPV4",
            // Part of nf_tables itself since Linux 5.18.
            Self::Counter => "CONFIG_NFT_COUNTER",
            Self::BitwiseShift | Self::IntervalConcatenation => "Linux 5.6",
            Self::ConcatenatedMap => "Linux 4.1",
            Self::DynamicMap => "Linux 5.4",
            Self::Destroy => "Linux 6.3",
        }
    }

    /// What it is called in nftables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::NatChain => "chains of type nat",
            Self::Nat => "dnat",
            Self::Masquerade => "masquerade",
            Self::Fib => "fib lookups",
            Self::Numgen => "numgen",
            Self::Hash => "jhash",
            Self::Conntrack => "ct",
            Self::Reject => "reject",
            Self::Counter => "counter",
            Self::BitwiseShift => "bitwise shifts",
            Self::ConcatenatedMap => "maps with concatenated keys",
            Self::DynamicMap => "maps updated from the packet path",
            Self::IntervalConcatenation => "intervals in concatenations",
            Self::Destroy => "destroy",
        }
    }
}

/// A feature this kernel does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    pub feature: Feature,
    pub family: Family,
    /// What the kernel answered, positive.
    pub errno: i32,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = std::io::Error::from_raw_os_error(self.errno);
        let Self { feature, family, .. } = self;
        write!(
            f,
            "nf_tables of this kernel lacks {} in family {} (wants {}): {reason}",
            feature.name(),
            family.name(),
            feature.wants(*family)
        )
    }
}

/// Which features are missing in `ip` or `ip6`. An error means that nf_tables as a whole may not be used by this process
/// (`EPERM`) or is not in this kernel.
pub fn missing(socket: &mut Socket, family: Family) -> Result<Vec<Missing>, CommitError> {
    let mut probe = Probe::new(family);
    probe.everything();
    let refusals = match probe.batch.commit(socket) {
        Ok(()) => return Ok(Vec::new()),
        Err(CommitError::Refused(refusals)) => refusals,
        Err(error) => return Err(error),
    };
    if refusals.iter().any(|refusal| refusal.position.is_none()) {
        return Err(CommitError::Refused(refusals));
    }
    Ok(probe.missing(&refusals))
}

struct Probe {
    family: Family,
    name: String,
    batch: Batch,
    /// Which messages stand for which feature.
    features: Vec<(Feature, Range<usize>)>,
}

const R: [Register; 6] = [Register::R0, Register::R1, Register::R2, Register::R3, Register::R4, Register::R5];
const CHAIN: &str = "probe";

impl Probe {
    fn new(family: Family) -> Self {
        let name = format!("switchyard-probe-{}", std::process::id());
        Self { family, name, batch: Batch::new(), features: Vec::new() }
    }

    /// The table goes first: where it is refused, so is all the rest.
    fn everything(&mut self) {
        let family = self.family;
        let words = if family == Family::Ip6 { 4 } else { 1 };
        let table = self.name.clone();
        let table = Table::new(family, &table);
        let address = if family == Family::Ip6 { Field::IPV6_ADDRESS } else { Field::IPV4_ADDRESS };
        self.feature(Feature::Tables, |batch| {
            batch.add_table(table, None);
            batch.add_chain(table, &Chain::regular(CHAIN));
        });

        let rule = |rule: Rule| {
            move |batch: &mut Batch| {
                batch.append_rule(table, CHAIN, &rule);
            }
        };
        let [port, after_port] = [R[0].after(words), R[0].after(words + 1)];
        self.feature(Feature::NatChain, |batch| {
            batch.add_chain(table, &Chain::base("nat", ChainKind::Nat, Hook::Prerouting, -100));
        });
        self.feature(
            Feature::Nat,
            // Newer kernels refuse a register that nothing was put into.
            rule(
                Rule::new()
                    .with(destination(family, R[0]))
                    .with(destination_port(port))
                    .with(dnat(family, R[0], port)),
            ),
        );
        self.feature(Feature::Masquerade, rule(Rule::new().with(masquerade_fully_random())));
        self.feature(Feature::Fib, rule(Rule::new().with(destination_type(R[0]))));
        self.feature(Feature::Numgen, rule(Rule::new().with(random(3, R[0]))));
        let hashed = Rule::new().with(destination(family, R[0])).with(jhash(R[0], 4 * words, 3, 1, R[0]));
        self.feature(Feature::Hash, rule(hashed));
        self.feature(Feature::Conntrack, rule(Rule::new().with(conntrack(ConntrackKey::State, R[0]))));
        self.feature(Feature::Reject, rule(Rule::new().with(reject(family))));
        self.feature(Feature::Counter, rule(Rule::new().with(Expression::Counter)));
        self.feature(
            Feature::BitwiseShift,
            rule(Rule::new().with(priority(R[0])).with(shift_left(R[0], 12))),
        );
        self.feature(Feature::ConcatenatedMap, |batch| {
            batch.add_set(table, &Set::map("map", &[address, Field::PROTOCOL], &[address, Field::PORT]));
            let lookup =
                Rule::new().with(destination(family, R[0])).with(l4proto(port)).with(map(R[0], "map", R[0]));
            batch.append_rule(table, CHAIN, &lookup);
        });
        self.feature(Feature::DynamicMap, |batch| {
            let key = [address, Field::CLASS];
            batch.add_set(table, &Set::map("clients", &key, &[Field::CLASS]).dynamic().aging().size(1024));
            let hour = Some(Duration::from_secs(3600));
            let remember = Rule::new()
                .with(source(family, R[0]))
                .with(priority(port))
                .with(priority(after_port))
                .with(update("clients", R[0], Some(after_port), hour))
                .with(delete("clients", R[0], Some(after_port)));
            batch.append_rule(table, CHAIN, &remember);
        });
        self.feature(Feature::IntervalConcatenation, |batch| {
            batch.add_set(table, &Set::new("ranges", &[Field::PORT, Field::PORT]).interval());
            batch.add_elements(table, "ranges").push(&Element::key(&[0; 8]).to(&[0, 1, 0, 0, 0, 1, 0, 0]));
        });
        self.feature(Feature::Destroy, |batch| {
            batch.destroy_set(table, "no-such-set");
        });
        self.batch.delete_chain(table, "no-such-chain");
    }

    fn feature(&mut self, feature: Feature, add: impl FnOnce(&mut Batch)) {
        let first = self.batch.messages();
        add(&mut self.batch);
        self.features.push((feature, first..self.batch.messages()));
    }

    fn missing(&self, refusals: &[Refusal]) -> Vec<Missing> {
        let refused = |range: &Range<usize>| {
            let within = |refusal: &&Refusal| {
                refusal.position.is_some_and(|position| range.contains(&(position.message as usize)))
            };
            refusals.iter().find(within)
        };
        let mut missing = Vec::new();
        for (feature, range) in &self.features {
            if let Some(refusal) = refused(range) {
                missing.push(Missing { feature: *feature, family: self.family, errno: refusal.errno });
                if *feature == Feature::Tables {
                    break;
                }
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Position;

    #[test]
    fn a_refused_message_names_its_feature_once_and_the_closing_one_none() {
        let mut probe = Probe::new(Family::Ip6);
        probe.everything();
        let of = |message: usize, errno| Refusal {
            position: Some(Position { message: message as u32, element: 0 }),
            errno,
            message: None,
        };
        let range =
            |feature| probe.features.iter().find(|(known, _)| *known == feature).expect("probed").1.clone();
        let fib = range(Feature::Fib);
        let map = range(Feature::ConcatenatedMap);
        assert_eq!(map.len(), 2);
        let refusals =
            [of(fib.start, 2), of(map.start, 95), of(map.start + 1, 2), of(probe.batch.messages() - 1, 2)];
        let missing = probe.missing(&refusals);
        let found: Vec<_> = missing.iter().map(|missing| (missing.feature, missing.errno)).collect();
        assert_eq!(found, [(Feature::Fib, 2), (Feature::ConcatenatedMap, 95)]);
        let all: Vec<_> = (0..probe.batch.messages()).map(|message| of(message, 97)).collect();
        let features: Vec<_> = probe.missing(&all).iter().map(|missing| missing.feature).collect();
        assert_eq!(features, [Feature::Tables], "without a table there is nothing to say about the rest");
        assert_eq!(
            missing[0].to_string(),
            "nf_tables of this kernel lacks fib lookups in family ip6 (wants CONFIG_NFT_FIB_IPV6): \
             No such file or directory (os error 2)"
        );
    }
}
