//! What only a kernel can show: damage and repair, refusals, restarts, cleaning up.

mod rig;

use std::{collections::BTreeSet, fs, net::IpAddr};

use backend_iptables::{Executor, Found, Host, Op, Planner, Variant, chains, cleanup};
use proxy_core::{
    backend::{ApplyError, Effect, Executor as _, Plan, Planner as _, Step},
    model::{Family, TrafficPolicy},
    route::{FrontendKind, Route, Target},
};
use rig::{Node, Proxy, cluster_ip, frontend, name, run, target};

const VARIANTS: [Variant; 2] = [Variant::Legacy, Variant::Nft];

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Tables without packets: one endpoint is as good as another.
fn some_route(service: u8) -> Route {
    cluster_ip(addr(&format!("10.96.0.{service}")), 80, &[target(addr("10.244.2.2"), 8080, false)])
}

fn many_endpoints(count: u32) -> Vec<Target> {
    (0..count).map(|n| target(addr(&format!("10.244.{}.{}", n / 250, n % 250 + 1)), 80, false)).collect()
}

/// A node that nothing is connected to.
fn tables(variant: Variant) -> Proxy {
    let node = Node::new(Family::V4);
    let mut proxy = Proxy::new(variant, node.environment());
    proxy.environment.localhost_node_ports = true;
    proxy
}

/// All rules and chains, without counters and comments.
fn saved(variant: Variant, table: &str) -> String {
    let save = run(&format!("iptables-{variant}-save -t {table}"));
    let lines = save.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| format!("{}\n", line.split(" [").next().unwrap_or_default())).collect()
}

/// Runs the rest of a test once per variant, each in a thread with a namespace of its own.
fn in_both_variants(test: fn(Variant)) {
    for variant in VARIANTS {
        let result = std::thread::Builder::new().name(variant.to_string()).spawn(move || test(variant));
        result.expect("a thread").join().unwrap_or_else(|_| panic!("fails in the {variant} variant"));
    }
}

#[test]
fn every_kind_of_damage_is_noticed_and_only_it_is_repaired() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        proxy.routes = vec![(name("web", "http"), some_route(10).into())];
        proxy.full().expect("taken");
        assert!(proxy.finds_all_intact());
        let tables = || ["mangle", "filter", "nat"].map(|table| saved(variant, table));
        let whole = tables();
        let chain = |prefix: &str| -> String {
            let line =
                whole[2].lines().find(|line| line.starts_with(&format!(":{prefix}"))).expect("there is one");
            line[1..].split(' ').next().expect("a name").to_owned()
        };
        let (service, endpoint) = (chain("KUBE-SVC-"), chain("KUBE-SEP-"));
        let damages = [
            "-t nat -F".to_owned(),
            "-t filter -F".to_owned(),
            "-t mangle -X KUBE-PROXY-CANARY".to_owned(),
            "-t nat -F KUBE-POSTROUTING".to_owned(),
            "-t nat -F KUBE-SERVICES".to_owned(),
            "-t filter -F KUBE-FORWARD".to_owned(),
            "-t filter -F KUBE-FIREWALL".to_owned(),
            "-t nat -D PREROUTING 1".to_owned(),
            format!("-t nat -F {service}"),
            format!("-t nat -F {endpoint}"),
            format!("-t nat -D {endpoint} 1"),
            format!("-t nat -A {service} -j RETURN"),
            // As many rules as before.
            format!("-t nat -R {endpoint} 2 -p tcp -j DNAT --to-destination 192.0.2.1:80"),
            "-t nat -R KUBE-MARK-MASQ 1 -j RETURN".to_owned(),
            "-t nat -R POSTROUTING 1 -j RETURN".to_owned(),
            // It comes back at the head.
            "-t filter -D FORWARD 2".to_owned(),
        ];
        for damage in damages {
            run(&format!("iptables-{variant} -w {damage}"));
            if variant == Variant::Legacy && damage.contains(" -R ") {
                // The same number of rules is looked at now and then only; another rule of somebody hurries that.
                run(&format!("iptables-{variant} -w -A INPUT -s 10.9.9.9 -j DROP"));
            }
            assert!(proxy.notices_damage(), "after {damage}");
            proxy.full().expect("taken");
            run(&format!("iptables-{variant} -w -D INPUT -s 10.9.9.9 -j DROP || true"));
            run(&format!("iptables-{variant} -w -t nat -D POSTROUTING -j RETURN || true"));
            let repaired = tables();
            if damage != "-t filter -D FORWARD 2" {
                assert_eq!(repaired, whole, "after {damage}");
            }
        }
        assert!(proxy.finds_all_intact());
    });
}

