//! Links, addresses and routes of a network namespace of the test's own. Needs root; run under nextest (a process each).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use netlink::{
    Dump, Error, Pipeline, Protocol, Socket, address, link,
    route::{self, AddressFamily, Filter, Route, table},
};
use nix::{
    libc::{EEXIST, ESRCH},
    sched::{CloneFlags, unshare},
};

/// A protocol number of nobody else's.
const OURS: u8 = 189;

fn socket() -> Socket {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests run as root");
    Socket::open(Protocol::Route).expect("a socket")
}

/// A device that is up: a dummy, or where the kernel has none, a bridge.
fn device(socket: &mut Socket) -> u32 {
    link::create(socket, "dev0", "dummy").or_else(|_| link::create(socket, "dev0", "bridge")).expect("made");
    let index = link::find(socket, "dev0").expect("asked").expect("there").index;
    link::set_up(socket, index).expect("up");
    index
}

fn ours(socket: &mut Socket, family: AddressFamily) -> Vec<Route> {
    let mut routes = Vec::new();
    let filter = Filter { family, table: Some(table::LOCAL), protocol: Some(OURS) };
    assert_eq!(route::list(socket, filter, |route| routes.push(route)).expect("listed"), Dump::Complete);
    routes
}

#[test]
fn a_link_is_made_found_listed_set_up_and_deleted() {
    let mut socket = socket();
    let index = device(&mut socket);
    let found = link::find(&mut socket, "dev0").expect("asked").expect("there");
    assert!(found.is_up());
    assert_eq!((&*found.name, found.index), ("dev0", index));
    assert!(matches!(found.kind.as_deref(), Some("dummy" | "bridge")), "{found:?}");
    assert!(link::list(&mut socket).expect("listed").contains(&found));
    let again = link::create(&mut socket, "dev0", found.kind.as_deref().unwrap_or_default())
        .expect_err("the name is taken");
    assert_eq!(again.refused(), Some(EEXIST));
    link::delete(&mut socket, index).expect("deleted");
    assert_eq!(link::find(&mut socket, "dev0").expect("asked"), None);
}

#[test]
fn a_kind_that_does_not_exist_is_refused_with_the_kernels_words() {
    let mut socket = socket();
    let error = link::create(&mut socket, "dev0", "no-such-kind").expect_err("refused");
    assert!(error.to_string().contains("Unknown device type"), "{error}");
}

#[test]
fn addresses_come_and_go_by_pipeline() {
    let mut socket = socket();
    let index = device(&mut socket);
    let addresses: [IpAddr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::from(0xfd00 << 112 | 1).into()];
    let mut pipeline = Pipeline::new();
    for address in addresses {
        address::push_add(&mut pipeline, address, index);
    }
    assert_eq!(pipeline.run(&mut socket).expect("answered"), []);
    let listed = address::list(&mut socket).expect("listed");
    for address in addresses {
        let found = listed.iter().find(|found| found.address == address).expect("listed");
        assert!(found.interface == index && !found.unusable, "{found:?}");
    }
    pipeline.clear();
    for address in addresses {
        address::push_delete(&mut pipeline, address, index);
    }
    assert_eq!(pipeline.run(&mut socket).expect("answered"), []);
    assert!(
        !address::list(&mut socket).expect("listed").iter().any(|found| addresses.contains(&found.address))
    );
}

#[test]
fn twenty_thousand_local_routes_are_added_listed_and_deleted() {
    let mut socket = socket();
    let index = device(&mut socket);
    let routes: Vec<_> = (0..20_000)
        .map(|number| Route::local(Ipv4Addr::from(0xac1e_0000 + number).into(), index, OURS))
        .collect();
    let mut pipeline = Pipeline::new();
    for route in &routes {
        route.push_add(&mut pipeline);
    }
    assert_eq!(pipeline.run(&mut socket).expect("answered"), []);
    let mut listed = ours(&mut socket, AddressFamily::V4);
    listed.sort_by_key(|route| route.destination);
    assert_eq!(listed, routes);

    pipeline.clear();
    for route in &routes {
        route.push_delete(&mut pipeline);
    }
    assert_eq!(pipeline.run(&mut socket).expect("answered"), []);
    assert_eq!(ours(&mut socket, AddressFamily::V4), []);
}

