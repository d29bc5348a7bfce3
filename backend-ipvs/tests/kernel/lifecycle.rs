//! Endpoints that come and go, restarts, damage, and other proxies.

use std::{collections::BTreeSet, net::TcpStream, sync::Arc, time::Duration};

use backend_ipvs::{Binding, Settings, leaving, schema::options};
use ipvs_netlink::Scheduler;
use proxy_core::{
    model::{Family, Protocol, TrafficPolicy},
    route::{AllowedSources, Route},
};
use vm_test::{run, with_ipvs};

use crate::{
    driver::{Driver, exposed, ip, route},
    rig::{self, CLIENT, NEIGHBOUR, NODE, POD, REMOTE, Reply, ask, connect, tcp, udp},
};

const VIP: &str = "10.96.0.1:80";
const PODS: [&str; 3] = ["10.1.0.2", "10.1.1.2", "10.2.0.2"];

fn web(endpoints: &[&str]) -> Route {
    route(Protocol::Tcp, "10.96.0.1", endpoints)
}

fn start(endpoints: &[&str]) -> Driver {
    rig::build();
    let mut driver = Driver::start(Family::V4, Settings::default());
    driver.set("web", web(endpoints));
    driver
}

/// An open connection and who it leads to.
fn held(from: &'static str) -> (TcpStream, String) {
    let mut connection = connect(from, VIP).expect("connected");
    let line = ask(&mut connection).expect("an answer");
    (connection, line.split(' ').next().expect("a name").to_owned())
}

fn still_leads_to(connection: &mut TcpStream, who: &str) {
    let line = ask(connection).expect("the connection still works");
    assert!(line.starts_with(who), "{line}");
}

fn destinations() -> String {
    run("ipvsadm -Ln | grep -- '->' | grep -v Remote").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn an_endpoint_that_goes_keeps_its_connections_and_gets_no_new_ones() {
    with_ipvs(|| {
        let mut driver = start(&PODS[..2]);
        let mut held: Vec<_> = (0..4).map(|_| held(CLIENT)).collect();
        assert!(held.iter().any(|(_, who)| who == POD) && held.iter().any(|(_, who)| who == NEIGHBOUR));
        driver.set("web", web(&PODS[1..2]));
        for (connection, who) in &mut held {
            still_leads_to(connection, who);
        }
        for _ in 0..6 {
            assert_eq!(tcp(CLIENT, VIP).who(), NEIGHBOUR);
        }
        // It is not idle: it stays, however often one looks.
        for _ in 0..5 {
            driver.pass(Duration::from_secs(60));
        }
        assert!(destinations().contains("10.1.0.2:8080 Masq 0 2"), "{}", destinations());
        // The process restarts, and still they work.
        let limited = Settings { drain_limit: Some(Duration::from_secs(1800)), ..Settings::default() };
        driver.restart(limited);
        for (connection, who) in &mut held {
            still_leads_to(connection, who);
        }
        // The endpoint returns: it gets new connections again.
        driver.set("web", web(&PODS[..2]));
        let answering: BTreeSet<String> = (0..6).map(|_| tcp(CLIENT, VIP).who().to_owned()).collect();
        assert_eq!(answering.len(), 2);
        driver.set("web", web(&PODS[1..2]));
        for (connection, who) in &mut held {
            still_leads_to(connection, who);
        }
        // At the limit it goes with its connections.
        for _ in 0..40 {
            driver.pass(Duration::from_secs(60));
        }
        assert!(!destinations().contains("10.1.0.2"), "{}", destinations());
        for (connection, who) in &mut held {
            match &**who {
                NEIGHBOUR => still_leads_to(connection, who),
                _ => {
                    connection.set_read_timeout(Some(Duration::from_secs(2))).expect("a limit");
                    assert!(ask(connection).is_err());
                }
            }
        }
    });
}

#[test]
fn an_idle_endpoint_and_an_idle_service_go_at_the_first_look() {
    with_ipvs(|| {
        let mut driver = start(&PODS);
        driver.set("web", web(&PODS[..1]));
        assert_eq!(destinations().matches("Masq 0 0 0").count(), 2);
        driver.pass(Duration::from_secs(6));
        assert_eq!(destinations().matches("->").count(), 1);
        driver.remove("web", Protocol::Tcp);
        assert_eq!(tcp(CLIENT, VIP), Reply::Refused);
        assert!(run("ip route show table local proto 89").contains("10.96.0.1"));
        driver.pass(Duration::from_secs(6));
        driver.pass(Duration::from_secs(60));
        assert!(!run("ipvsadm -Ln").contains("10.96.0.1"));
        assert_eq!(run("ip route show table local proto 89"), "");
        assert!(!run("nft list table ip kube-proxy-ipvs").contains("10.96.0.1"));
    });
}

#[test]
fn a_service_that_is_deleted_keeps_its_connections() {
    with_ipvs(|| {
        let mut driver = start(&PODS[..1]);
        let (mut connection, who) = held(CLIENT);
        driver.remove("web", Protocol::Tcp);
        assert_eq!(tcp(CLIENT, VIP), Reply::Refused);
        driver.pass(Duration::from_secs(6));
        still_leads_to(&mut connection, &who);
        driver.restart(Settings::default());
        still_leads_to(&mut connection, &who);
        // Created again, it takes up where it left.
        driver.set("web", web(&PODS[..1]));
        still_leads_to(&mut connection, &who);
        assert_eq!(tcp(CLIENT, VIP).who(), POD);
    });
}

#[test]
fn udp_moves_to_another_endpoint_at_once() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        driver.set("dns", route(Protocol::Udp, "10.96.0.1", &PODS[..1]));
        let socket = rig::within(CLIENT, || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a limit");
            socket.connect(VIP).expect("a route");
            socket
        });
        let who = || {
            let mut buffer = [0; 64];
            socket.send(b"?").expect("sent");
            socket
                .recv(&mut buffer)
                .ok()
                .map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        assert!(who().expect("an answer").starts_with(POD));
        driver.set("dns", route(Protocol::Udp, "10.96.0.1", &PODS[1..2]));
        // The first datagram ends the connection of IPVS (`expire_nodest_conn`), with the next it begins anew.
        let answers: Vec<_> = (0..3).map(|_| who()).collect();
        assert!(
            answers.last().expect("three").as_ref().is_some_and(|line| line.starts_with(NEIGHBOUR)),
            "{answers:?}"
        );
    });
}

