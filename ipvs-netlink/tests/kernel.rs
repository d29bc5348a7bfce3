//! What is written to a real kernel is dumped back equal, and `ipvsadm` sees the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipvs_netlink::{
    Batch, Destination, Family, Forwarding, Netmask, Protocol, Scheduler, Service, ServiceFlags, ServiceKey,
    Socket, Timeouts, Tunnel, TunnelKind,
};
use vm_test::{run, with_ipvs};

#[test]
fn every_kind_of_service_is_dumped_back_equal() {
    with_ipvs(|| {
        let mut ipvs = Socket::open().unwrap();
        let services = kinds_of_services();
        let mut batch = Batch::new();
        services.iter().for_each(|service| batch.new_service(service));
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        assert_eq!(dumped(&mut ipvs), services.iter().copied().collect());
        for service in &services {
            assert_eq!(ipvs.service(&service.key).unwrap().expect("just written").service, *service);
        }

        let listing = run("ipvsadm -Ln");
        for expected in [
            "TCP  10.96.0.1:80 rr\n",
            "TCP  10.96.0.2:443 wlc persistent 10800\n",
            "UDP  10.96.0.3:53 rr ops\n",
            "TCP  10.96.0.4:0 wrr persistent 60 mask 255.255.255.0\n",
            "SCTP 10.96.0.9:2905 sh (sh-fallback,sh-port)\n",
            "UDP  [fd00:10:96::a]:53 mh (mh-port)\n",
            "TCP  [fd00:10:96::b]:80 lc persistent 30 mask 64\n",
            "FWM  77 sed\n",
            "FWM  78 IPv6 nq persistent 60\n",
        ] {
            assert!(listing.contains(expected), "{expected} in\n{listing}");
        }

        batch.clear();
        services.iter().for_each(|service| batch.del_service(&service.key));
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        assert_eq!(dumped(&mut ipvs), BTreeSet::new());
        assert_eq!(ipvs.service(&services[0].key).unwrap(), None);
    });
}

#[test]
fn every_scheduler_is_accepted_and_an_unknown_one_named_missing() {
    with_ipvs(|| {
        let mut ipvs = Socket::open().unwrap();
        let mut batch = Batch::new();
        let unknown: Scheduler = "nosuch".parse().unwrap();
        let all = || Scheduler::ALL.into_iter().chain([unknown]);
        for (port, scheduler) in (1..).zip(all()) {
            batch.new_service(&Service::new(key("10.96.0.1", port, Protocol::Tcp), scheduler));
        }
        let refused: Vec<_> = ipvs
            .send(&mut batch)
            .unwrap()
            .into_iter()
            .map(|failure| (all().nth(failure.index).unwrap(), failure.errno))
            .collect();
        let expected = match missing_twos() {
            true => vec![(Scheduler::TWOS, nix::libc::ENOENT), (unknown, nix::libc::ENOENT)],
            false => vec![(unknown, nix::libc::ENOENT)],
        };
        assert_eq!(refused, expected);
    });
}

#[test]
fn every_kind_of_destination_is_dumped_back_equal() {
    with_ipvs(|| {
        let mut ipvs = Socket::open().unwrap();
        let four = key("10.96.0.1", 80, Protocol::Tcp);
        let six = key("fd00::1", 53, Protocol::Udp);
        let tunnel = |kind, port, flags| Forwarding::Tunnel(Tunnel { kind, port, flags });
        let to = |address: &str, forwarding, weight| Destination {
            forwarding,
            ..Destination::new(address.parse().unwrap(), 80, weight)
        };
        let wanted = [
            (four, Destination::new(address("10.1.0.2"), 8080, 1)),
            (
                four,
                Destination {
                    upper_threshold: 1000,
                    lower_threshold: 800,
                    ..Destination::new(address("10.1.0.3"), 8080, 100)
                },
            ),
            (four, Destination::new(address("10.1.0.4"), 8081, 0)),
            (four, to("10.1.0.5", Forwarding::DirectRoute, 2)),
            (four, to("10.1.0.6", tunnel(TunnelKind::Ipip, 0, 0), 1)),
            (four, to("10.1.0.7", tunnel(TunnelKind::Gue, 6080, 1), 1)),
            (four, to("10.1.0.8", tunnel(TunnelKind::Gre, 0, 1), 3)),
            // Only tunnels may lead from one family to the other.
            (four, to("fd01::9", tunnel(TunnelKind::Gue, 6080, 0), 1)),
            (six, Destination::new(address("fd01::2"), 5353, 1)),
            (six, Destination::new(address("fd01::3"), 5353, 65535)),
        ];
        let mut batch = Batch::new();
        batch.new_service(&Service::new(four, Scheduler::WRR));
        batch.new_service(&Service::new(six, Scheduler::RR));
        wanted.iter().for_each(|(key, destination)| batch.new_destination(key, destination));
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        assert_eq!(destinations(&mut ipvs, &[four, six]), BTreeSet::from(wanted));
        let listing = squeezed(&run("ipvsadm -Ln"));
        for expected in [
            "10.1.0.2:8080 Masq 1 ",
            "10.1.0.4:8081 Masq 0 ",
            "10.1.0.5:80 Route 2 ",
            "10.1.0.6:80 Tunnel 1 ",
            "[fd01::3]:5353 Masq 65535 ",
        ] {
            assert!(listing.contains(expected), "{expected} in {listing}");
        }
        assert!(squeezed(&run("ipvsadm -Ln --thresholds")).contains("10.1.0.3:8080 1000 800 "));

        // A change of weight, thresholds and forwarding keeps the destination; deletion removes just that one.
        let mut changed = wanted;
        changed[1].1 = Destination { weight: 0, upper_threshold: 0, lower_threshold: 0, ..changed[1].1 };
        batch.clear();
        batch.set_destination(&four, &changed[1].1);
        batch.del_destination(&four, address("10.1.0.2"), 8080);
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        assert_eq!(destinations(&mut ipvs, &[four, six]), changed[1..].iter().copied().collect());
    });
}