#[test]
fn an_old_dump_and_a_flushed_rule_set_are_noticed() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        proxy.full().expect("taken");
        let old = run(&format!("iptables-{variant}-save"));
        proxy.change(&name("web", "http"), Some(some_route(10))).expect("taken");
        let whole = saved(variant, "nat");
        let dump = std::env::temp_dir().join(format!("dump-{variant}-{}", std::process::id()));
        fs::write(&dump, old).expect("a new file");
        let restore = format!("iptables-{variant}-restore < {}", dump.display());
        let flush = match variant {
            Variant::Nft => "nft flush ruleset".to_owned(),
            Variant::Legacy => "for t in nat filter mangle; do iptables-legacy -w -t $t -F; iptables-legacy -w -t $t -X; done".to_owned(),
        };
        for damage in [restore, flush] {
            run(&damage);
            assert!(proxy.notices_damage(), "after {damage}");
            proxy.full().expect("taken");
            assert_eq!(saved(variant, "nat"), whole, "after {damage}");
        }
        fs::remove_file(dump).expect("it was written");
        assert!(proxy.finds_all_intact());
    });
}

/// Docker, a CNI and an administrator have rules of their own, which come and go.
#[test]
fn what_others_do_beside_our_rules_is_no_damage() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        proxy.routes = vec![(name("web", "http"), some_route(10).into())];
        proxy.full().expect("taken");
        for line in [
            "-t nat -N DOCKER",
            "-t nat -A DOCKER -p tcp --dport 5000 -j DNAT --to-destination 172.17.0.2:80",
            "-A FORWARD -s 10.9.9.9 -j DROP",
            "-t nat -N CNI-HOSTPORT-SETMARK",
            "-t nat -A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ",
            "-t nat -D DOCKER 1",
        ] {
            run(&format!("iptables-{variant} -w {line}"));
            assert!(proxy.finds_all_intact(), "after {line}");
        }
        // Changes of our own meanwhile are none either.
        proxy.change(&name("web", "http"), Some(some_route(11))).expect("taken");
        assert!(proxy.finds_all_intact());
    });
}

/// Somebody's rule that leads to a chain of a Service looks like damage once, and never again.
#[test]
fn what_a_repair_does_not_change_is_repaired_once() {
    let mut proxy = tables(Variant::Nft);
    proxy.routes = vec![(name("web", "http"), some_route(10).into())];
    proxy.full().expect("taken");
    run("iptables-nft -t nat -A OUTPUT -d 192.0.2.1 -j KUBE-SERVICES");
    assert!(proxy.notices_damage());
    // Once for each way of looking: the counts of uses, then the contents.
    let repairs = (0..3).take_while(|_| {
        proxy.full().expect("taken");
        !proxy.finds_all_intact()
    });
    assert!(repairs.count() < 2, "it is repaired again and again");
    run("iptables-nft -A INPUT -s 10.9.9.9 -j DROP");
    assert!(proxy.finds_all_intact());
    run("iptables-nft -t nat -F KUBE-POSTROUTING");
    assert!(proxy.notices_damage());
}

