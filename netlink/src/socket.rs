//! A netlink socket: one datagram out, the answers in, and never a wait without end.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SetSockOpt, SockFlag, SockProtocol, SockType, bind,
            getsockopt, recvmsg, sendmsg, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::{
    attr::Writer,
    error::{Error, Failure},
    message::{DONE, Message, Messages, flags},
};

/// Which part of the kernel answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Route,
    Netfilter,
    Generic,
}

/// How long an answer may take. The kernel works a request off before `send` returns, so answers are there at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// Room for about 10,000 answers (each is charged about 800 bytes).
const RECEIVE_BUFFER: usize = 8 << 20;
/// Longest datagram: dumps use at most 32 KiB, an event of nf_tables at most about as much.
const LONGEST: usize = 128 << 10;
/// Room beyond the data that the kernel wants in the send buffer (`netlink_sendmsg` wants 32 bytes).
const SEND_OVERHEAD: usize = 4096;
/// No more is asked for: the kernel takes an `int`.
const LARGEST_SEND_BUFFER: usize = 512 << 20;

/// Whether a dump saw one state of the kernel or, because something changed meanwhile, perhaps parts of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an interrupted dump may lack entries or hold some twice"]
pub enum Dump {
    Complete,
    Interrupted,
}

/// What a socket carried since it was opened, both ways: a measure of work that other load on the machine does not change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// `sendmsg` and `recvmsg` together.
    pub calls: u64,
    pub bytes: u64,
}

impl Traffic {
    /// Counts one call.
    pub const fn add(&mut self, bytes: usize) {
        self.calls += 1;
        self.bytes += bytes as u64;
    }
}

impl std::ops::Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { calls: self.calls + other.calls, bytes: self.bytes + other.bytes }
    }
}

impl std::ops::Sub for Traffic {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { calls: self.calls - other.calls, bytes: self.bytes - other.bytes }
    }
}

/// A socket bound to the kernel's side of one protocol.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    send_buffer: usize,
    /// Answers to an exchange that was given up may be waiting.
    unread: bool,
    received: Vec<u8>,
    waited: Duration,
    traffic: Traffic,
}

impl Socket {
    pub fn open(protocol: Protocol) -> Result<Self, Error> {
        Self::join(protocol, 0)
    }

