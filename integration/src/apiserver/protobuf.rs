//! Objects as Kubernetes' protobuf, from their JSON: for the kinds that a kube-proxy reads. The numbers of the fields are
//! those of Kubernetes' `generated.proto`.

use serde_json::Value;

use super::clock;

pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

#[derive(Clone, Copy)]
enum Kind {
    /// Absent where JSON has none: a pointer in Go, or a list.
    Maybe,
    /// Written even though it is empty: no pointer in Go.
    Text,
    Number,
    Time,
    Map,
    Message(&'static [Field]),
    /// A number or a text.
    IntOrString,
}

type Field = (&'static str, u32, Kind);

use Kind::{IntOrString, Map, Maybe, Message, Number, Text, Time};

const METADATA: Field = (
    "metadata",
    1,
    Message(&[
        ("name", 1, Text),
        ("generateName", 2, Text),
        ("namespace", 3, Text),
        ("selfLink", 4, Text),
        ("uid", 5, Text),
        ("resourceVersion", 6, Text),
        ("generation", 7, Number),
        ("creationTimestamp", 8, Time),
        ("deletionTimestamp", 9, Time),
        ("deletionGracePeriodSeconds", 10, Maybe),
        ("labels", 11, Map),
        ("annotations", 12, Map),
        (
            "ownerReferences",
            13,
            Message(&[
                ("kind", 1, Text),
                ("name", 3, Text),
                ("uid", 4, Text),
                ("apiVersion", 5, Text),
                ("controller", 6, Maybe),
                ("blockOwnerDeletion", 7, Maybe),
            ]),
        ),
        ("finalizers", 14, Maybe),
    ]),
);

const SERVICE: &[Field] = &[
    METADATA,
    (
        "spec",
        2,
        Message(&[
            (
                "ports",
                1,
                Message(&[
                    ("name", 1, Text),
                    ("protocol", 2, Text),
                    ("port", 3, Number),
                    ("targetPort", 4, IntOrString),
                    ("nodePort", 5, Number),
                    ("appProtocol", 6, Maybe),
                ]),
            ),
            ("selector", 2, Map),
            ("clusterIP", 3, Text),
            ("type", 4, Text),
            ("externalIPs", 5, Maybe),
            ("sessionAffinity", 7, Text),
            ("loadBalancerIP", 8, Text),
            ("loadBalancerSourceRanges", 9, Maybe),
            ("externalName", 10, Text),
            ("externalTrafficPolicy", 11, Text),
            ("healthCheckNodePort", 12, Number),
            ("publishNotReadyAddresses", 13, Number),
            (
                "sessionAffinityConfig",
                14,
                Message(&[("clientIP", 1, Message(&[("timeoutSeconds", 1, Maybe)]))]),
            ),
            ("ipFamilyPolicy", 17, Maybe),
            ("clusterIPs", 18, Maybe),
            ("ipFamilies", 19, Maybe),
            ("allocateLoadBalancerNodePorts", 20, Maybe),
            ("loadBalancerClass", 21, Maybe),
            ("internalTrafficPolicy", 22, Maybe),
            ("trafficDistribution", 23, Maybe),
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
                Message(&[("ip", 1, Text), ("hostname", 2, Text), ("ipMode", 3, Maybe)]),
            )]),
        )]),
    ),
];

const NAMED: Kind = Message(&[("name", 1, Text)]);

const ENDPOINT_SLICE: &[Field] = &[
    METADATA,
    (
        "endpoints",
        2,
        Message(&[
            ("addresses", 1, Maybe),
            (
                "conditions",
                2,
                Message(&[("ready", 1, Maybe), ("serving", 2, Maybe), ("terminating", 3, Maybe)]),
            ),
            ("hostname", 3, Maybe),
            (
                "targetRef",
                4,
                Message(&[("kind", 1, Text), ("namespace", 2, Text), ("name", 3, Text), ("uid", 4, Text)]),
            ),
            ("nodeName", 6, Maybe),
            ("zone", 7, Maybe),
            ("hints", 8, Message(&[("forZones", 1, NAMED), ("forNodes", 2, NAMED)])),
        ]),
    ),
    (
        "ports",
        3,
        Message(&[("name", 1, Maybe), ("protocol", 2, Maybe), ("port", 3, Maybe), ("appProtocol", 4, Maybe)]),
    ),
    ("addressType", 4, Text),
];

