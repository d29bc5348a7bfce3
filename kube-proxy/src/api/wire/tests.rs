//! Both encodings say the same, in whatever pieces they come; what is cut or garbled is never taken for whole.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::api::{
    node::Node,
    slim::{EndpointSlice, Service, ServiceCidr},
};

/// How a field of `generated.proto` is written.
#[derive(Clone, Copy)]
enum Kind {
    /// A pointer in Go: absent, or written.
    Text,
    Number,
    /// No pointer in Go: always written, though empty.
    Always,
    AlwaysNumber,
    Time,
    Map,
    Message(&'static [Field]),
}
type Field = (&'static str, u32, Kind);
use Kind::{Always, AlwaysNumber, Map, Message, Number, Text, Time};

const METADATA: &[Field] = &[
    ("name", 1, Always),
    ("generateName", 2, Always),
    ("namespace", 3, Always),
    ("uid", 5, Always),
    ("resourceVersion", 6, Always),
    ("generation", 7, AlwaysNumber),
    ("creationTimestamp", 8, Time),
    ("deletionTimestamp", 9, Time),
    ("labels", 11, Map),
    ("annotations", 12, Map),
];
const SERVICE: &[Field] = &[
    ("metadata", 1, Message(METADATA)),
    (
        "spec",
        2,
        Message(&[
            (
                "ports",
                1,
                Message(&[
                    ("name", 1, Always),
                    ("protocol", 2, Always),
                    ("port", 3, AlwaysNumber),
                    ("nodePort", 5, AlwaysNumber),
                    ("appProtocol", 6, Text),
                ]),
            ),
            ("clusterIP", 3, Always),
            ("type", 4, Always),
            ("externalIPs", 5, Text),
            ("sessionAffinity", 7, Always),
            ("loadBalancerSourceRanges", 9, Text),
            ("externalTrafficPolicy", 11, Always),
            ("healthCheckNodePort", 12, AlwaysNumber),
            (
                "sessionAffinityConfig",
                14,
                Message(&[("clientIP", 1, Message(&[("timeoutSeconds", 1, Number)]))]),
            ),
            ("clusterIPs", 18, Text),
            ("internalTrafficPolicy", 22, Text),
        ]),
    ),
    (
        "status",
        3,
        Message(&[(
            "loadBalancer",
            1,
            Message(&[(
                "ingress",
                1,
                Message(&[("ip", 1, Always), ("hostname", 2, Always), ("ipMode", 3, Text)]),
            )]),
        )]),
    ),
];
const NAMED: Kind = Message(&[("name", 1, Always)]);
const SLICE: &[Field] = &[
    ("metadata", 1, Message(METADATA)),
    (
        "endpoints",
        2,
        Message(&[
            ("addresses", 1, Text),
            (
                "conditions",
                2,
                Message(&[("ready", 1, Number), ("serving", 2, Number), ("terminating", 3, Number)]),
            ),
            ("hostname", 3, Text),
            ("nodeName", 6, Text),
            ("zone", 7, Text),
            ("hints", 8, Message(&[("forZones", 1, NAMED), ("forNodes", 2, NAMED)])),
        ]),
    ),
    ("ports", 3, Message(&[("name", 1, Text), ("protocol", 2, Text), ("port", 3, Number)])),
    ("addressType", 4, Always),
];
const CIDR: &[Field] = &[("metadata", 1, Message(METADATA)), ("spec", 2, Message(&[("cidrs", 1, Text)]))];
const NODE: &[Field] = &[
    ("metadata", 1, Message(METADATA)),
    (
        "spec",
        2,
        Message(&[
            ("podCIDR", 1, Always),
            ("taints", 5, Message(&[("key", 1, Always)])),
            ("podCIDRs", 7, Text),
        ]),
    ),
    ("status", 3, Message(&[("addresses", 5, Message(&[("type", 1, Always), ("address", 2, Always)]))])),
];
const STATUS: &[Field] = &[
    ("metadata", 1, Message(&[])),
    ("message", 3, Always),
    ("reason", 4, Always),
    (
        "details",
        5,
        Message(&[
            ("causes", 4, Message(&[("reason", 1, Always), ("message", 2, Always)])),
            ("retryAfterSeconds", 5, AlwaysNumber),
        ]),
    ),
    ("code", 6, AlwaysNumber),
];

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(field) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn encode(fields: &[Field], object: &Json) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, number, kind) in fields {
        match &object[*name] {
            Json::Array(all) => all.iter().for_each(|one| field(*number, *kind, one, &mut out)),
            one => field(*number, *kind, one, &mut out),
        }
    }
    out
}