#[test]
fn the_kernels_own_local_routes_are_not_ours() {
    let mut socket = socket();
    let index = device(&mut socket);
    let own = Ipv4Addr::new(192, 0, 2, 1).into();
    let mut pipeline = Pipeline::new();
    address::push_add(&mut pipeline, own, index);
    Route::local(Ipv4Addr::new(172, 30, 0, 1).into(), index, OURS).push_add(&mut pipeline);
    assert_eq!(pipeline.run(&mut socket).expect("answered"), []);
    let ours = ours(&mut socket, AddressFamily::V4);
    assert!(ours.len() == 1 && ours[0].destination != own, "{ours:?}");
    let mut all = Vec::new();
    let filter = Filter { family: AddressFamily::V4, table: None, protocol: None };
    assert_eq!(
        route::list(&mut socket, filter, |route| all.push(route.destination)).expect("listed"),
        Dump::Complete
    );
    assert!(all.contains(&own));
}

#[test]
fn an_ipv6_local_route_is_read_back_as_written() {
    let mut socket = socket();
    let index = device(&mut socket);
    let route = Route::local(Ipv6Addr::from(0xfd00 << 112 | 7).into(), index, OURS);
    let mut pipeline = Pipeline::new();
    route.push_add(&mut pipeline);
    assert_eq!(pipeline.run(&mut socket).expect("answered"), []);
    assert_eq!(ours(&mut socket, AddressFamily::V6), [route]);
}

#[test]
fn each_refused_request_is_named_by_its_index_and_the_others_take_effect() {
    let mut socket = socket();
    let index = device(&mut socket);
    let route = |number: u32| Route::local(Ipv4Addr::from(0xac1e_0000 + number).into(), index, OURS);
    let mut pipeline = Pipeline::new();
    for number in 0..1000 {
        route(number).push_add(&mut pipeline);
        if number % 300 == 0 {
            route(number).push_add(&mut pipeline);
        }
    }
    let failures = pipeline.run(&mut socket).expect("answered");
    let found: Vec<_> = failures.iter().map(|failure| (failure.index, failure.errno)).collect();
    assert_eq!(found, [(1, EEXIST), (302, EEXIST), (603, EEXIST), (904, EEXIST)]);
    assert_eq!(ours(&mut socket, AddressFamily::V4).len(), 1000);

    pipeline.clear();
    route(5000).push_delete(&mut pipeline);
    assert_eq!(pipeline.run(&mut socket).expect("answered")[0].errno, ESRCH);
}

#[test]
fn a_pipeline_may_be_run_again() {
    let mut socket = socket();
    let index = device(&mut socket);
    let mut pipeline = Pipeline::new();
    for number in 0..300 {
        Route::local(Ipv4Addr::from(0xac1e_0000 + number).into(), index, OURS).push_add(&mut pipeline);
    }
    assert_eq!(pipeline.run(&mut socket).expect("answered"), []);
    let failures = pipeline.run(&mut socket).expect("answered");
    assert_eq!(failures.len(), 300);
    assert!(
        failures.iter().enumerate().all(|(index, failure)| failure.index == index && failure.errno == EEXIST)
    );
}

#[test]
fn lost_answers_are_an_error_and_the_socket_serves_on() {
    let mut socket = socket();
    let index = device(&mut socket);
    let route = Route::local(Ipv4Addr::new(172, 30, 0, 1).into(), index, OURS);
    let mut pipeline = Pipeline::new();
    for _ in 0..256 {
        route.push_delete(&mut pipeline);
    }
    // Room for a few of the 256 answers.
    socket.set_receive_buffer(1).expect("set");
    assert!(matches!(pipeline.run(&mut socket), Err(Error::RepliesLost)));

    pipeline.clear();
    route.push_add(&mut pipeline);
    assert_eq!(pipeline.run(&mut socket).expect("answered"), []);
    assert_eq!(ours(&mut socket, AddressFamily::V4), [route]);
}

#[test]
fn an_answer_that_does_not_come_is_not_waited_for_without_end() {
    let mut socket = socket();
    socket.set_patience(Duration::from_millis(20)).expect("set");
    assert!(matches!(socket.receive(), Err(Error::TimedOut)));
    link::list(&mut socket).expect("the socket serves on");
}

#[test]
fn an_answer_to_an_earlier_request_is_not_taken_for_one_to_a_later() {
    let mut socket = socket();
    let index = device(&mut socket);
    let route = Route::local(Ipv4Addr::new(172, 30, 0, 1).into(), index, OURS);
    let mut pipeline = Pipeline::new();
    route.push_delete(&mut pipeline);
    socket.reserve(1);
    socket.send(&[pipeline.bytes()]).expect("sent; it fails, and nobody reads the answer");
    pipeline.clear();
    route.push_add(&mut pipeline);
    assert_eq!(pipeline.run(&mut socket).expect("answered"), []);
}
