//! `trace`: what becomes of single packets, rule by rule, by name.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use clap::Args;
use insight::{
    table::{Cell, Style, Table},
    trace::{
        filter::{Filter, fitting, parse_address},
        story::Collector,
        tell::{Outcome, Traced, tell},
    },
    traffic::Spot,
};
use nft_netlink::{
    temporary::{self, TemporaryTable},
    trace::TraceMonitor,
};
use proxy_core::model::ServiceName;
use serde::Serialize;

use super::{
    common::{Common, Output},
    watching::{Kernel, Scene, TICK, buffer, netfilter, nobody_reads, now, parse_duration, unix_now},
};

/// Longer, and more, is nobody's patience.
const LONGEST: Duration = Duration::from_secs(600);
const MOST: usize = 1_000;
/// Events that are taken at once.
const AT_ONCE: u64 = 10_000;
/// The schema of the output.
const API_VERSION: &str = "insight.switchyard.dev/v1";

/// Show what becomes of packets, rule by rule
///
/// Only packets that fit the filter are marked, by rules that the kernel removes with this command. Every rule of nf_tables that
/// such a packet meets is told, in all tables. Exit code: 0 all packets reached somebody, 1 one was refused, 2 one was dropped, 4
/// none was seen, or one was lost from sight.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A Service (NAME, NAMESPACE/NAME, either with :PORT), or an address (10.0.0.1, 10.0.0.0/8, 10.0.0.1:80, [fd00::1]:80)
    #[arg(value_name = "TO")]
    to: Option<String>,
    /// From this address or network, perhaps with a port
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// To this port
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Of this protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(short, long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// For so long
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// So many packets
    #[arg(long, value_name = "N", default_value_t = 10)]
    count: usize,
    /// No more packets a second than that
    #[arg(long, value_name = "N", default_value_t = 100)]
    rate: u32,
    /// Every packet, not only those that begin a connection of TCP or SCTP
    #[arg(long)]
    every_packet: bool,
}

/// What is printed for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    api_version: &'static str,
    kind: &'static str,
    /// Packets that were traced, in the order in which they came.
    packets: Vec<Traced>,
    /// Packets that fitted the filter and were too many a second.
    beyond_rate: u64,
    /// Events that the kernel had no room for.
    missed_events: u64,
    /// What cannot be seen here, and what else is known.
    notes: Vec<String>,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    ensure!((1..=MOST).contains(&options.count), "--count must be from 1 to {MOST}");
    ensure!((1..=10_000).contains(&options.rate), "--rate must be from 1 to 10000");
    ensure!(options.duration <= LONGEST, "--for must not be more than {} minutes", LONGEST.as_secs() / 60);
    // Before anything is asked of the running process.
    let mut filter = given(options)?;
    let service = match options.to.as_deref().map(|to| (to, parse_address(to))) {
        Some((_, Ok((net, port)))) => {
            filter.destination = Some(net);
            filter.port = port.or(filter.port);
            None
        }
        Some((name, Err(_))) => Some(service_and_port(name, common)),
        None => None,
    };
    if service.is_none() {
        filter.check()?;
    }
    let scene = Scene::load(common)?;
    if let Some((service, port)) = service {
        filter.frontends = frontends(&scene, &service, port)?;
    }
    filter.check()?;
    ensure!(!filter.rules().is_empty(), "nothing can fit: the Service has no such port or protocol");

    let mut socket = netfilter()?;
    temporary::sweep(&mut socket, unix_now()).context("tables of earlier traces")?;
    let legacy = Legacy::look();
    let kernel = Kernel::default();
    let mut monitor = TraceMonitor::open(buffer()).context("listening to traces")?;
    let until = unix_now() + options.duration.as_secs() + 60;
    let mut table =
        TemporaryTable::make("trace", until, |batch, table| filter.write(batch, table, options.rate))
            .context("the table that marks packets")?;
    if common.output() == Output::Table {
        common.say("tracing; ends after the time or number of packets given, or by Ctrl-C")?;
    }
    let mut collector = Collector::new(table.table().name, options.count);
    let mut answer = Answer {
        api_version: API_VERSION,
        kind: "Trace",
        packets: Vec::new(),
        beyond_rate: 0,
        missed_events: 0,
        notes: Vec::new(),
    };
    let begun = now();
    let end = begun + options.duration;
    loop {
        let left = end.saturating_duration_since(now());
        if collector.is_full() || left.is_zero() || nobody_reads() {
            break;
        }
        netlink::wait(&[monitor.as_fd()], left.min(TICK))?;
        let taken = monitor.drain(AT_ONCE, |event| collector.push(event))?;
        answer.missed_events += taken.missed;
        collector.pass(begun.elapsed());
        show(collector.take_finished(), &scene, &kernel, common, &mut answer)?;
    }
    let name = table.table().name.to_owned();
    let own = nft_netlink::Table::new(nft_netlink::Family::Inet, &name);
    let fitting = fitting(table.socket(), own).unwrap_or(0);
    drop(table);
    let seen = collector.begun();
    show(collector.close(), &scene, &kernel, common, &mut answer)?;
    if seen < options.count {
        answer.beyond_rate = fitting.saturating_sub(seen as u64);
    }
    answer.notes = legacy.notes(&scene);
    conclude(&answer, options, common)?;
    Ok(code(&answer.packets))
}

