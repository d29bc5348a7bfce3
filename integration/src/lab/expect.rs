//! What a scenario asks for, and whether a packet's fate is what the oracle allows.

use std::net::{IpAddr, SocketAddr};

use crate::network::{Family, Outcome, Place, Protocol};
use crate::oracle::Verdict;

/// Where a probe starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub place: Place,
    /// The client's second address, which is in none of the node's networks.
    pub far: bool,
}

impl From<Place> for Origin {
    fn from(place: Place) -> Self {
        Self { place, far: false }
    }
}

/// The client with its second address.
pub const FAR_CLIENT: Origin = Origin { place: Place::Client, far: true };

/// What a probe aims at, in either family.
#[derive(Debug, Clone, Copy)]
pub struct To {
    pub(crate) address: At,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum At {
    ClusterIp(u8),
    LoadBalancer(u8),
    ExternalIp(u8),
    Node(usize),
    Loopback,
    Place(Place),
}

pub fn cluster_ip(number: u8, protocol: Protocol, port: u16) -> To {
    To { address: At::ClusterIp(number), protocol, port }
}

pub fn load_balancer(number: u8, protocol: Protocol, port: u16) -> To {
    To { address: At::LoadBalancer(number), protocol, port }
}

pub fn external_ip(number: u8, protocol: Protocol, port: u16) -> To {
    To { address: At::ExternalIp(number), protocol, port }
}

/// One of the node's own addresses; the first is the one Kubernetes knows.
pub fn node_address(index: usize, protocol: Protocol, port: u16) -> To {
    To { address: At::Node(index), protocol, port }
}

pub fn loopback(protocol: Protocol, port: u16) -> To {
    To { address: At::Loopback, protocol, port }
}

/// A place itself, past all Services.
pub fn directly(place: Place, protocol: Protocol, port: u16) -> To {
    To { address: At::Place(place), protocol, port }
}

impl To {
    pub fn address(self, family: Family) -> SocketAddr {
        let address = match self.address {
            At::ClusterIp(number) => family.service(number),
            At::LoadBalancer(number) => family.load_balancer(number),
            At::ExternalIp(number) => family.external(number),
            At::Node(index) => family.node_addresses()[index],
            At::Loopback if family == Family::V4 => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            At::Loopback => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            At::Place(place) => place.address(family),
        };
        SocketAddr::new(address, self.port)
    }
}

/// What a scenario says by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Exactly these answer, each of them sooner or later; the flag says whether they see the node as the source.
    Answers(Vec<Place>, bool),
    Refused,
    Dropped,
    NotTranslated,
}

/// These answer and see the sender.
pub fn seen_as_sent(places: &[Place]) -> Expect {
    Expect::Answers(places.to_vec(), false)
}

/// These answer and see the node.
pub fn seen_as_node(places: &[Place]) -> Expect {
    Expect::Answers(places.to_vec(), true)
}

impl Expect {
    /// Whether the oracle says the same. An endpoint that asks itself is masqueraded whatever the scenario says of others.
    pub(crate) fn agrees(&self, verdict: &Verdict, from: Place, family: Family) -> bool {
        match (self, verdict) {
            (Self::Answers(places, masquerade), Verdict::Dnat(endpoints)) => {
                let mut wanted: Vec<IpAddr> = places.iter().map(|place| place.address(family)).collect();
                wanted.sort_unstable();
                let mut found: Vec<IpAddr> = endpoints.keys().map(SocketAddr::ip).collect();
                found.dedup();
                let itself = from.address(family);
                wanted == found
                    && endpoints
                        .iter()
                        .all(|(at, masqueraded)| at.ip() == itself || masqueraded == masquerade)
            }
            (Self::Refused, Verdict::Reject)
            | (Self::Dropped, Verdict::Drop)
            | (Self::NotTranslated, Verdict::Pass) => true,
            _ => false,
        }
    }
}

