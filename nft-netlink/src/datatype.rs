//! The types of set keys and data: how long they are for the kernel, and how nft is told what they mean.
//!
//! The kernel only knows lengths. Names and `typeof` expressions travel in the set's user data, written here as nft
//! 1.0.6 writes them: that version crashes on the user data of newer ones, while newer ones read it.

use netlink::Writer;

/// One part of a key or of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// nft's number of the type.
    datatype: u32,
    length: u32,
    order: Order,
    /// What nft prints after `typeof`, where the type alone is not a name that nft's language has.
    source: Option<Source>,
}

/// nft's `enum byteorder`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Order {
    Host = 1,
    Big = 2,
}

/// nft's expressions that may stand after `typeof`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Payload { header: u32, field: u32 },
    Meta(u32),
    Numgen { modulus: u32 },
}

impl Field {
    pub const IPV4_ADDRESS: Self = Self::named(7, 4, Order::Big);
    pub const IPV6_ADDRESS: Self = Self::named(8, 16, Order::Big);
    pub const PROTOCOL: Self = Self::named(12, 1, Order::Host);
    pub const PORT: Self = Self::named(13, 2, Order::Big);
    pub const MARK: Self = Self::named(19, 4, Order::Host);
    /// `classid`, a host-order number printed as two.
    pub const CLASS: Self = Self::named(23, 4, Order::Host);
    pub const INTERFACE_NAME: Self = Self::named(41, 16, Order::Host);

    /// `typeof ip saddr`. Sets whose fields have `typeof` sources must have them throughout.
    pub const IP_SOURCE: Self = Self::IPV4_ADDRESS.of(Source::Payload { header: 12, field: 11 });
    /// `typeof ip daddr`.
    pub const IP_DESTINATION: Self = Self::IPV4_ADDRESS.of(Source::Payload { header: 12, field: 12 });
    /// `typeof ip6 saddr`.
    pub const IP6_SOURCE: Self = Self::IPV6_ADDRESS.of(Source::Payload { header: 13, field: 8 });
    /// `typeof ip6 daddr`.
    pub const IP6_DESTINATION: Self = Self::IPV6_ADDRESS.of(Source::Payload { header: 13, field: 9 });
    /// `typeof th sport`.
    pub const SOURCE_PORT: Self = Self::PORT.of(Source::Payload { header: 11, field: 1 });
    /// `typeof th dport`.
    pub const DESTINATION_PORT: Self = Self::PORT.of(Source::Payload { header: 11, field: 2 });
    /// `typeof meta l4proto`.
    pub const L4_PROTOCOL: Self = Self::PROTOCOL.of(Source::Meta(16));
    /// `typeof meta priority`.
    pub const PRIORITY: Self = Self::CLASS.of(Source::Meta(2));
    /// `typeof meta mark`.
    pub const META_MARK: Self = Self::MARK.of(Source::Meta(3));
    /// `typeof iifname`.
    pub const INPUT_NAME: Self = Self::INTERFACE_NAME.of(Source::Meta(6));
    /// `typeof oifname`.
    pub const OUTPUT_NAME: Self = Self::INTERFACE_NAME.of(Source::Meta(7));
    /// `typeof numgen random mod 2`: the number of an alternative. nft's language has no named type for it.
    pub const SLOT: Self = Self::named(4, 4, Order::Host).of(Source::Numgen { modulus: 2 });

    const fn named(datatype: u32, length: u32, order: Order) -> Self {
        Self { datatype, length, order, source: None }
    }

    const fn of(mut self, source: Source) -> Self {
        self.source = Some(source);
        self
    }

    /// Bytes of a value, without padding.
    pub const fn length(&self) -> u32 {
        self.length
    }
}

/// Bytes of a value of these fields: in a concatenation each is padded to four bytes.
pub const fn key_length(fields: &[Field]) -> u32 {
    if let [field] = fields {
        return field.length;
    }
    let mut total = 0;
    let mut index = 0;
    while index < fields.len() {
        total += fields[index].length.next_multiple_of(4);
        index += 1;
    }
    total
}