#[test]
fn a_missing_jump_goes_to_the_head_and_others_stay_where_they_are() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        proxy.full().expect("taken");
        run(&format!("iptables-{variant} -t nat -I PREROUTING -s 10.9.9.9 -j RETURN"));
        assert!(proxy.finds_all_intact(), "another rule at the head is no damage");
        proxy.full().expect("taken");
        let chain = |variant| -> Vec<String> {
            let rules = saved(variant, "nat");
            let rules = rules.lines().filter(|line| line.starts_with("-A PREROUTING")).map(str::to_owned);
            rules.collect()
        };
        let [foreign, ours] = &chain(variant)[..] else { panic!("two rules: {:?}", chain(variant)) };
        assert!(foreign.contains("10.9.9.9") && ours.contains("KUBE-SERVICES"));
        run(&format!("iptables-{variant} -t nat -D PREROUTING 2"));
        proxy.full().expect("taken");
        let [ours, foreign] = &chain(variant)[..] else { panic!("two rules: {:?}", chain(variant)) };
        assert!(foreign.contains("10.9.9.9") && ours.contains("KUBE-SERVICES"));
    });
}

#[test]
fn a_restart_writes_nothing_and_figures_count_what_is_there() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        let mut exposed = some_route(10);
        exposed.frontends = [
            frontend(FrontendKind::ClusterIp, Some(addr("10.96.0.10")), 80),
            frontend(FrontendKind::LoadBalancerIp, Some(addr("203.0.113.20")), 80),
            frontend(FrontendKind::NodePort, None, 30080),
        ]
        .into();
        exposed.external_policy = TrafficPolicy::Local;
        exposed.policy_mut().affinity = Some(600);
        exposed.policy_mut().health_check_node_port = Some(32_000);
        proxy.routes = vec![
            (name("api", "http"), exposed.into()),
            (name("gone", "http"), cluster_ip(addr("10.96.0.12"), 80, &[]).into()),
            (name("web", "http"), some_route(11).into()),
        ];
        proxy.full().expect("taken");
        proxy
            .change(&name("web", "http"), Some(cluster_ip(addr("10.96.0.11"), 80, &many_endpoints(3))))
            .expect("taken");

        for (table, total, _) in proxy.executor.figures().rules {
            let rules = saved(variant, table);
            let ours = rules.lines().filter(|line| line.starts_with("-A KUBE-")).count();
            assert_eq!(total, ours, "{table}");
        }
        let mut restarted = Proxy::new(variant, proxy.environment.clone());
        let found = restarted.executor.survey().expect("the tables can be read");
        let plan = restarted.planner.plan_full(&proxy.routes, &proxy.environment, found, rig::now());
        let writes: Vec<String> = plan.steps[0]
            .ops
            .iter()
            .filter(|owned| owned.op.table().is_some())
            .map(|owned| owned.op.to_string())
            .collect();
        assert_eq!(writes, [""; 0]);
        restarted.executor.apply(&plan).expect("nothing to take");
        assert!(restarted.finds_all_intact());
        run(&format!("iptables-{variant} -t nat -F KUBE-POSTROUTING"));
        assert!(restarted.notices_damage(), "what it found it watches too");
    });
}

#[test]
fn a_refused_rule_is_laid_at_its_services_door_and_changes_nothing() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        proxy.full().expect("taken");
        let before = saved(variant, "nat");
        // The first is refused while it is read; of the second the legacy variant learns no line from the kernel.
        for nonsense in ["-s 10.0.0.1/99", "-m nfacct --nfacct-name nobody-made-this"] {
            let mut step = Step::default();
            for owner in 0..5 {
                let chain = chains::ServiceChain::parse(&format!(
                    "KUBE-SVC-AAAAAAAAAAAAAAA{}",
                    char::from(b'A' + owner)
                ))
                .expect("a chain's name");
                let rule = if owner == 3 { nonsense } else { "-s 10.0.0.1/32" };
                let rules = format!("-A {chain} {rule} -j KUBE-MARK-MASQ\n");
                step.push(Op::Fill { chains: [chain].into(), rules }, Some(owner.into()));
            }
            let error = proxy.executor.apply(&Plan { steps: vec![step] }).expect_err("nonsense");
            let ApplyError::Refused { reason, culprit } = error else { panic!("{error}") };
            assert_eq!(culprit, Some(3), "{nonsense}: {reason}");
            assert_eq!(saved(variant, "nat"), before, "{nonsense}");
        }
        assert!(!saved(variant, "filter").contains("TRIAL"));
    });
}

