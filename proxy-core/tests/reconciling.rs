//! When the engine acts and what it does when the kernel says no, in virtual time.

mod support;

use std::time::Duration;

use proxy_core::{
    environment::EnvironmentSettings,
    instance::Counts,
    model::{Family, Input, Kind, Service, ServicePort, Slice, TrafficPolicy},
    reconciler::Pace,
};
use support::{LONG, Rig, ip, name, service, slice};

/// `a` and `b`, one endpoint each.
fn two() -> Vec<Input> {
    ["a", "b"].iter().zip(1..).flat_map(|(of, number)| with_endpoint(of, number)).collect()
}

fn with_endpoint(of: &str, number: u8) -> [Input; 2] {
    [Input::Service(service(of, number).into()), Input::Slice(slice(of, &[number]).into())]
}

fn many(count: u8) -> Vec<Input> {
    (1..=count).flat_map(|number| with_endpoint(&format!("s{number:03}"), number)).collect()
}

#[test]
fn nothing_is_written_before_both_kinds_are_listed() {
    let mut rig = Rig::new();
    rig.put(Input::Listing(Kind::Service));
    rig.put(Input::Listing(Kind::Slice));
    two().into_iter().for_each(|input| rig.put(input));
    rig.put(Input::Listed(Kind::Service));
    assert!(rig.run_for(LONG).is_empty());
    assert!(rig.v4().log.is_empty());
    rig.put(Input::Listed(Kind::Slice));
    let reports = rig.settle();
    assert_eq!(reports.len(), 2, "one of each family");
    assert!(reports.iter().all(|report| report.full == Some("start")));
    assert_eq!(rig.in_kernel(Family::V4), ["a", "b"]);
}

#[test]
fn an_empty_cluster_is_written_too() {
    let mut rig = Rig::listed([]);
    rig.settle();
    assert_eq!(rig.v4().log.len(), 1);
    assert!(rig.v4().environment.is_some());
}

#[test]
fn a_change_is_written_at_once_when_idle() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    assert_eq!(rig.engine.next_wakeup(), Some(rig.now));
    let reports = rig.sync();
    assert_eq!(reports.len(), 1, "the other family is not touched");
    let changes: Vec<String> = reports[0].changes.iter().map(|change| change.name.to_string()).collect();
    assert_eq!(changes, ["ns/a:p"]);
    assert_eq!(reports[0].full, None);
    assert_eq!((reports[0].pending.services, reports[0].pending.slices), (0, 1));
}

#[test]
fn a_burst_is_taken_together() {
    let mut rig = Rig::running(many(50));
    rig.pass(LONG);
    let before = rig.v4().log.len();
    rig.put(Input::Slice(slice("s001", &[1, 100]).into()));
    rig.sync();
    for number in 2..=50 {
        rig.put(Input::Slice(slice(&format!("s{number:03}"), &[number, 100]).into()));
    }
    assert!(rig.sync().is_empty(), "the minimum interval has not passed");
    assert_eq!(rig.engine.next_wakeup(), Some(rig.now + Pace::default().min_interval));
    let reports = rig.settle();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].changes.len(), 49);
    assert_eq!(rig.v4().log.len(), before + 2);
}

#[test]
fn a_slow_kernel_gets_a_rest_as_long_as_its_work() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    let mut now = rig.now;
    let reports = rig.engine.sync_due(&mut || {
        now += Duration::from_millis(40);
        now
    });
    rig.put(Input::Slice(slice("a", &[1]).into()));
    let took = reports[0].ended - reports[0].started;
    assert!(took >= Duration::from_millis(40));
    assert_eq!(rig.engine.next_wakeup(), Some(reports[0].ended + took));
}

#[test]
fn what_equals_what_is_installed_costs_the_kernel_nothing() {
    let mut rig = Rig::running(two());
    let before = rig.v4().log.len();
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    rig.put(Input::Slice(slice("a", &[1]).into()));
    rig.put(Input::Slice(Slice { trigger_time: Some(5), ..slice("a", &[1]) }.into()));
    let reports = rig.settle();
    assert!(reports.iter().all(|report| report.changes.is_empty() && report.error.is_none()));
    assert_eq!(rig.v4().log.len(), before);
}

