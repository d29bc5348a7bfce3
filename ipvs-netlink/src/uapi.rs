//! Numbers of the kernel's interface, under the names of its headers without their prefixes.
//!
//! Every constant here stands in `include/uapi/linux/ip_vs.h` unless another header is named.

/// `NLMSG_NOOP`, `linux/netlink.h`.
pub(crate) const NLMSG_NOOP: u16 = 1;
/// `NLMSG_ERROR`, `linux/netlink.h`: an error, or an acknowledgement when its code is 0.
pub(crate) const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`, `linux/netlink.h`: the end of a dump, with its result code.
pub(crate) const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST`, `linux/netlink.h`.
pub(crate) const NLM_F_REQUEST: u16 = 0x1;
/// `NLM_F_ACK`, `linux/netlink.h`.
pub(crate) const NLM_F_ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`, `linux/netlink.h`: the table changed while it was dumped.
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
/// `NLM_F_CAPPED`, `linux/netlink.h`: an error reply without the payload it answers.
pub(crate) const NLM_F_CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`, `linux/netlink.h`: an error reply with extended attributes behind it.
pub(crate) const NLM_F_ACK_TLVS: u16 = 0x200;
/// `NLM_F_ROOT | NLM_F_MATCH`, `linux/netlink.h`.
pub(crate) const NLM_F_DUMP: u16 = 0x300;
/// `NLMSGERR_ATTR_MSG`, `linux/netlink.h`: the reason in words.
pub(crate) const NLMSGERR_ATTR_MSG: u16 = 1;
/// `NLA_TYPE_MASK`, `linux/netlink.h`: without the nested and byte order bits.
pub(crate) const NLA_TYPE_MASK: u16 = 0x3fff;
/// `NLA_F_NESTED`, `linux/netlink.h`.
pub(crate) const NLA_F_NESTED: u16 = 0x8000;