#[test]
fn a_client_with_affinity_stays_until_its_endpoint_goes() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        let sticky = |endpoints: &[&str]| web(endpoints).under(|policy| policy.affinity = Some(600));
        driver.set("web", sticky(&PODS));
        let first = tcp(CLIENT, VIP).who().to_owned();
        for _ in 0..6 {
            assert_eq!(tcp(CLIENT, VIP).who(), first);
        }
        let others: Vec<&str> = [POD, NEIGHBOUR, REMOTE]
            .into_iter()
            .zip(PODS)
            .filter(|(name, _)| *name != first)
            .map(|(_, addr)| addr)
            .collect();
        driver.set("web", sticky(&others));
        let second = tcp(CLIENT, VIP).who().to_owned();
        assert_ne!(second, first, "nobody is kept on an endpoint that is gone");
        for _ in 0..6 {
            assert_eq!(tcp(CLIENT, VIP).who(), second);
        }
        // A restart changes nothing for the client.
        driver.restart(Settings::default());
        assert_eq!(tcp(CLIENT, VIP).who(), second);
    });
}

#[test]
fn a_restart_writes_nothing_to_servers_and_addresses() {
    with_ipvs(|| {
        let mut driver = start(&PODS);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            driver.set(
                "lb",
                exposed(route(protocol, "10.96.0.2", &PODS), "198.51.100.1", TrafficPolicy::Local),
            );
        }
        let (mut connection, who) = held(CLIENT);
        let before = (run("ipvsadm -Sn | sort"), run("nft list ruleset"), run("ip route show table local"));
        driver.restart(Settings::default());
        assert_eq!(driver.full(), 0, "a full plan over what is there has nothing to do");
        assert_eq!(
            (run("ipvsadm -Sn | sort"), run("nft list ruleset"), run("ip route show table local")),
            before
        );
        still_leads_to(&mut connection, &who);
    });
}

