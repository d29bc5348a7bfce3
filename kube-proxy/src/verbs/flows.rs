//! `flows`: connections of Services by name, as they are, or as they begin and end.

use std::{
    collections::{HashMap, HashSet},
    os::fd::AsFd as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use insight::{
    flows::{Line, What, line},
    table::{Cell, Look, Style, Table},
    text::Time,
    trace::{
        filter::fitting,
        refused::Watched,
        story::Collector,
        tell::{Outcome, Traced, tell},
    },
};
use jiff::Timestamp;
use netlink::{
    conntrack::{self, Filter, Flow, status, walk_counted},
    flow_events::{FlowEvent, FlowMonitor, Interest},
};
use nft_netlink::{
    temporary::{self, TemporaryTable},
    trace::TraceMonitor,
};
use proxy_core::model::ServiceName;
use serde::Serialize;

use super::{
    common::{Common, Output},
    trace::service_and_port,
    watching::{Kernel, Scene, TICK, buffer, netfilter, nobody_reads, now, parse_duration, unix_now},
};

/// Names are asked for again when a connection to an unknown Service is seen, and at most that often; with `--refused` always.
const RENEW: Duration = Duration::from_secs(5);
/// A client repeats a packet that is dropped; for so many of them it is told once.
const REPEATS: usize = 4_096;
const REPEAT_TIME: Duration = Duration::from_secs(60);
/// First packets that are traced each second, with `--refused`.
const RATE: u32 = 500;
const AT_ONCE: u64 = 10_000;

/// Show connections of Services by name: those there are, or, with -f, each as it begins and ends
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Go on: a line for each connection that begins, ends or fails
    #[arg(short, long)]
    follow: bool,
    /// Of this Service (NAME or NAMESPACE/NAME, either with :PORT)
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Those that fail: refused or dropped by a rule, refused by the endpoint, not answered. Traces the first packet of each
    /// connection to a Service while it runs (up to 500 a second)
    #[arg(long)]
    refused: bool,
    /// One connection in so many, with -f
    #[arg(long, value_name = "N", default_value_t = 1)]
    sample: u32,
    /// End after this time, with -f or --refused
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
}

/// A line for programs.
#[derive(Debug, Serialize)]
struct Record<'a> {
    time: Time,
    #[serde(flatten)]
    line: &'a Line,
}

/// The last line for programs: what was not told.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    /// Lines that were told.
    told: u64,
    /// Events that the kernel had no room for.
    missed_events: u64,
    /// First packets that were not traced, as there were too many a second.
    beyond_rate: u64,
    /// One connection in so many was told.
    sample: u32,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    ensure!((1..=1_000_000).contains(&options.sample), "--sample must be from 1 to 1000000");
    ensure!(
        common.output() != Output::Yaml || !(options.follow || options.refused),
        "lines that come one by one are JSON: -o json"
    );
    let scene = Scene::load(common)?;
    let wanted = options.service.as_deref().map(|text| {
        let (service, port) = service_and_port(text, common);
        (service, port.map(str::to_owned))
    });
    let wanted = Wanted(wanted);
    if options.follow || options.refused {
        follow(options, common, scene, &wanted)
    } else {
        snapshot(common, &scene, &wanted)
    }
}

/// Which Service's.
struct Wanted(Option<(ServiceName, Option<String>)>);

impl Wanted {
    fn fits(&self, line: &Line) -> bool {
        let Some((service, port)) = &self.0 else { return true };
        let (name, of) = line.service.split_once(':').unwrap_or((&line.service, ""));
        name == service.to_string()
            && port.as_ref().is_none_or(|port| port == of || line.destination.ends_with(&format!(":{port}")))
    }
}

/// Whether conntrack's own word of what is translated can be relied on.
fn only_translated(scene: &Scene) -> bool {
    // IPVS translates by itself; conntrack has only the tuples of it.
    !scene.is_ipvs()
}

fn snapshot(common: &Common, scene: &Scene, wanted: &Wanted) -> anyhow::Result<ExitCode> {
    let mut lines = Vec::new();
    walk(scene, |flow, carried| {
        lines.extend(line(What::Open, flow, carried, &scene.view()).filter(|line| wanted.fits(line)));
    })?;
    lines.sort_by(|a, b| (&a.service, &a.client).cmp(&(&b.service, &b.client)));
    common.answer(&lines, |look| table(&lines, look))?;
    Ok(ExitCode::SUCCESS)
}

