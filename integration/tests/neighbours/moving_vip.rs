//! kube-vip and keepalived move a virtual IP from node to node by an address of an interface. Where the address is a
//! load balancer's, it answers on the node before, while and after the node has it.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use integration::lab::{Lab, Mode, Options, service, slices};
use integration::network::Family;
use integration::network::Place::{Client, Node, PodA, PodD};
use integration::network::Protocol::Tcp;

use crate::flood::Flood;

const RATE: u32 = 60;
const PAUSE: Duration = Duration::from_millis(400);

fn comes_and_goes(mode: Mode) {
    let play = || {
        for family in Family::BOTH {
            let mut lab = Lab::start(Options { mode, embedded_server: true, ..Options::default() })
                .expect("root, and a kube-proxy that was built");
            lab.apply(service("web", 1).port("t", 80, Tcp).load_balancer(1));
            lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
            lab.settle();
            let vip = family.load_balancer(1);
            let length = if vip.is_ipv4() { 32 } else { 128 };
            let flood = Flood::start(&lab, Client, SocketAddr::new(vip, 80), RATE);
            for _ in 0..4 {
                for what in ["add", "del"] {
                    sleep(PAUSE);
                    let command = format!("addr {what} {vip}/{length} dev eth0\n");
                    lab.network.namespace(Node).ip(&command, &[]).expect("an address of the interface");
                }
            }
            sleep(PAUSE);
            flood.stop(&lab).unwrap_or_else(|wrong| panic!("{mode:?}, {family:?}: {wrong}\n{}", lab.log()));
            lab.sweep();
        }
    };
    if mode == Mode::Ipvs { vm_test::with_ipvs(play) } else { play() }
}

#[test]
fn comes_and_goes_in_nftables_mode() {
    comes_and_goes(Mode::Nftables);
}

#[test]
fn comes_and_goes_in_iptables_mode() {
    comes_and_goes(Mode::IptablesNft);
}

#[test]
fn comes_and_goes_in_ipvs_mode() {
    comes_and_goes(Mode::Ipvs);
}