#[test]
fn no_connection_is_lost_during_restarts() {
    with_ipvs(|| {
        let mut driver = start(&PODS);
        driver.set(
            "lb",
            exposed(route(Protocol::Tcp, "10.96.0.2", &PODS), "198.51.100.1", TrafficPolicy::Local),
        );
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let clients = [VIP, "198.51.100.1:80"].map(|to| {
            let stop = stop.clone();
            let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let counted = count.clone();
            let thread = std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let reply = tcp(CLIENT, to);
                    let before = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    assert!(matches!(reply, Reply::From { .. }), "{to}: {reply:?} after {before}");
                }
            });
            (thread, count)
        });
        // As many restarts as it takes for both to have connected often enough; how fast either is differs widely.
        let enough = |restarts: usize| {
            let slowest =
                clients.iter().map(|(_, count)| count.load(std::sync::atomic::Ordering::Relaxed)).min();
            restarts >= 20 && slowest > Some(10) || clients.iter().any(|(thread, _)| thread.is_finished())
        };
        let mut restarts = 0;
        while !enough(restarts) {
            driver.restart(Settings::default());
            restarts += 1;
            assert!(restarts < 2_000, "the clients do not get on");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for (thread, _) in clients {
            thread.join().expect("every connection was answered");
        }
    });
}

#[test]
fn every_kind_of_damage_is_noticed_and_repaired() {
    with_ipvs(|| {
        let mut driver = start(&PODS);
        driver.set(
            "lb",
            exposed(route(Protocol::Tcp, "10.96.0.2", &PODS), "198.51.100.1", TrafficPolicy::Local),
        );
        let check = |driver: &mut Driver, damage: &str| {
            assert!(driver.is_intact(), "before {damage}");
            run(damage);
            assert!(!driver.is_intact(), "{damage} is not noticed");
            driver.full();
            assert!(driver.is_intact(), "after {damage}");
            for to in [VIP, "10.96.0.2:80", "198.51.100.1:80", "192.168.7.1:30080"] {
                for from in [CLIENT, POD, NODE] {
                    tcp(from, to).who();
                }
            }
        };
        check(&mut driver, "ipvsadm -C");
        check(&mut driver, "ip link del kube-ipvs0");
        check(&mut driver, "ip link set kube-ipvs0 down");
        check(
            &mut driver,
            "ip link del kube-ipvs0 && ip link add kube-ipvs0 type dummy && ip link set kube-ipvs0 up",
        );
        check(&mut driver, "nft flush ruleset");
        check(&mut driver, "nft delete table ip kube-proxy-ipvs");
        check(&mut driver, "nft flush table ip kube-proxy-ipvs");
        check(&mut driver, "nft flush chain ip kube-proxy-ipvs nat-postrouting");
        // What others do in their own tables is no damage.
        run("nft add table ip other; nft add chain ip other c; nft add rule ip other c accept");
        assert!(driver.is_intact());
    });
}

/// Linux 6.17 is the first to tell how many elements a set has.
fn kernel_counts_elements() -> bool {
    let release = run("uname -r");
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0_u32));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 17)
}

#[test]
fn a_single_object_that_somebody_changed_is_noticed_and_repaired() {
    with_ipvs(|| {
        let mut driver = start(&PODS);
        driver.set(
            "lb",
            exposed(route(Protocol::Tcp, "10.96.0.2", &PODS), "198.51.100.1", TrafficPolicy::Local),
        );
        let to = &PODS[0];
        let damages = [
            "ip route del local 10.96.0.1 dev kube-ipvs0 table local".to_owned(),
            "ip route flush table local proto 89".to_owned(),
            "ip link set kube-ipvs0 down && ip link set kube-ipvs0 up".to_owned(),
            // With its last address the device loses its routes.
            "ip addr add 10.99.0.1/32 dev kube-ipvs0 && ip addr del 10.99.0.1/32 dev kube-ipvs0".to_owned(),
            "ipvsadm -D -t 10.96.0.2:80".to_owned(),
            format!("ipvsadm -d -t {VIP} -r {to}:8080"),
            format!("ipvsadm -e -t {VIP} -r {to}:8080 -m -w 7"),
            format!("ipvsadm -a -t {VIP} -r 10.1.0.99:8080 -m"),
            format!("ipvsadm -E -t {VIP} -s lc"),
            "nft insert rule ip kube-proxy-ipvs ipvs-policy-check counter drop".to_owned(),
            "nft flush map ip kube-proxy-ipvs ipvs-short-circuits".to_owned(),
            "nft delete element ip kube-proxy-ipvs ipvs-cluster-ips { 10.96.0.1 }".to_owned(),
        ];
        let of_elements = |damage: &str| damage.contains("flush map") || damage.contains("delete element");
        let counted = kernel_counts_elements();
        for damage in damages.iter().filter(|damage| counted || !of_elements(damage)) {
            assert!(driver.is_intact(), "before {damage}");
            run(damage);
            assert!(!driver.is_intact(), "{damage} is not noticed");
            driver.full();
            assert!(driver.is_intact(), "after {damage}");
            for to in [VIP, "10.96.0.2:80", "198.51.100.1:80", "192.168.7.1:30080"] {
                for from in [CLIENT, POD, NODE] {
                    tcp(from, to).who();
                }
            }
        }
    });
}

