//! `diff`, `plan`, `migrate check` and `check` on the node of a whole program: what is true is said, in every mode.

use std::fs;
use std::process::Command;

use integration::lab::{Lab, Mode, Options, service, slices};
use integration::network::Place::{Node, PodA, PodB, PodD};
use integration::network::Protocol::{Tcp, Udp};
use serde_json::{Value, json};

fn start(mode: Mode) -> Lab {
    let mut lab =
        Lab::start(Options { mode, ..Options::default() }).expect("root, and a kube-proxy that was built");
    lab.apply(service("web", 1).port("http", 80, Tcp).node_port(30_080));
    lab.apply(slices("web").port("http", 8080, Tcp).ready(&[PodA, PodD]));
    lab.apply(service("dns", 2).port("dns", 53, Udp));
    lab.apply(slices("dns").port("dns", 53, Udp).ready(&[PodB]));
    lab.apply(service("outer", 3).port("http", 80, Tcp).load_balancer(3).external_local());
    lab.apply(slices("outer").port("http", 8080, Tcp).ready(&[PodB, PodD]));
    lab.apply(service("empty", 4).port("http", 80, Tcp));
    lab.settle();
    lab
}

fn on_the_node(lab: &Lab, command: &str) {
    let run = lab.network.namespace(Node).output(Command::new("sh").args(["-c", command]));
    run.expect("the command does what it says");
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Whatever the process did, nothing differs; and who asks changes nothing.
fn nothing_differs_while_it_works(mode: Mode) {
    let mut lab = start(mode);
    for endpoints in [&[PodA][..], &[PodA, PodB, PodD], &[PodD]] {
        lab.apply(slices("web").port("http", 8080, Tcp).ready(endpoints));
        lab.settle();
        let (code, said) = lab.verb(&["diff"]);
        assert_eq!(code, 0, "{said}\n{}", lab.log());
        assert!(said.contains("Nothing differs"), "{said}");
    }
    let (code, said) = lab.verb(&["diff", "-o", "json"]);
    let answer = json_of(&said);
    assert_eq!((code, &answer["differences"]), (0, &json!([])), "{said}");
    assert!(answer["compared"].as_u64().is_some_and(|compared| compared > 50), "{said}");
    lab.sweep();
}

/// A process that does not run mends nothing: what was damaged meanwhile is named, and nothing else.
fn damage_is_named_by_service(mode: Mode) {
    let mut lab = start(mode);
    let dump = lab.folder().join("state.jsonl");
    let (code, said) = lab.verb(&["dump", dump.to_str().expect("a text")]);
    assert_eq!(code, 0, "{said}");
    lab.stop_proxy().expect("it ends");
    let file = dump.to_str().expect("a text").to_owned();
    let (code, said) = lab.verb(&["replay", &file, "diff", "--here"]);
    assert_eq!(code, 0, "{said}");
    let (damage, named) = match mode {
        Mode::Nftables => (
            "set -e; map=$(nft list maps ip | grep -o 'vips-[0-9]*' | head -1); \
             key=$(nft list map ip kube-proxy $map | grep -o '[0-9.]* \\. tcp \\. 80 :' | head -1 | tr -d :); \
             nft delete element ip kube-proxy $map \"{ $key }\"",
            None,
        ),
        Mode::IptablesLegacy | Mode::IptablesNft => {
            let save = if mode == Mode::IptablesNft { "iptables-nft" } else { "iptables-legacy" };
            let command = format!(
                "set -e; chain=$({save}-save -t nat | grep -o -m1 '^-A KUBE-SVC-[A-Z0-9]* .*web:http' | cut -d' ' -f2); \
                 {save} -w -t nat -F $chain"
            );
            (&*command.leak(), Some("web"))
        }
        Mode::Ipvs => ("ipvsadm -D -t $(ipvsadm -Ln | grep -m1 '^TCP.*:80 ' | awk '{print $2}')", None),
    };
    on_the_node(&lab, damage);
    let (code, said) = lab.verb(&["replay", &file, "diff", "--here", "-o", "json"]);
    assert_eq!(code, 1, "{damage}: {said}");
    let answer = json_of(&said);
    let services: std::collections::BTreeSet<&str> = answer["differences"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|line| line["service"].as_str().expect("it belongs to a Service"))
        .collect();
    assert_eq!(services.len(), 1, "{damage}: {said}");
    if let Some(named) = named {
        assert!(services.iter().all(|service| service.ends_with(named)), "{damage}: {said}");
    }
}

/// What is planned is what is then in the kernel: planned again, nothing is left to do.
fn a_plan_is_what_then_is(mode: Mode) {
    let mut lab = start(mode);
    let file = lab.folder().join("change.yaml");
    let (_, said) = lab.verb(&["dump"]);
    let slice = said
        .lines()
        .map(json_of)
        .find(|line| {
            line["kind"] == "EndpointSlice"
                && line["metadata"]["labels"]["kubernetes.io/service-name"] == "web"
        })
        .expect("a slice of web");
    let mut changed = slice.clone();
    changed["endpoints"].as_array_mut().expect("a list").truncate(1);
    fs::write(&file, changed.to_string()).expect("a file");
    let path = file.to_str().expect("a text").to_owned();
    let (code, said) = lab.verb(&["plan", "-f", &path, "-o", "json"]);
    assert_eq!(code, 0, "{said}");
    let plan = json_of(&said);
    assert!(plan["operations"].as_u64().is_some_and(|count| count > 0), "{said}");
    let named = plan["parts"].as_array().expect("a list").iter().any(|part| {
        part["service"].as_str().is_some_and(|name| name.ends_with("/web"))
            && part["what"] == "endpoints -1, local endpoints -1"
            || part["what"] == "endpoints -1"
    });
    assert!(named, "{said}");
    fs::write(&file, slice.to_string()).expect("a file");
    let (code, said) = lab.verb(&["plan", "-f", &path]);
    assert!(code == 0 && said.contains("Nothing would change"), "{said}");
    let (code, said) = lab.verb(&["plan", "--takeover"]);
    assert!(code == 0 && said.contains("operations on"), "{said}");
    let (code, said) = lab.verb(&["plan", "--rollback"]);
    assert!(code == 0 && said.contains("Removed: "), "{said}");
    let to = if mode == Mode::Nftables { "iptables" } else { "nftables" };
    let (code, said) = lab.verb(&["migrate", "check", "--to", to]);
    assert!([0, 1].contains(&code) && said.contains(&format!("to {to} mode")), "{said}");
    // All of it was questions.
    let (code, said) = lab.verb(&["diff"]);
    assert_eq!(code, 0, "{said}");
    lab.sweep();
}

/// A node that works is fit, and what is tried does not touch it.
fn a_node_that_works_is_fit(mode: Mode) {
    let mut lab = start(mode);
    let name = match mode {
        Mode::Nftables => "nftables",
        Mode::Ipvs => "ipvs",
        _ => "iptables",
    };
    let (code, said) = lab.verb(&["check", "preflight", "--mode", name, "-o", "json"]);
    let report = json_of(&said);
    let failed: Vec<&Value> = report["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|finding| finding["status"] == "FAIL")
        .collect();
    // The lab's API server reviews no access; that is a warning.
    assert!(code < 2 && failed.is_empty(), "{failed:#?}");
    let (code, said) = lab.verb(&["check", "node"]);
    assert!(code < 2, "{said}");
    let (code, said) = lab.verb(&["check", "takeover", "--junit"]);
    assert!(code < 2 && said.contains("<testsuite"), "{said}");
    let (code, said) = lab.verb(&["diff"]);
    assert_eq!(code, 0, "{said}");
    lab.sweep();
}

macro_rules! in_every_mode {
    ($($name:ident),*) => {
        mod in_nftables_mode {
            $(#[test] fn $name() { super::$name(super::Mode::Nftables); })*
        }
        mod in_iptables_mode_in_legacy_tables {
            $(#[test] fn $name() { super::$name(super::Mode::IptablesLegacy); })*
        }
        mod in_iptables_mode_in_nft_tables {
            $(#[test] fn $name() { super::$name(super::Mode::IptablesNft); })*
        }
        mod in_ipvs_mode {
            $(#[test] fn $name() { vm_test::with_ipvs(|| super::$name(super::Mode::Ipvs)); })*
        }
    };
}

in_every_mode!(
    nothing_differs_while_it_works,
    damage_is_named_by_service,
    a_plan_is_what_then_is,
    a_node_that_works_is_fit
);
