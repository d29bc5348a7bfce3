//! Firewalls of distributions that are started, reloaded and stopped beside the proxy: what they flush is back in a moment.
//! Both are the programs of Debian's packages.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use integration::lab::{Lab, Mode, Options, cluster_ip, service, slices};
use integration::network::Place::{Client, Node, PodA, PodB, PodD};
use integration::network::Protocol::Tcp;
use integration::network::{BRIEF, Family, Outcome, PATIENT, Probe};

crate::scenarios! {
    Options::default() =>
        nftables_service_starts_and_stops,
        firewalld_starts_reloads_and_stops;
}

fn works(lab: &Lab) -> bool {
    Family::BOTH.into_iter().all(|family| {
        [PodB, Node, Client].into_iter().all(|from| {
            let probe = Probe::new(Tcp, cluster_ip(1, Tcp, 80).address(family)).patience(BRIEF);
            matches!(lab.network.probe_one(from, probe).expect("a socket"), Outcome::Answered { .. })
        })
    })
}

/// Works again, and all of it.
fn heals(lab: &mut Lab, after: &str) {
    let deadline = crate::now() + PATIENT;
    while !works(lab) {
        assert!(crate::now() < deadline, "{after} is not made good\n{}", lab.log());
    }
    lab.sweep();
}

fn web(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab.apply(service("empty", 2).port("t", 80, Tcp));
    lab.settle();
}

/// What its unit runs: `ExecStart` and `ExecReload`, and `ExecStop`.
fn nftables_service_starts_and_stops(lab: &mut Lab) {
    web(lab);
    for arguments in [["-f", "/etc/nftables.conf"], ["flush", "ruleset"]].repeat(2) {
        let mut command = Command::new("nft");
        lab.network.namespace(Node).output(command.args(arguments)).expect("nft does it");
        heals(lab, &format!("nft {}", arguments.join(" ")));
    }
}

/// A shell beside the node's programs, with a message bus and firewalld in it.
struct Firewalld {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// firewalld keeps its own rules in nftables by default, and in iptables if it is told to; there it flushes all tables
/// whenever it starts, reloads or stops, and the rules of everybody with them.
const SCRIPT: &str = r#"
set -e
mkdir -p /run/bus /run/firewalld
[ "$VARIANT" = nft ] || mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi
cat > /run/bus/bus.conf <<E
<busconfig><type>system</type><listen>unix:path=/run/bus/socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/><allow user="*"/></policy>
</busconfig>
E
printf 'DefaultZone=trusted\nFirewallBackend=iptables\n' > /run/firewalld/firewalld.conf
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/bus/socket
dbus-daemon --config-file=/run/bus/bus.conf --nofork --nopidfile >&2 &
bus=$!
start() {
    firewalld --nofork --nopid --system-config /run/firewalld >&2 &
    daemon=$!
    until firewall-cmd --state >/dev/null 2>&1; do kill -0 $daemon; sleep 0.1; done
}
stop() { kill $daemon; wait $daemon || true; }
reload() { firewall-cmd --reload >&2; }
trap 'kill $daemon $bus 2>/dev/null' EXIT
echo ready
while read -r what; do $what; echo "$what"; done
"#;

impl Firewalld {
    fn prepare(lab: &Lab) -> Self {
        let mut command = Command::new("bash");
        let variant = if lab.mode() == Mode::IptablesLegacy { "legacy" } else { "nft" };
        command.args(["-c", SCRIPT]).env("VARIANT", variant).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = lab.network.namespace(Node).spawn(&mut command).expect("bash");
        let input = shell.stdin.take().expect("piped");
        let output = BufReader::new(shell.stdout.take().expect("piped"));
        let mut firewalld = Self { shell, input, output };
        firewalld.expect("ready");
        firewalld
    }

    fn run(&mut self, what: &str) {
        writeln!(self.input, "{what}").expect("the shell reads");
        self.expect(what);
    }

    fn expect(&mut self, what: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the shell writes");
        assert_eq!(line.trim(), what, "firewalld and dbus-daemon are Debian's packages firewalld and dbus");
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        drop(writeln!(self.input, "exit 0"));
        drop(self.shell.wait());
    }
}

fn firewalld_starts_reloads_and_stops(lab: &mut Lab) {
    web(lab);
    let mut firewalld = Firewalld::prepare(lab);
    for what in ["start", "reload", "reload", "stop"] {
        firewalld.run(what);
        heals(lab, &format!("firewalld: {what}"));
    }
}
