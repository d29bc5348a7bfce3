//! The AWS VPC CNI: connections that come in by the primary interface carry bit 0x80 in their connection mark, which is
//! restored for answers of pods, so that they leave by that interface; what pods send out of the VPC gets the node's
//! address.

use integration::network::Family;

use crate::Neighbour;

/// With pods of the lab's networks. Its IPv6 clusters have none of this.
pub(crate) fn daemon() -> Neighbour {
    let vpc = ["10.0.0.0/8", "192.168.0.0/16", "172.30.0.0/16"];
    let node = Family::V4.node_addresses()[0];
    let excluded: String = vpc
        .iter()
        .map(|net| {
            format!("-A AWS-SNAT-CHAIN-0 -d {net} -m comment --comment \"AWS SNAT CHAIN\" -j RETURN\n")
        })
        .collect();
    let marked: String =
        vpc.iter().map(|net| format!("-A AWS-CONNMARK-CHAIN-0 -d {net} -m comment --comment \"AWS CONNMARK CHAIN, VPC CIDR\" -j RETURN\n")).collect();
    let rules = format!(
        "*mangle
-A PREROUTING -i eth0 -m comment --comment \"AWS, primary ENI\" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i veth+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
*nat
:AWS-CONNMARK-CHAIN-0 - [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
-A PREROUTING -i veth+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0
{marked}-A AWS-CONNMARK-CHAIN-0 -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark 0x80/0x80
{excluded}-A AWS-SNAT-CHAIN-0 ! -o vlan+ -s 10.0.1.0/24 -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL -j SNAT --to-source {node} --random-fully
COMMIT
"
    );
    let links = "rule add pref 1024 fwmark 0x80/0x80 lookup main\n".to_owned();
    Neighbour { rules: [rules, String::new()], links, ..Neighbour::default() }
}