/// `GENL_ID_CTRL`, `linux/genetlink.h`: the family that knows the others.
pub(crate) const GENL_ID_CTRL: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY`, `linux/genetlink.h`.
pub(crate) const CTRL_CMD_GETFAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`, `linux/genetlink.h`: u16.
pub(crate) const CTRL_ATTR_FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`, `linux/genetlink.h`: string.
pub(crate) const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// `IPVS_GENL_NAME`.
pub(crate) const GENL_NAME: &str = "IPVS";
/// `IPVS_GENL_VERSION`.
pub(crate) const GENL_VERSION: u8 = 1;

/// `IPVS_CMD_NEW_SERVICE`.
pub(crate) const CMD_NEW_SERVICE: u8 = 1;
/// `IPVS_CMD_SET_SERVICE`.
pub(crate) const CMD_SET_SERVICE: u8 = 2;
/// `IPVS_CMD_DEL_SERVICE`.
pub(crate) const CMD_DEL_SERVICE: u8 = 3;
/// `IPVS_CMD_GET_SERVICE`.
pub(crate) const CMD_GET_SERVICE: u8 = 4;
/// `IPVS_CMD_NEW_DEST`.
pub(crate) const CMD_NEW_DEST: u8 = 5;
/// `IPVS_CMD_SET_DEST`.
pub(crate) const CMD_SET_DEST: u8 = 6;
/// `IPVS_CMD_DEL_DEST`.
pub(crate) const CMD_DEL_DEST: u8 = 7;
/// `IPVS_CMD_GET_DEST`.
pub(crate) const CMD_GET_DEST: u8 = 8;
/// `IPVS_CMD_SET_CONFIG`.
pub(crate) const CMD_SET_CONFIG: u8 = 12;
/// `IPVS_CMD_GET_CONFIG`.
pub(crate) const CMD_GET_CONFIG: u8 = 13;
/// `IPVS_CMD_GET_INFO`.
pub(crate) const CMD_GET_INFO: u8 = 15;
/// `IPVS_CMD_ZERO`.
pub(crate) const CMD_ZERO: u8 = 16;
/// `IPVS_CMD_FLUSH`.
pub(crate) const CMD_FLUSH: u8 = 17;

/// `IPVS_CMD_ATTR_SERVICE`: nest of `SVC_*`.
pub(crate) const ATTR_SERVICE: u16 = 1;
/// `IPVS_CMD_ATTR_DEST`: nest of `DEST_*`.
pub(crate) const ATTR_DEST: u16 = 2;
/// `IPVS_CMD_ATTR_TIMEOUT_TCP`: u32, seconds.
pub(crate) const ATTR_TIMEOUT_TCP: u16 = 4;
/// `IPVS_CMD_ATTR_TIMEOUT_TCP_FIN`: u32, seconds.
pub(crate) const ATTR_TIMEOUT_TCP_FIN: u16 = 5;
/// `IPVS_CMD_ATTR_TIMEOUT_UDP`: u32, seconds.
pub(crate) const ATTR_TIMEOUT_UDP: u16 = 6;

/// `IPVS_SVC_ATTR_AF`: u16.
pub(crate) const SVC_AF: u16 = 1;
/// `IPVS_SVC_ATTR_PROTOCOL`: u16.
pub(crate) const SVC_PROTOCOL: u16 = 2;
/// `IPVS_SVC_ATTR_ADDR`: up to 16 bytes.
pub(crate) const SVC_ADDR: u16 = 3;
/// `IPVS_SVC_ATTR_PORT`: u16, network byte order.
pub(crate) const SVC_PORT: u16 = 4;
/// `IPVS_SVC_ATTR_FWMARK`: u32.
pub(crate) const SVC_FWMARK: u16 = 5;
/// `IPVS_SVC_ATTR_SCHED_NAME`: string.
pub(crate) const SVC_SCHED_NAME: u16 = 6;
/// `IPVS_SVC_ATTR_FLAGS`: `struct ip_vs_flags`, a u32 and its u32 mask.
pub(crate) const SVC_FLAGS: u16 = 7;
/// `IPVS_SVC_ATTR_TIMEOUT`: u32, seconds.
pub(crate) const SVC_TIMEOUT: u16 = 8;
/// `IPVS_SVC_ATTR_NETMASK`: IPv4 a mask in network byte order, IPv6 a u32 prefix length.
pub(crate) const SVC_NETMASK: u16 = 9;
/// `IPVS_SVC_ATTR_STATS`: nest of `STATS_*`, 32 bit packet counters.
pub(crate) const SVC_STATS: u16 = 10;
/// `IPVS_SVC_ATTR_PE_NAME`: string.
pub(crate) const SVC_PE_NAME: u16 = 11;
/// `IPVS_SVC_ATTR_STATS64`: nest of `STATS_*`, all counters u64.
pub(crate) const SVC_STATS64: u16 = 12;

/// `IPVS_DEST_ATTR_ADDR`: up to 16 bytes.
pub(crate) const DEST_ADDR: u16 = 1;
/// `IPVS_DEST_ATTR_PORT`: u16, network byte order.
pub(crate) const DEST_PORT: u16 = 2;
/// `IPVS_DEST_ATTR_FWD_METHOD`: u32, of `IP_VS_CONN_F_FWD_MASK`.
pub(crate) const DEST_FWD_METHOD: u16 = 3;
/// `IPVS_DEST_ATTR_WEIGHT`: u32, not above `i32::MAX`.
pub(crate) const DEST_WEIGHT: u16 = 4;
/// `IPVS_DEST_ATTR_U_THRESH`: u32.
pub(crate) const DEST_U_THRESH: u16 = 5;
/// `IPVS_DEST_ATTR_L_THRESH`: u32.
pub(crate) const DEST_L_THRESH: u16 = 6;
/// `IPVS_DEST_ATTR_ACTIVE_CONNS`: u32.
pub(crate) const DEST_ACTIVE_CONNS: u16 = 7;
/// `IPVS_DEST_ATTR_INACT_CONNS`: u32.
pub(crate) const DEST_INACT_CONNS: u16 = 8;
/// `IPVS_DEST_ATTR_PERSIST_CONNS`: u32.
pub(crate) const DEST_PERSIST_CONNS: u16 = 9;
/// `IPVS_DEST_ATTR_STATS`: nest of `STATS_*`.
pub(crate) const DEST_STATS: u16 = 10;
/// `IPVS_DEST_ATTR_ADDR_FAMILY`: u16; absent from kernels before 3.18.
pub(crate) const DEST_ADDR_FAMILY: u16 = 11;
/// `IPVS_DEST_ATTR_STATS64`: nest of `STATS_*`.
pub(crate) const DEST_STATS64: u16 = 12;
/// `IPVS_DEST_ATTR_TUN_TYPE`: u8; since 5.3.
pub(crate) const DEST_TUN_TYPE: u16 = 13;
/// `IPVS_DEST_ATTR_TUN_PORT`: u16, network byte order; since 5.3.
pub(crate) const DEST_TUN_PORT: u16 = 14;
/// `IPVS_DEST_ATTR_TUN_FLAGS`: u16; since 5.3.
pub(crate) const DEST_TUN_FLAGS: u16 = 15;

/// `IPVS_STATS_ATTR_CONNS`, the first of ten counters in this order: connections, packets in,
/// packets out, bytes in, bytes out, then the rates of the same five per second.
pub(crate) const STATS_CONNS: u16 = 1;
/// `IPVS_STATS_ATTR_OUTBPS`, the last of them.
pub(crate) const STATS_OUTBPS: u16 = 10;

/// `IPVS_INFO_ATTR_VERSION`: u32.
pub(crate) const INFO_VERSION: u16 = 1;
/// `IPVS_INFO_ATTR_CONN_TAB_SIZE`: u32.
pub(crate) const INFO_CONN_TAB_SIZE: u16 = 2;

/// `IP_VS_SCHEDNAME_MAXLEN` and `IP_VS_PENAME_MAXLEN`, with the NUL.
pub(crate) const NAME_MAXLEN: usize = 16;

/// `AF_INET`, `linux/socket.h`.
pub(crate) const AF_INET: u16 = 2;
/// `AF_INET6`, `linux/socket.h`.
pub(crate) const AF_INET6: u16 = 10;
