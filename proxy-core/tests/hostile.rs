//! Objects that their owners may create and that are a burden: they cost nobody else anything.

#![expect(unused_crate_dependencies, reason = "each test binary uses its own part")]

mod support;

use std::{net::IpAddr, time::Duration};

use proxy_core::{
    instance::SyncReport,
    limits::{MOST_DESTINATIONS, MOST_FRONTENDS, MOST_SOURCES, Measure},
    model::{Family, Input, Kind, Protocol, Service, ServiceName, ServicePort, Slice, SliceName},
};
use support::{LONG, Rig, endpoint, ip, name, service, slice};

const V4: Family = Family::V4;

/// How long the change of a good Service may take, whatever others do.
const SOON: Duration = Duration::from_millis(100);

fn numbered(prefix: &str, number: u16) -> Service {
    let [high, low] = number.to_be_bytes();
    Service {
        name: ServiceName::new(prefix, &format!("s{number:04}")),
        cluster_ips: [IpAddr::from([172, 31, high, low])].into(),
        ..service("a", 1)
    }
}

fn endpoints_of(of: &Service, count: u8) -> Input {
    let name = SliceName::new(of.name.namespace(), &format!("{}-1", of.name.name()));
    let all: Vec<u8> = (1..=count).collect();
    Input::Slice(Slice { name, service: of.name.clone(), ..slice("a", &all) }.into())
}

fn input(service: Service) -> Input {
    Input::Service(service.into())
}

/// `count` ports of TCP from 1 on.
fn ports(count: u16) -> Box<[ServicePort]> {
    let port = |number: u16| ServicePort {
        name: format!("p{number}").into(),
        protocol: Protocol::Tcp,
        port: number,
        node_port: None,
    };
    (1..=count).map(port).collect()
}

fn addresses(count: u16) -> Box<[IpAddr]> {
    (0..count)
        .map(|number| IpAddr::from([203, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]]))
        .collect()
}

fn targets(rig: &Rig, of: &Service) -> usize {
    let kernel = rig.v4();
    let route = kernel.routes.iter().find(|(port, _)| port.service == of.name);
    route.map_or(0, |(_, route)| route.cluster.len())
}

/// Refused as a whole, or operation by operation.
fn refused_services_delay_nobody(whole: bool, count: u16) {
    let bad: Vec<Service> = (0..count).map(|number| numbered("hostile", number)).collect();
    let good: Vec<Service> = (2000..2050).map(|number| numbered("good", number)).collect();
    let mut rig = Rig::new();
    {
        let mut kernel = rig.v4();
        let names = bad.iter().map(|service| service.name.clone()).collect();
        if whole { kernel.faults.refuse = names } else { kernel.faults.reject = names }
    }
    rig.put(Input::Listing(Kind::Service));
    rig.put(Input::Listing(Kind::Slice));
    for service in bad.iter().chain(&good) {
        rig.put(input(service.clone()));
        rig.put(endpoints_of(service, 1));
    }
    rig.put(Input::Listed(Kind::Service));
    rig.put(Input::Listed(Kind::Slice));
    rig.run_for(SOON);
    assert_eq!(rig.in_kernel(V4).len(), good.len(), "the good ones are there at once");

    let surveys = rig.v4().surveys;
    for second in 0..120_u8 {
        let changed = &good[usize::from(second) % good.len()];
        rig.put(endpoints_of(changed, second % 7 + 2));
        // Their owners edit the others all the time.
        for edited in bad.iter().skip(usize::from(second) % 7).step_by(7) {
            rig.put(endpoints_of(edited, second % 3 + 1));
        }
        let reports = rig.run_for(SOON);
        assert_eq!(targets(&rig, changed), usize::from(second % 7) + 2, "second {second}");
        assert!(reports.iter().all(|report| report.error.is_none()));
        rig.run_for(Duration::from_secs(1) - SOON);
    }
    assert_eq!(rig.v4().surveys, surveys, "nothing was written anew as a whole");
    let transactions = rig.v4().log.len();
    assert!(transactions < 120 * 10 * 20 * 3, "{transactions} transactions");

    rig.v4().faults.refuse.clear();
    rig.v4().faults.reject.clear();
    rig.settle();
    assert_eq!(rig.in_kernel(V4).len(), bad.len() + good.len());
    assert_eq!(rig.engine.instances()[0].set_aside_names().count(), 0);
}

#[test]
fn services_that_the_kernel_refuses_delay_nobody() {
    refused_services_delay_nobody(true, 400);
}

#[test]
fn services_of_which_the_kernel_refuses_a_part_delay_nobody() {
    refused_services_delay_nobody(false, 400);
}

