//! What an administrator's tool shows: how long it takes, and how much there is.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::contender::Mode;
use super::site::Site;

/// A listing, or how far one got.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Listing {
    pub(crate) seconds: f64,
    pub(crate) bytes: usize,
    pub(crate) objects: usize,
}

/// `None` if the tool did not finish in time or is not there.
pub(crate) fn measure(site: &Site, mode: Mode, limit: Duration) -> Result<Option<Listing>> {
    let tools: &[&[&str]] = match mode {
        Mode::Nftables => &[&["nft", "list", "table", "ip", "kube-proxy"]],
        Mode::Iptables => &[&["iptables-nft-save"], &["iptables-legacy-save"]],
        Mode::Ipvs => &[&["ipvsadm", "--save", "--numeric"]],
    };
    let mut best = None;
    for tool in tools {
        let begun = Instant::now();
        let mut command = Command::new("timeout");
        command.arg(limit.as_secs().max(1).to_string()).args(*tool);
        let Ok(output) = site.node.output(&mut command) else { continue };
        let listing = Listing {
            seconds: begun.elapsed().as_secs_f64(),
            bytes: output.stdout.len(),
            objects: objects(mode, &String::from_utf8_lossy(&output.stdout)),
        };
        // The rules are in one of the two variants.
        if best.as_ref().is_none_or(|best: &Listing| best.objects < listing.objects) {
            best = Some(listing);
        }
    }
    Ok(best)
}

/// Rules, chains, sets and elements; or rules and chains; or virtual and real servers.
fn objects(mode: Mode, text: &str) -> usize {
    match mode {
        Mode::Iptables => {
            text.lines().filter(|line| line.starts_with("-A ") || line.starts_with(':')).count()
        }
        Mode::Ipvs => text.lines().filter(|line| line.starts_with("-A ") || line.starts_with("-a ")).count(),
        Mode::Nftables => nft_objects(text),
    }
}

fn nft_objects(text: &str) -> usize {
    let mut count = 0;
    let mut in_elements = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("elements = {") {
            in_elements = true;
        }
        if in_elements {
            // Every element but the last is followed by a comma.
            count += line.matches(", ").count() + usize::from(line.ends_with(','));
            if line.ends_with('}') {
                count += 1;
                in_elements = false;
            }
            continue;
        }
        let is_head = ["table ", "chain ", "set ", "map "].iter().any(|word| line.starts_with(word));
        let is_property =
            ["type ", "typeof ", "flags ", "size ", "comment ", "gc-interval ", "timeout ", "counter "]
                .iter()
                .any(|word| line.starts_with(word));
        let is_rule = !is_head && !is_property && !line.is_empty() && line != "}" && !line.starts_with('#');
        // A map inside a rule holds elements too.
        let inner = if is_rule && line.contains(" map {") { line.matches(" : ").count() } else { 0 };
        count += usize::from(is_head || is_rule) + inner;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::{Mode, objects};

    #[test]
    fn objects_of_an_nft_listing_are_counted() {
        let text = "table ip kube-proxy {\n\tmap m {\n\t\ttype ipv4_addr : verdict\n\t\tcomment \"x\"\n\
                    \t\telements = { 10.0.0.1 : goto a, 10.0.0.2 : goto b,\n\t\t\t     10.0.0.3 : goto c }\n\t}\n\n\
                    \tchain a {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\
                    \t\tdnat ip addr . port to numgen random mod 2 map { 0 : 10.0.0.1 . 80, 1 : 10.0.0.2 . 80 }\n\t}\n}\n";
        // A table, a map with three elements, a chain, a rule with two.
        assert_eq!(objects(Mode::Nftables, text), 1 + 1 + 3 + 1 + 1 + 2);
    }

    #[test]
    fn objects_of_the_other_tools_are_counted() {
        assert_eq!(
            objects(Mode::Iptables, "*nat\n:KUBE-SVC-A - [0:0]\n-A KUBE-SVC-A -j RETURN\nCOMMIT\n"),
            2
        );
        assert_eq!(objects(Mode::Ipvs, "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m\n"), 2);
    }
}