#[test]
fn a_held_lock_is_nobodys_fault_and_waited_for_a_bounded_time() {
    // The nft variant needs no lock: the kernel has transactions.
    let mut proxy = tables(Variant::Legacy);
    proxy.full().expect("taken");
    let lock = fs::File::create("/run/xtables.lock").expect("/run is ours");
    lock.lock().expect("nobody else has it");
    let error = proxy.change(&name("web", "http"), Some(some_route(10))).expect_err("the lock is held");
    assert!(matches!(&error, ApplyError::Refused { culprit: None, .. }), "{error}");
    drop(lock);
    proxy.change(&name("web", "http"), Some(some_route(10))).expect("the lock is free again");
}

#[test]
fn thousands_of_chains_come_and_go() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        proxy.routes = (0..30)
            .map(|n| {
                let route = cluster_ip(addr(&format!("10.96.0.{n}")), 80, &many_endpoints(100));
                (name(&format!("web-{n:02}"), "http"), route.into())
            })
            .collect();
        proxy.full().expect("taken");
        let endpoints =
            || saved(variant, "nat").lines().filter(|line| line.starts_with(":KUBE-SEP-")).count();
        assert_eq!(endpoints(), 3000);
        assert!(proxy.finds_all_intact());
        proxy.routes.truncate(3);
        proxy.full().expect("taken");
        assert_eq!(endpoints(), 300);
    });
}

#[test]
fn chains_that_lead_to_each_other_are_deleted_in_blocks_and_by_cleanup() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        proxy.routes = (0..400u16)
            .map(|n| {
                let at = addr(&format!("10.96.{}.{}", n / 200, n % 200));
                let mut route = cluster_ip(at, 80, &many_endpoints(2));
                route.frontends = [
                    frontend(FrontendKind::ClusterIp, Some(at), 80),
                    frontend(FrontendKind::NodePort, None, 30_000 + n),
                ]
                .into();
                (name(&format!("web-{n:03}"), "http"), route.into())
            })
            .collect();
        proxy.full().expect("taken");
        let all = std::mem::take(&mut proxy.routes);
        proxy.full().expect("everything stale can be deleted");
        assert!(!saved(variant, "nat").contains("KUBE-SEP-"));
        proxy.routes = all;
        proxy.full().expect("taken");
        cleanup(Family::V4).expect("everything can be removed");
        assert!(!saved(variant, "nat").contains("KUBE-"));
    });
}

#[test]
fn a_chain_that_others_use_stays_and_keeps_nothing_else() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        proxy.full().expect("taken");
        for n in 10..20 {
            proxy.change(&name(&format!("web-{n}"), "http"), Some(some_route(n))).expect("taken");
        }
        let chains = |prefix: &str| -> Vec<String> {
            let prefix = format!(":{prefix}");
            let all = saved(variant, "nat");
            let names = all.lines().filter(|line| line.starts_with(&prefix));
            names.map(|line| line[1..].split(' ').next().expect("a name").to_owned()).collect()
        };
        let used = chains("KUBE-SVC-").remove(4);
        run(&format!("iptables-{variant} -w -t nat -A OUTPUT -d 192.0.2.1 -j {used}"));
        // By changes of single Services, and by a full plan for the rest.
        for n in 10..15 {
            proxy.change(&name(&format!("web-{n}"), "http"), None).expect("nothing waits for the chain");
        }
        proxy.routes.clear();
        proxy.full().expect("nothing waits for the chain");
        assert_eq!(chains("KUBE-SVC-"), std::slice::from_ref(&used));
        assert_eq!(chains("KUBE-SEP-"), [""; 0]);
        assert!(!saved(variant, "nat").contains(&format!("-A {used} ")), "it holds nothing");
        proxy.full().expect("nothing is left to do");
        run(&format!("iptables-{variant} -w -t nat -D OUTPUT -d 192.0.2.1 -j {used}"));
        proxy.full().expect("taken");
        assert_eq!(chains("KUBE-SVC-"), [""; 0]);
    });
}