#[test]
fn culprits_of_many_namespaces_at_the_start_do_not_keep_the_node_down() {
    let mut rig = Rig::new();
    rig.put(Input::Listing(Kind::Service));
    rig.put(Input::Listing(Kind::Slice));
    for number in 0..300_u16 {
        let namespace = format!("ns{}", number % 20);
        let service = numbered(&namespace, number);
        if number % 3 == 0 {
            rig.v4().faults.refuse.insert(service.name.clone());
        }
        rig.put(input(service));
    }
    rig.put(Input::Listed(Kind::Service));
    rig.put(Input::Listed(Kind::Slice));
    rig.run_for(SOON);
    assert_eq!(rig.in_kernel(V4).len(), 200);
}

/// What `reports` say of Services that ask for too much.
fn excesses(reports: &[SyncReport]) -> Vec<(String, Measure, usize)> {
    let of_v4 = reports.iter().filter(|report| report.family == V4);
    let all = of_v4.flat_map(|report| &report.excesses);
    all.map(|(name, excess)| (name.name().to_owned(), excess.measure, excess.number)).collect()
}

#[test]
fn who_asks_for_more_than_one_may_keeps_the_last_good_state_and_costs_nobody_anything() {
    let modest = Service { external_ips: addresses(2), ..service("big", 1) };
    let mut rig = Rig::running([input(modest.clone()), Input::Slice(slice("big", &[1]).into())]);
    assert_eq!(rig.frontends("big").len(), 3);
    rig.pass(LONG);

    let big = Service { external_ips: addresses(2000), ports: ports(2000), ..modest.clone() };
    rig.put(input(big));
    let reports = rig.run_for(SOON);
    assert_eq!(excesses(&reports), [("big".to_owned(), Measure::Frontends, 2000 * 2001)]);
    assert_eq!(rig.frontends("big").len(), 3, "as it was");
    assert_eq!(rig.engine.instances()[0].set_aside_names().collect::<Vec<_>>(), [&name("big")]);

    // It is told once, and others go on; an older one that asks for an address of its gets it.
    rig.put(Input::Slice(slice("big", &[1, 2]).into()));
    let other = Service { created: -1, external_ips: addresses(1), ..service("other", 2) };
    rig.put(input(other));
    let reports = rig.run_for(SOON);
    assert_eq!(excesses(&reports), []);
    assert_eq!(rig.frontends("other").len(), 2);
    assert_eq!(rig.frontends("big").len(), 2, "less what others own by now");

    rig.put(Input::ServiceGone(name("other")));
    rig.put(input(modest));
    rig.run_for(SOON);
    assert_eq!(rig.frontends("big").len(), 3);
    assert_eq!(rig.engine.instances()[0].set_aside_names().count(), 0);
    assert_eq!(rig.engine.next_wakeup(), None);
}

#[test]
fn every_product_has_a_limit() {
    let of = |service: Service, endpoints: usize| {
        let all =
            (0..endpoints).map(|at| endpoint(IpAddr::from([10, 1, (at / 250) as u8, (at % 250) as u8])));
        let slice = Slice { endpoints: all.collect(), ..slice("big", &[]) };
        let mut rig = Rig::listed([input(service), Input::Slice(slice.into())]);
        let reports = rig.run_for(SOON);
        (excesses(&reports), rig.in_kernel(V4).len())
    };
    let big = || service("big", 1);
    let at_limit = Service { external_ips: addresses(MOST_FRONTENDS as u16 - 1), ..big() };
    assert_eq!(of(at_limit, 0), (vec![], 1));
    let above = Service { external_ips: addresses(MOST_FRONTENDS as u16), ..big() };
    let expected = vec![("big".to_owned(), Measure::Frontends, MOST_FRONTENDS + 1)];
    assert_eq!(of(above, 0), (expected, 0));

    let ranges = |count: u32| {
        (0..count).map(|at| {
            let net = std::net::Ipv4Addr::from_bits(0x0a00_0000 + at);
            ipnet::IpNet::new_assert(net.into(), 32)
        })
    };
    let vips: Box<[IpAddr]> = addresses(100);
    let restricted = |count| Service {
        load_balancer_ips: vips.clone(),
        source_ranges: Some(ranges(count).collect()),
        ..big()
    };
    assert_eq!(of(restricted(MOST_SOURCES as u32 / 100), 0), (vec![], 1));
    let expected = vec![("big".to_owned(), Measure::Sources, MOST_SOURCES + 100)];
    assert_eq!(of(restricted(MOST_SOURCES as u32 / 100 + 1), 0), (expected, 0));

    let many = Service { external_ips: addresses(499), ..big() };
    assert_eq!(of(many.clone(), MOST_DESTINATIONS / 500), (vec![], 1));
    let expected = vec![("big".to_owned(), Measure::Destinations, MOST_DESTINATIONS + 500)];
    assert_eq!(of(many, MOST_DESTINATIONS / 500 + 1), (expected, 0));
}

