//! Every feature of Kubernetes' Services with real packets, through the whole `kube-proxy` program, in every mode.
//!
//! A scenario is a function that applies objects to a `Lab` and says what it expects; `lab.expect` checks the oracle and
//! packets, in both families; `lab.sweep` compares all addresses from all kinds of sources with the oracle. To add one:
//! write the function, and name it in the list at the head of its file.

mod affinity;
mod api_server_faults;
mod cluster_ip;
mod conflicts;
mod drift;
mod endpoints;
mod external;
mod firewalls;
mod fleet;
mod hostile;
mod ipvs_mode;
mod large;
mod lifecycle;
mod living_objects;
mod locks;
mod masquerade;
mod matrix;
mod node_changes;
mod node_ports;
mod odd_objects;
mod policies;
mod secure_api_server;
mod service_cidr;
mod source_ranges;
mod streams;
mod surroundings;
mod transitions;
mod udp;
mod vanishing;

use integration::lab::{Lab, Mode, Options};

/// Runs one scenario in one mode; in the VM where this kernel lacks what the mode needs.
fn run(mode: Mode, options: Options, scenario: impl FnOnce(&mut Lab)) {
    let play = || {
        let mut lab = Lab::start(Options { mode, ..options }).expect("root, and a kube-proxy that was built");
        scenario(&mut lab);
    };
    if mode == Mode::Ipvs { vm_test::with_ipvs(play) } else { play() }
}

/// Waits for what no barrier tells: changes that come by other ways than Services and slices.
fn eventually(mut good: impl FnMut() -> bool) {
    for _ in 0..1_200 {
        if good() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("it did not come to that in a minute");
}

#[expect(clippy::disallowed_methods, reason = "waiting is a matter of real time")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// One test per scenario and mode. `scenarios! { options => first, second; other_options => third; }`
macro_rules! scenarios {
    ($($options:expr => $($name:ident),+ $(,)?;)+) => {$($(
        mod $name {
            use super::*;
            use integration::lab::Mode;

            #[test]
            fn in_nftables_mode() {
                crate::run(Mode::Nftables, $options, super::$name);
            }

            #[test]
            fn in_iptables_mode_legacy() {
                crate::run(Mode::IptablesLegacy, $options, super::$name);
            }

            #[test]
            fn in_iptables_mode_nft() {
                crate::run(Mode::IptablesNft, $options, super::$name);
            }

            #[test]
            fn in_ipvs_mode() {
                crate::run(Mode::Ipvs, $options, super::$name);
            }
        }
    )+)+};
}
pub(crate) use scenarios;