#[test]
fn a_failed_sync_is_repeated_with_growing_pauses_and_loses_nothing() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    rig.v4().faults.busy = 5;
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    let mut waits = Vec::new();
    for round in 0..5 {
        let reports = rig.sync();
        assert_eq!(reports.len(), 1, "round {round}");
        assert!(reports[0].error.as_deref().is_some_and(|error| error.contains("busy")));
        assert!(reports[0].changes.is_empty(), "nothing took effect");
        waits.push(reports[0].retry_at.expect("retried") - rig.now);
        assert_eq!(rig.engine.next_wakeup(), reports[0].retry_at);
        // What comes meanwhile joins, and does not shorten the pause.
        rig.put(Input::Slice(slice("b", &[2, 10 + round]).into()));
        assert!(rig.sync().is_empty());
        rig.now = reports[0].retry_at.expect("retried");
    }
    let first = Pace::default().first_retry;
    assert_eq!(waits, [first, first * 2, first * 4, first * 8, first * 16]);
    let reports = rig.settle();
    assert_eq!(reports[0].full, Some("the kernel's state is not known after a failure"));
    assert_eq!(reports[0].changes.len(), 2);
    assert_eq!(rig.v4().routes.values().map(|route| route.cluster.len()).collect::<Vec<_>>(), [2, 2]);

    rig.pass(LONG);
    rig.v4().faults.busy = 1;
    rig.put(Input::Slice(slice("a", &[1]).into()));
    let reports = rig.settle();
    assert_eq!(reports[0].retry_at.expect("retried") - reports[0].ended, first, "success resets the pause");
}

#[test]
fn the_pause_has_an_upper_bound() {
    let mut rig = Rig::running(two());
    rig.v4().faults.busy = 100;
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    let reports = rig.settle();
    let longest = reports.iter().filter_map(|report| Some(report.retry_at? - report.ended)).max();
    assert_eq!(longest, Some(Pace::default().max_retry));
    assert_eq!(rig.v4().routes.values().next().map(|route| route.cluster.len()), Some(2));
}

#[test]
fn one_family_that_fails_does_not_stop_the_other() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    rig.v6().faults.busy = u32::MAX;
    rig.put(Input::Service(service("c", 3).into()));
    let reports = rig.run_for(LONG);
    assert!(reports.iter().any(|report| report.family == Family::V6 && report.error.is_some()));
    assert!(reports.iter().all(|report| report.family == Family::V6 || report.error.is_none()));
    assert_eq!(rig.in_kernel(Family::V4), ["a", "b", "c"]);
    assert_eq!(rig.in_kernel(Family::V6), ["a", "b"]);
    rig.v6().faults.busy = 0;
    rig.settle();
    assert_eq!(rig.in_kernel(Family::V6), ["a", "b", "c"], "what was owed is not forgotten");
}

#[test]
fn a_lost_reply_leads_to_a_full_sync() {
    for took_effect in [true, false] {
        let mut rig = Rig::running(two());
        rig.v4().faults.lost = vec![took_effect];
        rig.put(Input::Service(service("c", 3).into()));
        let reports = rig.settle();
        let v4: Vec<_> = reports.iter().filter(|report| report.family == Family::V4).collect();
        assert!(v4[0].error.is_some());
        assert_eq!(v4[1].full, Some("the kernel's state is not known after a failure"));
        assert_eq!(rig.in_kernel(Family::V4), ["a", "b", "c"]);
    }
}

#[test]
fn the_culprit_is_set_aside_and_all_others_go_ahead_at_once() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    rig.v4().faults.refuse.insert(name("a"));
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    rig.put(Input::Slice(slice("b", &[2, 3]).into()));
    let reports = rig.sync();
    assert_eq!(reports[0].error, None);
    assert_eq!(reports[0].set_aside, [(name("a"), "not this one".to_owned())]);
    let targets: Vec<usize> = rig.v4().routes.values().map(|route| route.cluster.len()).collect();
    assert_eq!(targets, [1, 2], "a keeps its last good state");
    assert_eq!(rig.engine.instances()[0].set_aside_names().collect::<Vec<_>>(), [&name("a")]);

    // It is tried again, less and less often.
    let attempts = |reports: &[proxy_core::instance::SyncReport]| {
        reports.iter().filter(|report| !report.set_aside.is_empty()).count()
    };
    assert_eq!(attempts(&rig.run_for(Duration::from_secs(59))), 4);
    assert_eq!(attempts(&rig.run_for(Duration::from_secs(300))), 10);

    rig.v4().faults.refuse.clear();
    let reports = rig.settle();
    assert_eq!(reports.last().expect("retried").restored, [name("a")]);
    assert_eq!(rig.v4().routes.values().next().map(|route| route.cluster.len()), Some(2));
    assert_eq!(rig.engine.instances()[0].set_aside_names().count(), 0);
}

