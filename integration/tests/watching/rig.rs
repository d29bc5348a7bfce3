//! A lab in each mode, and a verb that runs beside it.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use integration::lab::{Lab, Mode, Options, program, service, slices};
use integration::network::{Family, Outcome, Place, Probe, Protocol};
use serde_json::Value;

/// Plays in one mode; in the VM where this kernel lacks what the mode needs.
pub(crate) fn run(mode: Mode, options: Options, play: impl FnOnce(&mut Lab)) {
    let play = || {
        let mut lab = Lab::start(Options { mode, ..options }).expect("root, and a kube-proxy that was built");
        play(&mut lab);
    };
    if mode == Mode::Ipvs { vm_test::with_ipvs(play) } else { play() }
}

/// One test for each mode.
macro_rules! in_every_mode {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use integration::lab::{Mode, Options};

            #[test]
            fn in_nftables_mode() {
                crate::rig::run(Mode::Nftables, Options::default(), super::$name);
            }
            #[test]
            fn in_iptables_mode_with_nft() {
                crate::rig::run(Mode::IptablesNft, Options::default(), super::$name);
            }
            #[test]
            fn in_iptables_mode_with_legacy_tables() {
                crate::rig::run(Mode::IptablesLegacy, Options::default(), super::$name);
            }
            #[test]
            fn in_ipvs_mode() {
                crate::rig::run(Mode::Ipvs, Options::default(), super::$name);
            }
        })*
    };
}
pub(crate) use in_every_mode;

/// The Service `web` with an endpoint on each node, and `empty` with none.
pub(crate) fn web_and_empty(lab: &mut Lab) {
    lab.apply(service("web", 1).port("http", 80, Protocol::Tcp));
    lab.apply(slices("web").port("http", 8080, Protocol::Tcp).ready(&[Place::PodB, Place::PodD]));
    lab.apply(service("empty", 2).port("http", 80, Protocol::Tcp));
    lab.settle();
}

/// Connects, and tells how it fared.
pub(crate) fn connect(lab: &Lab, from: Place, number: u8) -> Outcome {
    let to = (Family::V4.service(number), 80).into();
    let probe = Probe::new(Protocol::Tcp, to).patience(Duration::from_millis(300));
    lab.network.probe_one(from, probe).expect("sockets can be made")
}

/// A verb that is running on the node.
pub(crate) struct Verb(Child);

impl Verb {
    pub(crate) fn start(lab: &Lab, arguments: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program().expect("a kube-proxy that was built"));
        command.args(arguments.split(' ')).arg("--socket").arg(lab.insight_socket());
        command
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let node = lab.network.namespace(Place::Node);
        Self(node.run(|| command.spawn()).expect("a namespace").expect("started"))
    }

    /// Waits until the verb watches: its table is there.
    pub(crate) fn watches(self, lab: &Lab) -> Self {
        for _ in 0..1_200 {
            if tables(lab).contains("switchyard-watch-") {
                return self;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it does not watch: {:?}", self.end());
    }

    /// Waits until the verb listens to conntrack.
    pub(crate) fn listens(self, lab: &Lab) -> Self {
        let process = self.0.id();
        for _ in 0..1_200 {
            let node = lab.network.namespace(Place::Node);
            let read = || std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap_or_default();
            let sockets = node.run(read).expect("a namespace");
            // Protocol 12 is netfilter; a process's first socket has its number; the groups are in hexadecimal.
            let listens = sockets.lines().any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                fields.get(1) == Some(&"12")
                    && fields.get(2).is_some_and(|port| *port == process.to_string())
                    && fields.get(3).is_some_and(|groups| *groups != "00000000")
            });
            if listens {
                return self;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it does not listen: {:?}", self.end());
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ended");
    }

    pub(crate) fn end(self) -> Output {
        self.0.wait_with_output().expect("it ends")
    }

    /// Its code and the one JSON value that it printed.
    pub(crate) fn json(self) -> (i32, Value) {
        let output = self.end();
        let text = String::from_utf8_lossy(&output.stdout);
        let value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap_or(-1), value)
    }

    /// The JSON values that it printed, one on a line.
    pub(crate) fn lines(self) -> Vec<Value> {
        let output = self.end();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{text}\n{errors}")))
            .collect()
    }
}

pub(crate) fn tables(lab: &Lab) -> String {
    nft(lab, "list tables")
}

pub(crate) fn nft(lab: &Lab, arguments: &str) -> String {
    let node = lab.network.namespace(Place::Node);
    let output = node.output(Command::new("nft").args(arguments.split(' '))).expect("nft succeeds");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
