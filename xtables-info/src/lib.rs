//! How many rules a table of legacy iptables holds, and how many bytes they take, at a cost that does not depend on it.
//!
//! The kernel gives out the tables of `ip_tables` and `ip6_tables` only whole; what iptables asks first, in order to know
//! how much memory that takes (`IPT_SO_GET_INFO`, linux/netfilter_ipv4/ip_tables.h), is all that can be had for little.
//! No library offers that call: the socket option reads the table's name from the very buffer that it fills, and what
//! wraps `getsockopt` gives it an empty one. This crate is that one call.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`: `IPT_BASE_CTL` of linux/netfilter_ipv4/ip_tables.h.
const GET_INFO: libc::c_int = 64;

/// The size of a table's name with its end: `XT_TABLE_MAXNAMELEN` of linux/netfilter/x_tables.h.
const NAME: usize = 32;

/// Which of the two sets of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Those of `iptables-legacy`.
    V4,
    /// Those of `ip6tables-legacy`.
    V6,
}

/// What the kernel says of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableInfo {
    /// Rules, the policies of the kernel's own chains, and two for every other chain.
    pub entries: u32,
    /// Bytes that these take.
    pub size: u32,
}

/// `struct ipt_getinfo`, which is laid out like `struct ip6t_getinfo`.
#[repr(C)]
struct GetInfo {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// A socket by which tables of the calling thread's network namespace are asked for.
#[derive(Debug)]
pub struct Tables {
    socket: OwnedFd,
    level: libc::c_int,
}

impl Tables {
    /// Fails where the kernel has no such family.
    pub fn open(family: Family) -> io::Result<Self> {
        let (domain, level) = match family {
            Family::V4 => (AddressFamily::Inet, libc::IPPROTO_IP),
            Family::V6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
        };
        let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, level })
    }

    /// Asks for a table by its name, which creates it where it does not exist yet. Needs `CAP_NET_ADMIN`. `ENOENT`: this
    /// kernel has no such table.
    pub fn info(&self, table: &str) -> io::Result<TableInfo> {
        let mut info = GetInfo {
            name: [0; NAME],
            valid_hooks: 0,
            hook_entry: [0; 5],
            underflow: [0; 5],
            entries: 0,
            size: 0,
        };
        // The last byte stays 0, so that the name ends.
        let room = info.name.get_mut(..table.len()).filter(|room| room.len() < NAME);
        room.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?.copy_from_slice(table.as_bytes());
        get(&self.socket, self.level, &mut info)?;
        Ok(TableInfo { entries: info.entries, size: info.size })
    }
}

#[expect(unsafe_code, reason = "the one call that this crate is made for")]
fn get(socket: &OwnedFd, level: libc::c_int, info: &mut GetInfo) -> io::Result<()> {
    const SIZE: libc::socklen_t = size_of::<GetInfo>() as libc::socklen_t;
    let mut size = SIZE;
    // SAFETY: `info` is a plain structure of integers, for which every content is valid, is borrowed alone, and has the
    // `size` bytes that the kernel is told it may write.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, GET_INFO, std::ptr::from_mut(info).cast(), &raw mut size)
    };
    match result {
        0 if size == SIZE => Ok(()),
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