#[test]
fn an_edit_gives_a_service_that_was_set_aside_another_chance_at_once() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    rig.v4().faults.refuse.insert(name("a"));
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    rig.sync();
    rig.v4().faults.refuse.clear();
    rig.pass(Duration::from_millis(100));
    assert!(rig.sync().is_empty());
    rig.put(Input::Slice(slice("a", &[1, 3]).into()));
    let reports = rig.sync();
    assert_eq!(reports[0].restored, [name("a")]);
}

#[test]
fn a_culprit_at_the_start_does_not_keep_the_node_down() {
    let mut rig = Rig::listed(many(5));
    rig.v4().faults.refuse = [name("s002"), name("s004")].into();
    let reports = rig.sync();
    let v4 = reports.iter().find(|report| report.family == Family::V4).expect("synced");
    assert_eq!((v4.full, v4.error.as_deref()), (Some("start"), None));
    assert_eq!(rig.in_kernel(Family::V4), ["s001", "s003", "s005"]);
    rig.v4().faults.refuse.clear();
    rig.settle();
    assert_eq!(rig.in_kernel(Family::V4), ["s001", "s002", "s003", "s004", "s005"]);
}

#[test]
fn a_flood_of_culprits_takes_a_few_syncs_but_gets_through() {
    let mut rig = Rig::listed(many(200));
    rig.v4().faults.refuse = (1..=100).map(|number| name(&format!("s{number:03}"))).collect();
    rig.run_for(Duration::from_secs(10));
    assert_eq!(rig.in_kernel(Family::V4).len(), 100);
    rig.put(Input::Slice(slice("s150", &[1, 2]).into()));
    rig.run_for(Duration::from_secs(3));
    let kernel = rig.v4();
    let changed = kernel.routes.iter().find(|(port, _)| port.service == name("s150"));
    assert_eq!(changed.map(|(_, route)| route.cluster.len()), Some(2));
}

#[test]
fn a_last_good_state_that_is_refused_in_its_turn_is_left_out() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    // Somebody flushes everything, and now the kernel refuses what it took before.
    rig.v4().routes.clear();
    rig.v4().damaged = true;
    rig.v4().faults.refuse.insert(name("a"));
    assert_eq!(rig.engine.check_drift(rig.now), [Family::V4]);
    let reports = rig.sync();
    assert_eq!(reports[0].error, None);
    assert_eq!(reports[0].set_aside.len(), 1);
    assert_eq!(rig.in_kernel(Family::V4), ["b"]);
    rig.v4().faults.refuse.clear();
    rig.settle();
    assert_eq!(rig.in_kernel(Family::V4), ["a", "b"]);
}

#[test]
fn a_service_that_is_set_aside_gives_up_an_address_that_another_owns_by_now() {
    let external = |of: &str, number, addr: &str| {
        Input::Service(Service { external_ips: [ip(addr)].into(), ..service(of, number) }.into())
    };
    // `b` holds the address; its edit, which would keep it, is refused; then the older `a` claims it.
    let mut rig = Rig::running([external("b", 2, "203.0.113.1"), Input::Slice(slice("b", &[2]).into())]);
    rig.pass(LONG);
    rig.v4().faults.refuse.insert(name("b"));
    rig.put(Input::Slice(slice("b", &[2, 3]).into()));
    rig.sync();
    rig.pass(Duration::from_millis(100));
    rig.v4().faults.refuse.clear();
    rig.put(external("a", 1, "203.0.113.1"));
    let reports = rig.sync();
    assert_eq!(reports[0].error, None);
    assert_eq!(rig.frontends("a"), ["172.30.0.1:80", "203.0.113.1:80"]);
    assert_eq!(rig.frontends("b"), ["172.30.0.2:80"]);
}

