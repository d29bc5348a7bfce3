//! Services with more endpoints than most have.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use integration::lab::{Lab, NAMESPACE, Options, cluster_ip, load_balancer, seen_as_node, service, slices};
use integration::network::Place::{Client, Node, PodA, PodB};
use integration::network::Protocol::Tcp;
use integration::network::{Family, PATIENT};
use serde_json::{Value, json};

crate::scenarios! {
    Options::default() =>
        five_thousand_endpoints_of_one_service_all_serve;
}

const PORT: u16 = 7000;
const ENDPOINTS: usize = 5_000;
const PER_SLICE: usize = 1_000;
const CONNECTIONS: usize = 600;

/// All of them are PodA, which answers at every address of a network.
fn address(family: Family, index: usize) -> IpAddr {
    let text = match family {
        Family::V4 => format!("10.77.{}.{}", index / 250, index % 250 + 1),
        Family::V6 => format!("fd00:77::{:x}", index + 1),
    };
    text.parse().expect("formed above")
}

fn slice(family: Family, number: usize) -> Value {
    let endpoints: Vec<Value> = (number * PER_SLICE..(number + 1) * PER_SLICE)
        .map(|index| {
            let address = address(family, index);
            json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": "node"})
        })
        .collect();
    let (name, kind) = if family == Family::V4 { ("v4", "IPv4") } else { ("v6", "IPv6") };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
        "metadata": {
            "namespace": NAMESPACE, "name": format!("large-{number}-{name}"),
            "labels": {"kubernetes.io/service-name": "large"},
        },
        "ports": [{"name": "t", "port": PORT, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// Says at which address it was reached.
fn answer_everywhere(lab: &Lab) {
    let routes = "route add local 10.77.0.0/16 dev lo\nroute add local fd00:77::/64 dev lo\n";
    lab.network.namespace(PodA).ip(routes, &[]).expect("a route");
    let routes = "route add 10.77.0.0/16 via 10.0.1.11\nroute add fd00:77::/64 via fd00:10:1::11\n";
    lab.network.namespace(Node).ip(routes, &[]).expect("a route");
    let listener = lab.network.namespace(PodA).run(|| TcpListener::bind(("::", PORT))).expect("a namespace");
    let listener = listener.expect("nobody else listens there");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let told = stream.and_then(|mut stream| {
                let at = stream.local_addr()?.ip().to_canonical();
                stream.write_all(at.to_string().as_bytes())
            });
            if told.is_err() {
                return;
            }
        }
    });
}

fn reached(lab: &Lab, to: SocketAddr) -> BTreeSet<String> {
    let ask = || {
        let stream = TcpStream::connect_timeout(&to, PATIENT)?;
        stream.set_read_timeout(Some(PATIENT))?;
        std::io::read_to_string(stream)
    };
    let asked = lab.network.namespace(Client).run(|| (0..CONNECTIONS).map(|_| ask()).collect::<Vec<_>>());
    let asked = asked.expect("a namespace");
    asked.into_iter().map(|answer| answer.unwrap_or_else(|error| panic!("{to}: {error}"))).collect()
}

fn five_thousand_endpoints_of_one_service_all_serve(lab: &mut Lab) {
    answer_everywhere(lab);
    lab.apply(service("small", 2).port("t", 80, Tcp));
    lab.apply(slices("small").port("t", 8080, Tcp).ready(&[PodA, PodB]));
    lab.apply(service("large", 1).port("t", 80, Tcp).load_balancer(1));
    for number in 0..ENDPOINTS / PER_SLICE {
        for family in Family::BOTH {
            lab.apply(slice(family, number));
        }
    }
    lab.settle();
    for family in Family::BOTH {
        for to in [cluster_ip(1, Tcp, 80), load_balancer(1, Tcp, 80)] {
            let seen = reached(lab, to.address(family));
            // 600 draws of 5,000 meet 565 of them on average; every fifth slice's share is a fifth of that.
            assert!(seen.len() > 500, "{family:?}: {} endpoints", seen.len());
        }
    }
    lab.expect(Client, cluster_ip(2, Tcp, 80), &seen_as_node(&[PodA, PodB]));
    // All but one go.
    for number in 0..ENDPOINTS / PER_SLICE {
        for (family, name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
            if number == 0 {
                let mut one = slice(family, number);
                one["endpoints"] = json!([one["endpoints"][7].clone()]);
                lab.apply(one);
            } else {
                lab.delete("EndpointSlice", &format!("large-{number}-{name}"));
            }
        }
    }
    lab.settle();
    for family in Family::BOTH {
        let seen = reached(lab, cluster_ip(1, Tcp, 80).address(family));
        assert_eq!(seen, BTreeSet::from([address(family, 7).to_string()]), "{family:?}");
    }
}