fn field(number: u32, kind: Kind, value: &Json, out: &mut Vec<u8>) {
    match (kind, value) {
        (Always, Json::Null) => bytes(number, b"", out),
        (AlwaysNumber, Json::Null) => {
            varint(u64::from(number) << 3, out);
            varint(0, out);
        }
        (Message(_), Json::Null) => {}
        (Message(fields), value) => bytes(number, &encode(fields, value), out),
        (_, Json::Null) => {}
        (Text | Always, value) => bytes(number, value.as_str().expect("a text").as_bytes(), out),
        (Number | AlwaysNumber, value) => {
            varint(u64::from(number) << 3, out);
            let value = value.as_i64().or_else(|| value.as_bool().map(i64::from)).expect("a number");
            varint(value.cast_unsigned(), out);
        }
        (Time, value) => {
            let time: jiff::Timestamp = value.as_str().expect("a time").parse().expect("a time");
            let mut inner = vec![1 << 3];
            varint(time.as_second().cast_unsigned(), &mut inner);
            bytes(number, &inner, out);
        }
        (Map, value) => {
            for (key, text) in value.as_object().expect("a map") {
                let mut pair = Vec::new();
                bytes(1, key.as_bytes(), &mut pair);
                bytes(2, text.as_str().expect("a text").as_bytes(), &mut pair);
                bytes(number, &pair, out);
            }
        }
    }
}

fn envelope(kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut type_meta = Vec::new();
    bytes(1, b"v1", &mut type_meta);
    bytes(2, kind.as_bytes(), &mut type_meta);
    let mut out = b"k8s\0".to_vec();
    bytes(1, &type_meta, &mut out);
    bytes(2, raw, &mut out);
    bytes(3, b"", &mut out);
    bytes(4, b"", &mut out);
    out
}

fn protobuf_list(fields: &[Field], objects: &[Json]) -> Vec<u8> {
    let mut list = Vec::new();
    let mut head = Vec::new();
    bytes(1, b"", &mut head);
    bytes(2, b"77", &mut head);
    bytes(3, b"more", &mut head);
    bytes(1, &head, &mut list);
    objects.iter().for_each(|object| bytes(2, &encode(fields, object), &mut list));
    envelope("SomeList", &list)
}

fn json_list(objects: &[Json]) -> Vec<u8> {
    let list = json!({
        "kind": "SomeList", "apiVersion": "v1", "metadata": {"resourceVersion": "77", "continue": "more"}, "items": objects,
    });
    // As Go writes it: the metadata first.
    let metadata = list["metadata"].to_string();
    let items = list["items"].to_string();
    format!("{{\"kind\":\"SomeList\",\"apiVersion\":\"v1\",\"metadata\":{metadata},\"items\":{items}}}\n")
        .into_bytes()
}

fn protobuf_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let (mut extension, mut event) = (Vec::new(), Vec::new());
    bytes(1, object, &mut extension);
    bytes(1, kind.as_bytes(), &mut event);
    bytes(2, &extension, &mut event);
    let mut frame = u32::try_from(event.len()).expect("small").to_be_bytes().to_vec();
    frame.extend(event);
    frame
}

