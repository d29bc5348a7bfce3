//! Calico's Felix in its iptables data plane. It clears the mark bits that it may use (0xffff0000 by default, of which it
//! takes the lower ones for verdicts) at the head of its chains, and, where there is a device `kube-ipvs0`, tells by which
//! endpoint a packet came in bits of the mark that must live from the input hook to the output hook.

use integration::lab::Mode;
use integration::network::Family;
use integration::network::Place::{PodA, PodB, PodC};

use crate::Neighbour;

/// Accept, pass, scratch 0 and scratch 1.
const VERDICTS: &str = "0xf0000";
const ACCEPTED: &str = "0x10000/0x10000";
const SCRATCH: &str = "0x40000/0x40000";
/// Which endpoint a packet came from.
const ENDPOINT: &str = "0xfff00000";
/// None of Calico's.
const NO_ENDPOINT: &str = "0x100000/0xfff00000";

/// The interfaces of the lab's pods.
const PODS: &str = "veth+";

/// What Felix has before any policy.
pub(crate) fn felix(mode: Mode) -> Neighbour {
    let ipvs = mode == Mode::Ipvs;
    let sets = Family::BOTH.map(|family| {
        let (name, kind) = host_set(family);
        let members = family.node_addresses().map(|addr| format!("add {name} {addr}\n"));
        format!("create {name} hash:net family {kind}\n{}", members.concat())
    });
    Neighbour {
        sets: if ipvs { sets.concat() } else { String::new() },
        rules: Neighbour::alike(|family| rules(family, ipvs)),
        ..Neighbour::default()
    }
}

/// The host's own addresses.
fn host_set(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("cali40this-host", "inet"),
        Family::V6 => ("cali60this-host", "inet6"),
    }
}

