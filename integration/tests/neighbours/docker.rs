//! Docker's engine, and the CNI plugin portmap: hosts that forward nothing of their own accord, and ports of the host that
//! lead to a container.

use integration::network::Family;
use integration::network::Place::PodB;

use crate::Neighbour;

/// Docker sets the policy of FORWARD to DROP. On a Kubernetes node somebody must then let pods through; here, as in most
/// guides, by their networks.
pub(crate) fn engine() -> Neighbour {
    let rules = Neighbour::alike(|family| {
        let (bridge, pods) = (bridge_net(family), family.cluster_cidr());
        format!(
            "*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-BRIDGE - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A FORWARD -s {pods} -j ACCEPT
-A FORWARD -d {pods} -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER ! -i docker0 -o docker0 -j DROP
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d {} -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {bridge} ! -o docker0 -j MASQUERADE
COMMIT
",
            if family == Family::V4 { "127.0.0.0/8" } else { "::1/128" },
        )
    });
    let links = "link add docker0 type bridge
addr add 172.17.0.1/16 dev docker0
link set docker0 up
";
    Neighbour { rules, links: links.to_owned(), ..Neighbour::default() }
}

fn bridge_net(family: Family) -> &'static str {
    match family {
        Family::V4 => "172.17.0.0/16",
        Family::V6 => "fd00:d0c::/64",
    }
}

/// Port 8888 of the host leads to a pod. Its mark for masquerading is 0x2000.
pub(crate) fn portmap() -> Neighbour {
    let rules = Neighbour::alike(|family| {
        let pod = PodB.address(family);
        let to = if pod.is_ipv4() { format!("{pod}:8080") } else { format!("[{pod}]:8080") };
        format!(
            "*nat
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:CNI-DN-0123456789abcdef01234 - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: cbr0\" -m multiport --dports 8888 -j CNI-DN-0123456789abcdef01234
-A CNI-DN-0123456789abcdef01234 -s {pod} -p tcp -m tcp --dport 8888 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-0123456789abcdef01234 -p tcp -m tcp --dport 8888 -j DNAT --to-destination {to}
-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
COMMIT
"
        )
    });
    Neighbour { rules, ..Neighbour::default() }
}