#[test]
fn an_address_that_somebody_took_from_the_device_is_noticed() {
    with_ipvs(|| {
        rig::build();
        let settings = || Settings { binding: Binding::Addresses, ..Settings::default() };
        for (family, vip, other) in
            [(Family::V4, "10.96.0.1", "10.96.0.2"), (Family::V6, "fd00:96::1", "fd00:96::2")]
        {
            let mut driver = Driver::start(family, settings());
            driver.set("web", route(Protocol::Udp, vip, &[]));
            driver.set("other", route(Protocol::Udp, other, &[]));
            driver.remove("other", Protocol::Udp);
            assert!(driver.is_intact(), "what we take away ourselves is no damage");
            run(&format!("ip addr del {vip} dev kube-ipvs0"));
            assert!(!driver.is_intact(), "{vip}");
            driver.full();
            assert!(driver.is_intact());
            assert!(run("ip addr show dev kube-ipvs0").contains(vip));
        }
    });
}

#[test]
fn neither_our_own_changes_nor_those_of_others_are_damage() {
    with_ipvs(|| {
        let mut driver = start(&PODS);
        let (connection, _) = held(CLIENT);
        // An element of an interval set, one of a map, and some of each other kind.
        let exposed = || {
            let mut of =
                exposed(route(Protocol::Tcp, "10.96.0.2", &PODS), "198.51.100.1", TrafficPolicy::Local);
            let ranges = ["192.168.7.0/24", "203.0.113.0/25", "203.0.113.7/32", "10.0.0.0/8"];
            let ranges = ranges.map(|range| range.parse().expect("a network")).into();
            let sources = AllowedSources { ranges, own_vips: [ip("198.51.100.1")].into() };
            of.policy_mut().sources = Some(Arc::new(sources));
            of
        };
        driver.set("lb", exposed());
        run("nft add table ip another");
        assert!(driver.is_intact(), "added");
        driver.set("web", web(&PODS[1..]));
        assert!(driver.is_intact(), "an endpoint drains");
        driver.set("web", web(&PODS));
        assert!(driver.is_intact(), "it is restored");
        driver.set("web", web(&PODS[..1]));
        drop(connection);
        driver.pass(Duration::from_secs(3600));
        assert!(driver.is_intact(), "it is deleted");
        driver.remove("lb", Protocol::Tcp);
        assert!(driver.is_intact(), "a Service drains");
        driver.pass(Duration::from_secs(3600));
        driver.pass(Duration::from_secs(3600));
        assert!(driver.is_intact(), "its address is let go");
        driver.restart(Settings::default());
        assert!(driver.is_intact(), "after a restart");
        run("ip route add local 10.97.0.1 dev lo table local && ip route del local 10.97.0.1 dev lo table local
             ip link add other type dummy && ip addr add 10.98.0.1/32 dev other && ip link del other
             ipvsadm -A -t 10.97.0.1:80 -s rr && ipvsadm -D -t 10.97.0.1:80
             nft add table ip other; nft add set ip other s '{ type ipv4_addr; }'
             nft add element ip other s '{ 10.0.0.1 }'; nft flush set ip other s");
        assert!(driver.is_intact(), "others keep to their own");
    });
}

#[test]
fn kube_proxys_state_is_taken_over_without_losing_a_connection() {
    with_ipvs(|| {
        rig::build();
        // As kube-proxy's IPVS mode leaves it: addresses on the device, virtual servers without our flag.
        run("ip link add kube-ipvs0 type dummy
             for vip in 10.96.0.1 10.96.0.9; do
                 ip addr add $vip/32 dev kube-ipvs0
                 ipvsadm -A -t $vip:80 -s rr && ipvsadm -a -t $vip:80 -r 10.2.0.2:8080 -m
             done
             ip link set kube-ipvs0 up; sysctl -qw net.ipv4.vs.conntrack=1
             ipvsadm -A -t 203.0.113.7:80 -s wlc && ipvsadm -a -t 203.0.113.7:80 -r 10.2.0.2:8080 -m");
        run("nft -f - <<'X'
table ip kube-proxy {
    comment \"rules for kube-proxy\"
    set cluster-ips { type ipv4_addr; elements = { 10.96.0.1 } }
    chain service-X { ip saddr 10.9.9.9 drop; }
    map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.9.9 . tcp . 80 : goto service-X } }
    chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
    chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
    chain filter-forward { type filter hook forward priority 0; ct state new drop; }
}
X");
        // The client is routed here and needs no masquerading to get an answer.
        let (mut connection, who) = held(CLIENT);
        let mut driver = Driver::open(Family::V4, Settings::default());
        driver.set_without_plan("web", web(&PODS[1..]));
        driver.full();
        still_leads_to(&mut connection, &who);
        let answering: BTreeSet<String> = (0..6).map(|_| tcp(CLIENT, VIP).who().to_owned()).collect();
        assert_eq!(answering.len(), 2);
        assert!(!run("ip -4 addr show dev kube-ipvs0").contains("inet "), "bound as routes now");
        // The Service that nobody wants any more drains; somebody else's server stands.
        let listing = run("ipvsadm -Ln");
        assert!(listing.contains("203.0.113.7:80 wlc\n"), "{listing}");
        driver.pass(Duration::from_secs(10));
        assert!(!run("ipvsadm -Ln").contains("10.96.0.9"));
        assert_eq!(
            run("nft list tables").trim(),
            "table ip kube-proxy-ipvs",
            "the table of its nftables mode is gone"
        );
    });
}

#[test]
fn the_table_of_earlier_releases_is_exchanged_for_ours() {
    with_ipvs(|| {
        let driver = start(&PODS);
        drop(driver);
        // As they left it: the name of the nftables modes, and a rule that must not go on refusing.
        run("nft delete table ip kube-proxy-ipvs; nft -f - <<'X'
table ip kube-proxy {
    set ipvs-vips { type ipv4_addr; elements = { 10.96.0.1, 10.96.0.9 } }
    chain nat-prerouting { type nat hook prerouting priority -100; meta mark set meta mark or 0x4000; }
    chain filter-input { type filter hook input priority 110; ct state new ip daddr @ipvs-vips drop; }
}
X");
        let mut driver = Driver::open(Family::V4, Settings::default());
        driver.set_without_plan("web", web(&PODS));
        driver.full();
        assert_eq!(run("nft list tables").trim(), "table ip kube-proxy-ipvs");
        tcp(CLIENT, VIP).who();
        assert!(driver.is_intact());
        assert!(leaving::remove_rules(Family::V4).expect("removed"));
        assert!(!leaving::remove_rules(Family::V4).expect("there is nothing"));
        assert_eq!(run("nft list tables"), "");
    });
}

#[test]
fn every_scheduler_serves_and_a_missing_one_concerns_only_its_service() {
    with_ipvs(|| {
        let mut driver = start(&PODS);
        for (number, scheduler) in (10..).zip(Scheduler::ALL) {
            let vip = format!("10.96.0.{number}");
            let given = [
                (options::SCHEDULER.into(), scheduler.as_str().into()),
                (options::WEIGHT.into(), "100".into()),
            ];
            let chosen = route(Protocol::Tcp, &vip, &PODS).under(|policy| policy.options = given.into());
            if scheduler == Scheduler::TWOS && std::env::var("VM_RUN_GUEST").is_ok_and(|kind| kind == "qemu")
            {
                // Debian's 6.1 does not have it.
                let reasons = driver.rejected("other", chosen);
                assert!(reasons.iter().any(|reason| reason.contains("module ip_vs_twos")), "{reasons:?}");
                continue;
            }
            driver.set(&format!("by-{scheduler}"), chosen);
            tcp(CLIENT, &format!("{vip}:80")).who();
        }
        let listing = run("ipvsadm -Ln");
        assert!(listing.contains("10.96.0.20:80 mh (mh-fallback,mh-port)\n"), "{listing}");
        tcp(CLIENT, VIP).who();
    });
}

#[test]
fn weights_shape_the_spread() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        let options = [(options::SCHEDULER, "wrr"), (options::LOCAL_WEIGHT, "3")]
            .map(|(key, value)| (key.into(), value.into()));
        let web = web(&["10.1.0.2", "10.2.0.2"]).under(|policy| policy.options = options.into());
        driver.set("web", web);
        let here = (0..16).filter(|_| tcp(CLIENT, VIP).who() == POD).count();
        assert_eq!(here, 12, "three of four go to the endpoint of this node");
    });
}