#[test]
fn two_services_that_want_the_same_addresses_are_one_conflict() {
    let claimant = |of: &str, number| {
        let service = Service { external_ips: addresses(99), ports: ports(100), ..service(of, number) };
        input(Service { created: i64::from(number), ..service })
    };
    let mut rig = Rig::listed([claimant("old", 1), claimant("young", 2)]);
    let told = |reports: Vec<SyncReport>| -> Vec<(String, String, usize)> {
        let all =
            reports.into_iter().filter(|report| report.family == V4).flat_map(|report| report.conflicts);
        all.map(|one| (one.service.name().to_owned(), one.winner.name().to_owned(), one.count)).collect()
    };
    assert_eq!(told(rig.settle()), [("young".to_owned(), "old".to_owned(), 9900)]);
    assert_eq!(rig.engine.instances()[0].conflicts(), 9900);
    for round in 1..20 {
        rig.put(Input::Slice(slice("young", &[round]).into()));
        assert_eq!(told(rig.settle()), [], "told once");
    }
    rig.put(Input::ServiceGone(name("old")));
    rig.settle();
    assert_eq!(rig.engine.instances()[0].conflicts(), 0);
    assert_eq!(rig.frontends("young").len(), 100 * 100);
}

#[test]
fn authority_goes_before_age() {
    let vip = ip("198.51.100.9");
    let thief = Service { created: -5, external_ips: [vip].into(), ..service("thief", 1) };
    let owner = Service { load_balancer_ips: [vip].into(), ..service("owner", 2) };
    let mut rig = Rig::running([input(thief)]);
    assert_eq!(rig.frontends("thief").len(), 2, "nobody else has it");
    rig.put(input(owner));
    rig.settle();
    assert_eq!(rig.frontends("thief"), ["172.30.0.1:80"]);
    assert_eq!(rig.frontends("owner"), ["172.30.0.2:80", "198.51.100.9:80"]);
    rig.put(Input::ServiceGone(name("owner")));
    rig.settle();
    assert_eq!(rig.frontends("thief").len(), 2);
}

/// Each of these takes minutes where a step looks at all the others.
#[test]
fn large_objects_are_read_in_a_time_that_grows_with_them() {
    // Many ports, each with slices of its own, and many claimants of one address.
    let big = Service { ports: ports(MOST_FRONTENDS as u16), ..service("big", 1) };
    let mut rig = Rig::listed([input(big)]);
    for number in 1..=MOST_FRONTENDS as u16 {
        let port = proxy_core::model::SlicePort {
            name: format!("p{number}").into(),
            protocol: Protocol::Tcp,
            port: number,
        };
        let slice = Slice {
            name: SliceName::new("ns", &format!("big-{number}")),
            ports: [port].into(),
            ..slice("big", &[1])
        };
        rig.put(Input::Slice(slice.into()));
    }
    for number in 0..10_000 {
        rig.put(input(Service { external_ips: [ip("203.0.113.1")].into(), ..numbered("claimants", number) }));
    }
    rig.settle();
    assert_eq!(rig.in_kernel(V4).len(), 20_000);
    assert!(rig.v4().routes.values().filter(|route| !route.cluster.is_empty()).count() == 10_000);
    for number in 0..10_000 {
        rig.put(Input::ServiceGone(numbered("claimants", number).name));
    }
    rig.settle();
    assert_eq!(rig.engine.instances()[0].conflicts(), 0);
}

#[test]
fn nothing_waits_before_the_lists_are_complete() {
    let mut rig = Rig::new();
    rig.put(input(service("a", 1)));
    rig.put(Input::NodeIps([ip("192.168.0.10")].into()));
    rig.put(Input::Listing(Kind::Service));
    rig.put(Input::Listed(Kind::Service));
    rig.engine.start_over("somebody asks", rig.now);
    assert!(rig.engine.instances().iter().all(|instance| instance.queued_since().is_none()));
    rig.put(Input::Listing(Kind::Slice));
    rig.put(Input::Listed(Kind::Slice));
    assert!(rig.engine.instances().iter().all(|instance| instance.queued_since() == Some(rig.now)));
}
