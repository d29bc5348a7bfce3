//! Tailscale: bit 0x40000 in the mark of what came through the tunnel, 0x80000 of what its daemon sends past it, both of
//! the mask 0xff0000.

use integration::network::Family;

use crate::Neighbour;

pub(crate) fn daemon() -> Neighbour {
    let rules = Neighbour::alike(|family| {
        let tunnel = if family == Family::V4 { "100.64.0.0/10" } else { "fd7a:115c:a1e0::/48" };
        format!(
            "*filter
:ts-input - [0:0]
:ts-forward - [0:0]
-I INPUT -j ts-input
-I FORWARD -j ts-forward
-A ts-input -s {tunnel} ! -i tailscale0 -j DROP
-A ts-input -i tailscale0 -j ACCEPT
-A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
-A ts-forward -m mark --mark 0x40000/0xff0000 -j ACCEPT
-A ts-forward -s {tunnel} -o tailscale0 -j DROP
-A ts-forward -o tailscale0 -j ACCEPT
COMMIT
*nat
:ts-postrouting - [0:0]
-I POSTROUTING -j ts-postrouting
-A ts-postrouting -m mark --mark 0x40000/0xff0000 -j MASQUERADE
COMMIT
"
        )
    });
    let links = "rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
-6 rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
";
    // In a batch the family is not an option of the program.
    let links =
        links.lines().filter(|line| !line.starts_with("-6")).map(|line| format!("{line}\n")).collect();
    Neighbour { rules, links, ..Neighbour::default() }
}
