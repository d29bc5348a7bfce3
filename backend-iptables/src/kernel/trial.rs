//! Finds the Service at fault when the kernel refuses a whole table without saying why, as the legacy variant does.
//!
//! The rules of some Services are put into a chain to which nothing leads, with other chains as targets replaced, so
//! that the kernel judges every match and target and no packet meets them. Halving finds one that it refuses.

use std::{collections::BTreeSet, fmt::Write as _};

use proxy_core::backend::Step;

use crate::schema::{chains::Table, op::Op};

const CHAIN: &str = "KUBE-PROXY-TRIAL";

/// One owner whose rules are refused; `try_text` tells whether the kernel takes a restore text, `None` if it could not
/// be asked.
pub(crate) fn find_culprit(step: &Step<Op>, mut try_text: impl FnMut(&str) -> Option<bool>) -> Option<u32> {
    let owners: BTreeSet<u32> = step.ops.iter().filter_map(|owned| owned.owner).collect();
    let mut suspects: Vec<u32> = owners.into_iter().collect();
    let mut refused = |owners: &[u32]| Some(!try_text(&text(step, owners))?);
    let culprit = (|| {
        if suspects.is_empty() || !refused(&suspects)? {
            return None;
        }
        while suspects.len() > 1 {
            let second = suspects.split_off(suspects.len() / 2);
            if !refused(&suspects)? {
                suspects = second;
            }
        }
        suspects.pop()
    })();
    try_text(&removal());
    culprit
}

/// The rules of these owners (sorted) in a chain of their own.
fn text(step: &Step<Op>, owners: &[u32]) -> String {
    let mut text = String::new();
    for table in [Table::Filter, Table::Nat] {
        let _ = writeln!(text, "*{table}\n:{CHAIN} - [0:0]");
        for owned in &step.ops {
            if owned.owner.is_none_or(|owner| owners.binary_search(&owner).is_err()) {
                continue;
            }
            let rules = match &owned.op {
                Op::Fill { rules, .. } => &**rules,
                Op::Append { rules, .. } => rules,
                _ => continue,
            };
            if owned.op.table() == Some(table) {
                rules.lines().for_each(|rule| copy(rule, &mut text));
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// `-A CHAIN matches -j KUBE-..` without its chain and with another target.
fn copy(rule: &str, text: &mut String) {
    let matches = rule.splitn(3, ' ').nth(2).unwrap_or_default();
    let (matches, target) = match matches.rsplit_once("-j KUBE-") {
        Some((matches, _)) => (matches.trim_end(), " -j RETURN"),
        None => (matches, ""),
    };
    let _ = writeln!(text, "-A {CHAIN} {matches}{target}");
}

/// Puts one rule to the test in table `filter`, and takes it back.
pub(crate) fn of_rule(matches: &str) -> String {
    format!(
        "*filter\n:{CHAIN} - [0:0]\n-A {CHAIN} {matches}\nCOMMIT\n*filter\n:{CHAIN} - [0:0]\n-X {CHAIN}\nCOMMIT\n"
    )
}

fn removal() -> String {
    [Table::Filter, Table::Nat]
        .map(|table| format!("*{table}\n:{CHAIN} - [0:0]\n-X {CHAIN}\nCOMMIT\n"))
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::chains::{self, ServiceChain};

    fn step(rules: &[&str]) -> Step<Op> {
        let mut step = Step::default();
        step.push(Op::Declare { table: Table::Nat, chain: chains::SERVICES }, None);
        for (owner, rules) in (0..).zip(rules) {
            let chain = ServiceChain::parse("KUBE-SVC-AAAAAAAAAAAAAAAA").expect("a chain's name");
            step.push(Op::Fill { chains: [chain].into(), rules: (*rules).into() }, Some(owner));
        }
        step
    }

    #[test]
    fn the_service_whose_rule_is_refused_is_found_among_many() {
        for bad in 0..7 {
            let mut rules = ["-A KUBE-SVC-AAAAAAAAAAAAAAAA -s 10.0.0.1/32 -j KUBE-MARK-MASQ\n"; 7];
            rules[bad] = "-A KUBE-SVC-AAAAAAAAAAAAAAAA -m nonsense -j KUBE-MARK-MASQ\n";
            let mut texts = Vec::new();
            let culprit = find_culprit(&step(&rules), |text| {
                texts.push(text.to_owned());
                Some(!text.contains("nonsense"))
            });
            assert_eq!(culprit, u32::try_from(bad).ok());
            let last = texts.pop().expect("the chain is removed");
            assert!(last.contains("-X KUBE-PROXY-TRIAL") && !last.contains("-A "));
            assert!(texts.iter().all(|text| !text.contains("-j KUBE-") && !text.contains("KUBE-SVC")));
        }
    }

    #[test]
    fn nobody_is_blamed_when_every_rule_is_taken() {
        let rules = ["-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-MARK-MASQ\n"; 3];
        assert_eq!(find_culprit(&step(&rules), |_| Some(true)), None);
        assert_eq!(find_culprit(&step(&rules), |_| None), None);
    }
}