/// `iptables-save` does not print what others wrote by other means, and nothing tells who uses a chain.
#[test]
fn a_chain_that_others_use_unseen_stays_and_keeps_nothing_else() {
    let mut proxy = tables(Variant::Nft);
    proxy.routes = (0..40).map(|n| (name(&format!("web-{n:02}"), "http"), some_route(n).into())).collect();
    proxy.full().expect("taken");
    run("nft add chain ip nat OTHER");
    let all = saved(Variant::Nft, "nat");
    let line = all.lines().filter(|line| line.starts_with(":KUBE-SVC-")).nth(20).expect("40 Services");
    let used = line[1..].split(' ').next().expect("a name");
    run(&format!("nft add rule ip nat OTHER jump {used}"));
    proxy.routes.clear();
    proxy.full().expect("nothing waits for the chain");
    let left = saved(Variant::Nft, "nat");
    assert!(left.lines().filter(|line| line.starts_with(":KUBE-S")).count() <= 2, "{left}");
}

/// The portmap plugin of CNI marks what it wants masqueraded by jumping to kube-proxy's chain.
#[test]
fn a_mark_that_others_use_keeps_its_effect_when_all_else_is_cleaned() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        proxy.routes = vec![(name("web", "http"), some_route(10).into())];
        proxy.full().expect("taken");
        run(&format!(
            "iptables-{variant} -w -t nat -N CNI-HOSTPORT-SETMARK; \
             iptables-{variant} -w -t nat -A CNI-HOSTPORT-SETMARK -m comment --comment 'CNI portfwd masquerade mark' -j KUBE-MARK-MASQ"
        ));
        cleanup(Family::V4).expect("what others use is no failure");
        let left = saved(variant, "nat");
        let ours: Vec<&str> = left.lines().filter(|line| line.contains("KUBE-")).collect();
        let expected = [
            ":KUBE-MARK-MASQ -",
            ":KUBE-POSTROUTING -",
            "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
            "-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j KUBE-MARK-MASQ",
            "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
            "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully",
        ];
        assert_eq!(BTreeSet::from_iter(ours), BTreeSet::from(expected), "{variant}");
        run(&format!("iptables-{variant} -w -t nat -F CNI-HOSTPORT-SETMARK"));
        cleanup(Family::V4).expect("everything can be removed");
        assert!(!saved(variant, "nat").contains("KUBE-"));
    });
}

#[test]
fn cleanup_removes_both_variants_and_leaves_what_is_not_ours() {
    let node = Node::new(Family::V4);
    for variant in VARIANTS {
        let mut proxy = Proxy::new(variant, node.environment());
        proxy.routes = vec![(name("web", "http"), some_route(10).into())];
        proxy.full().expect("taken");
        run(&format!(
            "iptables-{variant} -t mangle -N KUBE-KUBELET-CANARY; iptables-{variant} -A INPUT -s 10.9.9.9 -j DROP"
        ));
    }
    cleanup(Family::V4).expect("everything can be removed");
    for variant in VARIANTS {
        let all = ["mangle", "filter", "nat"].map(|table| saved(variant, table)).concat();
        let left: BTreeSet<&str> =
            all.lines().filter(|line| line.contains("KUBE-") || line.starts_with("-A")).collect();
        let expected = [
            "-A INPUT -j KUBE-FIREWALL",
            "-A INPUT -s 10.9.9.9/32 -j DROP",
            "-A OUTPUT -j KUBE-FIREWALL",
            ":KUBE-FIREWALL -",
            ":KUBE-KUBELET-CANARY -",
        ];
        assert_eq!(left, BTreeSet::from(expected), "{variant}");
    }
    cleanup(Family::V4).expect("nothing is left to remove");
}