#[test]
fn what_is_refused_even_without_the_address_is_left_out() {
    let with_address = |of: &str, number| {
        Input::Service(Service { external_ips: [ip("203.0.113.1")].into(), ..service(of, number) }.into())
    };
    let mut rig = Rig::running([with_address("b", 2), Input::Slice(slice("b", &[2]).into())]);
    rig.pass(LONG);
    rig.v4().faults.refuse.insert(name("b"));
    rig.put(Input::Slice(slice("b", &[2, 3]).into()));
    rig.sync();
    rig.pass(Duration::from_millis(100));
    rig.put(with_address("a", 1));
    let reports = rig.sync();
    assert_eq!(reports[0].error, None);
    assert_eq!(rig.frontends("a"), ["172.30.0.1:80", "203.0.113.1:80"]);
    assert_eq!(rig.frontends("b"), [""; 0]);
    rig.v4().faults.refuse.clear();
    rig.settle();
    assert_eq!(rig.frontends("b"), ["172.30.0.2:80"]);
}

#[test]
fn every_port_of_a_service_is_served_and_what_is_given_twice_once() {
    let mut many = service("a", 1);
    let first = many.ports[0].clone();
    let second = ServicePort { name: "q".into(), port: 81, ..first };
    let same_address = ServicePort { name: "r".into(), ..first };
    many.ports = [first.clone(), second, same_address, first].into();
    let rig = Rig::running([Input::Service(many.into())]);
    let kernel = rig.v4();
    let ports: Vec<_> =
        kernel.routes.iter().map(|(port, route)| (&*port.port, route.frontends.len())).collect();
    assert_eq!(ports, [("p", 1), ("q", 1), ("r", 0)]);
}

#[test]
fn the_heir_of_an_address_gets_it_though_it_did_not_change() {
    let with = |of: &str, number| {
        Input::Service(Service { external_ips: [ip("203.0.113.1")].into(), ..service(of, number) }.into())
    };
    let mut rig = Rig::listed([with("old", 1), with("young", 2)]);
    let reports = rig.settle();
    let conflicts: Vec<_> = reports.iter().flat_map(|report| &report.conflicts).collect();
    assert_eq!(conflicts.len(), 1, "told once");
    assert_eq!((&conflicts[0].service, &conflicts[0].winner), (&name("young"), &name("old")));
    assert_eq!(rig.frontends("young"), ["172.30.0.2:80"]);

    rig.put(Input::Slice(slice("young", &[2]).into()));
    assert!(rig.settle().iter().all(|report| report.conflicts.is_empty()), "told once");

    rig.put(Input::ServiceGone(name("old")));
    let reports = rig.settle();
    assert_eq!(rig.frontends("young"), ["172.30.0.2:80", "203.0.113.1:80"]);
    let changed: Vec<_> =
        reports.iter().flat_map(|report| &report.changes).map(|c| c.name.to_string()).collect();
    assert_eq!(changed.iter().filter(|name| *name == "ns/young:p").count(), 1);
}

#[test]
fn a_service_that_is_made_anew_loses_its_seniority() {
    let with = |of: &str, number: u8, created| {
        let external_ips = [ip("203.0.113.1")].into();
        Input::Service(Service { created, external_ips, ..service(of, number) }.into())
    };
    let mut rig = Rig::running([with("a", 1, 10), with("b", 2, 20)]);
    assert_eq!(rig.frontends("a").len(), 2);
    // Deleted and created between two syncs: one update as far as the store can see.
    rig.put(with("a", 1, 30));
    rig.settle();
    assert_eq!(rig.frontends("a").len(), 1);
    assert_eq!(rig.frontends("b").len(), 2);
}

#[test]
fn a_cluster_ip_cannot_be_taken_by_an_external_ip() {
    let thief = Service { created: -5, external_ips: [ip("172.30.0.2")].into(), ..service("thief", 1) };
    let mut rig = Rig::running([Input::Service(thief.into()), Input::Service(service("owner", 2).into())]);
    assert_eq!(rig.frontends("thief"), ["172.30.0.1:80"]);
    assert_eq!(rig.frontends("owner"), ["172.30.0.2:80"]);
    rig.put(Input::ServiceGone(name("owner")));
    rig.settle();
    assert_eq!(rig.frontends("thief"), ["172.30.0.1:80", "172.30.0.2:80"]);
}