#[test]
fn a_port_used_again_at_once_reaches_a_living_endpoint() {
    with_ipvs(|| {
        let mut driver = start(&PODS[..1]);
        let from = |port| rig::tcp_from(CLIENT, port, VIP);
        assert_eq!(from(40_000).who(), POD);
        driver.set("web", web(&PODS[1..2]));
        // The same client port, whose old connection IPVS still remembers: not to the endpoint that is gone. Where conntrack
        // remembers it, too, IPVS drops the first packet (`uses_old_conntrack`) and the client's second attempt succeeds.
        assert_eq!(from(40_000).who(), NEIGHBOUR);
    });
}

#[test]
fn settings_of_the_kernel_are_made_and_timeouts_written() {
    with_ipvs(|| {
        let timeouts = ipvs_netlink::Timeouts { tcp: Some(777), tcp_fin: None, udp: Some(33) };
        // Listing loads the module, which brings the settings.
        run("ipvsadm -Ln");
        run(
            "sysctl -qw net.ipv4.vs.conntrack=0 net.ipv4.vs.expire_nodest_conn=0 net.ipv4.conf.all.arp_ignore=0",
        );
        Driver::start(Family::V4, Settings { timeouts, strict_arp: true, ..Settings::default() });
        for (name, value) in [
            ("net.ipv4.vs.conntrack", "1"),
            ("net.ipv4.vs.expire_nodest_conn", "1"),
            ("net.ipv4.vs.expire_quiescent_template", "1"),
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.conf.all.arp_ignore", "1"),
            ("net.ipv4.conf.all.arp_announce", "2"),
        ] {
            assert_eq!(run(&format!("sysctl -n {name}")).trim(), value, "{name}");
        }
        assert_eq!(run("ipvsadm -Ln --timeout").trim(), "Timeout (tcp tcpfin udp): 777 120 33");
    });
}

