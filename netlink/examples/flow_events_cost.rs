//! What it costs a new connection that somebody listens to conntrack's events: CPU time of the thread that sends, in a network
//! namespace of its own, where packets go through conntrack and a translation like a Service's. As root:
//!
//!     cargo run --release -p switchyard-netlink --example flow_events_cost

use std::{net::UdpSocket, process::Command, time::Duration};

use netlink::flow_events::{FlowMonitor, Interest};
use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit},
    sys::time::TimeVal,
};

const FLOWS: u16 = 15_000;
const ROUNDS: usize = 7;

fn run(program: &str, arguments: &str) {
    assert!(Command::new(program).args(arguments.split(' ')).status().expect("installed").success());
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("of this thread");
    let of = |time: TimeVal| Duration::from_micros(time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64);
    of(usage.user_time()) + of(usage.system_time())
}

/// Nanoseconds for each new flow.
fn flows() -> f64 {
    let sockets: Vec<UdpSocket> =
        (0..FLOWS).map(|at| UdpSocket::bind(("127.0.0.1", 10_000 + at)).expect("a socket")).collect();
    let before = cpu();
    for socket in &sockets {
        let _ = socket.send_to(b"x", "127.0.0.9:9");
    }
    (cpu() - before).as_nanos() as f64 / f64::from(FLOWS)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("as many files as there may be");
    unshare(CloneFlags::CLONE_NEWNET).expect("root");
    run("ip", "link set lo up");
    run("nft", "add table ip t");
    run("nft", "add chain ip t out { type nat hook output priority -100 ; }");
    run("nft", "add rule ip t out ip daddr 127.0.0.9 dnat to 127.0.0.1");
    let (mut without, mut with, mut all, mut reading) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(flows());
        run("conntrack", "-F");
        for (interest, to) in [
            (Interest { changes: false, translated: true, one_in: 1 }, &mut with),
            (Interest { changes: false, translated: true, one_in: 100 }, &mut all),
        ] {
            let mut monitor = FlowMonitor::open(interest, 256 << 20).expect("a monitor");
            to.push(flows());
            let before = cpu();
            let taken = monitor.drain(u64::MAX, |_| {}).expect("read");
            assert_eq!(taken.missed, 0);
            if interest.one_in == 1 {
                assert_eq!(taken.events, u64::from(FLOWS));
                reading.push((cpu() - before).as_nanos() as f64 / taken.events as f64);
            }
            drop(monitor);
            run("conntrack", "-F");
        }
    }
    println!("new flows, {FLOWS} in each of {ROUNDS} rounds, medians of nanoseconds of CPU each");
    println!("nobody listens                      {:8.0}", median(without));
    println!("every translated flow is told       {:8.0}", median(with));
    println!("one flow in a hundred is told       {:8.0}", median(all));
    println!("reading and decoding one event      {:8.0}", median(reading));
}
