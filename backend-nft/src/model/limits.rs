//! What happens at the limits: numbers that run out, memory that is full, plans of which a part was done.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use proxy_core::{
    backend::{Change, Effect, Plan, Planned, Planner as _},
    model::Protocol,
    route::Route,
};

use super::history::{NODE, POD, World, cluster_ip, name, sticky};
use crate::{
    model::{Fate, Packet},
    schema::operation::{Op, Operation},
};

fn plain(number: u8, endpoints: u32) -> Route {
    let mut route = sticky(endpoints).under(|policy| policy.affinity = None);
    route.frontends[0].at = Some(cluster_ip(number));
    route
}

fn to(number: u8, source: std::net::IpAddr) -> Packet {
    Packet {
        source,
        interface: Some("pod1".into()),
        protocol: Protocol::Tcp,
        to: SocketAddr::new(cluster_ip(number), 80),
        priority: 0,
    }
}

fn left_out(plan: &Plan<Op>) -> Vec<Option<u32>> {
    let ops = plan.steps.iter().flat_map(|step| &step.ops);
    ops.filter(|owned| owned.op.0 == Operation::LeaveOut).map(|owned| owned.owner).collect()
}

impl World {
    fn put(&mut self, number: u8, route: Option<Route>) -> Plan<Op> {
        let after = route.map(Arc::new);
        let before = match &after {
            Some(after) => self.routes.insert(name(number), Arc::clone(after)),
            None => self.routes.remove(&name(number)),
        };
        let change = Change { name: name(number), before, after };
        match self.planner.plan(&[change], &self.environment, self.now) {
            Planned::Plan(plan) => plan,
            Planned::StartOver(reason) => panic!("{reason}"),
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        while let Some(plan) = self.planner.plan_upkeep(self.now) {
            self.model.apply(&plan).expect("the kernel would take it");
            self.planner.settle(Effect::Applied);
        }
    }
}

#[test]
fn b5b_a_step_that_was_done_before_a_refusal_is_not_done_twice() {
    for route in [plain(0, 3), sticky(3)] {
        let mut once = World::new();
        let plan = once.put(0, Some(route.clone()));
        once.model.apply(&plan).expect("taken");

        let mut again = World::new();
        for _ in 0..3 {
            let mut plan = again.put(0, Some(route.clone()));
            plan.steps.truncate(1);
            again.model.apply(&plan).expect("taken");
            again.planner.settle(Effect::Nothing);
            again.routes.clear();
        }
        let plan = again.put(0, Some(route));
        again.model.apply(&plan).expect("taken");
        assert_eq!(again.model.chains, once.model.chains);
        assert_eq!(again.model.sets, once.model.sets);
    }
}

#[test]
fn b5b_lists_without_a_number_are_left_out_and_told_and_changes_go_on() {
    let mut world = World::new();
    world.planner.lists = 2;
    for number in 0..3 {
        world.routes.insert(name(number), Arc::new(plain(number, 3)));
    }
    let routes: Vec<_> = world.routes.clone().into_iter().collect();
    let plan = world.planner.plan_full(&routes, &world.environment, world.model.found(), world.now);
    assert_eq!(left_out(&plan), [Some(2)], "the third is told of");
    world.model.apply(&plan).expect("taken");
    world.planner.settle(Effect::Applied);
    let served = |world: &mut World, number| {
        world
            .model
            .trace(&to(number, POD), &[NODE])
            .iter()
            .all(|end| matches!(end.fate, Fate::Translated { .. }))
    };
    assert!(served(&mut world, 0) && served(&mut world, 1) && !served(&mut world, 2));

    // Those that are served go on changing, and one more is left out: nothing starts over.
    let plan = world.put(0, Some(plain(0, 5)));
    assert_eq!(left_out(&plan), []);
    world.model.apply(&plan).expect("taken");
    world.planner.settle(Effect::Applied);
    let plan = world.put(3, Some(plain(3, 1)));
    assert_eq!(left_out(&plan), [Some(0)]);
    world.model.apply(&plan).expect("taken");
    world.planner.settle(Effect::Applied);

    // When one goes there is room for another, after those on their way have passed.
    let plan = world.put(1, None);
    world.model.apply(&plan).expect("taken");
    world.planner.settle(Effect::Applied);
    world.wait(2);
    let plan = world.put(3, Some(plain(3, 2)));
    assert_eq!(left_out(&plan), []);
    world.model.apply(&plan).expect("taken");
    world.planner.settle(Effect::Applied);
    assert!(served(&mut world, 0) && served(&mut world, 3));
}

#[test]
fn b2_a_client_that_finds_no_room_is_led_to_one_endpoint_all_the_same() {
    let mut world = World::new();
    let plan = world.put(0, Some(sticky(10)));
    world.model.apply(&plan).expect("taken");
    world.planner.settle(Effect::Applied);
    world.model.clients_full = true;
    let mut endpoints = std::collections::BTreeSet::new();
    for client in 1..=100_u8 {
        let ends = world.model.trace(&to(0, std::net::Ipv4Addr::new(10, 0, 1, client).into()), &[NODE]);
        assert_eq!(ends.len(), 1, "one, whatever the dice say");
        endpoints.extend(ends);
    }
    assert!(endpoints.len() > 5, "but not the same for all: {}", endpoints.len());
    assert!(world.model.clients.is_empty());
}

#[test]
fn b2_sticky_services_have_maps_of_clients_of_their_own() {
    let mut world = World::new();
    for number in 0..4 {
        let mut route = sticky(3);
        route.frontends[0].at = Some(cluster_ip(number));
        let plan = world.put(number, Some(route));
        world.model.apply(&plan).expect("taken");
        world.planner.settle(Effect::Applied);
    }
    let maps = |world: &World| world.model.sets.keys().filter(|name| name.starts_with("clients")).count();
    assert_eq!(maps(&world), 4);
    // And keep them, and with them their clients, in another generation.
    let names: Vec<_> = world.model.sets.keys().filter(|name| name.starts_with("clients")).cloned().collect();
    world.start_over(false).expect("taken");
    assert!(names.iter().all(|name| world.model.sets.contains_key(name)));
    assert_eq!(maps(&world), 4);
}
