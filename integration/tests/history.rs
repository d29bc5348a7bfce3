//! Random histories through the whole program: after every step, real packets fare as the oracle says.
//!
//! A failure names its seed. `SWITCHYARD_HISTORY=first-last` runs other seeds, `SWITCHYARD_HISTORY_STEPS` longer ones.

use std::env;

use integration::history::{History, Random, Step};
use integration::lab::{Detect, Lab, Mode, Options};

/// Probes after each step.
const SAMPLES: usize = 150;

fn follow(mode: Mode, default_seeds: std::ops::RangeInclusive<u64>, default_steps: usize) {
    let seeds = match env::var("SWITCHYARD_HISTORY") {
        Ok(text) => {
            let (first, last) = text.split_once('-').expect("SWITCHYARD_HISTORY is first-last");
            first.parse().expect("a number")..=last.parse().expect("a number")
        }
        Err(_) => default_seeds,
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
        };
        let mut told = vec![format!("seed {seed}: {options:?}")];
        let mut lab = Lab::start(options).expect("root, and a kube-proxy that was built");
        for (index, steps) in History::new(seed).take(steps).enumerate() {
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

#[test]
fn nftables_mode_follows_random_histories() {
    follow(Mode::Nftables, 1..=4, 25);
}

#[test]
fn iptables_mode_follows_random_histories_in_legacy_tables() {
    follow(Mode::IptablesLegacy, 5..=7, 25);
}

#[test]
fn iptables_mode_follows_random_histories_in_nft_tables() {
    follow(Mode::IptablesNft, 8..=10, 25);
}

#[test]
fn ipvs_mode_follows_random_histories() {
    vm_test::with_ipvs(|| follow(Mode::Ipvs, 11..=12, 12));
}