#[test]
fn cleanup_creates_no_legacy_tables() {
    Node::new(Family::V4);
    cleanup(Family::V4).expect("nothing is there");
    let tables =
        fs::read_to_string("/proc/thread-self/net/ip_tables_names").expect("the kernel has ip_tables");
    assert_eq!(tables, "");
}

#[test]
fn the_variant_that_kubelet_uses_is_chosen() {
    in_both_variants(|variant| {
        Node::new(Family::V4);
        let other = if variant == Variant::Legacy { Variant::Nft } else { Variant::Legacy };
        run(&format!(
            "iptables-{variant} -t mangle -N KUBE-KUBELET-CANARY; iptables-{other} -A INPUT -s 10.9.9.9 -j DROP"
        ));
        assert_eq!(Executor::open(Family::V4).expect("iptables works").variant(), variant);
    });
}

#[test]
fn route_localnet_is_set_with_the_rule_that_guards_it() {
    let mut proxy = tables(Variant::Nft);
    proxy.environment.localhost_node_ports = false;
    proxy.full().expect("taken");
    let route_localnet =
        || fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet").expect("readable");
    assert_eq!(route_localnet(), "0\n");
    proxy.environment.localhost_node_ports = true;
    proxy.full().expect("taken");
    assert_eq!(route_localnet(), "1\n");
    assert!(saved(Variant::Nft, "filter").contains("block incoming localnet connections"));
}

#[test]
fn counters_are_used_and_the_trial_leaves_nothing() {
    in_both_variants(|variant| {
        let mut proxy = tables(variant);
        let found = proxy.executor.survey().expect("the tables can be read");
        assert!(found.host.counters.invalid_dropped && found.host.counters.localhost_accepted);
        assert!(!saved(variant, "filter").contains("TRIAL"));
        proxy.full().expect("taken");
        assert!(saved(variant, "filter").contains("ct_state_invalid_dropped_pkts"));
    });
}

#[test]
fn out_of_window_packets_pass_where_the_operator_wants_it() {
    let mut proxy = tables(Variant::Nft);
    proxy.full().expect("taken");
    let drops = || saved(Variant::Nft, "filter").contains("--ctstate INVALID");
    assert!(drops());
    fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "1").expect("writable in our namespace");
    proxy.full().expect("taken");
    assert!(!drops());
}

#[test]
fn affinity_survives_other_endpoints_and_a_rewrite() {
    in_both_variants(|variant| {
        let node = Node::new(Family::V4);
        let [a, b] = &node.servers;
        a.serve("a", 8080);
        b.serve("b", 8080);
        let vip = addr("10.96.0.10");
        let web = name("web", "http");
        let sticky =
            |endpoints: &[Target]| cluster_ip(vip, 80, endpoints).under(|policy| policy.affinity = Some(600));
        let both = [target(a.addr, 8080, false), target(b.addr, 8080, false)];
        let mut proxy = Proxy::new(variant, node.environment());
        proxy.routes = vec![(web.clone(), sticky(&both).into())];
        proxy.full().expect("taken");
        let answer = || node.client.connect(vip, 80).expect("the Service answers").server;
        let first = answer();
        assert!((0..10).all(|_| answer() == first));
        let third = target(addr("10.244.3.99"), 8080, false);
        let three = [both[0], both[1], third];
        proxy.change(&web, Some(sticky(&three))).expect("taken");
        assert!((0..10).all(|_| answer() == first), "an endpoint more does not move clients");
        let mut planner = Planner::new(Family::V4);
        let everything = planner.plan_full(
            &proxy.routes,
            &proxy.environment,
            Found::read(&b""[..], Host::default()).expect("empty"),
            rig::now(),
        );
        let fills: Vec<_> = everything.steps[0]
            .ops
            .iter()
            .filter(|owned| matches!(owned.op, Op::Fill { .. }))
            .cloned()
            .collect();
        proxy.executor.apply(&Plan { steps: vec![Step { ops: fills }] }).expect("taken");
        assert!((0..10).all(|_| answer() == first), "chains written again keep their lists");
        planner.settle(Effect::Nothing);
    });
}
