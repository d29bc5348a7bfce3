//! What belongs to a connection beside its first packet: long streams, errors, fragments, packets too large for a link.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use integration::lab::{Lab, Mode, Options, To, cluster_ip, load_balancer, service, slices};
use integration::network::Place::{Client, Node, PodA, PodB, PodD};
use integration::network::Protocol::{Tcp, Udp};
use integration::network::{Answer, Family, Outcome, Place};

crate::scenarios! {
    Options::default() =>
        a_connection_outlives_the_endpoint_in_the_slice,
        what_an_endpoint_refuses_the_client_learns,
        fragments_reach_one_endpoint,
        packets_too_large_for_a_link_are_made_smaller;
}

/// Nobody else listens there.
const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes one connection at PodA and hands it over.
fn listen(lab: &Lab, family: Family, serve: impl FnOnce(TcpStream) + Send + 'static) {
    let at = SocketAddr::new(PodA.address(family), PORT);
    let listener = lab.network.namespace(PodA).run(|| TcpListener::bind(at)).expect("a namespace");
    let listener = listener.expect("nobody else listens there");
    thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            drop(listener);
            serve(stream);
        }
    });
}

fn connect(lab: &Lab, from: Place, to: To, family: Family) -> TcpStream {
    let to = to.address(family);
    let stream = lab.network.namespace(from).run(|| TcpStream::connect_timeout(&to, PATIENCE));
    let stream = stream.expect("a namespace").unwrap_or_else(|error| panic!("{to}: {error}\n{}", lab.log()));
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

fn web(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).port("u", 53, Udp).load_balancer(1));
    lab.apply(slices("web").port("t", PORT, Tcp).port("u", 53, Udp).ready(&[PodA]));
    lab.settle();
}

fn a_connection_outlives_the_endpoint_in_the_slice(lab: &mut Lab) {
    for family in Family::BOTH {
        for (from, to) in [(Client, load_balancer(1, Tcp, 80)), (PodB, cluster_ip(1, Tcp, 80))] {
            web(lab);
            listen(lab, family, |mut stream| {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
            let mut stream = connect(lab, from, to, family);
            let mut talks = |when: &str| {
                let mut byte = [0];
                let echoed = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut byte));
                echoed.unwrap_or_else(|error| panic!("{family:?}, {from:?}, {when}: {error}"));
            };
            talks("at first");
            let endpoints = || slices("web").port("t", 8080, Tcp).port("u", 53, Udp);
            lab.apply(endpoints().ready(&[PodD]).terminating(&[PodA]));
            lab.settle();
            talks("while the endpoint terminates");
            lab.apply(endpoints().ready(&[PodD]));
            lab.settle();
            talks("without the endpoint");
            if lab.mode() != Mode::Ipvs {
                // A virtual server takes its connections with it.
                lab.delete("Service", "web");
                lab.settle();
                talks("without the Service");
            }
        }
    }
}

fn what_an_endpoint_refuses_the_client_learns(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).port("u", 53, Udp).load_balancer(1));
    lab.apply(slices("web").port("t", PORT, Tcp).port("u", PORT, Udp).ready(&[PodA]));
    for family in Family::BOTH {
        for from in [Client, PodB, Node] {
            for protocol_port in [(Tcp, 80), (Udp, 53)] {
                let (protocol, port) = protocol_port;
                for to in [cluster_ip(1, protocol, port), load_balancer(1, protocol, port)] {
                    assert_eq!(lab.ask(from, to, family), Outcome::Refused, "{from:?} {to:?} {family:?}");
                }
            }
        }
    }
}

fn fragments_reach_one_endpoint(lab: &mut Lab) {
    lab.apply(service("web", 1).port("u", 53, Udp).load_balancer(1));
    lab.apply(slices("web").port("u", 53, Udp).ready(&[PodA, PodB]));
    lab.settle();
    for family in Family::BOTH {
        for (from, to) in [(Client, load_balancer(1, Udp, 53)), (PodA, cluster_ip(1, Udp, 53))] {
            for _ in 0..8 {
                let to = to.address(family);
                let unspecified = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
                let exchange = || -> io::Result<String> {
                    let socket = UdpSocket::bind(unspecified)?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    socket.connect(to)?;
                    socket.send(&[b'?'; 4_000])?;
                    let mut text = [0; 256];
                    let length = socket.recv(&mut text)?;
                    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
                };
                let answer = lab.network.namespace(from).run(exchange).expect("a namespace");
                let answer = answer.unwrap_or_else(|error| panic!("{from:?} {to}: {error}\n{}", lab.log()));
                let answer: Answer = answer.parse().expect("an answer");
                assert!(["pod-a", "pod-b"].contains(&answer.by.as_str()), "{answer}");
            }
        }
    }
}

fn packets_too_large_for_a_link_are_made_smaller(lab: &mut Lab) {
    const LENGTH: usize = 400_000;
    web(lab);
    lab.network.namespace(Node).ip("link set veth-pod-a mtu 1400\n", &[]).expect("the link is there");
    for family in Family::BOTH {
        for (from, to) in [
            (Client, load_balancer(1, Tcp, 80)),
            (Client, cluster_ip(1, Tcp, 80)),
            (PodB, cluster_ip(1, Tcp, 80)),
        ] {
            listen(lab, family, |mut stream| {
                let mut sent = vec![0; LENGTH];
                if stream.read_exact(&mut sent).is_ok() {
                    drop(stream.write_all(b"!"));
                }
            });
            let mut stream = connect(lab, from, to, family);
            let mut byte = [0];
            let sent = stream.write_all(&vec![b'x'; LENGTH]).and_then(|()| stream.read_exact(&mut byte));
            sent.unwrap_or_else(|error| panic!("{family:?}, {from:?}, {to:?}: {error}\n{}", lab.log()));
        }
    }
}