#[test]
fn arp_for_a_virtual_ip_is_answered_only_without_strict_arp() {
    with_ipvs(|| {
        let mut driver = start(&PODS);
        run("ip -n client route add 10.96.0.0/24 dev eth0");
        // Now the client asks for the address itself.
        tcp(CLIENT, VIP).who();
        driver.restart(Settings { strict_arp: true, ..Settings::default() });
        run("ip -n client neigh flush all");
        assert_eq!(tcp(CLIENT, VIP), Reply::Silence);
        let neighbour = run("ip -n client neigh show 10.96.0.1");
        assert!(neighbour.contains("INCOMPLETE") || neighbour.contains("FAILED"), "{neighbour}");
    });
}

#[test]
fn udp_and_tcp_of_one_port_are_two_servers() {
    with_ipvs(|| {
        let mut driver = start(&PODS[..1]);
        driver.set("web", route(Protocol::Udp, "10.96.0.1", &PODS[1..2]));
        assert_eq!(tcp(CLIENT, VIP).who(), POD);
        assert_eq!(udp(CLIENT, VIP).who(), NEIGHBOUR);
        driver.remove("web", Protocol::Udp);
        assert_eq!(tcp(CLIENT, VIP).who(), POD);
        assert_eq!(udp(CLIENT, VIP), Reply::Refused);
    });
}

