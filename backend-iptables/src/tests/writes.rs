//! What a plan writes: only what differs, and what goes with it.

use insta::assert_snapshot;
use proxy_core::{
    model::Family,
    route::{FrontendKind, Route},
};

use super::{Bench, environment, exposed_web, frontend, golden::sized, name, target, web};
use crate::{Host, Variant};

#[test]
fn one_more_endpoint_writes_only_what_it_changes() {
    let mut bench = Bench::with(environment(Family::V4), [("web", web()), ("other", exposed_web())]);
    let mut more = web();
    more.cluster = more.cluster.iter().copied().chain([target("10.244.2.5:8080", false)]).collect();
    assert_snapshot!(bench.change(&[(name("web"), Some(more))]), @r#"
*nat
:KUBE-SVC-67NZLRHBNDSAWJRO - [0:0]
:KUBE-SEP-CXXRTNR2DI2TYC6R - [0:0]
-A KUBE-SVC-67NZLRHBNDSAWJRO ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.0.5:8080" -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-2QFQVMZDRZXAQWB2
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.1.5:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-34ZZ2QFGO32YYXXO
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.2.5:8080" -j KUBE-SEP-CXXRTNR2DI2TYC6R
-A KUBE-SEP-CXXRTNR2DI2TYC6R -s 10.244.2.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-CXXRTNR2DI2TYC6R -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.2.5:8080
COMMIT
"#);
}

#[test]
fn a_service_that_goes_takes_its_chains_along() {
    let other =
        Route { frontends: [frontend(FrontendKind::ClusterIp, Some("10.96.0.20"), 80)].into(), ..web() };
    let mut bench = Bench::with(environment(Family::V4), [("web", web()), ("other", other)]);
    assert_snapshot!(bench.change(&[(name("web"), None)]), @r#"
*nat
:KUBE-SVC-67NZLRHBNDSAWJRO - [0:0]
:KUBE-SEP-2QFQVMZDRZXAQWB2 - [0:0]
:KUBE-SEP-34ZZ2QFGO32YYXXO - [0:0]
:KUBE-SERVICES - [0:0]
-A KUBE-SERVICES -d 10.96.0.20/32 -p tcp -m comment --comment "shop/other:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-ZQQMSZCOVN324BPX
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-X KUBE-SVC-67NZLRHBNDSAWJRO
-X KUBE-SEP-2QFQVMZDRZXAQWB2
-X KUBE-SEP-34ZZ2QFGO32YYXXO
COMMIT
"#);
}

#[test]
fn a_change_that_rules_do_not_show_writes_nothing() {
    let mut bench = Bench::with(environment(Family::V4), [("web", web())]);
    let same = web().under(|policy| policy.options = [("key".into(), "value".into())].into());
    assert_eq!(bench.change(&[(name("web"), Some(same))]), "");
}

#[test]
fn a_full_plan_repairs_only_what_is_damaged() {
    let mut bench = Bench::with(environment(Family::V4), [("web", web())]);
    bench.model.restore("*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n").expect("somebody flushed a chain");
    bench.model.restore("*filter\n-D INPUT -j KUBE-FIREWALL\nCOMMIT\n").expect("somebody removed a jump");
    bench
        .model
        .restore("*filter\n-A INPUT -s 10.9.9.9/32 -j DROP\nCOMMIT\n")
        .expect("somebody has rules of his own");
    let text: String =
        bench.full().steps.iter().map(|step| crate::restore::text(step, Variant::Legacy)).collect();
    assert_snapshot!(text, @r#"
*filter
-I INPUT -j KUBE-FIREWALL
COMMIT
*nat
:KUBE-SERVICES - [0:0]
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"#);
    assert!(bench.model.save().contains("-A INPUT -s 10.9.9.9/32 -j DROP"));
}

#[test]
fn what_kube_proxys_ipvs_mode_and_older_services_left_is_removed() {
    let mut bench = Bench::new(environment(Family::V4));
    let left = "*filter\n:KUBE-NODE-PORT - [0:0]\n:KUBE-IPVS-FILTER - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
        -I INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT\n\
        -I INPUT -m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL\n\
        -I INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER\nCOMMIT\n\
        *nat\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n\
        -A KUBE-SERVICES -j KUBE-SVC-AAAAAAAAAAAAAAAA\n-A KUBE-SERVICES -j KUBE-LOAD-BALANCER\n\
        -I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n";
    bench.model.restore(left).expect("taken");
    bench.full();
    let fresh = Bench::with(environment(Family::V4), []);
    let lines = |bench: &Bench| -> std::collections::BTreeSet<String> {
        bench.model.save().lines().map(str::to_owned).collect()
    };
    assert_eq!(lines(&bench), lines(&fresh));
}

#[test]
fn cleanup_leaves_what_kubelet_and_others_have() {
    let mut bench = Bench::new(environment(Family::V4));
    let others =
        "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*filter\n-A INPUT -s 10.9.9.9/32 -j DROP\nCOMMIT\n";
    bench.model.restore(others).expect("taken");
    bench.routes = vec![(name("web"), exposed_web().into())];
    bench.full();
    let plan = crate::plan::removal::plan(&bench.model.found(Host::default()), &[]);
    bench.model.apply(&plan).expect("taken");
    assert_snapshot!(bench.model.save(), @r#"
*mangle
:FORWARD - [0:0]
:INPUT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:OUTPUT - [0:0]
:POSTROUTING - [0:0]
:PREROUTING - [0:0]
COMMIT
*filter
:FORWARD - [0:0]
:INPUT - [0:0]
:KUBE-FIREWALL - [0:0]
:OUTPUT - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -s 10.9.9.9/32 -j DROP
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A OUTPUT -j KUBE-FIREWALL
COMMIT
*nat
:INPUT - [0:0]
:OUTPUT - [0:0]
:POSTROUTING - [0:0]
:PREROUTING - [0:0]
COMMIT
"#);
    let again = crate::plan::removal::plan(&bench.model.found(Host::default()), &[]);
    assert!(again.is_empty(), "nothing is left to do");
}

#[test]
fn when_the_cluster_becomes_large_a_service_loses_its_comments_at_its_next_change() {
    let mut bench = Bench::with(environment(Family::V4), [("web", sized(2, 2)), ("other", sized(1, 1))]);
    let commented = |bench: &Bench, service: &str| {
        let comment = format!("--comment \"shop/{service}:http\"");
        bench.rules("KUBE-SEP-").iter().filter(|rule| rule.contains(&comment)).count()
    };
    bench.change(&[(name("other"), Some(sized(1, 1001)))]);
    assert_eq!((commented(&bench, "web"), commented(&bench, "other")), (4, 0));
    bench.change(&[(name("web"), Some(sized(3, 3)))]);
    assert_eq!((commented(&bench, "web"), commented(&bench, "other")), (0, 0), "those of old endpoints too");
    bench.change(&[(name("other"), Some(sized(1, 1)))]);
    assert_eq!((commented(&bench, "web"), commented(&bench, "other")), (0, 2));
}
