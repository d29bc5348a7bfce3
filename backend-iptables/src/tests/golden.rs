//! What the tables hold, feature by feature: rules, order, comments and probabilities as kube-proxy 1.36 writes them.

use insta::assert_snapshot;
use proxy_core::{
    environment::{LocalPods, NodePortAddresses},
    model::{Family, Protocol, ServiceName, ServicePortName, TrafficPolicy},
    route::{AllowedSources, FrontendKind, Route, Target},
};

use super::{Bench, addr, environment, exposed_web, frontend, local_web, name, rules_added, target, web};
use crate::{Host, Planner, Variant, model::Model};

/// The rules that a Service port adds.
fn added(environment: &proxy_core::environment::Environment, service: &'static str, route: Route) -> String {
    rules_added(environment, [(name(service), route)])
}

fn added_v4(route: Route) -> String {
    added(&environment(Family::V4), "web", route)
}

#[test]
fn rules_without_any_service() {
    assert_snapshot!(Bench::with(environment(Family::V4), []).model.save(), @r#"
*mangle
:FORWARD - [0:0]
:INPUT - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:OUTPUT - [0:0]
:POSTROUTING - [0:0]
:PREROUTING - [0:0]
COMMIT
*filter
:FORWARD - [0:0]
:INPUT - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
:OUTPUT - [0:0]
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -j KUBE-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
*nat
:INPUT - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:OUTPUT - [0:0]
:POSTROUTING - [0:0]
:PREROUTING - [0:0]
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
"#);
}

#[test]
fn rules_without_any_service_in_ipv6() {
    let save = Bench::with(environment(Family::V6), []).model.save();
    let rules: Vec<&str> = save.lines().filter(|line| line.starts_with("-A KUBE-")).collect();
    assert_snapshot!(rules.join("\n"), @r#"
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES ! -d ::1/128 -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
"#);
}

#[test]
fn a_cluster_ip() {
    assert_snapshot!(added_v4(web()), @r#"
*mangle
*filter
*nat
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -s 10.244.0.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.5:8080
-A KUBE-SEP-34ZZ2QFGO32YYXXO -s 10.244.1.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-34ZZ2QFGO32YYXXO -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SVC-67NZLRHBNDSAWJRO ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.0.5:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-2QFQVMZDRZXAQWB2
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.1.5:8080" -j KUBE-SEP-34ZZ2QFGO32YYXXO
"#);
}

#[test]
fn a_cluster_ip_without_endpoints() {
    assert_snapshot!(added_v4(Route { cluster: Box::default(), any_endpoint: false, ..web() }), @r#"
*mangle
*filter
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
*nat
"#);
}

#[test]
fn an_unnamed_udp_port_with_three_endpoints_and_affinity() {
    let endpoints =
        [target("10.244.0.5:53", true), target("10.244.0.10:53", true), target("10.244.1.5:53", false)];
    let route = Route { protocol: Protocol::Udp, cluster: endpoints.into(), ..web() }
        .under(|policy| policy.affinity = Some(10_800));
    let name = ServicePortName {
        service: ServiceName::new("shop", "dns"),
        port: "".into(),
        protocol: Protocol::Udp,
    };
    let mut bench = Bench::with(environment(Family::V4), []);
    assert_snapshot!(bench.change(&[(name, Some(route))]), @r#"
*nat
:KUBE-SVC-UUCMI6NRQAAWNJTH - [0:0]
:KUBE-SEP-NQSA5OATPHZCRIGM - [0:0]
:KUBE-SEP-QDIWSBN6H6NRTSXO - [0:0]
:KUBE-SEP-WKVZHRUCHBWPERJW - [0:0]
:KUBE-SERVICES - [0:0]
-A KUBE-SVC-UUCMI6NRQAAWNJTH ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p udp -m comment --comment "shop/dns cluster IP" -m udp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-UUCMI6NRQAAWNJTH -m comment --comment "shop/dns -> 10.244.0.10:53" -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-QDIWSBN6H6NRTSXO --mask 255.255.255.255 --rsource -j KUBE-SEP-QDIWSBN6H6NRTSXO
-A KUBE-SVC-UUCMI6NRQAAWNJTH -m comment --comment "shop/dns -> 10.244.0.5:53" -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-NQSA5OATPHZCRIGM --mask 255.255.255.255 --rsource -j KUBE-SEP-NQSA5OATPHZCRIGM
-A KUBE-SVC-UUCMI6NRQAAWNJTH -m comment --comment "shop/dns -> 10.244.1.5:53" -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-WKVZHRUCHBWPERJW --mask 255.255.255.255 --rsource -j KUBE-SEP-WKVZHRUCHBWPERJW
-A KUBE-SVC-UUCMI6NRQAAWNJTH -m comment --comment "shop/dns -> 10.244.0.10:53" -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-QDIWSBN6H6NRTSXO
-A KUBE-SVC-UUCMI6NRQAAWNJTH -m comment --comment "shop/dns -> 10.244.0.5:53" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-NQSA5OATPHZCRIGM
-A KUBE-SVC-UUCMI6NRQAAWNJTH -m comment --comment "shop/dns -> 10.244.1.5:53" -j KUBE-SEP-WKVZHRUCHBWPERJW
-A KUBE-SEP-NQSA5OATPHZCRIGM -s 10.244.0.5/32 -m comment --comment "shop/dns" -j KUBE-MARK-MASQ
-A KUBE-SEP-NQSA5OATPHZCRIGM -p udp -m comment --comment "shop/dns" -m recent --set --name KUBE-SEP-NQSA5OATPHZCRIGM --mask 255.255.255.255 --rsource -m udp -j DNAT --to-destination 10.244.0.5:53
-A KUBE-SEP-QDIWSBN6H6NRTSXO -s 10.244.0.10/32 -m comment --comment "shop/dns" -j KUBE-MARK-MASQ
-A KUBE-SEP-QDIWSBN6H6NRTSXO -p udp -m comment --comment "shop/dns" -m recent --set --name KUBE-SEP-QDIWSBN6H6NRTSXO --mask 255.255.255.255 --rsource -m udp -j DNAT --to-destination 10.244.0.10:53
-A KUBE-SEP-WKVZHRUCHBWPERJW -s 10.244.1.5/32 -m comment --comment "shop/dns" -j KUBE-MARK-MASQ
-A KUBE-SEP-WKVZHRUCHBWPERJW -p udp -m comment --comment "shop/dns" -m recent --set --name KUBE-SEP-WKVZHRUCHBWPERJW --mask 255.255.255.255 --rsource -m udp -j DNAT --to-destination 10.244.1.5:53
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment "shop/dns cluster IP" -m udp --dport 80 -j KUBE-SVC-UUCMI6NRQAAWNJTH
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"#);
}

#[test]
fn all_external_frontends_under_policy_cluster() {
    assert_snapshot!(added_v4(exposed_web()), @r#"
*mangle
*filter
*nat
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "masquerade traffic for shop/web:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-67NZLRHBNDSAWJRO -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -s 10.244.0.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.5:8080
-A KUBE-SEP-34ZZ2QFGO32YYXXO -s 10.244.1.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-34ZZ2QFGO32YYXXO -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment "shop/web:http external IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SVC-67NZLRHBNDSAWJRO ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.0.5:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-2QFQVMZDRZXAQWB2
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.1.5:8080" -j KUBE-SEP-34ZZ2QFGO32YYXXO
"#);
}

#[test]
fn all_external_frontends_under_policy_local() {
    assert_snapshot!(added_v4(local_web()), @r#"
*mangle
*filter
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http health check node port" -m tcp --dport 32123 -j ACCEPT
*nat
-A KUBE-EXT-67NZLRHBNDSAWJRO -s 10.244.0.0/16 -m comment --comment "pod traffic for shop/web:http external destinations" -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "masquerade LOCAL traffic for shop/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "route LOCAL traffic for shop/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-EXT-67NZLRHBNDSAWJRO -j KUBE-SVL-67NZLRHBNDSAWJRO
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -s 10.244.0.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.5:8080
-A KUBE-SEP-34ZZ2QFGO32YYXXO -s 10.244.1.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-34ZZ2QFGO32YYXXO -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment "shop/web:http external IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SVC-67NZLRHBNDSAWJRO ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.0.5:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-2QFQVMZDRZXAQWB2
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.1.5:8080" -j KUBE-SEP-34ZZ2QFGO32YYXXO
-A KUBE-SVL-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.0.5:8080" -j KUBE-SEP-2QFQVMZDRZXAQWB2
"#);
}

#[test]
fn policy_local_without_endpoints_here() {
    assert_snapshot!(added_v4(Route { local: Box::default(), ..local_web() }), @r#"
*mangle
*filter
-A KUBE-EXTERNAL-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment "shop/web:http has no local endpoints" -m tcp --dport 80 -j DROP
-A KUBE-EXTERNAL-SERVICES -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http has no local endpoints" -m tcp --dport 80 -j DROP
-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "shop/web:http has no local endpoints" -m addrtype --dst-type LOCAL -m tcp --dport 30080 -j DROP
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http health check node port" -m tcp --dport 32123 -j ACCEPT
*nat
-A KUBE-EXT-67NZLRHBNDSAWJRO -s 10.244.0.0/16 -m comment --comment "pod traffic for shop/web:http external destinations" -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "masquerade LOCAL traffic for shop/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "route LOCAL traffic for shop/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -s 10.244.0.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.5:8080
-A KUBE-SEP-34ZZ2QFGO32YYXXO -s 10.244.1.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-34ZZ2QFGO32YYXXO -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment "shop/web:http external IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SVC-67NZLRHBNDSAWJRO ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.0.5:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-2QFQVMZDRZXAQWB2
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.1.5:8080" -j KUBE-SEP-34ZZ2QFGO32YYXXO
"#);
}

#[test]
fn external_frontends_without_any_endpoint() {
    assert_snapshot!(added_v4(Route { cluster: Box::default(), any_endpoint: false, ..exposed_web() }), @r#"
*mangle
*filter
-A KUBE-EXTERNAL-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment "shop/web:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-EXTERNAL-SERVICES -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment "shop/web:http has no endpoints" -m addrtype --dst-type LOCAL -m tcp --dport 30080 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
*nat
"#);
}

#[test]
fn internal_policy_local() {
    let route = Route { cluster: Box::default(), local: local_web().local, ..web() }
        .under(|policy| policy.internal = TrafficPolicy::Local);
    assert_snapshot!(added_v4(route.clone()), @r#"
*mangle
*filter
*nat
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -s 10.244.0.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.5:8080
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVL-67NZLRHBNDSAWJRO
-A KUBE-SVL-67NZLRHBNDSAWJRO ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVL-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.0.5:8080" -j KUBE-SEP-2QFQVMZDRZXAQWB2
"#);
    assert_snapshot!(added_v4(Route { local: Box::default(), ..route }), @r#"
*mangle
*filter
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http has no local endpoints" -m tcp --dport 80 -j DROP
*nat
"#);
}

#[test]
fn source_ranges_of_a_load_balancer() {
    let mut route = exposed_web();
    let sources = AllowedSources {
        ranges: ["198.51.100.0/24".parse().expect("a network"), "192.168.0.0/16".parse().expect("a network")]
            .into(),
        own_vips: [addr("203.0.113.20")].into(),
    };
    route.policy_mut().sources = Some(sources.into());
    assert_snapshot!(added_v4(route), @r#"
*mangle
*filter
-A KUBE-PROXY-FIREWALL -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http traffic not accepted by KUBE-FW-67NZLRHBNDSAWJRO" -m tcp --dport 80 -j DROP
*nat
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "masquerade traffic for shop/web:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-67NZLRHBNDSAWJRO -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-FW-67NZLRHBNDSAWJRO -s 198.51.100.0/24 -m comment --comment "shop/web:http loadbalancer IP" -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-FW-67NZLRHBNDSAWJRO -s 192.168.0.0/16 -m comment --comment "shop/web:http loadbalancer IP" -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-FW-67NZLRHBNDSAWJRO -s 203.0.113.20/32 -m comment --comment "shop/web:http loadbalancer IP" -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-FW-67NZLRHBNDSAWJRO -m comment --comment "other traffic to shop/web:http will be dropped by KUBE-PROXY-FIREWALL"
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -s 10.244.0.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-2QFQVMZDRZXAQWB2 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.5:8080
-A KUBE-SEP-34ZZ2QFGO32YYXXO -s 10.244.1.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-34ZZ2QFGO32YYXXO -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.1.5:8080
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment "shop/web:http external IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-FW-67NZLRHBNDSAWJRO
-A KUBE-SVC-67NZLRHBNDSAWJRO ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.0.5:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-2QFQVMZDRZXAQWB2
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.244.1.5:8080" -j KUBE-SEP-34ZZ2QFGO32YYXXO
"#);
}

#[test]
fn an_external_address_that_is_ignored_or_lost_leaves_the_chain_to_which_nothing_leads() {
    let lost = [frontend(FrontendKind::ExternalIp, Some("203.0.113.10"), 80)];
    let route = Route { lost: lost.into(), ..web() };
    let text = added_v4(route.clone());
    let rules: Vec<&str> = text.lines().filter(|line| line.contains("KUBE-EXT-")).collect();
    assert_snapshot!(rules.join("\n"), @r#"
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "masquerade traffic for shop/web:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-67NZLRHBNDSAWJRO -j KUBE-SVC-67NZLRHBNDSAWJRO
"#);
    let without = Route { cluster: Box::default(), any_endpoint: false, ..route };
    assert!(!added_v4(without).contains("KUBE-EXT-"));
}

#[test]
fn an_address_given_twice_has_its_rules_twice_unless_that_would_open_it() {
    let repeated = |at| [frontend(FrontendKind::ExternalIp, Some(at), 80)].into();
    let rules = |route| -> String {
        let text = added_v4(route);
        let lines = text.lines().filter(|line| line.starts_with("-A KUBE-SERVICES"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let route = Route { lost: repeated("10.96.0.10"), ..web() };
    assert_snapshot!(rules(route), @r#"
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http external IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
"#);
    let mut route = Route { lost: repeated("203.0.113.20"), ..exposed_web() };
    assert_snapshot!(rules(route.clone()), @r#"
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment "shop/web:http external IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http external IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
"#);
    let sources = AllowedSources {
        ranges: ["198.51.100.0/24".parse().expect("a network")].into(),
        own_vips: [].into(),
    };
    route.policy_mut().sources = Some(sources.into());
    assert_snapshot!(rules(route), @r#"
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.10/32 -p tcp -m comment --comment "shop/web:http external IP" -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -d 203.0.113.20/32 -p tcp -m comment --comment "shop/web:http loadbalancer IP" -m tcp --dport 80 -j KUBE-FW-67NZLRHBNDSAWJRO
"#);
}

#[test]
fn detectors_of_local_pods() {
    for (detector, masquerade_all) in [
        (LocalPods::Unknown, false),
        (LocalPods::Bridge("cni0".into()), false),
        (LocalPods::InterfacePrefix("veth".into()), false),
        (LocalPods::Unknown, true),
    ] {
        let mut environment = environment(Family::V4);
        environment.local_pods = detector.clone();
        environment.masquerade_all = masquerade_all;
        let text = added(&environment, "web", local_web());
        let rules: Vec<&str> = text
            .lines()
            .filter(|line| {
                line.contains("cluster IP") && line.contains("KUBE-MARK-MASQ") || line.contains("pod traffic")
            })
            .collect();
        let rules = rules.join("\n");
        match (&detector, masquerade_all) {
            (LocalPods::Unknown, false) => assert_eq!(rules, ""),
            (LocalPods::Unknown, true) => assert_snapshot!(rules, @r#"
-A KUBE-SVC-67NZLRHBNDSAWJRO -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
"#),
            (LocalPods::Bridge(_), _) => assert_snapshot!(rules, @r#"
-A KUBE-EXT-67NZLRHBNDSAWJRO -i cni0 -m comment --comment "pod traffic for shop/web:http external destinations" -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SVC-67NZLRHBNDSAWJRO -d 10.96.0.10/32 ! -i cni0 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
"#),
            _ => assert_snapshot!(rules, @r#"
-A KUBE-EXT-67NZLRHBNDSAWJRO -i veth+ -m comment --comment "pod traffic for shop/web:http external destinations" -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SVC-67NZLRHBNDSAWJRO -d 10.96.0.10/32 ! -i veth+ -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
"#),
        }
    }
}

#[test]
fn an_ipv6_service() {
    let route = Route {
        frontends: [
            frontend(FrontendKind::ClusterIp, Some("fd00:10:96::10"), 80),
            frontend(FrontendKind::NodePort, None, 30080),
        ]
        .into(),
        cluster: [target("[fd00:10:244::5]:8080", true)].into(),
        ..web()
    }
    .under(|policy| policy.affinity = Some(60));
    assert_snapshot!(added(&environment(Family::V6), "web", route), @r#"
*mangle
*filter
*nat
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "masquerade traffic for shop/web:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-67NZLRHBNDSAWJRO -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SEP-ZYZ4TMWXQVZDX5XC -s fd00:10:244::5/128 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-ZYZ4TMWXQVZDX5XC -p tcp -m comment --comment "shop/web:http" -m recent --set --name KUBE-SEP-ZYZ4TMWXQVZDX5XC --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -m tcp -j DNAT --to-destination [fd00:10:244::5]:8080
-A KUBE-SERVICES -d fd00:10:96::10/128 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SVC-67NZLRHBNDSAWJRO ! -s fd00:10:244::/56 -d fd00:10:96::10/128 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> [fd00:10:244::5]:8080" -m recent --rcheck --seconds 60 --reap --name KUBE-SEP-ZYZ4TMWXQVZDX5XC --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j KUBE-SEP-ZYZ4TMWXQVZDX5XC
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> [fd00:10:244::5]:8080" -j KUBE-SEP-ZYZ4TMWXQVZDX5XC
"#);
}

#[test]
fn node_ports_on_given_addresses() {
    let mut environment = environment(Family::V4);
    environment.node_ports = NodePortAddresses::Only([addr("10.20.0.1"), addr("192.168.10.1")].into());
    environment.loopback_node_ports = [addr("127.0.0.1")].into();
    let bench = Bench::with(environment, [("web", exposed_web())]);
    let rules: Vec<String> =
        bench.rules("KUBE-SERVICES").into_iter().filter(|rule| rule.contains("nodeports")).collect();
    assert_snapshot!(rules.join("\n"), @r#"
-A KUBE-SERVICES -d 10.20.0.1/32 -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -j KUBE-NODEPORTS
-A KUBE-SERVICES -d 192.168.10.1/32 -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -j KUBE-NODEPORTS
-A KUBE-SERVICES -d 127.0.0.1/32 -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -j KUBE-NODEPORTS
"#);
}

#[test]
fn counters_are_named_where_the_kernel_has_them() {
    let counters = crate::accounting::Counters { invalid_dropped: true, localhost_accepted: true };
    let host = Host { counters, ..Host::default() };
    let rules = |host: Host| -> Vec<String> {
        let mut model = Model::new(Family::V4, Variant::Legacy);
        let mut planner = Planner::new(Family::V4);
        let routes = [(name("web"), std::sync::Arc::new(exposed_web()))];
        let plan = proxy_core::backend::Planner::plan_full(
            &mut planner,
            &routes,
            &environment(Family::V4),
            model.found(host),
            super::now(),
        );
        model.apply(&plan).expect("taken");
        let save = model.save();
        save.lines()
            .filter(|line| line.contains("nfacct") || line.contains("INVALID"))
            .map(str::to_owned)
            .collect()
    };
    assert_snapshot!(rules(host).join("\n"), @r#"
-A KUBE-FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts -j DROP
-A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -m nfacct --nfacct-name  localhost_nps_accepted_pkts -j KUBE-EXT-67NZLRHBNDSAWJRO
"#);
    assert_eq!(
        rules(Host { tcp_be_liberal: true, ..Host::default() }),
        [""; 0],
        "no rule against invalid packets"
    );
}

fn endpoints(count: u32) -> Box<[Target]> {
    (0..count).map(|n| target(&format!("10.244.{}.{}:80", n / 250, n % 250 + 1), false)).collect()
}

/// `usable` endpoints of as many as `named`.
pub(super) fn sized(usable: u32, named: u32) -> Route {
    Route { cluster: endpoints(usable), endpoints: named, ..web() }
}

#[test]
fn above_a_thousand_endpoints_no_comment_names_one() {
    let comments = |usable, named| {
        let bench = Bench::with(environment(Family::V4), [("web", sized(usable, named))]);
        let comments = bench.model.save().lines().filter(|line| line.contains("shop/web:http")).count();
        let rules = bench.rules("KUBE-SEP-").len() + bench.rules("KUBE-SVC-").len();
        (rules, comments)
    };
    // Two rules an endpoint, one to it, one that masquerades, one that dispatches; the latter two keep their comments.
    assert_eq!(comments(1000, 1000), (3001, 3002));
    assert_eq!(comments(1001, 1001), (3004, 2));
    assert_eq!(comments(2, 1001), (7, 2), "those that cannot be used count");
}

#[test]
fn comments_of_the_longest_names_fit_into_the_kernels_255_characters() {
    let label = "a".repeat(63);
    let service = ServiceName::new(&label, &label);
    let name = ServicePortName { service, port: label.as_str().into(), protocol: Protocol::Tcp };
    let longest = "[1111:2222:3333:4444:5555:6666:7777:8888]:65535";
    let sources = AllowedSources { ranges: Box::default(), own_vips: [addr("2001:db8::20")].into() };
    let vip = frontend(FrontendKind::LoadBalancerIp, Some("2001:db8::20"), 80);
    let route = Route {
        frontends: [frontend(FrontendKind::ClusterIp, Some("fd00:10:96::10"), 80), vip].into(),
        cluster: [target(longest, false)].into(),
        local: Box::default(),
        ..local_web()
    }
    .under(|policy| policy.sources = Some(sources.into()));
    let mut bench = Bench::with(environment(Family::V6), []);
    bench.change(&[(name.clone(), Some(route.clone()))]);
    let mut comments = bench.model.save();
    bench.change(&[(name, Some(Route { cluster: Box::default(), any_endpoint: false, ..route }))]);
    comments.push_str(&bench.model.save());
    let lengths =
        comments.lines().filter_map(|line| Some(line.split_once("--comment \"")?.1.split_once('"')?.0.len()));
    assert_eq!(lengths.max(), Some(247));
}
