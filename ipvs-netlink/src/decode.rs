//! What the kernel answers, read without trust: any bytes give a value or a [`Malformed`], never a panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::Malformed;
use crate::types::{
    Destination, DestinationEntry, Family, Forwarding, Info, Name, Netmask, Protocol, Scheduler, Service,
    ServiceEntry, ServiceFlags, ServiceKey, Stats, Timeouts, Tunnel, TunnelKind,
};
use crate::uapi::{self, AF_INET, AF_INET6};

/// One netlink message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Behind the netlink header.
    pub(crate) payload: &'a [u8],
}

/// The messages of one received datagram.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = first_message(rest);
        rest = message.as_ref().map_or(&[][..], |&(_, rest)| rest);
        Some(message.map(|(message, _)| message))
    })
}

fn first_message(bytes: &[u8]) -> Result<(Message<'_>, &[u8]), Malformed> {
    let header: &[u8; 16] = bytes.first_chunk().ok_or(Malformed::CutOff)?;
    let length = word(header, 0) as usize;
    let payload = bytes.get(16..length).ok_or(Malformed::CutOff)?;
    let message =
        Message { kind: half(header, 4), flags: half(header, 6), sequence: word(header, 8), payload };
    Ok((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The result an error or end-of-dump message carries: 0 or a positive error number, and a reason.
pub(crate) fn outcome(message: &Message<'_>) -> Result<(i32, Option<String>), Malformed> {
    let code = i32::from_ne_bytes(*message.payload.first_chunk().ok_or(Malformed::CutOff)?);
    let mut reason = None;
    if message.kind == uapi::NLMSG_ERROR && message.flags & uapi::NLM_F_ACK_TLVS != 0 {
        // struct nlmsgerr: the code, then the header of the request, then its payload unless capped.
        let request: &[u8; 16] =
            message.payload.get(4..).and_then(<[u8]>::first_chunk).ok_or(Malformed::CutOff)?;
        let request = match message.flags & uapi::NLM_F_CAPPED {
            0 => (word(request, 0) as usize).max(16),
            _ => 16,
        };
        let extended = request
            .checked_next_multiple_of(4)
            .and_then(|end| message.payload.get(end.checked_add(4)?..))
            .unwrap_or_default();
        for attribute in attributes(extended) {
            let (kind, value) = attribute?;
            if kind == uapi::NLMSGERR_ATTR_MSG {
                let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
                reason = Some(String::from_utf8_lossy(text).into_owned());
            }
        }
    }
    Ok((code.saturating_neg(), reason))
}

/// The attributes behind a generic netlink header.
pub(crate) fn body<'a>(message: &Message<'a>) -> Result<&'a [u8], Malformed> {
    message.payload.get(4..).ok_or(Malformed::CutOff)
}

/// The id in the controller's answer.
pub(crate) fn family_id(body: &[u8]) -> Result<u16, Malformed> {
    const NAME: &str = "CTRL_ATTR_FAMILY_ID";
    let mut id = None;
    for attribute in attributes(body) {
        let (kind, value) = attribute?;
        if kind == uapi::CTRL_ATTR_FAMILY_ID {
            id = Some(u16_of(value, NAME)?);
        }
    }
    id.ok_or(Malformed::Missing(NAME))
}

/// A virtual server.
pub(crate) fn service(body: &[u8]) -> Result<ServiceEntry, Malformed> {
    let nest = nested(body, uapi::ATTR_SERVICE).ok_or(Malformed::Missing("IPVS_CMD_ATTR_SERVICE"))?;
    let mut family = None;
    let (mut protocol, mut address, mut port, mut mark) = (None, None, None, None);
    let (mut scheduler, mut engine, mut flags, mut timeout, mut netmask) = (None, None, None, None, None);
    let (mut stats, mut stats64) = (None, None);
    for attribute in attributes(nest) {
        let (kind, value) = attribute?;
        match kind {
            uapi::SVC_AF => family = Some(family_of(u16_of(value, "IPVS_SVC_ATTR_AF")?)?),
            uapi::SVC_PROTOCOL => protocol = Some(u16_of(value, "IPVS_SVC_ATTR_PROTOCOL")?),
            uapi::SVC_ADDR => address = Some(value),
            uapi::SVC_PORT => port = Some(port_of(value, "IPVS_SVC_ATTR_PORT")?),
            uapi::SVC_FWMARK => mark = Some(u32_of(value, "IPVS_SVC_ATTR_FWMARK")?),
            uapi::SVC_SCHED_NAME => scheduler = Some(name_of(value, "IPVS_SVC_ATTR_SCHED_NAME")?),
            uapi::SVC_PE_NAME => engine = Some(name_of(value, "IPVS_SVC_ATTR_PE_NAME")?),
            uapi::SVC_FLAGS => {
                flags = Some(u32_of(value.get(..4).unwrap_or_default(), "IPVS_SVC_ATTR_FLAGS")?)
            }
            uapi::SVC_TIMEOUT => timeout = Some(u32_of(value, "IPVS_SVC_ATTR_TIMEOUT")?),
            uapi::SVC_NETMASK => netmask = Some(u32_of(value, "IPVS_SVC_ATTR_NETMASK")?),
            uapi::SVC_STATS => stats = Some(counters(value)?),
            uapi::SVC_STATS64 => stats64 = Some(counters(value)?),
            _ => {}
        }
    }
    let family = family.ok_or(Malformed::Missing("IPVS_SVC_ATTR_AF"))?;
    let key = match mark {
        Some(mark) => ServiceKey::Mark { family, mark },
        None => ServiceKey::Address {
            address: address_of(
                family,
                address.ok_or(Malformed::Missing("IPVS_SVC_ATTR_ADDR"))?,
                "IPVS_SVC_ATTR_ADDR",
            )?,
            port: port.ok_or(Malformed::Missing("IPVS_SVC_ATTR_PORT"))?,
            protocol: Protocol::from_number(protocol.ok_or(Malformed::Missing("IPVS_SVC_ATTR_PROTOCOL"))?),
        },
    };
    let netmask = netmask.ok_or(Malformed::Missing("IPVS_SVC_ATTR_NETMASK"))?;
    let service = Service {
        key,
        scheduler: Scheduler(scheduler.ok_or(Malformed::Missing("IPVS_SVC_ATTR_SCHED_NAME"))?),
        flags: ServiceFlags(flags.ok_or(Malformed::Missing("IPVS_SVC_ATTR_FLAGS"))?)
            .without(ServiceFlags::HASHED),
        timeout: timeout.ok_or(Malformed::Missing("IPVS_SVC_ATTR_TIMEOUT"))?,
        netmask: match family {
            Family::V4 => Netmask::V4(Ipv4Addr::from(netmask.to_ne_bytes())),
            Family::V6 => {
                Netmask::V6(u8::try_from(netmask).map_err(|_| Malformed::Invalid("IPVS_SVC_ATTR_NETMASK"))?)
            }
        },
        engine,
    };
    Ok(ServiceEntry { service, stats: stats64.or(stats).unwrap_or_default() })
}

/// A destination; the dump does not repeat its virtual server, whose family old kernels leave implied.
pub(crate) fn destination(body: &[u8], implied: Family) -> Result<DestinationEntry, Malformed> {
    let nest = nested(body, uapi::ATTR_DEST).ok_or(Malformed::Missing("IPVS_CMD_ATTR_DEST"))?;
    let mut family = implied;
    let (mut address, mut port, mut method, mut weight) = (None, None, None, None);
    let (mut upper_threshold, mut lower_threshold) = (0, 0);
    let mut tunnel = Tunnel::default();
    let (mut active, mut inactive, mut persistent) = (0, 0, 0);
    let (mut stats, mut stats64) = (None, None);
    for attribute in attributes(nest) {
        let (kind, value) = attribute?;
        match kind {
            uapi::DEST_ADDR => address = Some(value),
            uapi::DEST_PORT => port = Some(port_of(value, "IPVS_DEST_ATTR_PORT")?),
            uapi::DEST_FWD_METHOD => method = Some(u32_of(value, "IPVS_DEST_ATTR_FWD_METHOD")?),
            uapi::DEST_WEIGHT => weight = Some(u32_of(value, "IPVS_DEST_ATTR_WEIGHT")?),
            uapi::DEST_U_THRESH => upper_threshold = u32_of(value, "IPVS_DEST_ATTR_U_THRESH")?,
            uapi::DEST_L_THRESH => lower_threshold = u32_of(value, "IPVS_DEST_ATTR_L_THRESH")?,
            uapi::DEST_ACTIVE_CONNS => active = u32_of(value, "IPVS_DEST_ATTR_ACTIVE_CONNS")?,
            uapi::DEST_INACT_CONNS => inactive = u32_of(value, "IPVS_DEST_ATTR_INACT_CONNS")?,
            uapi::DEST_PERSIST_CONNS => persistent = u32_of(value, "IPVS_DEST_ATTR_PERSIST_CONNS")?,
            uapi::DEST_ADDR_FAMILY => family = family_of(u16_of(value, "IPVS_DEST_ATTR_ADDR_FAMILY")?)?,
            uapi::DEST_TUN_TYPE => {
                tunnel.kind = match value.first().ok_or(Malformed::Invalid("IPVS_DEST_ATTR_TUN_TYPE"))? {
                    0 => TunnelKind::Ipip,
                    1 => TunnelKind::Gue,
                    2 => TunnelKind::Gre,
                    &other => TunnelKind::Other(other),
                }
            }
            uapi::DEST_TUN_PORT => tunnel.port = port_of(value, "IPVS_DEST_ATTR_TUN_PORT")?,
            uapi::DEST_TUN_FLAGS => tunnel.flags = u16_of(value, "IPVS_DEST_ATTR_TUN_FLAGS")?,
            uapi::DEST_STATS => stats = Some(counters(value)?),
            uapi::DEST_STATS64 => stats64 = Some(counters(value)?),
            _ => {}
        }
    }
    let destination = Destination {
        address: address_of(
            family,
            address.ok_or(Malformed::Missing("IPVS_DEST_ATTR_ADDR"))?,
            "IPVS_DEST_ATTR_ADDR",
        )?,
        port: port.ok_or(Malformed::Missing("IPVS_DEST_ATTR_PORT"))?,
        forwarding: match method.ok_or(Malformed::Missing("IPVS_DEST_ATTR_FWD_METHOD"))? {
            0 => Forwarding::Masquerade,
            1 => Forwarding::Local,
            2 => Forwarding::Tunnel(tunnel),
            3 => Forwarding::DirectRoute,
            4 => Forwarding::Bypass,
            other => Forwarding::Other(other),
        },
        weight: weight.ok_or(Malformed::Missing("IPVS_DEST_ATTR_WEIGHT"))?,
        upper_threshold,
        lower_threshold,
    };
    Ok(DestinationEntry {
        destination,
        active_connections: active,
        inactive_connections: inactive,
        persistent_connections: persistent,
        stats: stats64.or(stats).unwrap_or_default(),
    })
}

/// The timeouts in force.
pub(crate) fn timeouts(body: &[u8]) -> Result<Timeouts, Malformed> {
    let mut timeouts = Timeouts::default();
    for attribute in attributes(body) {
        let (kind, value) = attribute?;
        match kind {
            uapi::ATTR_TIMEOUT_TCP => timeouts.tcp = Some(u32_of(value, "IPVS_CMD_ATTR_TIMEOUT_TCP")?),
            uapi::ATTR_TIMEOUT_TCP_FIN => {
                timeouts.tcp_fin = Some(u32_of(value, "IPVS_CMD_ATTR_TIMEOUT_TCP_FIN")?)
            }
            uapi::ATTR_TIMEOUT_UDP => timeouts.udp = Some(u32_of(value, "IPVS_CMD_ATTR_TIMEOUT_UDP")?),
            _ => {}
        }
    }
    Ok(timeouts)
}

/// Version and table size.
pub(crate) fn info(body: &[u8]) -> Result<Info, Malformed> {
    let (mut version, mut size) = (None, None);
    for attribute in attributes(body) {
        let (kind, value) = attribute?;
        match kind {
            uapi::INFO_VERSION => version = Some(u32_of(value, "IPVS_INFO_ATTR_VERSION")?),
            uapi::INFO_CONN_TAB_SIZE => size = Some(u32_of(value, "IPVS_INFO_ATTR_CONN_TAB_SIZE")?),
            _ => {}
        }
    }
    let [_, major, minor, patch] = version.ok_or(Malformed::Missing("IPVS_INFO_ATTR_VERSION"))?.to_be_bytes();
    Ok(Info {
        version: (major, minor, patch),
        connection_table_size: size.ok_or(Malformed::Missing("IPVS_INFO_ATTR_CONN_TAB_SIZE"))?,
    })
}

/// A `STATS` nest (packets u32, bytes u64) or a `STATS64` nest (all u64).
fn counters(nest: &[u8]) -> Result<Stats, Malformed> {
    let mut all = [0; 10];
    for attribute in attributes(nest) {
        let (kind, value) = attribute?;
        if (uapi::STATS_CONNS..=uapi::STATS_OUTBPS).contains(&kind) {
            all[usize::from(kind - uapi::STATS_CONNS)] = match value.len() {
                4 => u64::from(u32_of(value, "IPVS_STATS_ATTR")?),
                8 => u64::from_ne_bytes(*value.first_chunk().ok_or(Malformed::CutOff)?),
                _ => return Err(Malformed::Invalid("IPVS_STATS_ATTR")),
            };
        }
    }
    let [
        connections,
        packets_in,
        packets_out,
        bytes_in,
        bytes_out,
        connection_rate,
        packet_rate_in,
        packet_rate_out,
        byte_rate_in,
        byte_rate_out,
    ] = all;
    Ok(Stats {
        connections,
        packets_in,
        packets_out,
        bytes_in,
        bytes_out,
        connection_rate,
        packet_rate_in,
        packet_rate_out,
        byte_rate_in,
        byte_rate_out,
    })
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Malformed>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let attribute = first_attribute(rest);
        rest = attribute.as_ref().map_or(&[][..], |&(_, _, rest)| rest);
        Some(attribute.map(|(kind, value, _)| (kind, value)))
    })
}