#[test]
fn flags_outside_the_mask_stay_as_they_are() {
    with_ipvs(|| {
        let mut ipvs = Socket::open().unwrap();
        let web = key("10.96.0.1", 80, Protocol::Tcp);
        let before = Service {
            flags: ServiceFlags::SCHEDULER_1.union(ServiceFlags::SCHEDULER_2),
            ..Service::new(web, Scheduler::SH)
        };
        let mut batch = Batch::new();
        batch.new_service(&before);
        batch.set_service_masked(&Service { flags: ServiceFlags::NONE, ..before }, ServiceFlags::SCHEDULER_1);
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        assert_eq!(ipvs.service(&web).unwrap().unwrap().service.flags, ServiceFlags::SCHEDULER_2);
        // Without a mask the flags become what is asked for.
        batch.clear();
        batch.set_service(&Service {
            scheduler: Scheduler::RR,
            ..Service::new(web, Scheduler::RR).persistent(5)
        });
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        assert_eq!(ipvs.service(&web).unwrap().unwrap().service.flags, ServiceFlags::PERSISTENT);
    });
}

#[test]
fn of_many_messages_exactly_the_bad_ones_are_reported() {
    with_ipvs(|| {
        let mut ipvs = Socket::open().unwrap();
        let mut batch = Batch::new();
        // Four sends, with failures in the first, at the borders, and as the very last message.
        let bad = [3, 255, 256, 511, 700, 1023];
        for index in 0..1024_u16 {
            let scheduler =
                if bad.contains(&usize::from(index)) { "nosuch".parse().unwrap() } else { Scheduler::RR };
            batch.new_service(&Service::new(key("10.96.0.1", index + 1, Protocol::Tcp), scheduler));
        }
        let failures = ipvs.send(&mut batch).unwrap();
        assert_eq!(failures.iter().map(|failure| failure.index).collect::<Vec<_>>(), bad);
        assert!(failures.iter().all(|failure| failure.errno == nix::libc::ENOENT));
        assert_eq!(dumped(&mut ipvs).len(), 1024 - bad.len());
        // Again: now every good one exists already, and all 1,024 replies are read.
        let failures = ipvs.send(&mut batch).unwrap();
        assert_eq!(failures.len(), 1024);
        let existing = failures.iter().filter(|failure| failure.errno == nix::libc::EEXIST).count();
        assert_eq!(existing, 1024 - bad.len());
    });
}

#[test]
fn a_large_table_is_dumped_whole() {
    with_ipvs(|| {
        let mut ipvs = Socket::open().unwrap();
        let mut batch = Batch::new();
        let keys: BTreeSet<_> = (0..3000_u32)
            .map(|n| ServiceKey::new(IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + n)), 80, Protocol::Tcp))
            .collect();
        keys.iter().for_each(|key| batch.new_service(&Service::new(*key, Scheduler::RR)));
        let first = *keys.first().unwrap();
        let wide: BTreeSet<_> = (0..2000_u32)
            .map(|n| Destination::new(IpAddr::V4(Ipv4Addr::from(0x0a01_0000 + n)), 8080, 1))
            .collect();
        wide.iter().for_each(|destination| batch.new_destination(&first, destination));
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        let found: BTreeSet<_> = dumped(&mut ipvs).into_iter().map(|service| service.key).collect();
        assert!(found == keys, "{} of {}", found.len(), keys.len());
        let wide: BTreeSet<_> = wide.into_iter().map(|to| (first, to)).collect();
        assert!(destinations(&mut ipvs, &[first]) == wide);
        batch.clear();
        batch.flush();
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        assert_eq!(dumped(&mut ipvs), BTreeSet::new());
    });
}

#[test]
fn timeouts_are_read_and_set_one_by_one() {
    with_ipvs(|| {
        let mut ipvs = Socket::open().unwrap();
        let before = ipvs.timeouts().unwrap();
        assert_eq!(before, Timeouts { tcp: Some(900), tcp_fin: Some(120), udp: Some(300) });
        let mut batch = Batch::new();
        batch.set_timeouts(&Timeouts { udp: Some(17), ..Timeouts::default() });
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        assert_eq!(ipvs.timeouts().unwrap(), Timeouts { udp: Some(17), ..before });
        assert_eq!(run("ipvsadm -Ln --timeout").trim(), "Timeout (tcp tcpfin udp): 900 120 17");
    });
}

