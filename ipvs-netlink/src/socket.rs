//! A generic netlink socket to the IPVS of the network namespace in which it was opened.

use std::collections::HashSet;
use std::io;
use std::time::{Duration, Instant};

use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;

use crate::decode::{self, Message};
use crate::encode::Batch;
use crate::error::{Error, Failure};
use crate::types::{DestinationEntry, Info, ServiceEntry, ServiceKey, Timeouts};
use crate::uapi;

/// Messages in one send: about 30 KB. The kernel refuses a datagram above the send buffer (some
/// 200 KB by default), and every failing message costs room in the receive buffer.
const MESSAGES_PER_SEND: usize = 256;

/// Room for the error replies of one full send, should every message fail.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Longer than any datagram the kernel makes for a dump (32 KiB, `netlink_dump`).
const DATAGRAM: usize = 64 << 10;

/// Dumps of a table that changes underneath, before giving up.
const MOST_DUMPS: usize = 16;

/// A connection to IPVS. It belongs to the network namespace in which it was opened.
pub struct Socket {
    socket: NlSocket,
    family: u16,
    sequence: u32,
    datagram: Box<[u8]>,
    /// A request ended early: its late replies are thrown away before the next.
    stale: bool,
    waited: Duration,
    calls: u64,
    bytes: u64,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("family", &self.family).finish_non_exhaustive()
    }
}

