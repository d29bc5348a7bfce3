//! Many Services, and that one of them costs the same whatever their number.

use std::{net::Ipv4Addr, sync::Arc, time::Instant};

use backend_ipvs::{Binding, Settings};
use proxy_core::{
    backend::Change,
    model::{Family, ObjectName, Protocol, ServicePortName},
    route::Route,
};
use vm_test::{run, with_ipvs};

use crate::driver::{Driver, route};

fn numbered(number: u32) -> (ServicePortName, Arc<Route>) {
    let service = ObjectName::new("default", &format!("service-{number}"));
    let vip = Ipv4Addr::from(0x0a60_0000 + number).to_string();
    let name = ServicePortName { service, port: "".into(), protocol: Protocol::Tcp };
    (name, Arc::new(route(Protocol::Tcp, &vip, &["10.2.0.2"])))
}

fn additions(numbers: std::ops::Range<u32>) -> Vec<Change> {
    numbers.map(numbered).map(|(name, route)| Change { name, before: None, after: Some(route) }).collect()
}

#[expect(clippy::disallowed_methods, reason = "measures the kernel")]
fn measured(what: impl FnOnce()) -> std::time::Duration {
    let start = Instant::now();
    what();
    start.elapsed()
}

#[test]
fn twenty_thousand_virtual_ips_are_bound_in_well_under_a_second() {
    with_ipvs(|| {
        let mut driver = Driver::start(Family::V4, Settings::default());
        let all = additions(1..20_001);
        driver.incremental(&all);
        assert_eq!(run("ip route show table local proto 89 | wc -l").trim(), "20000");
        // Only the binding: the routes go, and come back with the next full plan.
        run("ip route flush table local proto 89");
        let (mut one, mut pipeline) =
            (netlink::Socket::open(netlink::Protocol::Route).expect("a socket"), netlink::Pipeline::new());
        let device: u32 = run("cat /sys/class/net/kube-ipvs0/ifindex").trim().parse().expect("a number");
        for number in 1..20_001_u32 {
            let addr = Ipv4Addr::from(0x0a60_0000 + number).into();
            netlink::route::Route::local(addr, device, 89).push_add(&mut pipeline);
        }
        let took = measured(|| assert!(pipeline.run(&mut one).expect("answered").is_empty()));
        println!("20,000 local routes: {took:?}");
        assert!(took.as_millis() < 2_000, "{took:?}, in a VM that is several times slower than a machine");
    });
}

#[test]
fn the_cost_of_one_change_does_not_grow_with_the_number_of_services() {
    with_ipvs(|| {
        let mut driver = Driver::start(Family::V4, Settings::default());
        let mut at = |from: u32, to: u32| {
            driver.incremental(&additions(from..to));
            let (name, before) = numbered(7);
            let after = Arc::new(route(Protocol::Tcp, "10.96.0.7", &["10.2.0.2", "10.2.0.3"]));
            let mut times: Vec<_> = (0..60)
                .map(|_| {
                    measured(|| {
                        let (before, after) = (Some(before.clone()), Some(after.clone()));
                        driver.incremental(&[Change {
                            name: name.clone(),
                            before: before.clone(),
                            after: after.clone(),
                        }]);
                        driver.incremental(&[Change { name: name.clone(), before: after, after: before }]);
                    })
                })
                .collect();
            times.sort();
            times[times.len() / 2]
        };
        let (few, many) = (at(1, 101), at(101, 10_001));
        println!("two changes of one endpoint: {few:?} at 100 Services, {many:?} at 10,000");
        assert!(many < few * 3, "{few:?} at 100 Services, {many:?} at 10,000");
    });
}

#[test]
fn the_address_form_binds_hundreds() {
    with_ipvs(|| {
        let mut driver =
            Driver::start(Family::V4, Settings { binding: Binding::Addresses, ..Settings::default() });
        driver.incremental(&additions(1..501));
        assert_eq!(run("ip -4 addr show dev kube-ipvs0 | grep -c 'inet '").trim(), "500");
    });
}