#[test]
fn counters_count_and_are_zeroed() {
    with_ipvs(|| {
        let mut ipvs = Socket::open().unwrap();
        let web = key("127.0.0.1", 7000, Protocol::Udp);
        let mut batch = Batch::new();
        batch.new_service(&Service::new(web, Scheduler::RR));
        batch.new_destination(&web, &Destination::new(address("127.0.0.1"), 7001, 1));
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        let server = std::net::UdpSocket::bind("127.0.0.1:7001").unwrap();
        server.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect("127.0.0.1:7000").unwrap();
        client.send(b"hello").unwrap();
        assert_eq!(server.recv(&mut [0; 16]).unwrap(), 5);
        let entry = ipvs.destinations(&web).unwrap()[0];
        assert_eq!(entry.active_connections + entry.inactive_connections, 1);
        // The kernel sums its counters up every two seconds (`ip_vs_est.c`).
        let counted = (0..600).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            Some(ipvs.service(&web).unwrap().unwrap().stats).filter(|stats| stats.connections > 0)
        });
        let stats = counted.expect("counted within a minute");
        assert_eq!((stats.connections, stats.packets_in, stats.bytes_in), (1, 1, 33));
        assert_eq!(ipvs.destinations(&web).unwrap()[0].stats.connections, 1);
        batch.clear();
        batch.zero(Some(&web));
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        assert_eq!(ipvs.service(&web).unwrap().unwrap().stats.connections, 0);
    });
}

#[test]
fn the_version_is_the_one_that_the_proc_file_states() {
    with_ipvs(|| {
        let mut ipvs = Socket::open().unwrap();
        // Newer kernels make the connection table with the first virtual server.
        let mut batch = Batch::new();
        batch.new_service(&Service::new(key("10.96.0.1", 80, Protocol::Tcp), Scheduler::RR));
        assert_eq!(ipvs.send(&mut batch).unwrap(), []);
        let info = ipvs.info().unwrap();
        let (major, minor, patch) = info.version;
        let stated = run("cat /proc/net/ip_vs");
        assert!(
            stated.starts_with(&format!("IP Virtual Server version {major}.{minor}.{patch} ")),
            "{stated}"
        );
        assert!(info.connection_table_size >= 256);
    });
}

fn kinds_of_services() -> Vec<Service> {
    let plain = Service::new;
    let flags = |service: Service, flags: ServiceFlags| Service { flags, ..service };
    vec![
        plain(key("10.96.0.1", 80, Protocol::Tcp), Scheduler::RR),
        plain(key("10.96.0.2", 443, Protocol::Tcp), Scheduler::WLC).persistent(10800),
        flags(plain(key("10.96.0.3", 53, Protocol::Udp), Scheduler::RR), ServiceFlags::ONE_PACKET),
        Service {
            netmask: Netmask::V4(Ipv4Addr::new(255, 255, 255, 0)),
            ..plain(key("10.96.0.4", 0, Protocol::Tcp), Scheduler::WRR).persistent(60)
        },
        flags(
            plain(key("10.96.0.9", 2905, Protocol::Sctp), Scheduler::SH),
            ServiceFlags::SCHEDULER_1.union(ServiceFlags::SCHEDULER_2),
        ),
        flags(plain(key("fd00:10:96::a", 53, Protocol::Udp), Scheduler::MH), ServiceFlags::SCHEDULER_2),
        Service {
            netmask: Netmask::V6(64),
            ..plain(key("fd00:10:96::b", 80, Protocol::Tcp), Scheduler::LC).persistent(30)
        },
        plain(ServiceKey::Mark { family: Family::V4, mark: 77 }, Scheduler::SED),
        plain(ServiceKey::Mark { family: Family::V6, mark: 78 }, Scheduler::NQ).persistent(60),
    ]
}

/// `twos` came with Linux 6.1, and not every distribution's kernel builds it.
fn missing_twos() -> bool {
    std::fs::read_to_string("/proc/version").is_ok_and(|version| version.contains("Debian")) && {
        let found = std::process::Command::new("modprobe").args(["-n", "-q", "ip_vs_twos"]).status();
        !found.is_ok_and(|status| status.success())
    }
}

fn dumped(ipvs: &mut Socket) -> BTreeSet<Service> {
    ipvs.services().unwrap().into_iter().map(|entry| entry.service).collect()
}

fn destinations(ipvs: &mut Socket, keys: &[ServiceKey]) -> BTreeSet<(ServiceKey, Destination)> {
    let mut all = BTreeSet::new();
    for key in keys {
        all.extend(ipvs.destinations(key).unwrap().into_iter().map(|entry| (*key, entry.destination)));
    }
    all
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn key(text: &str, port: u16, protocol: Protocol) -> ServiceKey {
    ServiceKey::new(address(text), port, protocol)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
