//! Calico's Felix in its iptables data plane. It clears the mark bits that it may use (0xffff0000 by default, of which it
//! takes the lower ones for verdicts) at the head of its chains, and, where there is a device `kube-ipvs0`, tells by which
//! endpoint a packet came in bits of the mark that must live from the input hook to the output hook.

use integration::lab::Mode;
use integration::network::Family;
use integration::network::Place::{PodA, PodB, PodC};

use crate::Neighbour;

/// The lowest of sixteen bits of the mark that Felix may use (`iptablesMarkMask`).
#[derive(Debug, Clone, Copy)]
struct Bits(u32);

impl Bits {
    /// Accept, pass, scratch 0 and scratch 1.
    fn verdicts(self) -> String {
        format!("{:#x}", 0xf << self.0)
    }

    /// One of these, as value and mask.
    fn verdict(self, number: u32) -> String {
        let bit = 1_u32 << (self.0 + number);
        format!("{bit:#x}/{bit:#x}")
    }

    /// By which endpoint a packet came in; the first number is that of none of Calico's.
    fn endpoint(self, number: u32) -> String {
        format!("{:#x}/{}", (number + 1) << (self.0 + 4), self.endpoints())
    }

    fn endpoints(self) -> String {
        format!("{:#x}", 0xfff_u32 << (self.0 + 4))
    }
}

/// The interfaces of the lab's pods.
const PODS: &str = "veth+";

/// What Felix has before any policy, with its default mask 0xffff0000.
pub(crate) fn felix(mode: Mode) -> Neighbour {
    with_bits(mode, Bits(16))
}

/// With a mask (0x0ffff000) in which the bit that asks for masquerading lies by default, and of which the marks of our
/// virtual servers have some bits. So both are told to be elsewhere.
pub(crate) fn felix_on_our_bits(mode: Mode) -> Neighbour {
    Neighbour {
        masquerade_bit: Some(31),
        variables: vec![("SWITCHYARD_IPVS_MARKS", "0x20000000/0xaffff000".to_owned())],
        ..with_bits(mode, Bits(12))
    }
}