fn table(lines: &[Line], look: Look) -> String {
    let mut table =
        Table::new().text("SERVICE", 12).column("PROTO").column("CLIENT").text("NAME", 8).column("ENDPOINT");
    table = table.column("HERE").wide().column("ADDRESS").wide().number("BYTES");
    for line in lines {
        table.row([
            Cell::from(line.service.clone()),
            line.protocol.clone().into(),
            line.client.clone().into(),
            line.client_name.clone().unwrap_or_default().into(),
            line.endpoint.clone().unwrap_or_else(|| "-".to_owned()).into(),
            here(line).into(),
            line.destination.clone().into(),
            line.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string()).into(),
        ]);
    }
    if table.is_empty() { "no connections of Services\n".to_owned() } else { table.print(look) }
}

/// Hands every connection that may be a Service's to `each`.
pub(super) fn walk(
    scene: &Scene,
    mut each: impl FnMut(&Flow, Option<conntrack::Carried>),
) -> anyhow::Result<()> {
    let mut socket = netfilter()?;
    let translated = only_translated(scene).then_some((status::DNAT, status::DNAT));
    let filter = Filter { status: translated, ..Filter::default() };
    let _ = walk_counted(&mut socket, &filter, &mut each).context("the table of connections")?;
    Ok(())
}

fn here(line: &Line) -> &'static str {
    match line.endpoint_is_here {
        Some(true) => "yes",
        Some(false) => "no",
        None => "",
    }
}

/// What is seen of packets that never become a connection.
struct Refusals {
    monitor: TraceMonitor,
    table: TemporaryTable,
    collector: Collector,
    watched: Watched,
    kernel: Kernel,
    seen: usize,
    begun: Instant,
    /// Told before, and when.
    told: HashMap<(String, String, String), Instant>,
}

impl Refusals {
    fn begin(scene: &Scene) -> anyhow::Result<Self> {
        temporary::sweep(&mut netfilter()?, unix_now()).context("tables of earlier traces")?;
        let watched = watched(scene);
        let monitor = TraceMonitor::open(buffer()).context("listening to traces")?;
        let table = TemporaryTable::make("refused", unix_now() + 86_400, |batch, table| {
            watched.write(batch, table, RATE)
        })
        .context("the table that marks packets")?;
        let collector = Collector::new(table.table().name, usize::MAX);
        Ok(Self {
            monitor,
            table,
            collector,
            watched,
            kernel: Kernel::default(),
            seen: 0,
            begun: now(),
            told: HashMap::new(),
        })
    }

    /// Follows the Services.
    fn renew(&mut self, scene: &Scene) -> anyhow::Result<()> {
        let watched = watched(scene);
        if watched != self.watched {
            self.table
                .change(|batch, table| watched.refill(batch, table))
                .context("the table that marks packets")?;
            self.watched = watched;
        }
        Ok(())
    }

    /// Lines of packets that were refused or dropped, and how many events were lost.
    fn take(&mut self, scene: &Scene) -> anyhow::Result<(Vec<Line>, u64)> {
        let collector = &mut self.collector;
        let taken = self.monitor.drain(AT_ONCE, |event| collector.push(event))?;
        self.collector.pass(self.begun.elapsed());
        self.seen = self.collector.begun();
        let stories = self.collector.take_finished();
        let mut lines = Vec::new();
        for story in &stories {
            let Some(traced) = tell(story, scene.view(), &self.kernel) else { continue };
            if matches!(traced.outcome, Outcome::Refused | Outcome::Dropped) && !self.is_repeated(&traced) {
                lines.push(refusal(traced));
            }
        }
        Ok((lines, taken.missed))
    }

    fn is_repeated(&mut self, traced: &Traced) -> bool {
        let key = (traced.protocol.clone(), traced.client.clone(), traced.destination.clone());
        if self.told.len() >= REPEATS {
            let now = now();
            self.told.retain(|_, at| now.saturating_duration_since(*at) < REPEAT_TIME);
            if self.told.len() >= REPEATS {
                self.told.clear();
            }
        }
        let before = self.told.insert(key, now());
        before.is_some_and(|at| at.elapsed() < REPEAT_TIME)
    }

    fn beyond_rate(&mut self) -> u64 {
        let name = self.table.table().name.to_owned();
        let table = nft_netlink::Table::new(nft_netlink::Family::Inet, &name);
        fitting(self.table.socket(), table).unwrap_or(0).saturating_sub(self.seen as u64)
    }
}