/// What a list says, as words, in pieces of these sizes.
fn read<K: Object + std::fmt::Debug>(
    encoding: Encoding,
    body: &[u8],
    pieces: &[usize],
) -> (Vec<String>, Result<bool, Broken>) {
    let mut decoder = ListDecoder::new(encoding);
    let (mut words, mut rest, mut sizes) = (Vec::new(), body, pieces.iter().cycle());
    loop {
        if rest.is_empty() {
            decoder.feed(None);
        } else {
            let size = sizes.next().copied().unwrap_or(usize::MAX).clamp(1, rest.len());
            decoder.feed(Some(&rest[..size]));
            rest = &rest[size..];
        }
        loop {
            match decoder.next::<K>() {
                Err(broken) => return (words, Err(broken)),
                Ok(None) if rest.is_empty() => break,
                Ok(None) => break,
                Ok(Some(ListPart::End)) => return (words, Ok(true)),
                Ok(Some(part)) => words.push(format!("{part:?}")),
            }
        }
    }
}

fn events<K: Object + std::fmt::Debug>(
    encoding: Encoding,
    body: &[u8],
    pieces: &[usize],
) -> Result<Vec<String>, Broken> {
    let mut decoder = WatchDecoder::new(encoding);
    let (mut words, mut rest, mut sizes) = (Vec::new(), body, pieces.iter().cycle());
    while !rest.is_empty() {
        let size = sizes.next().copied().unwrap_or(usize::MAX).clamp(1, rest.len());
        decoder.feed(&rest[..size]);
        rest = &rest[size..];
        while let Some(part) = decoder.next::<K>()? {
            words.push(format!("{part:?}"));
        }
    }
    Ok(words)
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "TCP", "10.0.0.1", "fd00::1", "ünï}]\"\\", "Local", "IPv4", "true"])
        .prop_map(str::to_owned)
}

fn words() -> impl Strategy<Value = Json> {
    prop::collection::vec(prop::sample::select(vec!["10.0.0.1", "fd00::1", "x\"{"]), 0..3)
        .prop_map(|all| json!(all))
}

fn metadata() -> impl Strategy<Value = Json> {
    let map = || {
        prop::collection::btree_map(
            prop::sample::select(vec![
                "switchyard.dev/x",
                "kubernetes.io/service-name",
                "other",
                "k8s.io/initial-events-end",
            ]),
            word(),
            0..4,
        )
    };
    (map(), map(), any::<bool>(), 1..i64::from(i32::MAX), any::<u64>()).prop_map(|(labels, annotations, deleted, created, version)| {
        let time = jiff::Timestamp::from_second(created).expect("in range").to_string();
        let mut metadata = json!({
            "namespace": "ns", "name": "n", "resourceVersion": version.to_string(), "creationTimestamp": time,
            "labels": labels, "annotations": annotations,
        });
        if deleted {
            metadata["deletionTimestamp"] = json!(time);
        }
        metadata
    })
}

/// Drops what is empty, as Go's `omitempty` does.
fn omit_empty(value: &mut Json, keep: &[&str]) {
    if let Json::Object(map) = value {
        map.values_mut().for_each(|value| omit_empty(value, keep));
        map.retain(|key, value| {
            keep.contains(&&**key)
                || !(value.is_null() || *value == json!("") || *value == json!(0) || *value == json!([]))
        });
    } else if let Json::Array(all) = value {
        all.iter_mut().for_each(|value| omit_empty(value, keep));
    }
}

fn service() -> impl Strategy<Value = Json> {
    let port = (word(), word(), any::<i32>(), 0..40000).prop_map(|(name, protocol, port, node_port)| {
        json!({"name": name, "protocol": protocol, "port": port, "nodePort": node_port})
    });
    (
        (metadata(), word(), word(), words(), words(), words(), word(), word()),
        (prop::collection::vec(port, 0..3), prop::option::of(any::<i32>()), 0..70000, word(), prop::option::of(word())),
    )
        .prop_map(|((metadata, ip, kind, ips, external, ranges, affinity, policy), (ports, timeout, check, mode, internal))| {
            let mut object = json!({
                "metadata": metadata,
                "spec": {"clusterIP": ip, "type": kind, "clusterIPs": ips, "externalIPs": external, "ports": ports,
                         "loadBalancerSourceRanges": ranges, "sessionAffinity": affinity, "externalTrafficPolicy": policy,
                         "healthCheckNodePort": check, "internalTrafficPolicy": internal},
                "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4", "ipMode": mode}, {"hostname": "h"}]}},
            });
            if let Some(timeout) = timeout {
                object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": timeout}});
            }
            omit_empty(&mut object, &["port", "timeoutSeconds", "labels", "annotations", "x"]);
            object
        })
}

