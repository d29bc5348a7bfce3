//! The way to an API server that speaks TLS: HTTP/2 that is broken in its own ways, a proxy on the way, and certificates and
//! tokens that are replaced under a running process, on both sides.
//!
//! What is asked does not depend on the mode, so these run in one.

use std::thread::sleep;
use std::time::Duration;

use integration::apiserver::{Asked, Authority, Dialect};
use integration::lab::{Lab, Mode, Options, Secure, Secured, cluster_ip, seen_as_sent};
use integration::network::Place::{self, PodA, PodB, PodC, PodD};
use integration::network::Protocol::Tcp;

use crate::api_server_faults::{keeps_the_pace, web};

fn run(secure: Secure, scenario: impl FnOnce(&mut Lab)) {
    crate::run(Mode::Nftables, Options { secure: Some(secure), ..Options::default() }, scenario);
}

fn secured(lab: &Lab) -> &Secured {
    lab.secured.as_ref().expect("it was asked for")
}

/// A change arrives, whatever became of the connections.
fn follows(lab: &mut Lab, place: Place) {
    web(lab, &[place]);
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[place]));
}

/// Waits until something was asked that is like this, after `since`.
fn asked(lab: &Lab, since: Duration, like: impl Fn(&Asked) -> bool) {
    crate::eventually(|| lab.api.journal().iter().any(|asked| asked.at > since && like(asked)));
}

/// Everything that can happen to connections and to what runs on them.
fn break_everything(lab: &mut Lab) {
    type Fault = fn(&Lab);
    let faults: [(&str, Fault); 5] = [
        ("the server asks for new connections", |lab| lab.api.go_away()),
        ("watches are reset, their connection stays", |lab| lab.api.cut_watches()),
        ("watches end", |lab| lab.api.close_watches()),
        ("connections are reset in the middle of a frame", |lab| lab.api.tear_connections()),
        ("the server is away", |lab| {
            lab.api.go_down();
            sleep(Duration::from_millis(500));
            lab.api.come_back();
        }),
    ];
    for (what, fault) in faults {
        for place in [PodA, PodB, PodD] {
            println!("{what}: {place:?}");
            fault(lab);
            follows(lab, place);
        }
    }
    keeps_the_pace(lab, Duration::ZERO);
}

#[test]
fn http2_connections_that_break_in_every_way() {
    run(Secure::HTTP2, |lab| {
        break_everything(lab);
        assert!(lab.api.journal().iter().all(|asked| asked.is_http2), "{:#?}", lab.api.journal());
    });
}

#[test]
fn http1_connections_that_break_in_every_way() {
    run(Secure { dialect: Dialect::Http1, through_proxy: false }, |lab| {
        break_everything(lab);
        assert!(lab.api.journal().iter().all(|asked| !asked.is_http2 && asked.peer.encrypted));
    });
}

#[test]
fn behind_a_proxy_that_speaks_tls() {
    run(Secure { dialect: Dialect::Http2, through_proxy: true }, |lab| {
        break_everything(lab);
        assert!(lab.api.journal().iter().all(|asked| asked.is_http2));
        let tunnels = secured(lab).proxy.as_ref().expect("it was asked for").tunnels();
        // One at the start, and one for each of the three times that connections were ended, torn or refused.
        assert!(tunnels >= 10, "{tunnels}");
    });
}

#[test]
fn a_client_certificate_and_a_token_that_are_replaced() {
    run(Secure::HTTP2, |lab| {
        follows(lab, PodA);
        let first = secured(lab).authority.client("node-1-again").expect("a certificate");
        let shown = |lab: &Lab| lab.api.journal().last().expect("it asked").peer.certificate.clone();
        assert!(shown(lab).is_some());
        let since = lab.api.clock();
        secured(lab).be(&first).expect("replaced");
        // Whoever holds a connection is asked to show the new one, without anything else happening.
        let der = first.der().expect("a certificate");
        asked(lab, since, |asked| asked.peer.certificate.as_ref() == Some(&der));
        follows(lab, PodB);
        // A certificate whose key does not fit leaves what there is in use.
        let other = secured(lab).authority.client("node-1-half").expect("a certificate");
        std::fs::copy(&other.certificate, &secured(lab).client.certificate).expect("replaced");
        follows(lab, PodA);

        // The server takes another token from now on; the file has it a moment later.
        lab.api.set_faults(|faults| faults.tokens = Some(["second-token".to_owned()].into()));
        lab.api.close_watches();
        asked(lab, since, |asked| asked.code == Some(401));
        secured(lab).bring("second-token\n").expect("replaced");
        follows(lab, PodD);
        keeps_the_pace(lab, Duration::ZERO);
    });
}

#[test]
fn a_server_certificate_and_an_authority_that_are_replaced() {
    run(Secure::HTTP2, |lab| {
        follows(lab, PodA);
        // The same authority signs another certificate.
        let again = secured(lab).authority.server("server-again").expect("a certificate");
        secured(lab).security.show(&again).expect("a certificate");
        lab.api.tear_connections();
        follows(lab, PodB);

        // As Kubernetes' documentation has it: both authorities are believed, then the server changes, then the old one goes.
        let folder = secured(lab).authority.own.key.with_file_name("next");
        let next = Authority::create(&folder, "next-authority").expect("an authority");
        let server = next.server("next-server").expect("a certificate");
        secured(lab).believe(&[&secured(lab).authority, &next]).expect("replaced");
        secured(lab).security.show(&server).expect("a certificate");
        lab.api.tear_connections();
        follows(lab, PodA);
        secured(lab).believe(&[&next]).expect("replaced");
        lab.api.tear_connections();
        follows(lab, PodB);

        // The server changes first: what is in force stays, the log says why, and the file's replacement ends it.
        secured(lab).security.show(&again).expect("a certificate");
        web(lab, &[PodD]);
        lab.api.tear_connections();
        crate::eventually(|| lab.log().contains("signed by an authority that is not known here"));
        secured(lab).believe(&[&next, &secured(lab).authority]).expect("replaced");
        lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodD]));
        keeps_the_pace(lab, Duration::ZERO);
    });
}
