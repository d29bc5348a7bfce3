//! One step of a plan as one nf_tables transaction.

use std::collections::HashSet;

use nft_netlink::{
    Batch, Chain, ChainKind, Element as Encoded, ElementData, Family as Encoding, Hook as EncodedHook,
    Position, Table, Template, Verdict, list,
};
use proxy_core::{backend::Owned, model::Family};

use crate::{
    kernel::{
        encode_rule::encode_rule,
        encode_set::{Bytes, data_bytes, declare, key_bytes},
    },
    schema::{
        element::{Data, Element, Key},
        name::{Base, Hook, Set, SetName, TABLE},
        operation::{Op, Operation},
    },
};

/// Turns operations into batches.
#[derive(Debug)]
pub(crate) struct Encoder {
    family: Family,
    /// The names of the sets of a generation, and the shape of their elements.
    generation: Option<u32>,
    names: Vec<String>,
    templates: Vec<Option<(usize, usize, Template)>>,
    /// Where operations begin in the batch, in their order.
    starts: Vec<(Position, usize)>,
}

/// What was to be deleted and is not there.
#[derive(Debug, Default)]
pub(crate) struct Absent {
    /// Places of operations.
    pub(crate) operations: HashSet<usize>,
    pub(crate) elements: HashSet<(Set, Key)>,
}

pub(crate) fn encoding(family: Family) -> Encoding {
    match family {
        Family::V4 => Encoding::Ip,
        Family::V6 => Encoding::Ip6,
    }
}

pub(crate) fn table(family: Family) -> Table<'static> {
    Table::new(encoding(family), TABLE)
}

impl Encoder {
    pub(crate) fn new(family: Family) -> Self {
        Self {
            family,
            generation: None,
            names: Vec::new(),
            templates: vec![None; Set::ALL.len()],
            starts: Vec::new(),
        }
    }

    /// Writes the operations into the batch, except those that are no work for it and what need not be deleted.
    pub(crate) fn encode(&mut self, ops: &[Owned<Op>], absent: &Absent, batch: &mut Batch) {
        self.starts.clear();
        for (at, owned) in ops.iter().enumerate() {
            if absent.operations.contains(&at) {
                continue;
            }
            if let Some(start) = self.operation(&owned.op.0, absent, batch) {
                self.starts.push((start, at));
            }
        }
    }

    /// The operation that a piece of the last batch belongs to.
    pub(crate) fn operation_at(&self, position: Position) -> Option<usize> {
        let at = self.starts.partition_point(|(start, _)| *start <= position).checked_sub(1)?;
        Some(self.starts[at].1)
    }

    fn operation(&mut self, operation: &Operation, absent: &Absent, batch: &mut Batch) -> Option<Position> {
        let table = table(self.family);
        Some(match operation {
            Operation::Table { .. } => {
                batch.add_table(table, Some("rules for Services; written by kube-proxy"))
            }
            Operation::AddSet { name, capacity, .. } => {
                let v4 = self.family == Family::V4;
                declare(name.set, &name.to_string(), v4, *capacity, |set| batch.add_set(table, set))
            }
            Operation::AddBase { base } => batch.add_chain(table, &base_chain(*base)),
            Operation::AddChain { name } => batch.add_chain(table, &Chain::regular(&name.to_string())),
            Operation::AddRule { chain, rule, .. } => {
                batch.append_rule(table, &chain.to_string(), &encode_rule(rule, table.family))
            }
            Operation::FlushChain { name } => batch.flush_chain(table, name),
            Operation::DeleteChain { name } => batch.delete_chain(table, name),
            Operation::DeleteSet { name } => batch.delete_set(table, name),
            Operation::Loopback { .. } | Operation::LeaveOut => return None,
            Operation::Add { generation, .. }
            | Operation::AddGroup { generation, .. }
            | Operation::AddEndpoints { generation, .. } => {
                return self.elements(operation, *generation, None, batch);
            }
            Operation::Delete { generation, .. } | Operation::DeleteGroup { generation, .. } => {
                return self.elements(operation, *generation, Some(absent), batch);
            }
        })
    }

