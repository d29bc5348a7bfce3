//! What an administrator's tool shows: how long it takes, and how much there is.

use std::process::Command;
use std::time::{Duration, Instant};

use super::census::Census;
use super::contender::Mode;
use super::site::Site;

/// The device that virtual IPs of ipvs mode are bound to, in kube-proxy and here.
const DEVICE: &str = "kube-ipvs0";

/// How a listing is counted.
type Count = fn(&mut Census, &str);

/// What was listed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Listing {
    pub(crate) seconds: f64,
    pub(crate) bytes: usize,
    pub(crate) census: Census,
}

/// `None` if the tool did not finish in time or is not there.
pub(crate) fn measure(site: &Site, mode: Mode, limit: Duration) -> Option<Listing> {
    let run = |tool: &[&str]| print(site, tool, limit);
    match mode {
        Mode::Nftables => {
            let (text, seconds) = run(&["nft", "list", "ruleset"])?;
            Some(Listing::of(&text, seconds, Census::count_nft))
        }
        // The rules are in one of the two variants.
        Mode::Iptables => {
            let tools = ["iptables-nft-save", "iptables-legacy-save"];
            let listings = tools.iter().filter_map(|tool| {
                let (text, seconds) = run(&[tool])?;
                Some(Listing::of(&text, seconds, Census::count_iptables))
            });
            listings.max_by_key(|listing| listing.census.total())
        }
        Mode::Ipvs => {
            let (text, seconds) = run(&["ipvsadm", "-Ln"])?;
            let mut listing = Listing::of(&text, seconds, Census::count_ipvs);
            // What stands beside virtual servers differs between proxies; only the one tool is timed.
            let beside: [(&[&str], Count); 4] = [
                (&["nft", "list", "table", "ip", "kube-proxy-ipvs"], Census::count_nft),
                (&["iptables-save"], Census::count_iptables),
                (&["ipset", "save"], Census::count_ipset),
                (&["ip", "-4", "route", "show", "table", "local", "dev", DEVICE], Census::count_routes),
            ];
            for (tool, count) in beside {
                if let Some((text, _)) = run(tool) {
                    count(&mut listing.census, &text);
                }
            }
            Some(listing)
        }
    }
}

impl Listing {
    fn of(text: &str, seconds: f64, count: Count) -> Self {
        let mut census = Census::default();
        count(&mut census, text);
        Self { seconds, bytes: text.len(), census }
    }
}

/// What a tool printed, and how long it took; `None` if it is not there, failed, or took longer than the limit.
fn print(site: &Site, tool: &[&str], limit: Duration) -> Option<(String, f64)> {
    let begun = Instant::now();
    let mut command = Command::new("timeout");
    command.arg(limit.as_secs().max(1).to_string()).args(tool);
    let output = site.node.output(&mut command).ok().filter(|output| output.status.success())?;
    let seconds = begun.elapsed().as_secs_f64();
    Some((String::from_utf8_lossy(&output.stdout).into_owned(), seconds))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Mode, measure, print};
    use crate::scale::site::Site;

    #[test]
    fn a_tool_that_takes_a_known_time_is_measured_to_take_it_and_one_that_takes_too_long_is_given_up() {
        let site = Site::build().expect("a network; run as root");
        let script = ["sh", "-c", "sleep 0.3; echo done"];
        let (text, seconds) = print(&site, &script, Duration::from_secs(60)).expect("it ends in time");
        assert_eq!(text, "done\n");
        assert!(seconds >= 0.3, "{seconds} s, not 0.3");
        assert_eq!(print(&site, &["sh", "-c", "echo early; sleep 600"], Duration::from_secs(1)), None);
        assert_eq!(print(&site, &["sh", "-c", "echo half; exit 1"], Duration::from_secs(60)), None);
    }

    #[test]
    fn what_is_listed_is_what_is_in_the_kernel() {
        let site = Site::build().expect("a network; run as root");
        site.add_floor().expect("a rule");
        let listing = measure(&site, Mode::Nftables, Duration::from_secs(60)).expect("nft is installed");
        let census = listing.census;
        assert_eq!((census.tables, census.chains, census.rules, census.total()), (1, 1, 1, 3));
    }
}
