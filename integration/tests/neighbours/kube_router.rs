//! kube-router with its network policies: it tells by bit 0x20000 what its firewall has let through, by 0x10000 what is to
//! be logged and refused, and accepts marked packets at the end of its chains.

use integration::network::Place::{PodA, PodB};

use crate::Neighbour;

/// Policies that allow everything to two pods.
pub(crate) fn policies() -> Neighbour {
    let rules = Neighbour::alike(|family| {
        let mut pods = String::new();
        for pod in [PodA, PodB].map(|pod| pod.address(family)) {
            for (chain, way) in [("FORWARD", "-d"), ("OUTPUT", "-d"), ("FORWARD", "-s"), ("INPUT", "-s")] {
                pods += &format!(
                    "-A KUBE-ROUTER-{chain} {way} {pod} -m comment --comment \"rule to jump traffic of a pod\" -j KUBE-POD-FW-AAAAAAAAAAAAAAAA\n"
                );
            }
        }
        let cluster = family.service_cidr();
        format!(
            "*filter
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-ROUTER-OUTPUT - [0:0]
:KUBE-POD-FW-AAAAAAAAAAAAAAAA - [0:0]
-I INPUT -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-INPUT
-I FORWARD -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-FORWARD
-I OUTPUT -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-OUTPUT
-A KUBE-ROUTER-INPUT -d {cluster} -m comment --comment \"allow traffic to cluster IPs\" -j RETURN
-A KUBE-ROUTER-INPUT -p tcp -m comment --comment \"allow node ports\" -m addrtype --dst-type LOCAL -m multiport --dports 30000:32767 -j RETURN
{pods}-A KUBE-ROUTER-INPUT -m mark --mark 0x20000/0x20000 -j ACCEPT
-A KUBE-ROUTER-FORWARD -m mark --mark 0x20000/0x20000 -j ACCEPT
-A KUBE-ROUTER-OUTPUT -m mark --mark 0x20000/0x20000 -j ACCEPT
-A KUBE-POD-FW-AAAAAAAAAAAAAAAA -m conntrack --ctstate INVALID -j DROP
-A KUBE-POD-FW-AAAAAAAAAAAAAAAA -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A KUBE-POD-FW-AAAAAAAAAAAAAAAA -m comment --comment \"a policy that matches\" -j MARK --set-xmark 0x10000/0x10000
-A KUBE-POD-FW-AAAAAAAAAAAAAAAA -m mark ! --mark 0x10000/0x10000 -j REJECT
-A KUBE-POD-FW-AAAAAAAAAAAAAAAA -j MARK --set-xmark 0x0/0x10000
-A KUBE-POD-FW-AAAAAAAAAAAAAAAA -j MARK --set-xmark 0x20000/0x20000
COMMIT
"
        )
    });
    Neighbour { rules, ..Neighbour::default() }
}