#[test]
fn maglev_leads_a_client_to_the_same_endpoint_whatever_happened_before() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        let by_maglev = |vip: &str, endpoints: &[&str]| {
            let options = [(options::SCHEDULER.into(), "mh".into())];
            route(Protocol::Tcp, vip, endpoints).under(|policy| policy.options = options.into())
        };
        driver.set("fresh", by_maglev("10.96.0.1", &PODS));
        // Another node: endpoints came one by one, last first; one went and came back; another scheduler before.
        driver.set("old", route(Protocol::Tcp, "10.96.0.2", &PODS[2..]));
        driver.set("old", by_maglev("10.96.0.2", &PODS[2..]));
        driver.set("old", by_maglev("10.96.0.2", &PODS[1..]));
        let mut held: Vec<_> = (0..6)
            .map(|_| {
                let mut connection = connect(CLIENT, "10.96.0.2:80").expect("connected");
                let line = ask(&mut connection).expect("an answer");
                (connection, line)
            })
            .collect();
        driver.set("old", by_maglev("10.96.0.2", &PODS));
        driver.set("old", by_maglev("10.96.0.2", &[PODS[0], PODS[2]]));
        driver.set("old", by_maglev("10.96.0.2", &PODS));
        for (connection, who) in &mut held {
            assert_eq!(ask(connection).expect("the connection still works"), *who);
        }
        assert_eq!(run("sysctl -n net.ipv4.vs.expire_nodest_conn").trim(), "1");
        let mut met = BTreeSet::new();
        for port in 41_000..41_060 {
            let fresh = rig::tcp_from(CLIENT, port, "10.96.0.1:80").who().to_owned();
            assert_eq!(rig::tcp_from(CLIENT, port, "10.96.0.2:80").who(), fresh, "client port {port}");
            met.insert(fresh);
        }
        assert_eq!(met.len(), 3, "the port of the client counts");
    });
}

#[test]
fn kube_proxys_ipvs_mode_can_take_over_from_us() {
    with_ipvs(|| {
        let mut driver = start(&PODS[2..]);
        driver.set(
            "lb",
            exposed(route(Protocol::Tcp, "10.96.0.2", &PODS[2..]), "198.51.100.1", TrafficPolicy::Local),
        );
        let (mut connection, who) = held(CLIENT);
        drop(driver);
        // What it does at its start: finds the device, binds virtual IPs as
        // addresses, edits virtual servers that it finds by address and port to its liking, masquerades by iptables.
        run("ip addr add 10.96.0.1/32 dev kube-ipvs0 && ip addr add 10.96.0.2/32 dev kube-ipvs0
             ipvsadm -E -t 10.96.0.1:80 -s rr
             iptables-nft -t nat -A POSTROUTING -m ipvs --vaddr 10.96.0.0/24 -j MASQUERADE");
        assert!(run("ipvsadm -Ln").contains("10.96.0.1:80 rr\n"), "our flag is gone with its edit");
        still_leads_to(&mut connection, &who);
        assert_eq!(tcp(CLIENT, VIP).who(), REMOTE);
        assert_eq!(tcp(NODE, VIP).who(), REMOTE);
        // What it leaves of us, and how that is removed without harm to its own.
        assert!(run("ipvsadm -Ln").contains("FWM"));
        assert!(leaving::remove_rules(Family::V4).expect("removed"));
        leaving::remove_unknown().expect("removed");
        assert!(!run("nft list tables").contains("kube-proxy-ipvs"));
        assert_eq!(run("ip route show table local proto 89; ipvsadm -Ln | grep FWM || true"), "");
        still_leads_to(&mut connection, &who);
        assert_eq!(tcp(CLIENT, VIP).who(), REMOTE);
        assert_eq!(tcp(CLIENT, "10.96.0.2:80").who(), REMOTE);
    });
}

#[test]
fn a_missing_scheduler_is_named_at_the_start() {
    with_ipvs(|| {
        let settings = Settings { scheduler: "nosuch".parse().expect("a name"), ..Settings::default() };
        let error = backend_ipvs::open(Family::V4, settings).err().expect("refused");
        assert_eq!(
            error.to_string(),
            "the scheduler nosuch is missing: load the module ip_vs_nosuch, or choose another"
        );
        assert_eq!(run("ipvsadm -Ln | wc -l").trim(), "3", "nothing is left of the trial");
    });
}
