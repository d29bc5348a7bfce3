//! What large objects cost the engine: twice the size should take about twice the time. Prints; judges nothing.
//!
//!     cargo run --release -p proxy-core --example large_objects

#![expect(unused_crate_dependencies, reason = "an example uses its own part")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use proxy_core::model::{Input, Protocol, Service, ServiceName, ServicePort, Slice, SliceName, SlicePort};
use support::{Rig, ip, service, slice};

fn ports(count: u16) -> Box<[ServicePort]> {
    (1..=count)
        .map(|port| ServicePort {
            name: format!("p{port}").into(),
            protocol: Protocol::Udp,
            port,
            node_port: None,
        })
        .collect()
}

fn slice_of_port(number: u16) -> Slice {
    let port = SlicePort { name: format!("p{number}").into(), protocol: Protocol::Udp, port: number };
    Slice { name: SliceName::new("ns", &format!("big-{number}")), ports: [port].into(), ..slice("big", &[1]) }
}

fn big(count: u16) -> Input {
    Input::Service(Service { ports: ports(count), ..service("big", 1) }.into())
}

fn claimant(number: u16) -> Input {
    let [high, low] = number.to_be_bytes();
    let name = ServiceName::new("claimants", &format!("s{number:05}"));
    let cluster_ips = [IpAddr::from([172, 31, high, low])].into();
    Input::Service(
        Service { name, cluster_ips, external_ips: [ip("203.0.113.1")].into(), ..service("a", 1) }.into(),
    )
}

/// Until all of it is in the kernel, which costs nothing here.
#[expect(clippy::disallowed_methods, reason = "it is measured")]
fn measure(inputs: impl Iterator<Item = Input>, then: Input) -> (Duration, Duration) {
    let mut rig = Rig::listed([]);
    let begun = Instant::now();
    inputs.for_each(|input| rig.put(input));
    rig.settle();
    let all = begun.elapsed();
    let begun = Instant::now();
    rig.put(then);
    rig.settle();
    (all, begun.elapsed())
}

fn main() {
    println!("| objects | all | one change more |");
    println!("|---|---:|---:|");
    for count in [2_500, 5_000, 10_000] {
        let inputs = std::iter::once(big(count));
        let row = measure(inputs, Input::Slice(slice_of_port(1).into()));
        println!("| {count} ports of one Service | {:.1?} | {:.1?} |", row.0, row.1);
    }
    for count in [2_500, 5_000, 10_000] {
        let slices = (1..=count).map(|number| Input::Slice(slice_of_port(number).into()));
        let inputs = std::iter::once(big(count)).chain(slices);
        let row = measure(inputs, Input::Slice(Slice { endpoints: [].into(), ..slice_of_port(1) }.into()));
        println!("| {count} ports with a slice each | {:.1?} | {:.1?} |", row.0, row.1);
    }
    for count in [2_500, 5_000, 10_000] {
        let gone = Input::ServiceGone(ServiceName::new("claimants", "s00000"));
        let row = measure((0..count).map(claimant), gone);
        println!("| {count} claimants of one address | {:.1?} | {:.1?} |", row.0, row.1);
    }
}