const NODE: &[Field] = &[
    METADATA,
    (
        "spec",
        2,
        Message(&[
            ("podCIDR", 1, Text),
            ("providerID", 3, Text),
            ("unschedulable", 4, Number),
            ("taints", 5, Message(&[("key", 1, Text), ("value", 2, Text), ("effect", 3, Text)])),
            ("podCIDRs", 7, Maybe),
        ]),
    ),
    ("status", 3, Message(&[("addresses", 5, Message(&[("type", 1, Text), ("address", 2, Text)]))])),
];

const SERVICE_CIDR: &[Field] = &[METADATA, ("spec", 2, Message(&[("cidrs", 1, Maybe)]))];

const STATUS: &[Field] = &[
    ("metadata", 1, Message(&[])),
    ("status", 2, Text),
    ("message", 3, Text),
    ("reason", 4, Text),
    (
        "details",
        5,
        Message(&[
            ("name", 1, Text),
            ("group", 2, Text),
            ("kind", 3, Text),
            ("causes", 4, Message(&[("reason", 1, Text), ("message", 2, Text), ("field", 3, Text)])),
            ("retryAfterSeconds", 5, Number),
        ]),
    ),
    ("code", 6, Number),
];

fn schema(kind: &str) -> Option<&'static [Field]> {
    match kind {
        "Service" => Some(SERVICE),
        "EndpointSlice" => Some(ENDPOINT_SLICE),
        "Node" => Some(NODE),
        "ServiceCIDR" => Some(SERVICE_CIDR),
        _ => None,
    }
}

/// Whether objects of a kind can be written so.
pub(crate) fn speaks(kind: &str) -> bool {
    schema(kind).is_some()
}

/// An object's own message, without an envelope.
pub(crate) fn message(kind: &str, object: &Value) -> Vec<u8> {
    encode(schema(kind).unwrap_or_default(), object)
}

pub(crate) fn status(status: &Value) -> Vec<u8> {
    envelope("v1", "Status", &encode(STATUS, status))
}

/// A list of messages.
pub(crate) fn list<'a>(
    api_version: &str,
    kind: &str,
    metadata: &Value,
    items: impl Iterator<Item = &'a [u8]>,
) -> Vec<u8> {
    const LIST: &[Field] = &[
        ("selfLink", 1, Text),
        ("resourceVersion", 2, Text),
        ("continue", 3, Text),
        ("remainingItemCount", 4, Maybe),
    ];
    let mut raw = Vec::new();
    bytes(1, &encode(LIST, metadata), &mut raw);
    items.for_each(|item| bytes(2, item, &mut raw));
    envelope(api_version, &format!("{kind}List"), &raw)
}

/// One frame of a watch around an object in its envelope.
pub(crate) fn event(kind: &str, object: &[u8], out: &mut Vec<u8>) {
    let (mut extension, mut event) =
        (Vec::with_capacity(object.len() + 8), Vec::with_capacity(object.len() + 32));
    bytes(1, object, &mut extension);
    bytes(1, kind.as_bytes(), &mut event);
    bytes(2, &extension, &mut event);
    out.extend_from_slice(&u32::try_from(event.len()).expect("an object is small").to_be_bytes());
    out.extend_from_slice(&event);
}

pub(crate) fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut type_meta = Vec::new();
    bytes(1, api_version.as_bytes(), &mut type_meta);
    bytes(2, kind.as_bytes(), &mut type_meta);
    let mut out = Vec::with_capacity(raw.len() + 64);
    out.extend_from_slice(b"k8s\0");
    bytes(1, &type_meta, &mut out);
    bytes(2, raw, &mut out);
    bytes(3, b"", &mut out);
    bytes(4, b"", &mut out);
    out
}

