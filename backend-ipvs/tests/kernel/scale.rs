//! Many Services, and that one of them costs the same whatever their number.

use std::{net::Ipv4Addr, sync::Arc};

use backend_ipvs::{Binding, Settings};
use netlink::Traffic;
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

#[test]
fn twenty_thousand_virtual_ips_are_bound_in_few_calls() {
    with_ipvs(|| {
        let mut driver = Driver::start(Family::V4, Settings::default());
        let before = driver.executor.traffic();
        driver.incremental(&additions(1..20_001));
        assert_eq!(run("ip route show table local proto 89 | wc -l").trim(), "20000");
        let made = driver.executor.traffic() - before;
        println!("20,000 Services: {made:?}");
        // Two requests to IPVS, a route and an element each: 256 requests, and some 30 kB of anything else, go in one call.
        assert!(made.calls < 2_000, "{made:?}");
        assert!(made.bytes < 20_000 * 1_000, "{made:?}");
    });
}

/// One endpoint more, and gone again: what is planned, and what that is to the kernel.
fn of_one_change(driver: &mut Driver) -> (Vec<String>, Traffic) {
    let (name, before) = numbered(7);
    let after = Arc::new(route(Protocol::Tcp, "10.96.0.7", &["10.2.0.2", "10.2.0.3"]));
    let ways = [(before.clone(), after.clone()), (after, before)];
    let begin = driver.executor.traffic();
    let plans = ways.map(|(before, after)| {
        let change = Change { name: name.clone(), before: Some(before), after: Some(after) };
        driver.incremental(&[change]).expect("it fits what is there").to_string()
    });
    (plans.to_vec(), driver.executor.traffic() - begin)
}

#[test]
fn one_change_is_the_same_work_whatever_the_number_of_services() {
    with_ipvs(|| {
        let mut driver = Driver::start(Family::V4, Settings::default());
        let mut at = |from: u32, to: u32| {
            driver.incremental(&additions(from..to));
            // The first time the endpoint is new; from then on it comes back while it drains.
            [of_one_change(&mut driver), of_one_change(&mut driver)].map(|(plans, traffic)| {
                // To IPVS, and to nftables for the endpoint that may reach itself.
                assert!(traffic.calls <= 8, "{traffic:?}: four sends and four acknowledgements");
                (plans, traffic)
            })
        };
        let ([_, few], [many, again]) = (at(1, 101), at(101, 10_001));
        assert_eq!(few, many);
        assert_eq!(few, again);
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
