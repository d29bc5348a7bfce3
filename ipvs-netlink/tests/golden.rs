//! Every kind of request has the bytes that an independent program (`golden.py`) makes of it.
#![cfg(target_endian = "little")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipvs_netlink::{
    Batch, Destination, Family, Forwarding, Name, Netmask, Protocol, Scheduler, Service, ServiceFlags,
    ServiceKey, Timeouts, Tunnel, TunnelKind,
};

#[test]
fn every_request_has_the_bytes_of_the_independent_encoder() {
    let golden: BTreeMap<&str, &str> =
        include_str!("golden.txt").lines().map(|line| line.split_once(": ").expect("name: bytes")).collect();
    let ours: BTreeMap<&str, String> =
        requests().into_iter().map(|(name, batch)| (name, hex(batch.as_bytes()))).collect();
    assert_eq!(golden.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
    for (name, bytes) in golden {
        assert_eq!(ours[name], bytes, "{name}");
    }
}

fn requests() -> Vec<(&'static str, Batch)> {
    let web = ServiceKey::new(address("10.96.0.1"), 80, Protocol::Tcp);
    let dns = ServiceKey::new(address("fd00:10:96::a"), 53, Protocol::Udp);
    let sig = ServiceKey::new(address("10.96.0.9"), 2905, Protocol::Sctp);
    let mark = ServiceKey::Mark { family: Family::V4, mark: 77 };
    let mark6 = ServiceKey::Mark { family: Family::V6, mark: 0x8000_0001 };
    let service =
        |key, scheduler, flags| Service { flags: ServiceFlags(flags), ..Service::new(key, scheduler) };
    let mut requests = Vec::new();
    let mut add = |name, fill: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        fill(&mut batch);
        requests.push((name, batch));
    };
    add("new tcp rr", &|b| b.new_service(&Service::new(web, Scheduler::RR)));
    add("set tcp persistent", &|b| b.set_service(&Service::new(web, Scheduler::RR).persistent(10800)));
    add("new udp6 mh port", &|b| b.new_service(&service(dns, Scheduler::MH, 0x10)));
    add("new sctp sh both", &|b| b.new_service(&service(sig, Scheduler::SH, 0x18)));
    add("new udp6 one packet", &|b| b.new_service(&service(dns, Scheduler::WLC, 4)));
    add("set one flag", &|b| {
        let netmask = Netmask::V4(Ipv4Addr::new(255, 255, 255, 0));
        let service = Service { timeout: 7, netmask, ..service(web, Scheduler::LBLCR, 0x20) };
        b.set_service_masked(&service, ServiceFlags::SCHEDULER_3);
    });
    add("new mark 4", &|b| b.new_service(&Service::new(mark, Scheduler::SED)));
    add("new mark 6", &|b| {
        b.new_service(&Service {
            netmask: Netmask::V6(64),
            ..Service::new(mark6, Scheduler::NQ).persistent(60)
        })
    });
    add("new sip", &|b| {
        let key = ServiceKey::new(address("10.96.0.7"), 5060, Protocol::Udp);
        b.new_service(&Service {
            engine: Some(Name::new("sip").unwrap()),
            ..Service::new(key, Scheduler::RR).persistent(300)
        });
    });
    add("del tcp", &|b| b.del_service(&web));
    add("del mark", &|b| b.del_service(&mark));
    let to = |text, port, forwarding, weight| Destination {
        forwarding,
        ..Destination::new(address(text), port, weight)
    };
    let tunnel = |kind, port, flags| Forwarding::Tunnel(Tunnel { kind, port, flags });
    add("new dest", &|b| b.new_destination(&web, &Destination::new(address("10.1.0.2"), 8080, 1)));
    add("new dest6", &|b| {
        let limits = Destination {
            upper_threshold: 1000,
            lower_threshold: 800,
            ..Destination::new(address("fd01::2"), 5353, 100)
        };
        b.new_destination(&dns, &limits);
    });
    add("set dest 0", &|b| b.set_destination(&sig, &Destination::new(address("10.1.0.3"), 2905, 0)));
    add("new local", &|b| b.new_destination(&web, &to("10.1.0.4", 80, Forwarding::Local, 1)));
    add("new direct", &|b| b.new_destination(&web, &to("10.1.0.5", 80, Forwarding::DirectRoute, 2)));
    add("new ipip", &|b| b.new_destination(&web, &to("10.1.0.6", 80, tunnel(TunnelKind::Ipip, 0, 0), 1)));
    add("new gue", &|b| b.new_destination(&web, &to("fd01::7", 80, tunnel(TunnelKind::Gue, 6080, 1), 1)));
    add("new gre", &|b| b.new_destination(&web, &to("10.1.0.8", 80, tunnel(TunnelKind::Gre, 0, 1), 3)));
    add("del dest", &|b| b.del_destination(&web, address("10.1.0.2"), 8080));
    add("del dest6", &|b| b.del_destination(&dns, address("fd01::2"), 5353));
    add("flush", &|b| b.flush());
    add("zero all", &|b| b.zero(None));
    add("zero one", &|b| b.zero(Some(&web)));
    add("timeouts", &|b| b.set_timeouts(&Timeouts { tcp: Some(900), tcp_fin: Some(120), udp: Some(300) }));
    add("timeout udp", &|b| b.set_timeouts(&Timeouts { udp: Some(17), ..Timeouts::default() }));
    requests
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