/// The value of a concatenation: each part padded to four bytes.
pub fn concat(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len().next_multiple_of(4)).sum());
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// nft's number for a type: six bits for each part.
pub(crate) fn type_number(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.datatype)
}

/// Whether every field says which expression it is of.
fn has_sources(fields: &[Field]) -> bool {
    !fields.is_empty() && fields.iter().all(|field| field.source.is_some())
}

/// What nft wants to know about a set (`NFTNL_UDATA_SET_*`). `data` is `None` for a plain set, empty for verdicts.
pub(crate) fn set_userdata(key: &[Field], data: Option<&[Field]>, comment: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    put_u32(&mut out, 0, byte_order(key));
    if let Some(data) = data {
        put_u32(&mut out, 1, byte_order(data));
    }
    let typeof_key = has_sources(key) && data.is_none_or(|data| data.is_empty() || has_sources(data));
    if typeof_key {
        put(&mut out, 3, &source_of(key));
        match data {
            Some([]) => put(&mut out, 4, &expression(VERDICT, &[])),
            Some(data) => put(&mut out, 4, &source_of(data)),
            None => {}
        }
    } else if key.len() > 1 {
        // A concatenation of which nft knows the types from the set's key type.
        put(&mut out, 3, &expression(CONCATENATION, &[]));
    }
    if data.is_some() {
        put_u32(&mut out, 6, 0);
    }
    if let Some(comment) = comment {
        put_text(&mut out, 7, comment);
    }
    out
}

/// A comment as the user data of a table, chain, rule or element, where it has type 0.
pub(crate) fn put_comment(writer: &mut Writer, attribute: u16, comment: &str) {
    let mut out = Vec::with_capacity(comment.len() + 3);
    put_text(&mut out, 0, comment);
    writer.bytes(attribute, &out);
}

/// nft's `enum expr_types`.
const VERDICT: u32 = 1;
const CONCATENATION: u32 = 13;

fn byte_order(fields: &[Field]) -> u32 {
    match fields {
        [field] => field.order as u32,
        // Verdicts and concatenations have none.
        _ => 0,
    }
}

fn source_of(fields: &[Field]) -> Vec<u8> {
    let single = |field: &Field| {
        let mut description = Vec::new();
        let kind = match field.source {
            Some(Source::Payload { header, field }) => {
                put_u32(&mut description, 0, header);
                put_u32(&mut description, 1, field);
                7
            }
            Some(Source::Meta(key)) => {
                put_u32(&mut description, 0, key);
                9
            }
            Some(Source::Numgen { modulus }) => {
                put_u32(&mut description, 0, 1);
                put_u32(&mut description, 1, modulus);
                put_u32(&mut description, 2, 0);
                23
            }
            None => 0,
        };
        expression(kind, &description)
    };
    if let [field] = fields {
        return single(field);
    }
    let mut parts = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        put(&mut parts, index as u8, &single(field));
    }
    expression(CONCATENATION, &parts)
}

/// `NFTNL_UDATA_SET_TYPEOF_EXPR` and `..._DATA`.
fn expression(kind: u32, description: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + description.len());
    put_u32(&mut out, 0, kind);
    put(&mut out, 1, description);
    out
}

/// User data are attributes with a type and a length of one byte each.
fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let value = &value[..value.len().min(255)];
    out.extend_from_slice(&[kind, value.len() as u8]);
    out.extend_from_slice(value);
}

fn put_u32(out: &mut Vec<u8>, kind: u8, value: u32) {
    put(out, kind, &value.to_ne_bytes());
}

