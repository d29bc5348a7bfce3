//! SYNs and their answers, counted where they leave and where they arrive: what is missing got lost on the way. A clock
//! cannot tell that apart from a machine that is busy with something else.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use integration::lab::Lab;
use integration::network::Family;
use integration::network::Place::{self, PodA, PodC, PodD};

use super::flood::now;

/// Where the flooded Service's endpoints are.
const ENDPOINTS: [Place; 3] = [PodA, PodC, PodD];
/// How long what is on its way may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The connections from one place to one address.
#[derive(Debug)]
pub(crate) struct Crossing {
    from: Place,
    /// `ip` or `ip6`.
    family: &'static str,
    port: u16,
}

impl Crossing {
    /// Begins to count. SYNs carry a code in their headers that no rule of a proxy looks at or changes.
    pub(crate) fn watch(lab: &Lab, from: Place, to: SocketAddr) -> Self {
        let family = if Family::of(to.ip()) == Family::V4 { "ip" } else { "ip6" };
        let crossing = Self { from, family, port: to.port() };
        let (table, code, port) = (crossing.table(), crossing.code(), to.port());
        let (syn, answer) = ("tcp flags & (syn | ack) == syn", "tcp flags & (syn | ack) == syn | ack");
        let at_client = format!(
            "table {family} {table}\ndelete table {family} {table}\ntable {family} {table} {{\n\
             chain out {{\ntype filter hook output priority 0\n\
             {family} daddr {} tcp dport {port} {syn} {family} dscp set {code} counter\n}}\n\
             chain in {{\ntype filter hook input priority 0\n{family} saddr {} tcp sport {port} {answer} counter\n}}\n}}\n",
            to.ip(),
            to.ip()
        );
        let at_endpoint = format!(
            "table {family} {table}\ndelete table {family} {table}\ntable {family} {table} {{\n\
             chain in {{\ntype filter hook input priority 0\n{family} dscp {code} {syn} ct mark set {code} counter\n}}\n\
             chain out {{\ntype filter hook output priority 0\nct mark {code} {answer} counter\n}}\n}}\n"
        );
        load(lab, from, &at_client);
        ENDPOINTS.into_iter().for_each(|place| load(lab, place, &at_endpoint));
        crossing
    }

    /// How many SYNs have left.
    pub(crate) fn sent(&self, lab: &Lab) -> u64 {
        self.count(lab, self.from, "out")
    }

    /// How many packets left and did not arrive, in both directions. Everything must have ended.
    pub(crate) fn lost(&self, lab: &Lab) -> u64 {
        let deadline = now() + PATIENCE;
        loop {
            let lost = |from: u64, to: u64| from.saturating_sub(to);
            let (sent, answered) = (self.sent(lab), self.count(lab, self.from, "in"));
            let at_endpoints =
                |chain| ENDPOINTS.into_iter().map(|place| self.count(lab, place, chain)).sum::<u64>();
            let lost = lost(sent, at_endpoints("in")) + lost(at_endpoints("out"), answered);
            if lost == 0 || now() > deadline {
                assert!(sent > 0, "nothing was counted");
                return lost;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn table(&self) -> String {
        format!("crossing-{}", self.port)
    }

    /// One of the 64 values of the header's field.
    fn code(&self) -> u16 {
        32 + self.port % 31
    }

    fn count(&self, lab: &Lab, place: Place, chain: &str) -> u64 {
        let mut command = Command::new("nft");
        command.args(["list", "chain", self.family, &self.table(), chain]);
        let output = lab.network.namespace(place).output(&mut command).expect("the chain is there");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, rest) = text.split_once("counter packets ").expect("a counter");
        rest.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a number")
    }
}

fn load(lab: &Lab, place: Place, rules: &str) {
    let feed = || {
        let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().expect("piped").write_all(rules.as_bytes())?;
        child.wait()
    };
    let status = lab.network.namespace(place).run(feed).expect("the namespace is there").expect("nft runs");
    assert!(status.success(), "{rules}");
}