fn rules(family: Family, ipvs: bool) -> String {
    let (this_host, _) = host_set(family);
    // Endpoints and their marks.
    let endpoints = [(PodA, "0x200000"), (PodB, "0x300000"), (PodC, "0x400000")];
    let (mut set_marks, mut from_marks) = (String::new(), String::new());
    for (pod, mark) in endpoints {
        let name = pod.name();
        set_marks +=
            &format!("-A cali-set-endpoint-mark -i veth-{name} -j MARK --set-xmark {mark}/{ENDPOINT}\n");
        set_marks += &format!("-A cali-set-endpoint-mark -i veth-{name} -j RETURN\n");
        from_marks += &format!("-A cali-from-endpoint-mark -m mark --mark {mark}/{ENDPOINT} -j RETURN\n");
    }
    let (ipvs_chains, ipvs_input, ipvs_output) = if ipvs {
        (
            format!(
                "-A cali-forward-check -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A cali-forward-check -p tcp -m multiport --dports 30000:32767 -m set --match-set {this_host} dst -g cali-set-endpoint-mark
-A cali-forward-check -p udp -m multiport --dports 30000:32767 -m set --match-set {this_host} dst -g cali-set-endpoint-mark
-A cali-forward-check -m set ! --match-set {this_host} dst -j cali-set-endpoint-mark
{set_marks}-A cali-set-endpoint-mark -i {PODS} -m comment --comment \"unknown endpoint\" -j DROP
-A cali-set-endpoint-mark -m comment --comment \"no endpoint of Calico's\" -j MARK --set-xmark {NO_ENDPOINT}
-A cali-forward-endpoint-mark -m mark ! --mark {NO_ENDPOINT} -j cali-from-endpoint-mark
-A cali-forward-endpoint-mark -j MARK --set-xmark 0x0/{ENDPOINT}
-A cali-forward-endpoint-mark -m mark --mark {ACCEPTED} -j ACCEPT
{from_marks}-A cali-from-endpoint-mark -m comment --comment \"unknown mark\" -j DROP
"
            ),
            format!(
                "-A cali-INPUT -j cali-forward-check\n-A cali-INPUT -m mark ! --mark 0x0/{ENDPOINT} -j RETURN\n"
            ),
            format!("-A cali-OUTPUT -m mark ! --mark 0x0/{ENDPOINT} -g cali-forward-endpoint-mark\n"),
        )
    } else {
        Default::default()
    };
    format!(
        "*raw
:cali-PREROUTING - [0:0]
:cali-OUTPUT - [0:0]
:cali-from-host-endpoint - [0:0]
:cali-to-host-endpoint - [0:0]
-I PREROUTING -j cali-PREROUTING
-I OUTPUT -j cali-OUTPUT
-A cali-PREROUTING -j MARK --set-xmark 0x0/{VERDICTS}
-A cali-PREROUTING -i {PODS} -j MARK --set-xmark {SCRATCH}
-A cali-PREROUTING -m mark --mark {SCRATCH} -m rpfilter --validmark --invert -j DROP
-A cali-PREROUTING -m mark --mark 0x0/0x40000 -j cali-from-host-endpoint
-A cali-PREROUTING -m mark --mark {ACCEPTED} -j ACCEPT
-A cali-OUTPUT -j MARK --set-xmark 0x0/{VERDICTS}
-A cali-OUTPUT -j cali-to-host-endpoint
-A cali-OUTPUT -m mark --mark {ACCEPTED} -j ACCEPT
COMMIT
*mangle
:cali-PREROUTING - [0:0]
:cali-POSTROUTING - [0:0]
:cali-from-host-endpoint - [0:0]
:cali-to-host-endpoint - [0:0]
-I PREROUTING -j cali-PREROUTING
-I POSTROUTING -j cali-POSTROUTING
-A cali-PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-PREROUTING -m mark --mark {ACCEPTED} -j ACCEPT
-A cali-PREROUTING -j cali-from-host-endpoint
-A cali-POSTROUTING -m mark --mark {ACCEPTED} -j RETURN
-A cali-POSTROUTING -j MARK --set-xmark 0x0/{VERDICTS}
-A cali-POSTROUTING -m conntrack --ctstate DNAT -j cali-to-host-endpoint
COMMIT
*nat
:cali-PREROUTING - [0:0]
:cali-OUTPUT - [0:0]
:cali-POSTROUTING - [0:0]
-I PREROUTING -j cali-PREROUTING
-I OUTPUT -j cali-OUTPUT
-I POSTROUTING -j cali-POSTROUTING
COMMIT
*filter
:cali-INPUT - [0:0]
:cali-FORWARD - [0:0]
:cali-OUTPUT - [0:0]
:cali-wl-to-host - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-to-wl-dispatch - [0:0]
:cali-from-hep-forward - [0:0]
:cali-to-hep-forward - [0:0]
:cali-from-host-endpoint - [0:0]
:cali-to-host-endpoint - [0:0]
:cali-forward-check - [0:0]
:cali-set-endpoint-mark - [0:0]
:cali-forward-endpoint-mark - [0:0]
:cali-from-endpoint-mark - [0:0]
-I INPUT -j cali-INPUT
-I FORWARD -j cali-FORWARD
-I OUTPUT -j cali-OUTPUT
-A FORWARD -m mark --mark {ACCEPTED} -j ACCEPT
-A FORWARD -j MARK --set-xmark {ACCEPTED}
{ipvs_input}-A cali-INPUT -i {PODS} -g cali-wl-to-host
-A cali-INPUT -m mark --mark {ACCEPTED} -j ACCEPT
-A cali-INPUT -j MARK --set-xmark 0x0/{VERDICTS}
-A cali-INPUT -j cali-from-host-endpoint
-A cali-INPUT -m mark --mark {ACCEPTED} -j ACCEPT
-A cali-wl-to-host -j cali-from-wl-dispatch
-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -m mark --mark 0x0/0x10000 -j cali-from-hep-forward
-A cali-FORWARD -i {PODS} -j cali-from-wl-dispatch
-A cali-FORWARD -o {PODS} -j cali-to-wl-dispatch
-A cali-FORWARD -j cali-to-hep-forward
-A cali-OUTPUT -m mark --mark {ACCEPTED} -j ACCEPT
{ipvs_output}-A cali-OUTPUT -o {PODS} -j RETURN
-A cali-OUTPUT -j MARK --set-xmark 0x0/{VERDICTS}
-A cali-OUTPUT -m conntrack ! --ctstate DNAT -j cali-to-host-endpoint
-A cali-OUTPUT -m mark --mark {ACCEPTED} -j ACCEPT
{ipvs_chains}COMMIT
"
    )
}