#[test]
fn what_is_in_the_kernel_in_part_is_taken_back_and_tried_again_by_itself() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    rig.v4().faults.reject.insert(name("a"));
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    rig.put(Input::Slice(slice("b", &[2, 3]).into()));
    let reports = rig.sync();
    assert_eq!(reports[0].set_aside, [(name("a"), "not this op".to_owned())]);
    assert!(reports[0].restored.is_empty());
    assert_eq!(
        rig.in_kernel(Family::V4),
        ["b"],
        "not even its last good state is taken: nothing of it is left"
    );
    let surveys = rig.v4().surveys;
    let reports = rig.run_for(Duration::from_secs(59));
    assert_eq!(reports.len(), 4, "with growing pauses");
    assert!(reports.iter().all(|report| report.full.is_none() && report.restored.is_empty()));
    rig.v4().faults.reject.clear();
    let reports = rig.settle();
    assert_eq!(reports.last().expect("retried").restored, [name("a")]);
    assert_eq!(rig.v4().surveys, surveys, "everything else was left alone");
    assert_eq!(rig.v4().routes.values().map(|route| route.cluster.len()).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn drift_is_repaired_by_a_full_sync() {
    let mut rig = Rig::running(two());
    assert_eq!(rig.engine.check_drift(rig.now), []);
    assert_eq!(rig.engine.next_wakeup(), None);
    rig.pass(LONG);
    rig.v6().routes.clear();
    rig.v6().damaged = true;
    assert_eq!(rig.engine.check_drift(rig.now), [Family::V6]);
    assert_eq!(rig.engine.check_drift(rig.now), [], "it is already owed");
    let reports = rig.settle();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].family, Family::V6);
    assert_eq!(rig.in_kernel(Family::V6), ["a", "b"]);
}

#[test]
fn a_check_for_drift_that_fails_once_is_asked_again() {
    let mut rig = Rig::running(two());
    rig.v4().faults.silent = 2;
    assert_eq!(rig.engine.check_drift(rig.now), []);
    assert_eq!(rig.engine.check_drift(rig.now), []);
    assert_eq!(rig.engine.check_drift(rig.now), [], "it answers, and all is well");
    rig.v4().faults.silent = 3;
    assert_eq!(rig.engine.check_drift(rig.now), []);
    assert_eq!(rig.engine.check_drift(rig.now), []);
    assert_eq!(rig.engine.check_drift(rig.now), [Family::V4], "three in a row are too many");
}

