//! Many new flows: datagrams, each from another source port and address, as fast as one thread can send them.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket,
        sockopt,
    },
};

/// A flood that goes on until it is stopped or its flows are used up.
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    allowed: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

/// Sends from a pod's namespace to these addresses in turn, with sources in 10.100.0.0/16 (which are nobody's), of each 50,000
/// flows.
pub fn flood(host: &str, to: Vec<(Ipv4Addr, u16)>, most: u32) -> Flood {
    flood_of(host, to, most, 50_000)
}

/// The same, of each source so many flows.
pub fn flood_of(host: &str, to: Vec<(Ipv4Addr, u16)>, most: u32, each: u32) -> Flood {
    send(host, to, most, move |flow| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 1)) + flow / each))
}

/// Flows of one source.
pub fn flood_from(host: &str, source: Ipv4Addr, to: (Ipv4Addr, u16), most: u32) -> Flood {
    send(host, vec![to], most, move |_| source)
}

fn send(
    host: &str,
    to: Vec<(Ipv4Addr, u16)>,
    most: u32,
    source: impl Fn(u32) -> Ipv4Addr + Send + 'static,
) -> Flood {
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU32::new(0));
    let allowed = Arc::new(AtomicU32::new(most));
    let path = format!("/run/netns/{host}");
    let thread = thread::spawn({
        let (stop, sent, allowed) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&allowed));
        move || {
            let namespace = File::open(path).expect("the namespace exists");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("tests run as root");
            let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)
                .expect("tests run as root");
            setsockopt(&raw, sockopt::SndBufForce, &(4 << 20)).expect("tests run as root");
            for flow in 0..most {
                while flow >= allowed.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (addr, port) = to[flow as usize % to.len()];
                let packet = datagram(source(flow), 10_000 + (flow % 50_000) as u16, addr, port);
                let at = SockaddrIn::from(std::net::SocketAddrV4::new(addr, 0));
                if sendto(raw.as_raw_fd(), &packet, &at, MsgFlags::empty()).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    Flood { stop, sent, allowed, thread: Some(thread) }
}

impl Flood {
    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Goes on to this number of flows, and waits there until it may go on.
    pub fn allow(&self, flows: u32) {
        self.allowed.store(flows, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until its flows are used up and says how many were sent.
    pub fn wait(mut self) -> u32 {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the flood does not panic");
        }
        self.sent()
    }

    /// Stops it and says how many were sent.
    pub fn end(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the flood does not panic");
        }
        self.sent()
    }
}

/// An IPv4 packet with a UDP header and nothing in it; the kernel fills in the checksum of the IP header.
fn datagram(source: Ipv4Addr, source_port: u16, to: Ipv4Addr, port: u16) -> [u8; 28] {
    let mut packet = [0; 28];
    packet[0] = 0x45;
    packet[3] = 28;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20..22].copy_from_slice(&source_port.to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    packet[25] = 8;
    packet
}

/// An address of IPv4.
pub fn v4(addr: IpAddr) -> Ipv4Addr {
    match addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(addr) => panic!("{addr} is no IPv4 address"),
    }
}

/// Packets counted by the rule with this comment.
pub fn counted(comment: &str) -> u64 {
    let listing = super::run("nft list ruleset");
    let line = listing
        .lines()
        .find(|line| line.contains(&format!("comment \"{comment}\"")))
        .unwrap_or_else(|| panic!("no rule {comment} in {listing}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").expect("a counter");
    words[at + 1].parse().expect("a number")
}