fn watched(scene: &Scene) -> Watched {
    let view = scene.view();
    let mut frontends = HashSet::new();
    for service in scene.state.services.iter() {
        frontends.extend(view.frontends(&service.name, None));
    }
    let mut frontends: Vec<_> = frontends.into_iter().collect();
    frontends.sort_unstable();
    Watched { frontends, service_cidrs: view.look.facts().service_cidrs.to_vec() }
}

fn refusal(traced: Traced) -> Line {
    let what = if traced.outcome == Outcome::Refused { What::Refused } else { What::Dropped };
    Line {
        what,
        protocol: traced.protocol,
        client: traced.client,
        client_name: traced.client_name,
        destination: traced.destination,
        service: traced.service.unwrap_or_else(|| "-".to_owned()),
        endpoint: traced.endpoint,
        endpoint_is_here: traced.endpoint_is_here,
        bytes: None,
        because: Some(traced.sentence),
    }
}

fn follow(options: &Options, common: &Common, mut scene: Scene, wanted: &Wanted) -> anyhow::Result<ExitCode> {
    let interest = Interest { changes: false, translated: only_translated(&scene), one_in: options.sample };
    let mut monitor = FlowMonitor::open(interest, buffer()).context("listening to conntrack")?;
    let mut refusals = if options.refused { Some(Refusals::begin(&scene)?) } else { None };
    let end = options.duration.map(|duration| now() + duration);
    let mut summary = Summary { sample: options.sample, ..Summary::default() };
    common.say("following; ends by Ctrl-C")?;
    loop {
        let left = end.map_or(TICK, |end| end.saturating_duration_since(now()).min(TICK));
        if left.is_zero() || nobody_reads() {
            break;
        }
        let mut sockets = vec![monitor.as_fd()];
        sockets.extend(refusals.as_ref().map(|refusals| refusals.monitor.as_fd()));
        netlink::wait(&sockets, left)?;
        let mut events: Vec<FlowEvent> = Vec::new();
        let taken = monitor.drain(AT_ONCE, |event| events.push(*event)).context("conntrack's events")?;
        let mut missed = taken.missed;
        let may_renew = scene.taken.elapsed() >= RENEW;
        let unknown = |event: &FlowEvent| {
            let to = &event.flow.original;
            event.flow.status & status::DNAT != 0
                && scene.view().frontend(to.protocol, to.destination, to.destination_port).is_none()
        };
        if may_renew && (refusals.is_some() || events.iter().any(unknown)) {
            // One that does not answer for a while answers the next time.
            if let Ok(renewed) = Scene::load(common) {
                scene = renewed;
            }
            scene.taken = now();
            if let Some(refusals) = &mut refusals {
                refusals.renew(&scene)?;
            }
        }
        let mut lines: Vec<Line> = events
            .iter()
            .filter_map(|event| line(What::of(event)?, &event.flow, event.carried, &scene.view()))
            .filter(|line| !options.refused || is_failure(line))
            .collect();
        if let Some(refusals) = &mut refusals {
            let (refused, lost) = refusals.take(&scene)?;
            lines.extend(refused);
            missed += lost;
        }
        lines.retain(|line| wanted.fits(line));
        print(&lines, common)?;
        summary.told += lines.len() as u64;
        if missed > 0 {
            summary.missed_events += missed;
            common.say(&format!("{missed} events were missed: the kernel had no room for them"))?;
        }
    }
    if let Some(refusals) = &mut refusals {
        summary.beyond_rate = refusals.beyond_rate();
    }
    finish(&summary, common)?;
    Ok(ExitCode::SUCCESS)
}

fn is_failure(line: &Line) -> bool {
    match line.what {
        What::Refused | What::Dropped => true,
        // One-way datagrams expect no answer.
        What::Unanswered => line.protocol != "UDP",
        What::Open | What::New | What::Ended | What::Reset => false,
    }
}

fn print(lines: &[Line], common: &Common) -> anyhow::Result<()> {
    let mut text = String::new();
    let look = common.look();
    let time = Time::from_micros(Timestamp::now().as_microsecond());
    for line in lines {
        if common.output() == Output::Json {
            text += &serde_json::to_string(&Record { time, line })?;
        } else {
            text += &in_words(line, time, look.colour);
        }
        text.push('\n');
    }
    if text.is_empty() { Ok(()) } else { common.print(&text) }
}

