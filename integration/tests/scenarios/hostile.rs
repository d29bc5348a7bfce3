//! What the owner of one namespace may create costs another namespace nothing: its changes reach packets, the proxy's
//! memory and log stay small, and when the objects go everything is as before.
//!
//! Nothing judges a time here but a limit that only catches "never". Every row is printed: how long a change of another
//! namespace took beside it, and by how much memory and log grew.

use std::time::{Duration, Instant};

use integration::lab::{Lab, Mode, Options, cluster_ip, seen_as_sent, service, slices};
use integration::network::Place::{PodA, PodB, PodD};
use integration::network::Protocol::Tcp;
use serde_json::{Value, json};

crate::scenarios! {
    Options { embedded_server: true, ..Options::default() } =>
        hostile_objects_cost_another_namespace_nothing,
        random_objects_cost_another_namespace_nothing;
}

const NAMESPACE: &str = "hostile";
/// By so much may the proxy's resident memory grow beside one of these, at its peak (a debug build).
const MOST_KIBIBYTES: u64 = 128 * 1024;
const MOST_LINES: usize = 100;

/// A Service of `ports` ports, each with `external` external IPs.
fn wide(name: &str, number: u8, ports: usize, external: usize) -> Value {
    let ports: Vec<Value> = (1..=ports)
        .map(|port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP", "targetPort": port}))
        .collect();
    let external: Vec<String> =
        (0..external).map(|at| format!("203.0.{}.{}", at / 250, at % 250 + 1)).collect();
    let service = service(name, number).set("/metadata/namespace", json!(NAMESPACE));
    let service = service.set("/spec/ports", json!(ports)).set("/spec/externalIPs", json!(external));
    integration::lab::Objects::objects(service).remove(0)
}

/// A slice of the first port of a Service with so many endpoints that do not exist.
fn endpoints(of: &str, suffix: usize, count: usize) -> Value {
    let endpoints: Vec<Value> = (0..count)
        .map(|at| json!({"addresses": [format!("10.9.{}.{}", at / 250, at % 250 + 1)], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": NAMESPACE, "name": format!("{of}-{suffix}"), "labels": {"kubernetes.io/service-name": of},
        },
        "ports": [{"name": "p1", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').expect("a JSON pointer begins with a slash");
    object.pointer_mut(parent).expect("the parent exists")[field] = value;
    object
}

fn annotated(object: Value, key: &str, bytes: usize) -> Value {
    with(object, "/metadata/annotations", json!({key: "x".repeat(bytes)}))
}

fn assigned(object: Value, addresses: usize) -> Value {
    let ingress: Vec<Value> = (0..addresses)
        .map(|at| json!({"ip": format!("198.51.{}.{}", 101 + at / 250, at % 250 + 1)}))
        .collect();
    let object = with(object, "/spec/type", json!("LoadBalancer"));
    with(object, "/status", json!({"loadBalancer": {"ingress": ingress}}))
}

fn ranges(object: Value, count: usize) -> Value {
    let ranges: Vec<String> = (0..count).map(|at| format!("11.{}.{}.0/24", at / 250, at % 250)).collect();
    with(object, "/spec/loadBalancerSourceRanges", json!(ranges))
}

/// The objects, in the order in which they come.
fn table() -> Vec<(&'static str, Vec<Value>)> {
    let slices_of = |name: &str, count| (0..count).map(|at| endpoints(name, at, 1)).collect::<Vec<_>>();
    let mut many_slices = vec![wide("slices", 70, 1, 0)];
    many_slices.extend(slices_of("slices", 300));
    vec![
        (
            "1,000 ports, an unknown annotation of 200 kB",
            vec![annotated(wide("annotated", 70, 1000, 0), "switchyard.dev/x", 200_000)],
        ),
        (
            "1,000 ports, a known annotation of 200 kB",
            vec![annotated(wide("annotated", 70, 1000, 0), "switchyard.dev/ipvs-scheduler", 200_000)],
        ),
        (
            "two Services, 500 ports x 500 external IPs",
            vec![wide("first", 70, 500, 500), wide("second", 71, 500, 500)],
        ),
        (
            "two Services, 60 ports x 60 external IPs",
            vec![wide("first", 70, 60, 60), wide("second", 71, 60, 60)],
        ),
        ("2,000 ports x 2,000 external IPs", vec![wide("product", 70, 2000, 2000)]),
        ("16,000 ports", vec![wide("ports", 70, 16_000, 0)]),
        ("300 slices of one Service", many_slices),
        (
            "100 claimants of one address",
            (0..100).map(|at| wide(&format!("claimant-{at}"), 70 + at, 1, 1)).collect(),
        ),
        (
            "50 ports x 10 load balancer addresses x 1,000 ranges",
            vec![ranges(assigned(wide("ranges", 70, 50, 0), 10), 1000)],
        ),
        (
            "200 external IPs x 3,000 endpoints",
            vec![
                wide("endpoints", 70, 1, 200),
                endpoints("endpoints", 0, 1000),
                endpoints("endpoints", 1, 1000),
                with(endpoints("endpoints", 2, 1000), "/endpoints/0/addresses", json!(["10.9.9.9"])),
            ],
        ),
    ]
}

fn hostile_objects_cost_another_namespace_nothing(lab: &mut Lab) {
    beside(lab, table());
}

/// The same grammar, at random.
fn random_objects_cost_another_namespace_nothing(lab: &mut Lab) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: usize| {
        // xorshift64: the same numbers in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % limit as u64).expect("below the limit")
    };
    // The virtual machine's kernel needs half a minute for ten thousand virtual servers, or for as many destinations.
    let (shapes, endpoints_of_a_slice) = match lab.mode() {
        Mode::Ipvs => ([(1, 1), (300, 1), (1, 300), (12, 12), (200, 400)], 20),
        _ => ([(1, 1), (3000, 1), (1, 3000), (40, 40), (200, 400)], 200),
    };
    let rows = (0..8).map(|_| {
        let mut objects = Vec::new();
        for at in 0..=below(3) {
            let (ports, external) = shapes[below(5)];
            let name = format!("random-{at}");
            let number = 70 + u8::try_from(at).expect("a few");
            let mut service = wide(&name, number, 1 + below(ports), below(external));
            if below(2) == 0 {
                service = annotated(
                    service,
                    ["switchyard.dev/ipvs-weight", "other.dev/x"][below(2)],
                    below(100_000),
                );
            }
            if below(2) == 0 {
                service = ranges(assigned(service, 1 + below(20)), below(500));
            }
            objects.push(service);
            let slices = below(4);
            objects.extend((0..slices).map(|at| endpoints(&name, at, below(endpoints_of_a_slice))));
        }
        ("random objects", objects)
    });
    let rows: Vec<_> = rows.collect();
    beside(lab, rows);
}

/// How long a change of another namespace takes to reach packets.
#[expect(clippy::disallowed_methods, reason = "it is printed, not judged")]
fn change(lab: &mut Lab, at: usize) -> Duration {
    let serving = [PodA, PodD][at % 2];
    let begun = Instant::now();
    lab.apply(slices("good").port("t", 8080, Tcp).ready(&[serving]));
    lab.settle();
    let took = begun.elapsed();
    lab.expect(PodB, cluster_ip(2, Tcp, 80), &seen_as_sent(&[serving]));
    took
}

fn beside(lab: &mut Lab, rows: Vec<(&'static str, Vec<Value>)>) {
    lab.apply(service("good", 2).port("t", 80, Tcp).load_balancer(2));
    change(lab, 0);
    let alone = (1..4).map(|at| change(lab, at)).max().unwrap_or_default();
    println!(
        "| objects | another namespace's change | later than without | memory at its peak | log lines |"
    );
    println!("| none | {} ms | | | |", alone.as_millis());
    for (what, mut objects) in rows {
        if lab.mode() == Mode::Ipvs {
            // The virtual machine's kernel takes minutes for the 400,000 destinations that are allowed: what is refused for having
            // more is to be seen whole.
            objects.sort_by_key(|object| object["kind"] == "Service");
        }
        let (memory, lines) = (lab.proxy_memory(), lab.log_lines());
        lab.begin_peak().expect("it runs");
        let mut names: Vec<(String, String)> = objects
            .iter()
            .map(|object| {
                [&object["kind"], &object["metadata"]["name"]]
                    .map(|text| text.as_str().unwrap_or_default().to_owned())
            })
            .map(|[kind, name]| (kind, name))
            .collect();
        names.sort_by_key(|(kind, _)| kind != "Service");
        for object in objects {
            lab.apply(object);
        }
        let mut worst = Duration::ZERO;
        for at in 0..4 {
            worst = worst.max(change(lab, at));
        }
        for (kind, name) in names {
            lab.api.delete(&kind, NAMESPACE, &name).expect("it was applied");
        }
        worst = worst.max(change(lab, 4));
        let memory = lab.peak_proxy_memory().saturating_sub(memory);
        let lines = lab.log_lines() - lines;
        let later = worst.saturating_sub(alone).as_millis();
        println!("| {what} | {} ms | {later} ms | {} MiB | {lines} |", worst.as_millis(), memory / 1024);
        assert!(memory < MOST_KIBIBYTES, "{what}: {memory} KiB more");
        assert!(lines < MOST_LINES, "{what}: {lines} lines\n{}", lab.log());
    }
    lab.sweep();
}