/// What the options say without names.
fn given(options: &Options) -> anyhow::Result<Filter> {
    let (source, source_port) = match &options.from {
        Some(text) => parse_address(text)
            .map(|(net, port)| (Some(net), port))
            .map_err(|error| anyhow!("--from: {error}"))?,
        None => (None, None),
    };
    Ok(Filter {
        source,
        source_port,
        port: options.port,
        protocol: options.protocol.as_deref().map(parse_protocol).transpose()?,
        every_packet: options.every_packet,
        ..Filter::default()
    })
}

/// `NAME`, `NAMESPACE/NAME`, either with `:PORT`.
pub(super) fn service_and_port<'a>(text: &'a str, common: &Common) -> (ServiceName, Option<&'a str>) {
    let (name, port) = text.rsplit_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    (common.service(name), port)
}

/// Where a Service answers.
pub(super) fn frontends(
    scene: &Scene,
    service: &ServiceName,
    port: Option<&str>,
) -> anyhow::Result<Vec<Spot>> {
    let found = scene.view().frontends(service, port);
    let what = port.map_or_else(|| service.to_string(), |port| format!("{service}:{port}"));
    ensure!(!found.is_empty(), "this node serves no address of Service {what}");
    Ok(found)
}

fn parse_protocol(text: &str) -> anyhow::Result<u8> {
    let lower = text.to_ascii_lowercase();
    if let Some(known) = insight::text::parse_protocol(&lower) {
        return Ok(known.number());
    }
    match lower.as_str() {
        "icmp" => Ok(1),
        "icmpv6" => Ok(58),
        number => {
            number.parse().map_err(|_| anyhow!("{text:?} is no protocol such as tcp, udp, sctp or icmp"))
        }
    }
}

/// Tells stories; people see them as they come.
fn show(
    stories: Vec<insight::trace::story::Story>,
    scene: &Scene,
    kernel: &Kernel,
    common: &Common,
    answer: &mut Answer,
) -> anyhow::Result<()> {
    for story in stories {
        let Some(traced) = tell(&story, scene.view(), kernel) else { continue };
        if matches!(common.output(), Output::Table | Output::Wide) {
            common.print(&text(answer.packets.len() + 1, &traced, common))?;
        }
        answer.packets.push(traced);
    }
    Ok(())
}

