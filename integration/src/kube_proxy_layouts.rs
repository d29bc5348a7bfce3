//! Rules for one Service as kube-proxy 1.36 lays them out: at 172.30.0.1 port 80 and on NodePort 30080, with endpoints
//! on both nodes. Names, hooks and priorities are those by which kube-proxy's rules are known.
//!
//! The tests of `kube-proxy --cleanup` include this file too, so nothing here depends on this crate.

/// Its nftables mode, both families.
pub fn nftables() -> String {
    let family = |table: &str, address: &str, vip: &str, node: &str, pods: &str, endpoints: [&str; 2]| {
        format!(
            r#"
table {table} kube-proxy {{
    comment "rules for kube-proxy"
    set cluster-ips {{
        type {address}
        comment "Active ClusterIPs"
        elements = {{ {vip} }}
    }}
    set nodeport-ips {{
        type {address}
        comment "IPs that accept NodePort traffic"
        elements = {{ {node} }}
    }}
    map no-endpoint-services {{
        type {address} . inet_proto . inet_service : verdict
        comment "vmap to drop or reject packets to services with no endpoints"
    }}
    map no-endpoint-nodeports {{
        type inet_proto . inet_service : verdict
        comment "vmap to drop or reject packets to service nodeports with no endpoints"
    }}
    map firewall-ips {{
        type {address} . inet_proto . inet_service : verdict
        comment "destinations that are subject to LoadBalancerSourceRanges"
    }}
    map service-ips {{
        type {address} . inet_proto . inet_service : verdict
        comment "ClusterIP, ExternalIP and LoadBalancer IP traffic"
        elements = {{ {vip} . tcp . 80 : goto service-2HVXDNZT-lab/web/tcp/t }}
    }}
    map service-nodeports {{
        type inet_proto . inet_service : verdict
        comment "NodePort traffic"
        elements = {{ tcp . 30080 : goto external-2HVXDNZT-lab/web/tcp/t }}
    }}
    chain mark-for-masquerade {{
        mark set mark or 0x4000
    }}
    chain masquerading {{
        mark and 0x4000 == 0 return
        mark set mark xor 0x4000
        masquerade fully-random
    }}
    chain reject-chain {{
        reject
    }}
    chain service-2HVXDNZT-lab/web/tcp/t {{
        {family} daddr {vip} tcp dport 80 {family} saddr != {pods} jump mark-for-masquerade
        meta l4proto tcp dnat {table} to numgen random mod 2 map {{ 0 : {first} . 8080, 1 : {second} . 8080 }}
    }}
    chain external-2HVXDNZT-lab/web/tcp/t {{
        jump mark-for-masquerade
        goto service-2HVXDNZT-lab/web/tcp/t
    }}
    chain services {{
        {family} daddr . meta l4proto . th dport vmap @service-ips
        {family} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }}
    chain service-endpoints-check {{
        {family} daddr . meta l4proto . th dport vmap @no-endpoint-services
    }}
    chain nodeport-endpoints-check {{
        {family} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
    }}
    chain firewall-check {{
        {family} daddr . meta l4proto . th dport vmap @firewall-ips
    }}
    chain cluster-ips-check {{
        {family} daddr @cluster-ips reject
    }}
    chain filter-prerouting-pre-dnat {{
        type filter hook prerouting priority -110; policy accept;
        ct state new jump firewall-check
    }}
    chain filter-output-pre-dnat {{
        type filter hook output priority -110; policy accept;
        ct state new jump firewall-check
    }}
    chain filter-input {{
        type filter hook input priority 0; policy accept;
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
    }}
    chain filter-forward {{
        type filter hook forward priority 0; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }}
    chain filter-output {{
        type filter hook output priority 0; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }}
    chain nat-prerouting {{
        type nat hook prerouting priority -100; policy accept;
        jump services
    }}
    chain nat-output {{
        type nat hook output priority -100; policy accept;
        jump services
    }}
    chain nat-postrouting {{
        type nat hook postrouting priority 100; policy accept;
        jump masquerading
    }}
}}
"#,
            family = table,
            first = endpoints[0],
            second = endpoints[1],
        )
    };
    family("ip", "ipv4_addr", "172.30.0.1", "192.168.50.1", "10.0.0.0/16", ["10.0.1.11", "10.0.2.11"])
        + &family(
            "ip6",
            "ipv6_addr",
            "fd00:30::1",
            "fd00:50::1",
            "fd00:10::/32",
            ["fd00:10:1::11", "fd00:10:2::11"],
        )
}

/// Its iptables mode, of one family.
pub fn iptables(vip: &str, pods: &str, endpoints: [&str; 2]) -> String {
    let to = endpoints.map(|endpoint| {
        if endpoint.contains(':') { format!("[{endpoint}]:8080") } else { format!("{endpoint}:8080") }
    });
    let [first, second] = endpoints;
    format!(
        r#"*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-EXT-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d {vip} -p tcp -m comment --comment "lab/web:t cluster IP" -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "lab/web:t" -m tcp --dport 30080 -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-EXT-AAAAAAAAAAAAAAAA -m comment --comment "masquerade traffic for lab/web:t external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-AAAAAAAAAAAAAAAA -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA ! -s {pods} -d {vip} -p tcp -m comment --comment "lab/web:t cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-AAAAAAAAAAAAAAAA -m comment --comment "lab/web:t" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -m comment --comment "lab/web:t" -j KUBE-SEP-BBBBBBBBBBBBBBBB
-A KUBE-SEP-AAAAAAAAAAAAAAAA -s {first} -m comment --comment "lab/web:t" -j KUBE-MARK-MASQ
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m comment --comment "lab/web:t" -m tcp -j DNAT --to-destination {}
-A KUBE-SEP-BBBBBBBBBBBBBBBB -s {second} -m comment --comment "lab/web:t" -j KUBE-MARK-MASQ
-A KUBE-SEP-BBBBBBBBBBBBBBBB -p tcp -m comment --comment "lab/web:t" -m tcp -j DNAT --to-destination {}
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
"#,
        to[0], to[1]
    )
}

/// The ipsets of its ipvs mode, IPv4, for `ipset restore`.
pub const IPVS_SETS: &str = "create KUBE-CLUSTER-IP hash:ip,port
add KUBE-CLUSTER-IP 172.30.0.1,tcp:80
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
add KUBE-NODE-PORT-TCP 30080
create KUBE-LOOP-BACK hash:ip,port,ip
add KUBE-LOOP-BACK 10.0.1.11,tcp:8080,10.0.1.11
";

/// The iptables rules of its ipvs mode, IPv4, for `iptables-restore`.
pub const IPVS_RULES: &str = r#"*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES ! -s 10.0.0.0/16 -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
"#;