fn with_bits(mode: Mode, bits: Bits) -> Neighbour {
    let ipvs = mode == Mode::Ipvs;
    let sets = Family::BOTH.map(|family| {
        let (name, kind) = host_set(family);
        let members = family.node_addresses().map(|addr| format!("add {name} {addr}\n"));
        format!("create {name} hash:net family {kind}\n{}", members.concat())
    });
    Neighbour {
        sets: if ipvs { sets.concat() } else { String::new() },
        rules: Neighbour::alike(|family| rules(family, ipvs, bits)),
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

fn rules(family: Family, ipvs: bool, bits: Bits) -> String {
    let (verdicts, accepted, scratch) = (bits.verdicts(), bits.verdict(0), bits.verdict(2));
    let unset = |verdict: &str| format!("0x0/{}", verdict.split('/').next().unwrap_or_default());
    let (not_accepted, no_scratch) = (unset(&accepted), unset(&scratch));
    let (no_endpoint, endpoint_bits) = (bits.endpoint(0), bits.endpoints());
    let others = format!("{:#x}", 0xe_u32 << bits.0);
    let (this_host, _) = host_set(family);
    // Endpoints and their marks.
    let endpoints = [(PodA, bits.endpoint(1)), (PodB, bits.endpoint(2)), (PodC, bits.endpoint(3))];
    let (mut set_marks, mut from_marks) = (String::new(), String::new());
    for (pod, mark) in endpoints {
        let name = pod.name();
        set_marks += &format!("-A cali-set-endpoint-mark -i veth-{name} -j MARK --set-xmark {mark}\n");
        set_marks += &format!("-A cali-set-endpoint-mark -i veth-{name} -j RETURN\n");
        from_marks += &format!("-A cali-from-endpoint-mark -m mark --mark {mark} -j RETURN\n");
    }
    let (ipvs_chains, ipvs_input, ipvs_output) = if ipvs {
        (
            format!(
                "-A cali-forward-check -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A cali-forward-check -p tcp -m multiport --dports 30000:32767 -m set --match-set {this_host} dst -g cali-set-endpoint-mark
-A cali-forward-check -p udp -m multiport --dports 30000:32767 -m set --match-set {this_host} dst -g cali-set-endpoint-mark
-A cali-forward-check -m set ! --match-set {this_host} dst -j cali-set-endpoint-mark
{set_marks}-A cali-set-endpoint-mark -i {PODS} -m comment --comment \"unknown endpoint\" -j DROP
-A cali-set-endpoint-mark -m comment --comment \"no endpoint of Calico's\" -j MARK --set-xmark {no_endpoint}
-A cali-forward-endpoint-mark -m mark ! --mark {no_endpoint} -j cali-from-endpoint-mark
-A cali-forward-endpoint-mark -j MARK --set-xmark 0x0/{endpoint_bits}
-A cali-forward-endpoint-mark -m mark --mark {accepted} -j ACCEPT
{from_marks}-A cali-from-endpoint-mark -m comment --comment \"unknown mark\" -j DROP
"
            ),
            format!(
                "-A cali-INPUT -j cali-forward-check\n-A cali-INPUT -m mark ! --mark 0x0/{endpoint_bits} -j RETURN\n"
            ),
            format!("-A cali-OUTPUT -m mark ! --mark 0x0/{endpoint_bits} -g cali-forward-endpoint-mark\n"),
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
-A cali-PREROUTING -j MARK --set-xmark 0x0/{verdicts}
-A cali-PREROUTING -i {PODS} -j MARK --set-xmark {scratch}
-A cali-PREROUTING -m mark --mark {scratch} -m rpfilter --validmark --invert -j DROP
-A cali-PREROUTING -m mark --mark {no_scratch} -j cali-from-host-endpoint
-A cali-PREROUTING -m mark --mark {accepted} -j ACCEPT
-A cali-OUTPUT -j MARK --set-xmark 0x0/{verdicts}
-A cali-OUTPUT -j cali-to-host-endpoint
-A cali-OUTPUT -m mark --mark {accepted} -j ACCEPT
COMMIT
*mangle
:cali-PREROUTING - [0:0]
:cali-POSTROUTING - [0:0]
:cali-from-host-endpoint - [0:0]
:cali-to-host-endpoint - [0:0]
-I PREROUTING -j cali-PREROUTING
-I POSTROUTING -j cali-POSTROUTING
-A cali-PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-PREROUTING -m mark --mark {accepted} -j ACCEPT
-A cali-PREROUTING -j cali-from-host-endpoint
-A cali-POSTROUTING -m mark --mark {accepted} -j RETURN
-A cali-POSTROUTING -j MARK --set-xmark 0x0/{verdicts}
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
-A FORWARD -m mark --mark {accepted} -j ACCEPT
-A FORWARD -j MARK --set-xmark {accepted}
{ipvs_input}-A cali-INPUT -i {PODS} -g cali-wl-to-host
-A cali-INPUT -m mark --mark {accepted} -j ACCEPT
-A cali-INPUT -j MARK --set-xmark 0x0/{verdicts}
-A cali-INPUT -j cali-from-host-endpoint
-A cali-INPUT -m mark --mark {accepted} -j ACCEPT
-A cali-wl-to-host -j cali-from-wl-dispatch
-A cali-FORWARD -j MARK --set-xmark 0x0/{others}
-A cali-FORWARD -m mark --mark {not_accepted} -j cali-from-hep-forward
-A cali-FORWARD -i {PODS} -j cali-from-wl-dispatch
-A cali-FORWARD -o {PODS} -j cali-to-wl-dispatch
-A cali-FORWARD -j cali-to-hep-forward
-A cali-OUTPUT -m mark --mark {accepted} -j ACCEPT
{ipvs_output}-A cali-OUTPUT -o {PODS} -j RETURN
-A cali-OUTPUT -j MARK --set-xmark 0x0/{verdicts}
-A cali-OUTPUT -m conntrack ! --ctstate DNAT -j cali-to-host-endpoint
-A cali-OUTPUT -m mark --mark {accepted} -j ACCEPT
{ipvs_chains}COMMIT
"
    )
}
