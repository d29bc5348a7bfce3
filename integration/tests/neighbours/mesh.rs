//! Whoever keeps a mark with a connection without saying which bits: VPN clients, traffic shapers, meshes (Istio's CNI
//! restores its own by a mask; scripts from many guides do not). What stands in a packet's mark is lost in the output hook.

use crate::Neighbour;

pub(crate) fn connection_marks() -> Neighbour {
    let rules = "*mangle
-A PREROUTING -j CONNMARK --restore-mark
-A PREROUTING -m mark ! --mark 0x0 -j ACCEPT
-A OUTPUT -j CONNMARK --restore-mark
-A OUTPUT -m mark ! --mark 0x0 -j ACCEPT
COMMIT
";
    Neighbour { rules: Neighbour::alike(|_| rules.to_owned()), ..Neighbour::default() }
}
