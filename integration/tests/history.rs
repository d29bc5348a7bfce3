//! Random histories through the whole program: after every step, real packets fare as the oracle says.
//!
//! A failure names its seed. `SWITCHYARD_HISTORY=first-last` runs other seeds, `SWITCHYARD_HISTORY_STEPS` longer ones,
//! `SWITCHYARD_HISTORY_PEACEFUL=1` ones in which no two Services claim one address.

use std::env;

use integration::history::{History, Step};
use integration::lab::{Detect, Lab, Mode, Options};
use integration::random::Random;

/// Probes after each step.
const SAMPLES: usize = 150;

fn follow(mode: Mode, default_seed: u64, default_steps: usize) {
    let seeds = match env::var("SWITCHYARD_HISTORY") {
        Ok(text) => {
            let (first, last) = text.split_once('-').expect("SWITCHYARD_HISTORY is first-last");
            first.parse().expect("a number")..=last.parse().expect("a number")
        }
        Err(_) => default_seed..=default_seed,
    };
    let steps = env::var("SWITCHYARD_HISTORY_STEPS")
        .map_or(default_steps, |text| text.parse().expect("SWITCHYARD_HISTORY_STEPS is a number"));
    for seed in seeds {
        // The configuration is drawn too.
        let mut random = Random::new(seed ^ 0xc0ff_ee00);
        let options = Options {
            mode,
            detect: random.one_of(&[
                Detect::ClusterCidr,
                Detect::NodeCidr,
                Detect::InterfacePrefix,
                Detect::Bridge,
                Detect::Never,
            ]),
            masquerade_all: random.one_in(5),
            node_port_addresses: random.one_of(&[
                vec![],
                vec!["primary".to_owned()],
                vec!["192.168.70.0/24".to_owned(), "fd00:70::/64".to_owned()],
            ]),
            config: Vec::new(),
            variables: Vec::new(),
            // The histories name times of creation, and give one address to many.
            embedded_server: true,
            secure: None,
        };
        let mut told = vec![format!("seed {seed}: {options:?}")];
        let mut lab = Lab::start(options).expect("root, and a kube-proxy that was built");
        let peaceful = env::var_os("SWITCHYARD_HISTORY_PEACEFUL").is_some();
        let history = if peaceful { History::without_conflicts(seed) } else { History::new(seed) };
        for (index, steps) in history.take(steps).enumerate() {
            let restart = steps.iter().any(|step| matches!(step, Step::Restart));
            if restart {
                lab.stop_proxy().expect("it runs");
            }
            for step in steps {
                match step {
                    Step::Apply { what, objects } => {
                        told.push(format!("{index}: {what}"));
                        objects.into_iter().for_each(|object| lab.apply(object));
                    }
                    Step::Delete { kind, name } => {
                        told.push(format!("{index}: delete {kind} {name}"));
                        lab.delete(kind, &name);
                    }
                    Step::Restart => told.push(format!("{index}: restart")),
                }
            }
            if restart {
                lab.start_proxy().expect("it starts again");
            }
            if let Err(wrong) = lab.check_sample(&mut random, SAMPLES) {
                let story = told.join("\n");
                panic!("{story}\n=== after step {index} of seed {seed} ===\n{wrong}\n{}", lab.log());
            }
        }
    }
}

/// One test per seed, so that they run side by side.
macro_rules! histories {
    ($($name:ident: $mode:expr, $seed:literal;)+) => {$(
        #[test]
        fn $name() {
            follow($mode, $seed, 25);
        }
    )+};
}

histories! {
    nftables_mode_follows_history_1: Mode::Nftables, 1;
    nftables_mode_follows_history_2: Mode::Nftables, 2;
    nftables_mode_follows_history_3: Mode::Nftables, 3;
    nftables_mode_follows_history_4: Mode::Nftables, 4;
    iptables_mode_follows_history_5_in_legacy_tables: Mode::IptablesLegacy, 5;
    iptables_mode_follows_history_6_in_legacy_tables: Mode::IptablesLegacy, 6;
    iptables_mode_follows_history_7_in_nft_tables: Mode::IptablesNft, 7;
    iptables_mode_follows_history_8_in_nft_tables: Mode::IptablesNft, 8;
}

#[test]
fn ipvs_mode_follows_history_9() {
    vm_test::with_ipvs(|| follow(Mode::Ipvs, 9, 25));
}

#[test]
fn ipvs_mode_follows_history_10() {
    vm_test::with_ipvs(|| follow(Mode::Ipvs, 10, 25));
}