/// A text with its NUL; one that is too long for nft (128 bytes) is cut.
fn put_text(out: &mut Vec<u8>, kind: u8, text: &str) {
    const LONGEST: usize = 127;
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = text.as_bytes()[..end].to_vec();
    bytes.push(0);
    put(out, kind, &bytes);
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    // The expected texts are what nft 1.0.6 put into the kernel for the declaration named in each test.

    #[test]
    fn userdata_of_a_map_with_named_types_is_that_of_nft() {
        // map vips { type ipv4_addr . inet_proto . inet_service : classid; }
        let key = [Field::IPV4_ADDRESS, Field::PROTOCOL, Field::PORT];
        let userdata = set_userdata(&key, Some(&[Field::CLASS]), None);
        assert_eq!(hex(&userdata), "000400000000010401000000030800040d0000000100060400000000");
        assert_eq!(type_number(&key), 0x730d);
        assert_eq!(key_length(&key), 12);
    }

    #[test]
    fn userdata_of_a_verdict_map_is_that_of_nft() {
        // map dispatch { type classid : verdict; }
        let userdata = set_userdata(&[Field::CLASS], Some(&[]), None);
        assert_eq!(hex(&userdata), "000401000000010400000000060400000000");
        // map m { typeof meta mark : verdict; }
        let userdata = set_userdata(&[Field::META_MARK], Some(&[]), None);
        assert_eq!(
            hex(&userdata),
            "000401000000010400000000030e000409000000010600040300000004080004010000000100060400000000"
        );
    }

    #[test]
    fn userdata_of_typeof_maps_is_that_of_nft() {
        // map local-groups { typeof meta priority : meta priority; }
        let userdata = set_userdata(&[Field::PRIORITY], Some(&[Field::PRIORITY]), None);
        assert_eq!(
            hex(&userdata),
            "000401000000010401000000030e0004090000000106000402000000040e0004090000000106000402000000060400000000"
        );
        // map endpoints { typeof ip6 daddr . meta l4proto . th dport . numgen random mod 2 : ip6 daddr . th dport; }
        let key = [Field::IP6_DESTINATION, Field::L4_PROTOCOL, Field::DESTINATION_PORT, Field::SLOT];
        let data = [Field::IP6_DESTINATION, Field::DESTINATION_PORT];
        assert_eq!(
            hex(&set_userdata(&key, Some(&data), None)),
            "000400000000010400000000036000040d00000001580014000407000000010c00040d000000010409000000010e0004090000000\
             1060004100000000214000407000000010c00040b000000010402000000031a000417000000011200040100000001040200000002\
             0400000000043400040d000000012c0014000407000000010c00040d0000000104090000000114000407000000010c00040b00000\
             0010402000000060400000000"
        );
        assert_eq!((type_number(&key), key_length(&key)), (0x0020_c344, 28));
        assert_eq!((type_number(&data), key_length(&data)), (0x020d, 20));
        // map clients { typeof ip saddr . meta priority : meta priority; }
        assert_eq!(
            hex(&set_userdata(&[Field::IP_SOURCE, Field::PRIORITY], Some(&[Field::PRIORITY]), None)),
            "000400000000010401000000032e00040d00000001260014000407000000010c00040c00000001040b000000010e0004090000000\
             106000402000000040e0004090000000106000402000000060400000000"
        );
    }

    #[test]
    fn userdata_of_plain_sets_is_that_of_nft() {
        // set ifs { type ifname; }
        assert_eq!(hex(&set_userdata(&[Field::INTERFACE_NAME], None, None)), "000401000000");
        // set service-cidrs { type ipv4_addr; flags interval; }
        assert_eq!(hex(&set_userdata(&[Field::IPV4_ADDRESS], None, None)), "000402000000");
    }

    #[test]
    fn userdata_of_a_comment_is_that_of_nft() {
        // map vips3 { type ipv6_addr . inet_proto . inet_service : verdict; comment "hey"; }
        let key = [Field::IPV6_ADDRESS, Field::PROTOCOL, Field::PORT];
        assert_eq!(
            hex(&set_userdata(&key, Some(&[]), Some("hey"))),
            "000400000000010400000000030800040d0000000100060400000000070468657900"
        );
    }

    #[test]
    fn a_comment_that_is_too_long_is_cut_between_characters() {
        let mut out = Vec::new();
        put_text(&mut out, 0, &"ä".repeat(100));
        assert_eq!(out.len(), 2 + 126 + 1);
        assert_eq!(std::str::from_utf8(&out[2..128]), Ok("ä".repeat(63).as_str()));
    }
}