/// `11:22:33.123 new        TCP default/web:http 10.0.1.2:40000 (endpoint of …) -> 10.0.2.9:8080`
fn in_words(line: &Line, time: Time, colour: bool) -> String {
    let style = match line.what {
        What::New | What::Open => Style::Good,
        What::Ended => Style::Dim,
        What::Unanswered | What::Reset => Style::Warn,
        What::Refused | What::Dropped => Style::Bad,
    };
    let what = style.paint(&format!("{:<10}", line.what.name()), colour);
    let full = time.to_string();
    let clock = full.split_once('T').map_or(full.as_str(), |(_, clock)| clock);
    let clock = clock.get(..12).unwrap_or(clock);
    let name = line.client_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let mut text = format!("{clock} {what} {} {} {}{name} -> ", line.protocol, line.service, line.client);
    text += line.endpoint.as_deref().unwrap_or(&line.destination);
    if let Some(bytes) = line.bytes {
        text += &format!(", {bytes} bytes");
    }
    if let Some(because) = &line.because {
        text += &format!(": {because}");
    }
    text
}

fn finish(summary: &Summary, common: &Common) -> anyhow::Result<()> {
    if common.output() == Output::Json {
        return common
            .print(&format!("{}\n", serde_json::to_string(&serde_json::json!({ "summary": summary }))?));
    }
    let mut text = String::new();
    if summary.missed_events > 0 {
        text += &format!("{} events were missed: the kernel had no room for them\n", summary.missed_events);
    }
    if summary.beyond_rate > 0 {
        text +=
            &format!("{} first packets were not traced: more than {RATE} a second\n", summary.beyond_rate);
    }
    if summary.sample > 1 {
        text += &format!("one connection in {} was told\n", summary.sample);
    }
    if text.is_empty() { Ok(()) } else { common.print(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_the_service_and_port_that_are_asked_for() {
        let line = Line {
            what: What::New,
            protocol: "TCP".to_owned(),
            client: "10.0.0.1:4".to_owned(),
            client_name: None,
            destination: "172.30.0.1:80".to_owned(),
            service: "default/web:http".to_owned(),
            endpoint: Some("10.0.0.2:8080".to_owned()),
            endpoint_is_here: Some(true),
            bytes: Some(7),
            because: None,
        };
        let wanted = |name: &str, port: Option<&str>| {
            Wanted(Some((ServiceName::new("default", name), port.map(str::to_owned)))).fits(&line)
        };
        assert!(Wanted(None).fits(&line));
        assert!(wanted("web", None) && wanted("web", Some("http")) && wanted("web", Some("80")));
        assert!(!wanted("web", Some("https")) && !wanted("we", None) && !wanted("web", Some("0")));
        let long = Line {
            service: "shop/cart-of-the-customer:http-with-a-long-name".to_owned(),
            client: "10.0.0.1:40000".to_owned(),
            client_name: Some("endpoint of default/a-service-with-a-long-name".to_owned()),
            endpoint: Some("10.0.0.3:8080".to_owned()),
            bytes: None,
            ..line.clone()
        };
        let lines = [line.clone(), long];
        let at = |width| table(&lines, Look { width: Some(width), wide: false, colour: false });
        assert_eq!(
            at(160),
            "SERVICE                                          PROTO  CLIENT          NAME                                            ENDPOINT       BYTES\n\
             default/web:http                                 TCP    10.0.0.1:4                                                      10.0.0.2:8080      7\n\
             shop/cart-of-the-customer:http-with-a-long-name  TCP    10.0.0.1:40000  endpoint of default/a-service-with-a-long-name  10.0.0.3:8080      -\n"
        );
        assert_eq!(
            at(80),
            "SERVICE            PROTO  CLIENT          NAME              ENDPOINT       BYTES\n\
             default/web:http   TCP    10.0.0.1:4                        10.0.0.2:8080      7\n\
             shop/cart-of-the…  TCP    10.0.0.1:40000  endpoint of def…  10.0.0.3:8080      -\n"
        );
        let time = Time::from_micros(1_764_587_347_123_456);
        assert_eq!(
            in_words(&line, time, false),
            "11:09:07.123 new        TCP default/web:http 10.0.0.1:4 -> 10.0.0.2:8080, 7 bytes"
        );
    }
}
