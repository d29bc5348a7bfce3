//! Connections that stand while the rules that they began under pass to another owner: some are in use all the time, some
//! are silent until the end.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use integration::lab::Lab;
use integration::network::Family;
use integration::network::Place::{self, Client, Node, PodA, PodB, PodD};

use crate::flood::now;

/// Endpoints of held connections listen here, beside the servers that answer and close.
pub(crate) const PORT: u16 = 7000;
/// Who is silent for so long is cut off.
const SILENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// Has `PodA` and `PodD` give back what they get, for as long as somebody sends.
pub(crate) fn serve(lab: &Lab) {
    for place in [PodA, PodD] {
        for family in Family::BOTH {
            let at = SocketAddr::new(place.address(family), PORT);
            let listen = || TcpListener::bind(at);
            let listener =
                lab.network.namespace(place).run(listen).expect("a namespace").expect("a free port");
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    thread::spawn(move || echo(stream));
                }
            });
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

/// Connections of every kind that needs something else of the rules.
#[derive(Debug)]
pub(crate) struct Held {
    stop: Arc<AtomicBool>,
    busy: JoinHandle<Vec<(String, Option<String>)>>,
    idle: Vec<(String, TcpStream)>,
}

impl Held {
    /// Two of each kind, a busy one and an idle one: masqueraded from outside, the node's own, and a pod's.
    pub(crate) fn open(lab: &Lab, families: &[Family]) -> Self {
        let (mut busy, mut idle) = (Vec::new(), Vec::new());
        for family in families {
            let cluster_ip = SocketAddr::new(family.service(1), 80);
            let node_port = SocketAddr::new(family.node_addresses()[0], 30080);
            for (from, to) in [
                (Client, node_port),
                (Node, cluster_ip),
                (Node, node_port),
                (PodB, cluster_ip),
                (PodB, node_port),
            ] {
                let open = |kind: &str| {
                    let what = format!("{kind} connection of {from:?} to {to}");
                    let mut stream = connect(lab, from, to)
                        .unwrap_or_else(|error| panic!("{what}: {error}\n{}", lab.log()));
                    exchange(&mut stream).unwrap_or_else(|error| panic!("{what}: {error}\n{}", lab.log()));
                    (what, stream)
                };
                busy.push(open("busy"));
                idle.push(open("idle"));
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let began = now();
        let busy = thread::spawn(move || keep_busy(busy, &until, began));
        Self { stop, busy, idle }
    }

    /// Uses each once more and ends it. Says which were cut.
    pub(crate) fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let busy = self.busy.join().expect("it does not panic");
        let mut cut: Vec<String> =
            busy.into_iter().filter_map(|(what, error)| Some(format!("{what}: {}", error?))).collect();
        for (what, mut stream) in self.idle {
            if let Err(error) = exchange(&mut stream) {
                cut.push(format!("{what}: {error}"));
            }
        }
        cut
    }
}

fn keep_busy(
    held: Vec<(String, TcpStream)>,
    until: &AtomicBool,
    began: Instant,
) -> Vec<(String, Option<String>)> {
    let mut held: Vec<(String, TcpStream, Option<String>)> =
        held.into_iter().map(|(what, stream)| (what, stream, None)).collect();
    loop {
        // Looked at before: every connection is used once more after the end was asked for.
        let last = until.load(Ordering::Relaxed);
        for (_, stream, failed) in held.iter_mut().filter(|(_, _, failed)| failed.is_none()) {
            *failed = exchange(stream).err().map(|error| format!("{error} {:?} in", began.elapsed()));
        }
        if last {
            return held.into_iter().map(|(what, _, failed)| (what, failed)).collect();
        }
        thread::sleep(PAUSE);
    }
}

fn connect(lab: &Lab, from: Place, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = lab.network.namespace(from).run(|| TcpStream::connect_timeout(&to, SILENCE))??;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    let mut byte = [0];
    stream.write_all(b"x")?;
    stream.read_exact(&mut byte)
}