/// Whether what became of a packet is what the verdict allows; otherwise why not.
pub fn judge(
    verdict: &Verdict,
    from: Place,
    to: SocketAddr,
    own: &[IpAddr],
    outcome: &Outcome,
) -> Result<(), String> {
    let family = Family::of(to.ip());
    let wrong = || Err(format!("{outcome}, but it should be {verdict}"));
    match (verdict, outcome) {
        (Verdict::Dnat(endpoints), Outcome::Answered { answer, sent_from }) => {
            let Some(place) = Place::ALL.into_iter().find(|place| place.name() == answer.by) else {
                return wrong();
            };
            let at = SocketAddr::new(place.address(family), answer.port);
            let Some(masquerade) = endpoints.get(&at) else { return wrong() };
            let seen = answer.seen_source.ip();
            let as_sent = seen == sent_from.ip();
            let right = match place.masqueraded_source(family) {
                // Delivered on the node itself, it never reaches the hook that replaces sources.
                None => from == Place::Node || as_sent,
                // The node's own connection may have an address of the node to begin with.
                Some(node) if *masquerade => seen == node || (from == Place::Node && own.contains(&seen)),
                Some(_) => as_sent,
            };
            if right { Ok(()) } else { wrong() }
        }
        (Verdict::Reject, Outcome::Refused) | (Verdict::Drop | Verdict::Pass, Outcome::Silent) => Ok(()),
        // Nothing listens there, which the node itself says.
        (Verdict::Pass, Outcome::Refused) if own.contains(&to.ip()) || to.ip().is_loopback() => Ok(()),
        _ => wrong(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::network::Answer;

    const VIP: &str = "172.30.0.1:80";

    fn answered(by: &str, seen: &str, sent: &str) -> Outcome {
        let at = |address: &str| SocketAddr::new(address.parse().expect("an address"), 40_000);
        let answer = Answer { by: by.to_owned(), port: 8080, seen_source: at(seen) };
        Outcome::Answered { answer, sent_from: at(sent) }
    }

    fn to(endpoint: &str, masquerade: bool) -> Verdict {
        Verdict::Dnat(BTreeMap::from([(endpoint.parse().expect("address:port"), masquerade)]))
    }

    fn allows(verdict: &Verdict, from: Place, outcome: &Outcome) -> bool {
        let own = ["192.168.50.1", "10.0.1.1"].map(|address| address.parse().expect("an address"));
        judge(verdict, from, VIP.parse().expect("address:port"), &own, outcome).is_ok()
    }

    #[test]
    fn only_an_endpoint_of_the_verdict_may_answer() {
        let outcome = answered("pod-a", "10.0.1.12", "10.0.1.12");
        assert!(allows(&to("10.0.1.11:8080", false), Place::PodB, &outcome));
        assert!(!allows(&to("10.0.1.13:8080", false), Place::PodB, &outcome));
        assert!(!allows(&to("10.0.1.11:8081", false), Place::PodB, &outcome));
        for other in [Verdict::Reject, Verdict::Drop, Verdict::Pass] {
            assert!(!allows(&other, Place::PodB, &outcome), "{other}");
        }
    }

    #[test]
    fn the_source_must_be_the_one_of_the_verdict() {
        let (kept, node) = (
            answered("pod-a", "192.168.70.100", "192.168.70.100"),
            answered("pod-a", "10.0.1.1", "192.168.70.100"),
        );
        assert!(allows(&to("10.0.1.11:8080", false), Place::Client, &kept));
        assert!(!allows(&to("10.0.1.11:8080", false), Place::Client, &node));
        assert!(allows(&to("10.0.1.11:8080", true), Place::Client, &node));
        assert!(!allows(&to("10.0.1.11:8080", true), Place::Client, &kept));
        let wrong_address = answered("pod-d", "10.0.1.1", "192.168.70.100");
        assert!(!allows(&to("10.0.2.11:8080", true), Place::Client, &wrong_address));
    }

    #[test]
    fn refused_and_silent_are_not_the_same() {
        assert!(allows(&Verdict::Reject, Place::Client, &Outcome::Refused));
        assert!(!allows(&Verdict::Reject, Place::Client, &Outcome::Silent));
        assert!(allows(&Verdict::Drop, Place::Client, &Outcome::Silent));
        assert!(!allows(&Verdict::Drop, Place::Client, &Outcome::Refused));
        assert!(!allows(&Verdict::Pass, Place::Client, &Outcome::Refused));
        assert!(!allows(&to("10.0.1.11:8080", true), Place::Client, &Outcome::Silent));
        assert!(!allows(&Verdict::Drop, Place::Client, &Outcome::Failed("no route".to_owned())));
    }

    #[test]
    fn a_scenario_and_the_oracle_must_name_the_same_endpoints() {
        let both = Verdict::Dnat(BTreeMap::from([
            ("10.0.1.11:8080".parse().expect("address:port"), true),
            ("10.0.2.11:8080".parse().expect("address:port"), true),
        ]));
        let agrees = |expect: &Expect, from| expect.agrees(&both, from, Family::V4);
        assert!(agrees(&seen_as_node(&[Place::PodD, Place::PodA]), Place::Client));
        assert!(!agrees(&seen_as_sent(&[Place::PodA, Place::PodD]), Place::Client));
        assert!(!agrees(&seen_as_node(&[Place::PodA]), Place::Client));
        assert!(!agrees(&Expect::Refused, Place::Client));
    }
}