fn slice() -> impl Strategy<Value = Json> {
    let truth = || prop::option::of(any::<bool>());
    let endpoint = (
        words(),
        truth(),
        truth(),
        truth(),
        prop::option::of(word()),
        prop::collection::vec(word(), 0..3),
    )
        .prop_map(|(addresses, ready, serving, terminating, node, zones)| {
            let zones: Vec<Json> = zones.into_iter().map(|name| json!({"name": name})).collect();
            json!({"addresses": addresses, "nodeName": node, "hints": {"forZones": zones, "forNodes": zones},
                   "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        });
    let port = (prop::option::of(word()), prop::option::of(word()), prop::option::of(any::<i32>()))
        .prop_map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}));
    (metadata(), prop::collection::vec(endpoint, 0..4), prop::collection::vec(port, 0..3), word()).prop_map(
        |(metadata, endpoints, ports, family)| {
            json!({"metadata": metadata, "endpoints": endpoints, "ports": ports, "addressType": family})
        },
    )
}

/// What the engine is told of it, for which it does not matter whether a list is absent or empty.
fn translated<K>(encoded: &[u8], from: fn(&[u8]) -> K, translate: fn(K) -> String) -> String {
    translate(from(encoded))
}

fn from_json<K: Object>(bytes: &[u8]) -> K {
    serde_json::from_slice(bytes).expect("decodes")
}

fn from_protobuf<K: Object>(bytes: &[u8]) -> K {
    K::from_protobuf(bytes).expect("decodes")
}

fn told_service(service: Service) -> String {
    let metadata = format!("{:?}", service.metadata);
    let translated = service.translate(true);
    format!("{metadata} {:?} {:?}", translated.object, translated.complaints)
}

fn told_slice(slice: EndpointSlice) -> String {
    let metadata = format!("{:?}", slice.metadata);
    let translated = slice.translate("a");
    format!("{metadata} {:?} {:?}", translated.object, translated.complaints)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn both_encodings_say_the_same_of_services(object in service()) {
        let json = translated(object.to_string().as_bytes(), from_json, told_service);
        prop_assert_eq!(json, translated(&encode(SERVICE, &object), from_protobuf, told_service));
    }

    #[test]
    fn both_encodings_say_the_same_of_slices(object in slice()) {
        let json = translated(object.to_string().as_bytes(), from_json, told_slice);
        prop_assert_eq!(json, translated(&encode(SLICE, &object), from_protobuf, told_slice));
    }

    #[test]
    fn lists_are_read_in_whatever_pieces_they_come(
        objects in prop::collection::vec(slice(), 0..4),
        pieces in prop::collection::vec(1_usize..40, 1..5),
    ) {
        for (encoding, body) in [(Encoding::Json, json_list(&objects)), (Encoding::Protobuf, protobuf_list(SLICE, &objects))] {
            let (words, whole) = read::<EndpointSlice>(encoding, &body, &pieces);
            prop_assert_eq!(&whole, &Ok(true));
            prop_assert_eq!(words.len(), objects.len() + 1);
            prop_assert!(words[0].contains("\"77\"") && words[0].contains("\"more\""), "{}", words[0]);
            prop_assert_eq!(&words, &read::<EndpointSlice>(encoding, &body, &[usize::MAX]).0);
            // What is cut is never taken for whole, and what was read of it is right.
            let cut = body.len() * 2 / 3;
            let (part, whole) = read::<EndpointSlice>(encoding, &body[..cut], &pieces);
            prop_assert!(whole.is_err());
            prop_assert!(words.starts_with(&part));
        }
    }

    #[test]
    fn garbled_bytes_are_an_error_or_an_object_and_never_a_panic(
        objects in prop::collection::vec(service(), 1..3),
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut all = vec![(Encoding::Json, json_list(&objects)), (Encoding::Protobuf, protobuf_list(SERVICE, &objects))];
        for (_, body) in &mut all {
            for (place, byte) in &wrong {
                let place = place.index(body.len());
                body[place] = *byte;
            }
        }
        all.push((Encoding::Json, noise.clone()));
        all.push((Encoding::Protobuf, noise.clone()));
        for (encoding, body) in all {
            let _ = read::<Service>(encoding, &body, &[7]);
            let _ = events::<Service>(encoding, &body, &[7]);
            let _ = refusal(Some(encoding), 500, &body);
        }
        let _ = Service::from_protobuf(&noise);
        let _ = EndpointSlice::from_protobuf(&noise);
        let _ = Node::from_protobuf(&noise);
    }
}

#[test]
fn nodes_and_service_cidrs_are_the_same_in_both() {
    let node = json!({
        "metadata": {"name": "n", "resourceVersion": "5", "labels": {"topology.kubernetes.io/zone": "z"}},
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64"], "taints": [{"key": "t"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
    });
    let (one, other): (Node, Node) =
        (from_json(node.to_string().as_bytes()), from_protobuf(&encode(NODE, &node)));
    assert_eq!(one, other);
    assert_eq!((one.ips().len(), one.pod_cidrs().len(), one.zone()), (1, 2, Some("z")));
    let cidr =
        json!({"metadata": {"name": "c", "resourceVersion": "5"}, "spec": {"cidrs": ["10.96.0.0/12"]}});
    let (one, other): (ServiceCidr, ServiceCidr) =
        (from_json(cidr.to_string().as_bytes()), from_protobuf(&encode(CIDR, &cidr)));
    assert_eq!(one, other);
    assert_eq!(one.networks().count(), 1);
}

#[test]
fn watches_are_the_same_in_both() {
    let object = json!({
        "metadata": {"namespace": "ns", "name": "s", "resourceVersion": "9"}, "spec": {"clusterIP": "10.0.0.1", "type": "ClusterIP"},
    });
    let mark =
        json!({"metadata": {"resourceVersion": "12", "annotations": {"k8s.io/initial-events-end": "true"}}});
    let status = json!({
        "status": "Failure", "code": 504, "reason": "Timeout", "message": "Too large resource version: 5",
        "details": {"causes": [{"reason": "ResourceVersionTooLarge", "message": "x"}], "retryAfterSeconds": 3},
    });
    let (mut json, mut protobuf) = (Vec::new(), Vec::new());
    for (kind, fields, object) in [
        ("ADDED", SERVICE, &object),
        ("MODIFIED", SERVICE, &object),
        ("DELETED", SERVICE, &object),
        ("BOOKMARK", SERVICE, &mark),
        ("ERROR", STATUS, &status),
    ] {
        json.extend(format!("{}\n", json!({"type": kind, "object": object})).into_bytes());
        protobuf.extend(protobuf_event(kind, &envelope("X", &encode(fields, object))));
    }
    for size in [1, 5, usize::MAX] {
        let one = events::<Service>(Encoding::Json, &json, &[size]).expect("good");
        let other = events::<Service>(Encoding::Protobuf, &protobuf, &[size]).expect("good");
        assert_eq!(one.len(), 5);
        assert_eq!(one[..2], other[..2]);
        assert_eq!(one[3..], other[3..]);
        assert!(
            one[2].starts_with("Deleted") && other[2].starts_with("Deleted") && other[2].contains("ns/s")
        );
        assert!(one[3].contains("ends_list: true"), "{}", one[3]);
        assert!(one[4].contains("too_large: true") && one[4].contains("retry_after: Some(3s)"), "{}", one[4]);
    }
    // Refusals by HTTP status.
    let body = envelope("Status", &encode(STATUS, &status));
    assert!(refusal(Some(Encoding::Protobuf), 504, &body).too_large);
    assert!(refusal(Some(Encoding::Json), 504, status.to_string().as_bytes()).too_large);
    let page = refusal(None, 502, b"<html>Bad Gateway</html>");
    assert_eq!((page.code, page.message.as_str()), (502, "<html>Bad Gateway</html>"));
}

#[test]
fn an_object_that_does_not_fit_is_named_with_its_field_and_the_rest_is_read() {
    let good = json!({"metadata": {"namespace": "ns", "name": "good", "resourceVersion": "1"}, "spec": {}});
    let bad = json!({
        "metadata": {"namespace": "ns", "name": "bad", "resourceVersion": "2"}, "spec": {"ports": [{"port": 1}, {"port": "eighty"}]},
    });
    let (words, whole) = read::<Service>(Encoding::Json, &json_list(&[bad.clone(), good]), &[11]);
    assert_eq!((words.len(), whole), (3, Ok(true)));
    assert!(
        words[1].contains("ns/bad") && words[1].contains("spec.ports[1].port: invalid type"),
        "{}",
        words[1]
    );
    // Labels that are no texts do not hide the name.
    let odd = json!({"metadata": {"namespace": "ns", "name": "odd", "labels": {"a": 5}}});
    let (words, _) = read::<Service>(Encoding::Json, &json_list(&[odd]), &[usize::MAX]);
    assert!(words[1].contains("ns/odd") && words[1].contains("metadata.labels.a"), "{}", words[1]);
    // A text where a number belongs.
    let mut port = Vec::new();
    bytes(3, b"eighty", &mut port);
    let mut spec = Vec::new();
    bytes(1, &port, &mut spec);
    let mut object = encode(&SERVICE[..1], &bad);
    bytes(2, &spec, &mut object);
    let event = protobuf_event("ADDED", &envelope("Service", &object));
    let told = events::<Service>(Encoding::Protobuf, &event, &[3]).expect("the watch goes on");
    assert!(told[0].contains("ns/bad") && told[0].contains("spec.ports.port: something else"), "{}", told[0]);
}

#[test]
fn lists_whose_metadata_comes_last_are_read_too() {
    let body = br#"{"apiVersion":"v1","items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"}}],"kind":"ServiceList","metadata":{"resourceVersion":"5"}}"#;
    let (words, whole) = read::<Service>(Encoding::Json, body, &[9]);
    assert_eq!((words.len(), whole), (3, Ok(true)));
    assert!(words[0].starts_with("Head"), "{words:?}");
    for empty in [&b"{\"kind\":\"ServiceList\",\"metadata\":{},\"items\":null}"[..], b"{\"metadata\":{}}"] {
        assert_eq!(read::<Service>(Encoding::Json, empty, &[4]).1, Ok(true));
    }
    for no_list in
        [&b"{}"[..], b"[]", b"<html>", b"", b"{\"kind\":\"Service\",\"metadata\":{}}", b"{\"items\":[]}"]
    {
        assert!(
            read::<Service>(Encoding::Json, no_list, &[4]).1.is_err(),
            "{}",
            String::from_utf8_lossy(no_list)
        );
    }
    assert!(read::<Service>(Encoding::Protobuf, &envelope("Service", b""), &[4]).1.is_err());
    assert!(read::<Service>(Encoding::Protobuf, b"k8s\0", &[4]).1.is_err());
}

#[test]
fn what_to_accept_follows_the_configuration() {
    let both = "application/vnd.kubernetes.protobuf,application/json";
    for (content, accepted, expected) in [
        ("application/vnd.kubernetes.protobuf", "", both),
        ("application/json", "", "application/json"),
        ("application/vnd.kubernetes.protobuf", "application/json", "application/json"),
        ("application/json", "application/vnd.kubernetes.protobuf, application/json", both),
        ("application/cbor", "", "application/json"),
    ] {
        assert_eq!(accept(content, accepted), expected);
    }
    assert_eq!(Encoding::of("application/vnd.kubernetes.protobuf;stream=watch"), Some(Encoding::Protobuf));
    assert_eq!(Encoding::of("application/json; charset=utf-8"), Some(Encoding::Json));
    assert_eq!(Encoding::of("text/html"), None);
}