fn text(number: usize, traced: &Traced, common: &Common) -> String {
    let look = common.look();
    let style = match traced.outcome {
        Outcome::Delivered | Outcome::Left => Style::Good,
        Outcome::Refused | Outcome::Dropped => Style::Bad,
        Outcome::Queued | Outcome::Unseen => Style::Warn,
    };
    let name = traced.client_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let head = format!("{number}. {} {}{name} -> {}", traced.protocol, traced.client, traced.destination);
    let mut text = format!("{head}\n   {}\n", style.paint(&traced.sentence, look.colour));
    if common.output() == Output::Wide {
        let mut table =
            Table::new().column("HOOK").column("TABLE").column("CHAIN").text("VERDICT", 8).text("RULE", 20);
        for step in &traced.steps {
            let rule = match (&step.by.rule, step.by.handle) {
                (Some(rule), Some(handle)) => format!("{rule} # handle {handle}"),
                (None, Some(handle)) => format!("# handle {handle}"),
                (_, None) => "(policy)".to_owned(),
            };
            table.row([
                Cell::from(step.hook),
                format!("{} {}", step.by.family, step.by.table).into(),
                step.by.chain.clone().into(),
                step.verdict.clone().into(),
                rule.into(),
            ]);
        }
        for line in table.print(look).lines() {
            text.push_str("   ");
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn conclude(answer: &Answer, options: &Options, common: &Common) -> anyhow::Result<()> {
    match common.output() {
        Output::Json | Output::Yaml => common.answer(answer, |_| String::new()),
        Output::Table | Output::Wide => {
            let mut text = String::new();
            if answer.packets.is_empty() {
                text += &format!("no packet came that fits, in {} s\n", options.duration.as_secs());
            }
            if answer.beyond_rate > 0 {
                text += &format!(
                    "{} more packets fitted, beyond --rate={} a second\n",
                    answer.beyond_rate, options.rate
                );
            }
            if answer.missed_events > 0 {
                text +=
                    &format!("{} events were lost: the kernel had no room for them\n", answer.missed_events);
            }
            answer.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
            common.print(&text)
        }
    }
}

fn code(packets: &[Traced]) -> ExitCode {
    let any = |outcomes: &[Outcome]| packets.iter().any(|packet| outcomes.contains(&packet.outcome));
    ExitCode::from(if any(&[Outcome::Dropped]) {
        2
    } else if any(&[Outcome::Refused]) {
        1
    } else if packets.is_empty() || any(&[Outcome::Unseen, Outcome::Queued]) {
        4
    } else {
        0
    })
}

/// Rules of legacy iptables, which no trace of nf_tables shows: what their counters say.
struct Legacy {
    /// Tables there are, and each rule that drops or refuses, with its packets.
    before: Option<BTreeMap<String, u64>>,
}

impl Legacy {
    fn look() -> Self {
        let there = ["ip_tables_names", "ip6_tables_names"].iter().any(|name| {
            std::fs::read_to_string(format!("/proc/net/{name}")).is_ok_and(|text| !text.trim().is_empty())
        });
        Self { before: there.then(counters) }
    }

    fn notes(&self, scene: &Scene) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(before) = &self.before {
            notes.push(
                "this node has tables of legacy iptables too; their rules are not nf_tables' and no trace shows them. What their \
                 counters say follows, of all traffic meanwhile"
                    .to_owned(),
            );
            for (rule, packets) in counters() {
                let more = packets.saturating_sub(before.get(&rule).copied().unwrap_or(0));
                if more > 0 {
                    notes.push(format!("legacy iptables counted {more} packets meanwhile: {rule}"));
                }
            }
        }
        if scene.is_ipvs() {
            notes.push(
                "IPVS takes packets at the hook input and sends them on at output; which endpoint it chose is seen there"
                    .to_owned(),
            );
        }
        notes
    }
}

/// Rules and policies that drop or refuse, with the packets they counted.
fn counters() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let output = Command::new(program)
            .arg("-c")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .map(|output| output.stdout);
        let text = String::from_utf8_lossy(&output.unwrap_or_default()).into_owned();
        let family = program.split('-').next().unwrap_or(program);
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some((rule, packets)) = counted(line) {
                *all.entry(format!("{family} -t {table} {rule}")).or_default() += packets;
            }
        }
    }
    all
}

/// A line of `iptables-save -c` that drops or refuses, and its packets.
fn counted(line: &str) -> Option<(String, u64)> {
    const ENDS: [&str; 2] = ["DROP", "REJECT"];
    let number = |text: &str| text.trim_start_matches('[').split(':').next()?.parse().ok();
    if let Some(chain) = line.strip_prefix(':') {
        let mut words = chain.split(' ');
        let (name, policy, packets) = (words.next()?, words.next()?, words.next()?);
        return (policy == "DROP").then(|| Some((format!("-P {name} DROP"), number(packets)?))).flatten();
    }
    let (packets, rule) = line.split_once("] ")?;
    let target = rule.split(" -j ").nth(1)?.split(' ').next()?;
    ENDS.contains(&target).then(|| Some((rule.to_owned(), number(packets)?))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_legacy_iptables_that_drop_or_refuse_are_counted() {
        assert_eq!(counted(":FORWARD DROP [7:420]"), Some(("-P FORWARD DROP".to_owned(), 7)));
        assert_eq!(counted(":INPUT ACCEPT [7:420]"), None);
        let rule = "-A FORWARD -d 10.0.0.0/8 -j REJECT --reject-with icmp-port-unreachable";
        assert_eq!(counted(&format!("[3:180] {rule}")), Some((rule.to_owned(), 3)));
        assert_eq!(counted("[3:180] -A FORWARD -j KUBE-FORWARD"), None);
        assert_eq!(counted("# Generated"), None);
    }

    #[test]
    fn protocols_are_names_or_numbers() {
        for (text, number) in [("TCP", 6), ("udp", 17), ("icmpv6", 58), ("47", 47)] {
            assert_eq!(parse_protocol(text).expect(text), number);
        }
        assert!(parse_protocol("http").is_err());
    }
}