fn first_attribute(bytes: &[u8]) -> Result<(u16, &[u8], &[u8]), Malformed> {
    let header: &[u8; 4] = bytes.first_chunk().ok_or(Malformed::CutOff)?;
    let length = usize::from(half(header, 0));
    let value = bytes.get(4..length).ok_or(Malformed::CutOff)?;
    Ok((
        half(header, 2) & uapi::NLA_TYPE_MASK,
        value,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

fn nested(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).filter_map(Result::ok).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

fn u16_of(value: &[u8], name: &'static str) -> Result<u16, Malformed> {
    value.try_into().map(u16::from_ne_bytes).map_err(|_| Malformed::Invalid(name))
}

fn port_of(value: &[u8], name: &'static str) -> Result<u16, Malformed> {
    value.try_into().map(u16::from_be_bytes).map_err(|_| Malformed::Invalid(name))
}

fn u32_of(value: &[u8], name: &'static str) -> Result<u32, Malformed> {
    value.try_into().map(u32::from_ne_bytes).map_err(|_| Malformed::Invalid(name))
}

fn family_of(number: u16) -> Result<Family, Malformed> {
    match number {
        AF_INET => Ok(Family::V4),
        AF_INET6 => Ok(Family::V6),
        _ => Err(Malformed::Invalid("address family")),
    }
}

/// The kernel always sends 16 bytes (`union nf_inet_addr`); IPv4 uses the first four.
fn address_of(family: Family, value: &[u8], name: &'static str) -> Result<IpAddr, Malformed> {
    match family {
        Family::V4 => value.first_chunk::<4>().map(|&octets| IpAddr::from(Ipv4Addr::from(octets))),
        Family::V6 => value.first_chunk::<16>().map(|&octets| IpAddr::from(Ipv6Addr::from(octets))),
    }
    .ok_or(Malformed::Invalid(name))
}

fn name_of(value: &[u8], name: &'static str) -> Result<Name, Malformed> {
    let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
    Name::from_bytes(text).ok_or(Malformed::Invalid(name))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
