use proptest::prelude::*;

use super::*;
use crate::encode::Batch;

/// Every reader over the same bytes; what matters is that they return.
fn read_everything(bytes: &[u8]) {
    for message in messages(bytes).filter_map(Result::ok) {
        let _ = outcome(&message);
        if let Ok(body) = body(&message) {
            read_bodies(body);
        }
    }
    read_bodies(bytes);
}

fn read_bodies(body: &[u8]) {
    let _ = family_id(body);
    let _ = service(body);
    let _ = destination(body, Family::V4);
    let _ = destination(body, Family::V6);
    let _ = timeouts(body);
    let _ = info(body);
}

fn a_service() -> impl Strategy<Value = Service> {
    let address =
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    let key = prop_oneof![
        (address, any::<u16>(), any::<u16>()).prop_map(|(address, port, protocol)| ServiceKey::Address {
            address,
            port,
            protocol: Protocol::from_number(protocol)
        }),
        (any::<bool>(), any::<u32>()).prop_map(|(six, mark)| ServiceKey::Mark {
            family: if six { Family::V6 } else { Family::V4 },
            mark
        }),
    ];
    (key, "[a-z]{1,15}", any::<u32>(), any::<u32>(), any::<u32>(), proptest::option::of("[a-z]{1,15}"))
        .prop_map(|(key, scheduler, flags, timeout, netmask, engine)| Service {
            key,
            scheduler: scheduler.parse().expect("a name"),
            flags: ServiceFlags(flags).without(ServiceFlags::HASHED),
            timeout,
            netmask: match key.family() {
                Family::V4 => Netmask::V4(Ipv4Addr::from(netmask)),
                Family::V6 => Netmask::V6(netmask as u8),
            },
            engine: engine.map(|name| Name::new(&name).expect("a name")),
        })
}

fn a_destination() -> impl Strategy<Value = Destination> {
    let address =
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    let tunnel = (0..6_u8, any::<u16>(), any::<u16>()).prop_map(|(kind, port, flags)| Tunnel {
        kind: match kind {
            0 => TunnelKind::Ipip,
            1 => TunnelKind::Gue,
            2 => TunnelKind::Gre,
            other => TunnelKind::Other(other),
        },
        port,
        flags,
    });
    let forwarding = prop_oneof![
        Just(Forwarding::Masquerade),
        Just(Forwarding::Local),
        tunnel.prop_map(Forwarding::Tunnel),
        Just(Forwarding::DirectRoute),
        Just(Forwarding::Bypass),
        (5..8_u32).prop_map(Forwarding::Other),
    ];
    (address, any::<u16>(), forwarding, any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
        |(address, port, forwarding, weight, upper_threshold, lower_threshold)| Destination {
            address,
            port,
            forwarding,
            weight,
            upper_threshold,
            lower_threshold,
        },
    )
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_everything(&bytes);
    }

    #[test]
    fn no_damage_to_a_message_makes_the_reader_panic(
        service in a_service(),
        destination in a_destination(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut batch = Batch::new();
        batch.new_service(&service);
        batch.new_destination(&service.key, &destination);
        let mut bytes = batch.as_bytes().to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        read_everything(&bytes);
    }

    #[test]
    fn what_is_encoded_is_read_back_equal(wanted in a_service(), to in a_destination()) {
        let mut batch = Batch::new();
        batch.new_service(&wanted);
        batch.new_destination(&wanted.key, &to);
        let read: Vec<_> = messages(batch.as_bytes()).map(|message| message.expect("whole")).collect();
        prop_assert_eq!(read.len(), 2);
        prop_assert_eq!(service(body(&read[0]).expect("a body")).expect("a service").service, wanted);
        // The other family implied: the message's own must win.
        let implied = match Family::of(to.address) { Family::V4 => Family::V6, Family::V6 => Family::V4 };
        prop_assert_eq!(destination(body(&read[1]).expect("a body"), implied).expect("a destination").destination, to);
    }
}

#[test]
fn a_zero_length_message_or_attribute_ends_the_reading() {
    assert_eq!(
        messages(&[0; 16]).map(|message| message.err()).collect::<Vec<_>>(),
        [Some(Malformed::CutOff)]
    );
    assert_eq!(attributes(&[0; 4]).map(Result::err).collect::<Vec<_>>(), [Some(Malformed::CutOff)]);
}

#[test]
fn an_extended_error_is_read_with_its_words() {
    // struct nlmsgerr of a request of 20 bytes, of which 4 follow its header, then attribute 1.
    let mut payload = (-2_i32).to_ne_bytes().to_vec();
    payload.extend_from_slice(&20_u32.to_ne_bytes());
    payload.extend_from_slice(&[0; 16]);
    payload.extend_from_slice(&8_u16.to_ne_bytes());
    payload.extend_from_slice(&uapi::NLMSGERR_ATTR_MSG.to_ne_bytes());
    payload.extend_from_slice(b"odd\0");
    let mut message =
        Message { kind: uapi::NLMSG_ERROR, flags: uapi::NLM_F_ACK_TLVS, sequence: 1, payload: &payload };
    assert_eq!(outcome(&message), Ok((2, Some("odd".to_owned()))));
    message.flags = 0;
    assert_eq!(outcome(&message), Ok((2, None)));
}

#[test]
fn a_32_bit_counter_serves_where_the_64_bit_one_is_missing() {
    let mut nest = Vec::new();
    for (kind, value) in [(1_u16, 7_u32), (2, 9)] {
        nest.extend_from_slice(&8_u16.to_ne_bytes());
        nest.extend_from_slice(&kind.to_ne_bytes());
        nest.extend_from_slice(&value.to_ne_bytes());
    }
    let stats = counters(&nest).expect("readable");
    assert_eq!((stats.connections, stats.packets_in, stats.packets_out), (7, 9, 0));
}