fn encode(fields: &[Field], object: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, number, kind) in fields {
        match &object[*name] {
            Value::Array(all) => all.iter().for_each(|one| field(*number, *kind, one, &mut out)),
            one => field(*number, *kind, one, &mut out),
        }
    }
    out
}

/// A value of another type than the field's is written as what it is, so that it does not fit.
fn field(number: u32, kind: Kind, value: &Value, out: &mut Vec<u8>) {
    match (kind, value) {
        (Message(fields), Value::Object(_)) => bytes(number, &encode(fields, value), out),
        (Time, Value::String(text)) => {
            let mut time = Vec::new();
            varint(1 << 3, &mut time);
            varint(clock::seconds(text).unwrap_or_default(), &mut time);
            bytes(number, &time, out);
        }
        (Map, Value::Object(map)) => {
            for (key, text) in map {
                let mut pair = Vec::new();
                bytes(1, key.as_bytes(), &mut pair);
                bytes(2, text.as_str().unwrap_or_default().as_bytes(), &mut pair);
                bytes(number, &pair, out);
            }
        }
        (IntOrString, Value::String(text)) => {
            let mut inner = Vec::new();
            varint(1 << 3, &mut inner);
            varint(1, &mut inner);
            bytes(3, text.as_bytes(), &mut inner);
            bytes(number, &inner, out);
        }
        (IntOrString, Value::Number(_)) => {
            let mut inner = Vec::new();
            varint(1 << 3, &mut inner);
            varint(0, &mut inner);
            varint(2 << 3, &mut inner);
            varint(integer(value), &mut inner);
            bytes(number, &inner, out);
        }
        (Text, Value::Null) => bytes(number, b"", out),
        (Number, Value::Null) => {
            varint(u64::from(number) << 3, out);
            varint(0, out);
        }
        (_, Value::String(text)) => bytes(number, text.as_bytes(), out),
        (_, Value::Number(_) | Value::Bool(_)) => {
            varint(u64::from(number) << 3, out);
            varint(integer(value), out);
        }
        _ => {}
    }
}

fn integer(value: &Value) -> u64 {
    value.as_i64().map(i64::cast_unsigned).or_else(|| value.as_bool().map(u64::from)).unwrap_or_default()
}

fn bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(field) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push(u8::try_from(number & 0x7f).expect("7 bits") | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).expect("7 bits"));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The bytes that kube-apiserver 1.36 would send, written by hand from the rules of the encoding.
    #[test]
    fn a_small_object_is_written_byte_by_byte() {
        let cidr = json!({"metadata": {"name": "c", "creationTimestamp": "1970-01-01T00:00:05Z"}, "spec": {"cidrs": ["a", "b"]}});
        let metadata =
            [&[0x0a, 1, b'c', 0x12, 0, 0x1a, 0, 0x22, 0, 0x2a, 0, 0x32, 0, 0x38, 0][..], &[0x42, 2, 0x08, 5]]
                .concat();
        let spec = [0x0a, 1, b'a', 0x0a, 1, b'b'];
        let expected =
            [&[0x0a, u8::try_from(metadata.len()).expect("small")][..], &metadata, &[0x12, 6], &spec]
                .concat();
        assert_eq!(message("ServiceCIDR", &cidr), expected);
        let mut frame = Vec::new();
        event("ADDED", b"xyz", &mut frame);
        assert_eq!(frame, [&[0, 0, 0, 14, 0x0a, 5][..], b"ADDED", &[0x12, 5, 0x0a, 3], b"xyz"].concat());
        assert!(envelope("v1", "X", b"raw").starts_with(b"k8s\0\x0a\x07\x0a\x02v1\x12\x01X\x12\x03raw"));
    }
}
