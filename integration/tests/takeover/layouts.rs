//! What kube-proxy leaves, beyond the rules that all tests share.

pub(crate) use integration::kube_proxy_layouts::{IPVS_RULES, IPVS_SETS, iptables, nftables};

/// The chains that [`nftables`] hooks into the kernel.
const BASE_CHAINS: [&str; 8] = [
    "filter-prerouting-pre-dnat",
    "filter-output-pre-dnat",
    "filter-input",
    "filter-forward",
    "filter-output",
    "nat-prerouting",
    "nat-output",
    "nat-postrouting",
];

/// The first transaction of its nftables mode: base chains anew, whatever they were, then everything else added to what
/// is there.
pub(crate) fn nftables_first_sync() -> String {
    let anew = |family: &str| {
        let chains = BASE_CHAINS.map(|chain| {
            format!("add chain {family} kube-proxy {chain}\ndelete chain {family} kube-proxy {chain}\n")
        });
        format!("add table {family} kube-proxy\n{}", chains.concat())
    };
    anew("ip") + &anew("ip6") + &nftables()
}

/// The device of its ipvs mode, for `ip -batch`.
pub(crate) const IPVS_LINKS: &str = "link add kube-ipvs0 type dummy\naddr add 172.30.0.1/32 dev kube-ipvs0\n";

/// The virtual servers of its ipvs mode, IPv4, for `ipvsadm -R`. The last one is somebody else's.
pub(crate) const IPVS_SERVERS: &str = "-A -t 172.30.0.1:80 -s rr
-a -t 172.30.0.1:80 -r 10.0.1.11:8080 -m -w 1
-a -t 172.30.0.1:80 -r 10.0.2.11:8080 -m -w 1
-A -t 192.168.50.1:30080 -s rr
-a -t 192.168.50.1:30080 -r 10.0.1.11:8080 -m -w 1
-a -t 192.168.50.1:30080 -r 10.0.2.11:8080 -m -w 1
-A -t 198.51.100.200:9999 -s rr
-a -t 198.51.100.200:9999 -r 10.0.1.12:8080 -m -w 1
";