impl Socket {
    /// Open a socket and ask for the family's id; the kernel loads the module `ip_vs` if it can.
    pub fn open() -> Result<Self, Error> {
        let socket = NlSocket::connect(NlFamily::Generic, None, Groups::empty())?;
        // Words beside error numbers; absent before Linux 4.12, then there are none.
        let _ = socket.enable_ext_ack(true);
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        let mut socket = Self {
            socket,
            family: uapi::GENL_ID_CTRL,
            sequence: 0,
            datagram: vec![0; DATAGRAM].into_boxed_slice(),
            stale: false,
            waited: Duration::ZERO,
            calls: 0,
            bytes: 0,
        };
        let found =
            socket.answer(Batch::resolve_family(), |message| Ok(decode::family_id(decode::body(message)?)?));
        socket.family = match found {
            Ok(Some(family)) => family,
            Ok(None) => return Err(Error::Unsupported),
            Err(Error::Refused(error)) if error.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) => {
                return Err(Error::Unsupported);
            }
            Err(error) => return Err(error),
        };
        Ok(socket)
    }

    /// How long the kernel has been at work for this socket since it was opened: inside `send` and `recv`.
    pub const fn waited(&self) -> Duration {
        self.waited
    }

    /// The calls of `send` and `recv` since the socket was opened, and the bytes that they carried: a measure
    /// of work that other load on the machine does not change.
    pub const fn traffic(&self) -> (u64, u64) {
        (self.calls, self.bytes)
    }

    const fn count(&mut self, bytes: usize) {
        self.calls += 1;
        self.bytes += bytes as u64;
    }

    /// Carry out the requests in order. Those that fail are returned, all others took effect;
    /// [`Error::Lost`] leaves it unknown which did.
    ///
    /// Only the last message of a send asks for an acknowledgement: the kernel replies to the others
    /// when they fail (`netlink_rcv_skb`).
    pub fn send(&mut self, batch: &mut Batch) -> Result<Vec<Failure>, Error> {
        let mut failures = Vec::new();
        for start in (0..batch.len()).step_by(MESSAGES_PER_SEND) {
            let range = start..(start + MESSAGES_PER_SEND).min(batch.len());
            let count = range.len() as u32;
            let first = self.number(count)?;
            let bytes = batch.stamp(range, self.family, first, 0, true);
            self.stale = true;
            self.deliver(bytes)?;
            let last = count - 1;
            let mut done = false;
            while !done {
                let length = self.receive()?;
                for message in decode::messages(&self.datagram[..length]) {
                    let message = message?;
                    // A wrapping difference: the index within this send, or nonsense of an earlier one.
                    let offset = message.sequence.wrapping_sub(first);
                    if message.kind != uapi::NLMSG_ERROR || offset > last {
                        continue;
                    }
                    let (errno, reason) = decode::outcome(&message)?;
                    if errno != 0 {
                        failures.push(Failure { index: start + offset as usize, errno, reason });
                    }
                    done |= offset == last;
                }
            }
            self.stale = false;
        }
        Ok(failures)
    }

    /// Every virtual server of the namespace, each once, in no order.
    ///
    /// A dump continues by position, and a kernel whose table grows (seen with 7.2) moves entries in the
    /// background without a mark in the dump, so that entries can be missed or repeated. A
    /// dump of more than one part is therefore repeated until two agree.
    pub fn services(&mut self) -> Result<Vec<ServiceEntry>, Error> {
        let mut before: Option<HashSet<ServiceKey>> = None;
        for _ in 0..MOST_DUMPS {
            let mut services = Vec::new();
            let parts = self.dump(Batch::request(uapi::CMD_GET_SERVICE, None), |body| {
                services.push(decode::service(body)?);
                Ok(())
            })?;
            let mut keys = HashSet::with_capacity(services.len());
            services.retain(|entry: &ServiceEntry| keys.insert(entry.service.key));
            if parts == 1 || before.as_ref() == Some(&keys) {
                return Ok(services);
            }
            before = Some(keys);
        }
        Err(Error::Interrupted)
    }

    /// One virtual server; `None` where there is none with this key.
    pub fn service(&mut self, key: &ServiceKey) -> Result<Option<ServiceEntry>, Error> {
        let answer = self.answer(Batch::request(uapi::CMD_GET_SERVICE, Some(key)), |message| {
            Ok(decode::service(decode::body(message)?)?)
        });
        match answer {
            Err(Error::Refused(error)) if error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => {
                Ok(None)
            }
            other => other,
        }
    }

    /// The destinations of a virtual server. The kernel answers with none also where there is no such
    /// virtual server.
    pub fn destinations(&mut self, key: &ServiceKey) -> Result<Vec<DestinationEntry>, Error> {
        let mut destinations = Vec::new();
        self.dump(Batch::request(uapi::CMD_GET_DEST, Some(key)), |body| {
            destinations.push(decode::destination(body, key.family())?);
            Ok(())
        })?;
        Ok(destinations)
    }

    /// The timeouts in force.
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let answer = self.answer(Batch::request(uapi::CMD_GET_CONFIG, None), |message| {
            Ok(decode::timeouts(decode::body(message)?)?)
        })?;
        answer.ok_or_else(no_answer)
    }

    /// The kernel's IPVS version and the size of its connection table.
    pub fn info(&mut self) -> Result<Info, Error> {
        let answer = self.answer(Batch::request(uapi::CMD_GET_INFO, None), |message| {
            Ok(decode::info(decode::body(message)?)?)
        })?;
        answer.ok_or_else(no_answer)
    }

    /// Ask for one object: its message, then the acknowledgement.
    fn answer<T>(
        &mut self,
        mut request: Batch,
        read: impl Fn(&Message<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let sequence = self.number(1)?;
        let bytes = request.stamp(0..1, self.family, sequence, 0, true);
        self.stale = true;
        self.deliver(bytes)?;
        let mut answer = None;
        loop {
            let length = self.receive()?;
            for message in decode::messages(&self.datagram[..length]) {
                let message = message?;
                if message.sequence != sequence || message.kind == uapi::NLMSG_NOOP {
                    continue;
                }
                if message.kind != uapi::NLMSG_ERROR {
                    answer = Some(read(&message)?);
                    continue;
                }
                self.stale = false;
                return match decode::outcome(&message)? {
                    (0, _) => Ok(answer),
                    (errno, _) => Err(Error::Refused(io::Error::from_raw_os_error(errno))),
                };
            }
        }
    }

    /// Ask for many objects: their messages, then the end of the dump. Returns in how many parts the
    /// kernel gathered the objects.
    fn dump(
        &mut self,
        mut request: Batch,
        mut each: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        let sequence = self.number(1)?;
        let bytes = request.stamp(0..1, self.family, sequence, uapi::NLM_F_DUMP, false);
        self.stale = true;
        self.deliver(bytes)?;
        let mut interrupted = false;
        let mut parts = 0;
        loop {
            let length = self.receive()?;
            let mut objects = 0;
            for message in decode::messages(&self.datagram[..length]) {
                let message = message?;
                if message.sequence != sequence || message.kind == uapi::NLMSG_NOOP {
                    continue;
                }
                interrupted |= message.flags & uapi::NLM_F_DUMP_INTR != 0;
                if !matches!(message.kind, uapi::NLMSG_ERROR | uapi::NLMSG_DONE) {
                    each(decode::body(&message)?)?;
                    objects += 1;
                    continue;
                }
                self.stale = false;
                return match decode::outcome(&message)? {
                    (0, _) if interrupted => Err(Error::Interrupted),
                    (0, _) => Ok((parts + usize::from(objects > 0)).max(1)),
                    (errno, _) => Err(Error::Refused(io::Error::from_raw_os_error(errno))),
                };
            }
            parts += usize::from(objects > 0);
        }
    }

    /// The first of `count` new sequence numbers, with the replies of an unfinished request thrown away.
    fn number(&mut self, count: u32) -> Result<u32, Error> {
        if self.stale {
            loop {
                match self.receive() {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // What overflowed was of the old request.
                    Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {}
                    Err(error) => return Err(Error::Lost(error)),
                }
            }
            self.stale = false;
        }
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        Ok(first)
    }

    fn deliver(&mut self, bytes: &[u8]) -> io::Result<()> {
        loop {
            let begun = now();
            let sent = self.socket.send(bytes, Msg::empty());
            self.waited += begun.elapsed();
            self.count(bytes.len());
            match sent {
                // Netlink takes a datagram whole or not at all.
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The length of the next datagram. The kernel handles a request before `send` returns and fills
    /// the next part of a dump before `recv` does, so an empty queue means a lost reply, not a late one.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            let begun = now();
            let got = self.socket.recv(&mut self.datagram, Msg::DONTWAIT | Msg::TRUNC);
            self.waited += begun.elapsed();
            self.count(got.as_ref().map_or(0, |(length, _)| *length));
            match got {
                Ok((length, _)) if length > self.datagram.len() => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a datagram longer than the kernel makes",
                    ));
                }
                Ok((length, _)) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the kernel takes is told, and nothing is decided by it"
)]
fn now() -> Instant {
    Instant::now()
}

fn no_answer() -> Error {
    Error::Lost(io::Error::new(io::ErrorKind::UnexpectedEof, "an acknowledgement without an answer"))
}