    /// Opens a socket that also receives the events of these multicast groups (bit n-1 for group n).
    pub fn join(protocol: Protocol, groups: u32) -> Result<Self, Error> {
        let number = match protocol {
            Protocol::Route => SockProtocol::NetlinkRoute,
            Protocol::Netfilter => SockProtocol::NetlinkNetFilter,
            Protocol::Generic => SockProtocol::NetlinkGeneric,
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, number)
            .map_err(|errno| os("open a netlink socket", errno))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))
            .map_err(|errno| os("bind a netlink socket", errno))?;
        // Too small a buffer loses answers, which is noticed.
        let _ = receive_buffer(&fd, RECEIVE_BUFFER);
        option(&fd, ExtendedAck, "ask for extended ACKs")?;
        option(&fd, CappedAck, "ask for short ACKs")?;
        if protocol == Protocol::Route {
            // Lets the kernel filter dumps by the fields of the request's header (Linux 4.20); older ones dump all.
            let _ = setsockopt(&fd, StrictDump, &true);
        }
        let socket = Self {
            fd,
            sequence: 1,
            send_buffer: 0,
            unread: false,
            received: vec![0; LONGEST],
            waited: Duration::ZERO,
            traffic: Traffic::default(),
        };
        socket.set_patience(PATIENCE)?;
        Ok(socket)
    }

    /// How long to wait for an answer before giving up with [`Error::TimedOut`].
    pub fn set_patience(&self, patience: Duration) -> Result<(), Error> {
        let patience = TimeVal::new(patience.as_secs() as i64, i64::from(patience.subsec_micros()));
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &patience)
            .map_err(|errno| os("set the receive timeout of a netlink socket", errno))
    }

    /// Sets the size of the receive buffer (`SO_RCVBUFFORCE`; where that is not allowed, as much of it as
    /// `net.core.rmem_max` allows).
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<(), Error> {
        receive_buffer(&self.fd, bytes)
            .map_err(|errno| os("set the receive buffer of a netlink socket", errno))
    }

    /// Has the socket receive the events of these multicast groups too (bit n-1 for group n).
    pub fn subscribe(&self, groups: u32) -> Result<(), Error> {
        for group in (1..=u32::BITS).filter(|group| groups & (1 << (group - 1)) != 0) {
            setsockopt(&self.fd, AddMembership, &group)
                .map_err(|errno| os("join a multicast group of netlink", errno))?;
        }
        Ok(())
    }

    /// How many messages the kernel had for this socket and did not queue, for lack of room, since it was opened
    /// (`SO_MEMINFO`, Linux 4.12).
    pub fn dropped(&self) -> Result<u64, Error> {
        /// `SK_MEMINFO_DROPS`.
        const DROPS: usize = 8;
        let figures = getsockopt(&self.fd, MemoryFigures)
            .map_err(|errno| os("read the figures of a netlink socket", errno))?;
        Ok(figures[DROPS].into())
    }

    /// How long the kernel has been at work for this socket since it was opened: inside `sendmsg` and `recvmsg`.
    pub const fn waited(&self) -> Duration {
        self.waited
    }

    /// What went to the kernel and came from it since the socket was opened.
    pub const fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Takes `count` sequence numbers that no other request of this socket has and answers the first.
    pub fn reserve(&mut self, count: u32) -> u32 {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends the parts as one datagram, after making room for it.
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        self.discard_unread()?;
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.make_room(length);
        let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        loop {
            let kernel = NetlinkAddr::new(0, 0);
            let begun = now();
            let sent = sendmsg(self.fd.as_raw_fd(), &slices, &[], MsgFlags::empty(), Some(&kernel));
            self.waited += begun.elapsed();
            self.traffic.add(sent.unwrap_or_default());
            match sent {
                Ok(sent) if sent == length => return Ok(()),
                Ok(_) => return Err(Error::Malformed("a part only of a datagram was taken")),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Unsent(errno.into())),
            }
        }
    }

    /// How many bytes one datagram may have at most, after asking for room for `wanted`. Without `CAP_NET_ADMIN` over the
    /// initial user namespace that is what `net.core.wmem_max` allows: callers with more cut it up.
    pub fn longest_datagram(&mut self, wanted: usize) -> usize {
        self.make_room(wanted);
        self.send_buffer.saturating_sub(SEND_OVERHEAD)
    }

    fn make_room(&mut self, length: usize) {
        if length.saturating_add(SEND_OVERHEAD) <= self.send_buffer {
            return;
        }
        let wanted = length.min(LARGEST_SEND_BUFFER).saturating_add(SEND_OVERHEAD);
        let wanted = wanted.next_multiple_of(256 << 10);
        if setsockopt(&self.fd, sockopt::SndBufForce, &wanted).is_err() {
            // Never refused, but cut to `net.core.wmem_max`.
            let _ = setsockopt(&self.fd, sockopt::SndBuf, &wanted);
        }
        // The kernel doubles what is asked for (socket(7)) and compares datagrams with the double.
        self.send_buffer = getsockopt(&self.fd, sockopt::SndBuf).unwrap_or(0);
    }

    /// Reads what an earlier exchange left. The kernel answers nothing to a socket that overflowed until it is empty
    /// (`NETLINK_S_CONGESTED`).
    fn discard_unread(&mut self) -> Result<(), Error> {
        while self.unread {
            match self.receive_with(MsgFlags::MSG_DONTWAIT) {
                Ok(Some(_)) | Err(Error::RepliesLost) => {}
                Ok(None) => self.unread = false,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for a datagram.
    pub fn receive(&mut self) -> Result<Messages<'_>, Error> {
        match self.receive_with(MsgFlags::empty())? {
            Some(length) => Ok(Messages::new(&self.received[..length])),
            None => {
                self.unread = true;
                Err(Error::TimedOut)
            }
        }
    }

    /// A datagram if one is there already.
    pub fn receive_now(&mut self) -> Result<Option<Messages<'_>>, Error> {
        let length = self.receive_with(MsgFlags::MSG_DONTWAIT)?;
        Ok(length.map(|length| Messages::new(&self.received[..length])))
    }

    fn receive_with(&mut self, flags: MsgFlags) -> Result<Option<usize>, Error> {
        loop {
            let mut slices = [IoSliceMut::new(&mut self.received)];
            let begun = now();
            let got = recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut slices, None, flags);
            self.waited += begun.elapsed();
            self.traffic.add(got.as_ref().map_or(0, |got| got.bytes));
            match got {
                Ok(got) => {
                    // Whatever another process sends here is not the kernel's.
                    if got.address.is_some_and(|from| from.pid() != 0) {
                        continue;
                    }
                    if got.flags.contains(MsgFlags::MSG_TRUNC) {
                        return Err(Error::Malformed("a datagram longer than the receive buffer"));
                    }
                    return Ok(Some(got.bytes));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ENOBUFS) => {
                    self.unread = true;
                    return Err(Error::RepliesLost);
                }
                Err(errno) => return Err(os("receive from the kernel", errno)),
            }
        }
    }

    /// Sends messages numbered `first..=last` as one datagram and collects what was refused, until the last is answered.
    ///
    /// Only the last message needs to ask for an ACK: one that fails is answered in any case. An error for the first
    /// ends the exchange too: nfnetlink answers there what concerns a batch as a whole.
    pub fn exchange(&mut self, parts: &[&[u8]], first: u32, last: u32) -> Result<Vec<Failure>, Error> {
        self.send(parts)?;
        let batch = begins_batch(parts);
        let mut failures = Vec::new();
        loop {
            for message in self.receive()? {
                let Some(errno) = message.answer() else { continue };
                let index = message.sequence.wrapping_sub(first);
                if index > last.wrapping_sub(first) {
                    continue;
                }
                if errno != 0 {
                    failures.push(failure(&message, index as usize, errno));
                }
                if message.sequence == last || (errno != 0 && index == 0 && batch) {
                    return Ok(failures);
                }
            }
        }
    }

    /// Sends one message and waits for its ACK.
    pub fn request(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer)) -> Result<(), Error> {
        let (writer, sequence) = self.message(kind, flags | flags::ACK, fill)?;
        match self.exchange(&[writer.as_bytes()], sequence, sequence)?.pop() {
            Some(failure) => Err(Error::Refused(failure)),
            None => Ok(()),
        }
    }

    /// Sends one message and hands its one answer to `read`.
    pub fn ask<T>(
        &mut self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Writer),
        read: impl FnOnce(&Message<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        let (writer, sequence) = self.message(kind, flags, fill)?;
        self.send(&[writer.as_bytes()])?;
        loop {
            for message in self.receive()? {
                if message.sequence != sequence {
                    continue;
                }
                return match message.answer() {
                    Some(0) => Err(Error::Malformed("an ACK in place of an answer")),
                    Some(errno) => Err(Error::Refused(failure(&message, 0, errno))),
                    None => read(&message).ok_or(Error::Malformed("an answer without what was asked for")),
                };
            }
        }
    }

    /// Sends many requests and hands the one answer of each to `each`, by its place: a message, or why it was refused. They
    /// go out some at a time, so that their answers fit into the smallest receive buffer.
    pub fn ask_each(
        &mut self,
        kind: u16,
        count: usize,
        mut fill: impl FnMut(usize, &mut Writer),
        mut each: impl FnMut(usize, Result<&Message<'_>, Failure>),
    ) -> Result<(), Error> {
        const AT_ONCE: usize = 64;
        for begin in (0..count).step_by(AT_ONCE) {
            let end = count.min(begin + AT_ONCE);
            let first = self.reserve((end - begin) as u32);
            let mut writer = Writer::with_capacity(64 * (end - begin));
            for (sequence, at) in (begin..end).enumerate() {
                let start = writer.begin_message(kind, 0);
                let offset = start.offset();
                fill(at, &mut writer);
                writer.pad();
                writer.end_message(start);
                writer.number_message(offset, first.wrapping_add(sequence as u32));
            }
            if writer.overflowed() {
                return Err(Error::TooLong);
            }
            self.send(&[writer.as_bytes()])?;
            let mut answered = vec![false; end - begin];
            while answered.contains(&false) {
                for message in self.receive()? {
                    let index = message.sequence.wrapping_sub(first) as usize;
                    let Some(known) = answered.get_mut(index) else { continue };
                    if std::mem::replace(known, true) {
                        continue;
                    }
                    match message.answer() {
                        Some(0) => return Err(Error::Malformed("an ACK in place of an answer")),
                        Some(errno) => each(begin + index, Err(failure(&message, begin + index, errno))),
                        None => each(begin + index, Ok(&message)),
                    }
                }
            }
        }
        Ok(())
    }

    /// Asks for a dump and hands each message of it to `each`, as they come.
    pub fn dump(
        &mut self,
        kind: u16,
        fill: impl FnOnce(&mut Writer),
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<Dump, Error> {
        let (writer, sequence) = self.message(kind, flags::DUMP, fill)?;
        self.send(&[writer.as_bytes()])?;
        let mut outcome = Dump::Complete;
        loop {
            for message in self.receive()? {
                if message.sequence != sequence {
                    continue;
                }
                if message.flags & flags::DUMP_INTERRUPTED != 0 {
                    outcome = Dump::Interrupted;
                }
                let errno = if message.kind == DONE {
                    // The payload is the dump's result; only negative values are errors.
                    message
                        .payload
                        .first_chunk()
                        .map_or(0, |code| i32::from_ne_bytes(*code).min(0).wrapping_neg())
                } else if let Some(errno) = message.answer() {
                    errno
                } else {
                    each(&message);
                    continue;
                };
                return match errno {
                    0 => Ok(outcome),
                    errno => Err(Error::Refused(failure(&message, 0, errno))),
                };
            }
        }
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Writer),
    ) -> Result<(Writer, u32), Error> {
        let sequence = self.reserve(1);
        let mut writer = Writer::with_capacity(256);
        let start = writer.begin_message(kind, flags);
        let at = start.offset();
        fill(&mut writer);
        writer.end_message(start);
        writer.number_message(at, sequence);
        if writer.overflowed() { Err(Error::TooLong) } else { Ok((writer, sequence)) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the kernel takes is told, and nothing is decided by it"
)]
fn now() -> Instant {
    Instant::now()
}

/// Whether the datagram begins with the header of an nfnetlink batch (`NFNL_MSG_BATCH_BEGIN`).
fn begins_batch(parts: &[&[u8]]) -> bool {
    const BATCH_BEGIN: u16 = 16;
    parts.first().and_then(|part| Messages::new(part).next()).is_some_and(|first| first.kind == BATCH_BEGIN)
}

fn failure(message: &Message<'_>, index: usize, errno: i32) -> Failure {
    let (offset, text) = message.details();
    Failure { index, errno, offset, message: text.map(str::to_owned) }
}

fn receive_buffer(fd: &OwnedFd, bytes: usize) -> Result<(), Errno> {
    setsockopt(fd, sockopt::RcvBufForce, &bytes).or_else(|_| setsockopt(fd, sockopt::RcvBuf, &bytes))
}

fn option(fd: &OwnedFd, option: impl SetSockOpt<Val = bool>, doing: &'static str) -> Result<(), Error> {
    setsockopt(fd, option, &true).map_err(|errno| os(doing, errno))
}

fn os(doing: &'static str, errno: Errno) -> Error {
    Error::Os { doing, source: errno.into() }
}

/// Waits until one of these has something to read, or the time is over; false then. An interrupting signal ends it too.
pub fn wait(sockets: &[BorrowedFd<'_>], longest: Duration) -> Result<bool, Error> {
    let mut polled: Vec<PollFd<'_>> =
        sockets.iter().map(|socket| PollFd::new(*socket, PollFlags::POLLIN)).collect();
    let milliseconds = u16::try_from(longest.as_millis()).unwrap_or(u16::MAX);
    match poll(&mut polled, PollTimeout::from(milliseconds)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(os("wait for the kernel", errno)),
    }
}

/// `SO_MEMINFO` of asm-generic/socket.h, which the `libc` crate lacks.
const SO_MEMINFO: libc::c_int = 55;

/// The nine numbers of `SK_MEMINFO_*`.
#[derive(Clone, Copy)]
struct MemoryFigures;
nix::getsockopt_impl!(MemoryFigures, libc::SOL_SOCKET, SO_MEMINFO, [u32; 9], sockopt::GetStruct<[u32; 9]>);

// nix has no types for the options of netlink itself, but the macro its own are made with.
#[derive(Clone)]
struct ExtendedAck;
nix::setsockopt_impl!(ExtendedAck, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, bool, sockopt::SetBool);
#[derive(Clone)]
struct CappedAck;
nix::setsockopt_impl!(CappedAck, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, bool, sockopt::SetBool);
#[derive(Clone)]
struct StrictDump;
nix::setsockopt_impl!(StrictDump, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, bool, sockopt::SetBool);
#[derive(Clone)]
struct AddMembership;
nix::setsockopt_impl!(
    AddMembership,
    libc::SOL_NETLINK,
    libc::NETLINK_ADD_MEMBERSHIP,
    u32,
    sockopt::SetStruct<'_, u32>
);