    fn elements(
        &mut self,
        operation: &Operation,
        generation: u32,
        delete: Option<&Absent>,
        batch: &mut Batch,
    ) -> Option<Position> {
        if self.generation != Some(generation) {
            self.generation = Some(generation);
            self.names = Set::ALL.iter().map(|set| SetName::new(*set, generation).to_string()).collect();
        }
        let mut first = None;
        operation.elements(|element| {
            if delete.is_some_and(|absent| absent.elements.contains(&(element.set, element.key))) {
                return;
            }
            let position = self.element(&element, generation, delete.is_some(), batch);
            first.get_or_insert(position);
        });
        first
    }

    fn element(&mut self, element: &Element, generation: u32, delete: bool, batch: &mut Batch) -> Position {
        let table = table(self.family);
        let own;
        let name = match element.key {
            Key::Allowed(..) => {
                own = element.set_name(generation).to_string();
                own.as_str()
            }
            _ => self.names[element.set as usize].as_str(),
        };
        let mut list =
            if delete { batch.delete_elements(table, name) } else { batch.add_elements(table, name) };
        let (key, end) = key_bytes(&element.key);
        let key = key.as_slice();
        match (end, &element.data) {
            (Some(end), _) => list.push_interval(key, end.as_slice()),
            (None, data) if delete || *data == Data::None => {
                let template = Self::template(&mut self.templates, element.set, key.len(), 0, delete);
                list.push_fixed(&template, key, &[])
            }
            (None, Data::Goto(chain)) => {
                let verdict = Verdict::Goto(chain.to_string().into());
                list.push(&Encoded::verdict(key, &verdict))
            }
            (None, Data::Jump(chain)) => {
                let verdict = Verdict::Jump(chain.to_string().into());
                list.push(&Encoded::verdict(key, &verdict))
            }
            (None, data) => {
                let value: Bytes = data_bytes(data);
                let value = value.as_slice();
                if let Data::Named(_, comment) = data {
                    let data = ElementData::Value(value);
                    return list.push(&Encoded { data, comment: Some(comment), ..Encoded::key(key) });
                }
                let template =
                    Self::template(&mut self.templates, element.set, key.len(), value.len(), delete);
                list.push_fixed(&template, key, value)
            }
        }
    }

    /// Deletions have no data and are rarer: only the shape of additions is kept. Lengths are compared because an address
    /// of the other family must get a refusal from the kernel and do no harm here.
    fn template(
        templates: &mut [Option<(usize, usize, Template)>],
        set: Set,
        key: usize,
        data: usize,
        delete: bool,
    ) -> Template {
        match &templates[set as usize] {
            Some((same_key, same_data, template)) if (*same_key, *same_data) == (key, data) => {
                template.clone()
            }
            _ => {
                let template = Template::new(key, data);
                if !delete {
                    templates[set as usize] = Some((key, data, template.clone()));
                }
                template
            }
        }
    }
}

fn base_chain(base: Base) -> Chain<'static> {
    let hook = base.hook();
    let kind = if hook.nat { ChainKind::Nat } else { ChainKind::Filter };
    let number = match hook.number {
        0 => EncodedHook::Prerouting,
        1 => EncodedHook::Input,
        2 => EncodedHook::Forward,
        3 => EncodedHook::Output,
        _ => EncodedHook::Postrouting,
    };
    Chain::base(base.as_str(), kind, number, hook.priority)
}

/// Where a base chain is hooked in, if its like could be one of ours: filter or nat, policy accept.
pub(crate) fn hook_of(chain: &list::FoundChain) -> Option<Hook> {
    let (number, priority) = chain.hook?;
    let nat = match chain.kind.as_deref()? {
        "nat" => true,
        "filter" => false,
        _ => return None,
    };
    (!chain.drops).then_some(Hook { nat, number, priority })
}