#[test]
fn a_plan_that_does_not_fit_becomes_a_full_one_at_once() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    rig.v4().full_up = true;
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    let reports = rig.sync();
    assert_eq!(reports[0].full, Some("does not fit"));
    assert_eq!(reports[0].error, None);
    assert_eq!(reports[0].changes.len(), 1);
    assert_eq!(rig.v4().routes.values().map(|route| route.cluster.len()).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn a_full_sync_can_be_demanded() {
    let mut rig = Rig::running(two());
    rig.engine.start_over("asked", rig.now);
    let reports = rig.settle();
    assert_eq!(reports.iter().filter(|report| report.full == Some("asked")).count(), 2, "one of each family");
}

#[test]
fn a_new_list_removes_what_is_gone() {
    let mut rig = Rig::running(two());
    rig.put(Input::Listing(Kind::Service));
    rig.put(Input::Service(service("b", 2).into()));
    assert!(rig.run_for(LONG).is_empty(), "half a list takes nothing away");
    rig.put(Input::Listed(Kind::Service));
    rig.settle();
    assert_eq!(rig.in_kernel(Family::V4), ["b"]);
}

#[test]
fn upkeep_runs_when_it_is_due_and_not_while_a_full_sync_is_owed() {
    let mut rig = Rig::running(two());
    let due = rig.now + LONG;
    rig.v4().upkeep_at = Some(due);
    assert_eq!(rig.engine.next_wakeup(), Some(due));
    rig.run_for(LONG * 2);
    assert_eq!(rig.v4().upkeeps, 1);

    // The kernel refuses upkeep, and everything else for a while: no spinning, and a full sync in the end.
    rig.v4().upkeep_at = Some(rig.now);
    rig.v4().faults.busy = 5;
    let reports = rig.settle();
    assert_eq!(reports.iter().filter(|report| report.error.is_some()).count(), 5);
    assert_eq!(reports.iter().find_map(|report| report.full), Some("upkeep failed"));
    assert!(rig.v4().upkeeps <= 3, "{}", rig.v4().upkeeps);
}

#[test]
fn a_new_zone_is_a_second_look_at_every_service() {
    let mut zoned = slice("a", &[1, 2]);
    for (endpoint, zone) in zoned.endpoints.iter_mut().zip(["east", "west"]) {
        endpoint.for_zones = Some([zone.into()].into());
    }
    let mut rig = Rig::running([Input::Service(service("a", 1).into()), Input::Slice(zoned.into())]);
    let targets = |rig: &Rig| rig.v4().routes.values().map(|route| route.cluster.len()).sum::<usize>();
    assert_eq!(targets(&rig), 2);
    rig.put(Input::Zone(Some("west".into())));
    rig.settle();
    assert_eq!(targets(&rig), 1);
    rig.put(Input::Zone(None));
    rig.settle();
    assert_eq!(targets(&rig), 2);
}

#[test]
fn a_new_environment_is_planned_though_no_service_changed() {
    let mut rig = Rig::running(two());
    rig.put(Input::ServiceCidrs(["172.30.0.0/16".parse().expect("a network")].into()));
    let reports = rig.settle();
    assert_eq!(reports.len(), 1, "the list names one family only");
    assert!(reports[0].changes.is_empty());
    let cidrs = rig.v4().environment.as_ref().map(|environment| environment.service_cidrs.len());
    assert_eq!(cidrs, Some(1));
    rig.put(Input::ServiceCidrs(["172.30.0.0/16".parse().expect("a network")].into()));
    assert_eq!(rig.engine.next_wakeup(), None, "the same again is nothing new");
}

#[test]
fn the_nodes_addresses_are_part_of_the_environment_and_of_source_ranges() {
    let restricted = Service {
        load_balancer_ips: [ip("198.51.100.1")].into(),
        source_ranges: Some(["192.168.0.0/16".parse().expect("a network")].into()),
        ..service("a", 1)
    };
    let mut rig = Rig::running([Input::Service(restricted.into())]);
    let own_vips = |rig: &Rig| {
        let kernel = rig.v4();
        let route = kernel.routes.values().next().expect("one Service");
        route.sources(&route.frontends[1]).expect("restricted").own_vips.len()
    };
    assert_eq!(own_vips(&rig), 0);
    rig.put(Input::NodeIps([ip("192.168.0.10")].into()));
    rig.settle();
    assert_eq!(own_vips(&rig), 1);
    let node_ips = rig.v4().environment.as_ref().map(|environment| environment.node_ips.to_vec());
    assert_eq!(node_ips, Some(vec![ip("192.168.0.10")]));
    rig.put(Input::NodeIps([ip("192.168.0.10")].into()));
    assert_eq!(rig.engine.next_wakeup(), None, "the same again is nothing new");
}

#[test]
fn the_addresses_of_interfaces_are_followed() {
    let mut rig = Rig::running(two());
    rig.put(Input::InterfaceAddresses([ip("192.168.0.10"), ip("192.168.0.11")].into()));
    rig.settle();
    let addresses = rig.v4().environment.as_ref().map(|environment| environment.interface_addresses.len());
    assert_eq!(addresses, Some(2));
}

#[test]
fn changed_settings_take_effect_without_a_restart() {
    let mut rig = Rig::running(two());
    let all = EnvironmentSettings { masquerade_all: true, ..support::settings() };
    let pace = Pace { min_interval: Duration::from_secs(7), ..Pace::default() };
    rig.engine.set_settings(all, pace, rig.now);
    rig.settle();
    assert!(rig.v4().environment.as_ref().is_some_and(|environment| environment.masquerade_all));
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    rig.sync();
    rig.put(Input::Slice(slice("a", &[1]).into()));
    let last = rig.now;
    rig.sync();
    assert_eq!(rig.engine.next_wakeup(), Some(last + Duration::from_secs(7)));
}

#[test]
fn the_earliest_of_several_reasons_to_wake_up_counts() {
    let mut rig = Rig::running(two());
    rig.pass(LONG);
    // `a` waits longer than `b`, for it was refused twice.
    rig.v4().faults.refuse = [name("a"), name("b")].into();
    rig.put(Input::Slice(slice("a", &[1, 2]).into()));
    rig.sync();
    let first = rig.engine.next_wakeup().expect("a is retried");
    rig.now = first;
    rig.sync();
    let of_a = rig.engine.next_wakeup().expect("a is retried");
    rig.pass(Duration::from_millis(10));
    rig.put(Input::Slice(slice("b", &[2, 3]).into()));
    rig.sync();
    let of_b = rig.engine.next_wakeup().expect("b is retried");
    assert!(of_b < of_a);
    // And among families.
    rig.v6().upkeep_at = Some(rig.now + Duration::from_millis(5));
    assert_eq!(rig.engine.next_wakeup(), Some(rig.now + Duration::from_millis(5)));
}

#[test]
fn what_is_installed_is_counted() {
    let mut local = service("a", 1);
    local.internal_policy = TrafficPolicy::Local;
    let mut external = service("b", 2);
    external.external_policy = TrafficPolicy::Local;
    external.external_ips = [ip("203.0.113.1")].into();
    let inputs = [
        Input::Service(local.into()),
        Input::Service(external.into()),
        Input::Service(service("c", 3).into()),
    ];
    let slices = ["a", "b", "c"].map(|of| Input::Slice(slice(of, &[1, 2]).into()));
    let mut rig = Rig::running(inputs.into_iter().chain(slices));
    let expected = Counts { service_ports: 3, endpoints: 4, no_local_internal: 1, no_local_external: 1 };
    assert_eq!(rig.engine.instances()[0].counts(), expected);
    let mut here = slice("b", &[1, 2]);
    here.endpoints[0].local = true;
    rig.put(Input::Slice(here.into()));
    rig.put(Input::ServiceGone(name("a")));
    rig.settle();
    let expected = Counts { service_ports: 2, endpoints: 4, no_local_internal: 0, no_local_external: 0 };
    assert_eq!(rig.engine.instances()[0].counts(), expected);
}

#[test]
fn trigger_times_come_with_the_sync_that_gave_them_effect() {
    let mut rig = Rig::running(two());
    rig.v4().faults.busy = 1;
    rig.put(Input::Slice(Slice { trigger_time: Some(7), ..slice("a", &[1, 2]) }.into()));
    let reports = rig.settle();
    assert!(reports[0].error.is_some() && reports[0].triggers.is_empty());
    assert_eq!(reports[1].triggers, [7]);
}

#[test]
fn health_checks_follow_the_endpoints_of_this_node() {
    let checked = Service {
        health_check_node_port: Some(30999),
        cluster_ips: [ip("172.30.0.1")].into(),
        ..service("a", 1)
    };
    let mut local = slice("a", &[1, 2]);
    local.endpoints[0].local = true;
    let mut rig = Rig::running([Input::Service(checked.into()), Input::Slice(local.into())]);
    let counts = |rig: &mut Rig| {
        rig.engine
            .take_health_checks()
            .map(|checks| checks.values().map(|check| (check.local_v4, check.local_v6)).collect())
    };
    // The Service is of one family, and does not exist in the other.
    assert_eq!(counts(&mut rig), Some(vec![(Some(1), None)]));
    assert_eq!(counts(&mut rig), None, "unchanged since the last call");
    rig.put(Input::SliceGone(proxy_core::model::SliceName::new("ns", "a-1")));
    assert_eq!(counts(&mut rig), Some(vec![(Some(0), None)]));
    rig.put(Input::Service(Service { health_check_node_port: Some(30999), ..service("a", 1) }.into()));
    assert_eq!(counts(&mut rig), Some(vec![(Some(0), Some(0))]));
    rig.put(Input::ServiceGone(name("a")));
    assert_eq!(counts(&mut rig), Some(vec![]));
}
