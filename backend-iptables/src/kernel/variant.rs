//! Which iptables to use. The kernel has two sets of tables that know nothing of each other, and rules belong where the
//! rest of the node's rules are: the choice is made as the iptables-wrappers script of Kubernetes' images makes it.

use std::{cmp::Ordering, io, process::Command};

use proxy_core::model::Family;

pub use crate::schema::variant::Variant;

/// The programs of one family and variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `iptables-legacy`, say.
    pub iptables: String,
    /// `iptables-legacy-save`.
    pub save: String,
    /// `iptables-legacy-restore`.
    pub restore: String,
}

impl Programs {
    /// `None` stands for whatever is installed as plain `iptables`.
    pub fn of(family: Family, variant: Option<Variant>) -> Self {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let iptables = variant.map_or_else(|| base.to_owned(), |variant| format!("{base}-{variant}"));
        Self { save: format!("{iptables}-save"), restore: format!("{iptables}-restore"), iptables }
    }
}

/// What the tables hold, as far as the choice depends on it.
pub trait Tables {
    /// The output of `iptables-save` or `ip6tables-save` of a variant; `only` restricts it to one table.
    fn save(&self, family: Family, variant: Variant, only: Option<&str>) -> String;

    /// What plain `iptables` is: the administrator's choice (`update-alternatives`).
    fn plain(&self) -> Option<Variant>;
}

/// Chains in table `mangle` by which kubelet tells others where it writes.
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];

/// Kubelet's hints decide; without them, where more rules and policies are; without any, what plain `iptables` is.
pub fn choose(tables: &impl Tables) -> Variant {
    let both = |variant, only| Family::BOTH.map(|family| tables.save(family, variant, only)).concat();
    let hinted = |save: &str| save.lines().any(|line| HINTS.iter().any(|hint| line.starts_with(hint)));
    if hinted(&both(Variant::Nft, Some("mangle"))) {
        return Variant::Nft;
    }
    // Not only `mangle`: asking for a legacy table by name creates it.
    let legacy = both(Variant::Legacy, None);
    if hinted(&legacy) {
        return Variant::Legacy;
    }
    let legacy = rules_and_policies(&legacy);
    let nft = rules_and_policies(&both(Variant::Nft, None));
    match legacy.cmp(&nft) {
        Ordering::Greater => Variant::Legacy,
        Ordering::Less => Variant::Nft,
        Ordering::Equal => tables.plain().unwrap_or(Variant::Nft),
    }
}

/// A policy other than to accept is as much of a firewall as a rule.
fn rules_and_policies(save: &str) -> usize {
    let counts = |line: &&str| {
        let policy = line.strip_prefix(':').and_then(|chain| chain.split(' ').nth(1));
        line.starts_with('-') || policy.is_some_and(|policy| !matches!(policy, "ACCEPT" | "-"))
    };
    save.lines().filter(counts).count()
}

/// The tables of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

impl Tables for Machine {
    fn save(&self, family: Family, variant: Variant, only: Option<&str>) -> String {
        let mut command = Command::new(Programs::of(family, Some(variant)).save);
        if let Some(table) = only {
            command.args(["-t", table]);
        }
        // A variant whose program is missing or fails holds nothing that matters.
        command
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default()
    }

    fn plain(&self) -> Option<Variant> {
        version(&Programs::of(Family::V4, None).iptables).ok().map(|version| version.variant)
    }
}

/// The variants whose programs are installed for a family.
pub fn installed(family: Family) -> Vec<Variant> {
    [Variant::Legacy, Variant::Nft]
        .into_iter()
        .filter(|&variant| version(&Programs::of(family, Some(variant)).restore).is_ok())
        .collect()
}

/// The version a program states of itself.
pub fn version(program: &str) -> io::Result<Version> {
    let output = Command::new(program).arg("--version").stdin(std::process::Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Version::parse(&text)
        .ok_or_else(|| io::Error::other(format!("{program} --version says {:?}", text.trim_end())))
}

/// `iptables v1.8.9 (nf_tables)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Its three parts.
    pub number: (u32, u32, u32),
    /// The set of tables that the program works on.
    pub variant: Variant,
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let mut parts = words.find_map(|word| word.strip_prefix('v'))?.split('.').map(str::parse);
        let mut part = || parts.next().unwrap_or(Ok(0)).ok();
        let number = (part()?, part()?, part()?);
        // Before 1.8 there was no other variant, and nothing in brackets.
        let variant = if words.next() == Some("(nf_tables)") { Variant::Nft } else { Variant::Legacy };
        Some(Self { number, variant })
    }

    /// `MASQUERADE --random-fully` and `iptables-restore -w` came with 1.6.2.
    pub fn is_at_least(&self, number: (u32, u32, u32)) -> bool {
        self.number >= number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Saves of the legacy and of the nft tables, the same for both families.
    struct Fake {
        legacy: &'static str,
        nft: &'static str,
        plain: Option<Variant>,
    }

    impl Tables for Fake {
        fn save(&self, _: Family, variant: Variant, only: Option<&str>) -> String {
            match (variant, only) {
                (Variant::Legacy, Some(_)) => panic!("asking for a legacy table by name creates it"),
                (Variant::Legacy, None) => self.legacy.to_owned(),
                (Variant::Nft, _) => self.nft.to_owned(),
            }
        }

        fn plain(&self) -> Option<Variant> {
            self.plain
        }
    }

    fn fake(legacy: &'static str, nft: &'static str) -> Fake {
        Fake { legacy, nft, plain: None }
    }

    #[test]
    fn kubelets_hint_decides_against_the_number_of_rules() {
        let rules = "*nat\n-A a -j b\n-A a -j b\n";
        let hint = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\n";
        assert_eq!(choose(&fake(hint, rules)), Variant::Legacy);
        assert_eq!(choose(&fake(rules, hint)), Variant::Nft);
        let hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n";
        assert_eq!(choose(&fake(hint, rules)), Variant::Legacy);
    }

    #[test]
    fn without_a_hint_the_variant_with_more_rules_is_used() {
        let many = "*nat\n-A a -j b\n-A a -j b\n";
        let one = "*nat\n-A a -j b\n";
        assert_eq!(choose(&fake(many, one)), Variant::Legacy);
        assert_eq!(choose(&fake(one, many)), Variant::Nft);
    }

    #[test]
    fn a_policy_counts_as_a_rule() {
        let dropping = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OWN - [0:0]\nCOMMIT\n";
        let nothing = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
        for plain in [None, Some(Variant::Legacy), Some(Variant::Nft)] {
            let tables = Fake { plain, ..fake(dropping, nothing) };
            assert_eq!(choose(&tables), Variant::Legacy);
            let tables = Fake { plain, ..fake(nothing, dropping) };
            assert_eq!(choose(&tables), Variant::Nft);
        }
    }

    #[test]
    fn without_rules_the_administrators_choice_is_used_and_nft_where_there_is_none() {
        assert_eq!(choose(&fake("", "")), Variant::Nft);
        for plain in [Variant::Legacy, Variant::Nft] {
            let tables = Fake { plain: Some(plain), ..fake("", "") };
            assert_eq!(choose(&tables), plain);
        }
    }

    #[test]
    fn a_version_names_its_variant() {
        let version = Version::parse("iptables v1.8.9 (nf_tables)\n").expect("a version");
        assert_eq!(version, Version { number: (1, 8, 9), variant: Variant::Nft });
        let old = Version::parse("iptables v1.6.1\n").expect("a version");
        assert_eq!(old.variant, Variant::Legacy);
        assert!(!old.is_at_least((1, 6, 2)));
    }
}
