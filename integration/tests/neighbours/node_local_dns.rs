//! NodeLocal DNSCache: a device of its own (a dummy; here a bridge, which every kernel has) with a link-local address on
//! which the cache listens, and no connection tracking for what goes there. (Beside IPVS it does not take the cluster IP of
//! the DNS Service as well.)

use crate::Neighbour;

/// The cache's address.
const ADDRESS: &str = "169.254.20.10";

pub(crate) fn cache() -> Neighbour {
    let mut rules = String::new();
    for (table, target) in [("raw", "CT --notrack"), ("filter", "ACCEPT")] {
        rules += &format!("*{table}\n");
        for protocol in ["udp", "tcp"] {
            let ways: &[(&str, &str)] = match table {
                "raw" => &[
                    ("PREROUTING", "-d ADDRESS -p PROTOCOL -m PROTOCOL --dport 53"),
                    ("OUTPUT", "-s ADDRESS -p PROTOCOL -m PROTOCOL --sport 53"),
                    ("OUTPUT", "-d ADDRESS -p PROTOCOL -m PROTOCOL --dport 53"),
                ],
                _ => &[
                    ("INPUT", "-d ADDRESS -p PROTOCOL -m PROTOCOL --dport 53"),
                    ("OUTPUT", "-s ADDRESS -p PROTOCOL -m PROTOCOL --sport 53"),
                ],
            };
            for (chain, what) in ways {
                let what = what.replace("ADDRESS", &format!("{ADDRESS}/32")).replace("PROTOCOL", protocol);
                rules +=
                    &format!("-A {chain} {what} -m comment --comment \"NodeLocal DNS Cache\" -j {target}\n");
            }
        }
        rules += "COMMIT\n";
    }
    let links = format!("link add nodelocaldns type bridge\naddr add {ADDRESS}/32 dev nodelocaldns\n");
    Neighbour { rules: [rules, String::new()], links, ..Neighbour::default() }
}
