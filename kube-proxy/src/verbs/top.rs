//! `top`: which Services, endpoints or clients have most connections, as it is now.

use std::{
    io::{IsTerminal as _, stdout},
    os::fd::AsFd as _,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use insight::{
    flows::top::{By, Row, Tally},
    table::{Cell, Look, Style, Table},
};
use netlink::flow_events::{FlowMonitor, Interest};
use serde::Serialize;

use super::{
    common::{Common, Output},
    flows::walk,
    watching::{Scene, TICK, buffer, nobody_reads, now, parse_duration},
};

const ACCOUNTING: &str = "/proc/sys/net/netfilter/nf_conntrack_acct";
const AT_ONCE: u64 = 10_000;
/// How often names are asked for again.
const RENEW: Duration = Duration::from_secs(10);

/// Show which Services, endpoints or clients have most connections
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What a row is
    #[arg(value_enum, default_value_t = What::Services)]
    what: What,
    /// Measure once, print and end
    #[arg(long)]
    once: bool,
    /// How long to measure for each picture
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    interval: Duration,
    /// So many rows
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Services,
    Endpoints,
    Clients,
}

/// One picture.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Picture {
    api_version: &'static str,
    kind: &'static str,
    /// How long it was measured; numbers of rows are for this time, but for open connections.
    seconds: f64,
    rows: Vec<Row>,
    /// Rows that are not shown.
    more_rows: usize,
    /// Events that the kernel had no room for.
    missed_events: u64,
    /// Whether conntrack counts bytes (`net.netfilter.nf_conntrack_acct`).
    bytes_are_counted: bool,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    ensure!(
        (Duration::from_millis(100)..=Duration::from_secs(600)).contains(&options.interval),
        "--interval must be from 100ms to 10m"
    );
    ensure!(
        options.once || common.output() != Output::Yaml,
        "pictures that come one by one are JSON: -o json"
    );
    let mut scene = Scene::load(common)?;
    let interest = Interest { changes: false, translated: !scene.is_ipvs(), one_in: 1 };
    let mut monitor = FlowMonitor::open(interest, buffer()).context("listening to conntrack")?;
    let mut tally = Tally::new(match options.what {
        What::Services => By::Services,
        What::Endpoints => By::Endpoints,
        What::Clients => By::Clients,
    });
    // What connections carried before does not count.
    count_open(&mut tally, &scene)?;
    tally.rows(&scene.view());
    common.say(&format!("measuring for {:?}", options.interval))?;
    loop {
        let begun = now();
        let mut missed_events = 0;
        loop {
            let left = options.interval.saturating_sub(begun.elapsed());
            netlink::wait(&[monitor.as_fd()], left.min(TICK))?;
            let view = scene.view();
            let taken =
                monitor.drain(AT_ONCE, |event| tally.event(event, &view)).context("conntrack's events")?;
            missed_events += taken.missed;
            // What is there already is taken, but only for so long.
            let over = begun.elapsed().saturating_sub(options.interval);
            if left.is_zero() && (taken.events < AT_ONCE || over > options.interval) {
                break;
            }
        }
        count_open(&mut tally, &scene)?;
        let mut rows = tally.rows(&scene.view());
        let more_rows = rows.len().saturating_sub(options.rows);
        rows.truncate(options.rows);
        let picture = Picture {
            api_version: "insight.switchyard.dev/v1",
            kind: "Top",
            seconds: begun.elapsed().as_secs_f64(),
            rows,
            more_rows,
            missed_events,
            bytes_are_counted: std::fs::read_to_string(ACCOUNTING).is_ok_and(|text| text.trim() == "1"),
        };
        show(&picture, options, common)?;
        if options.once || nobody_reads() {
            return Ok(ExitCode::SUCCESS);
        }
        if scene.taken.elapsed() >= RENEW {
            if let Ok(renewed) = Scene::load(common) {
                scene = renewed;
            }
            scene.taken = now();
        }
    }
}

fn count_open(tally: &mut Tally, scene: &Scene) -> anyhow::Result<()> {
    tally.begin_walk();
    let view = scene.view();
    walk(scene, |flow, carried| tally.open(flow, carried, &view))
}

fn show(picture: &Picture, options: &Options, common: &Common) -> anyhow::Result<()> {
    if common.output() == Output::Json && !options.once {
        return common.print(&format!("{}\n", serde_json::to_string(picture)?));
    }
    common.answer(picture, |look| {
        // From the upper left corner on, and nothing below.
        let clear = if !options.once && stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        format!("{clear}{}", table(picture, options.what, look))
    })
}

fn table(picture: &Picture, what: What, look: Look) -> String {
    let seconds = picture.seconds.max(0.001);
    let mut table = Table::new().text("SERVICE", 12);
    table = match what {
        What::Services => table,
        What::Endpoints => table.column("ENDPOINT"),
        What::Clients => table.column("CLIENT").text("NAME", 8),
    };
    table = table.number("NEW/S").number("OPEN").number("BYTES/S").number("FAILED").number("RESET");
    for row in &picture.rows {
        let bad =
            |count: u64| Cell::new(count.to_string(), if count > 0 { Style::Bad } else { Style::Plain });
        let mut cells = vec![Cell::from(row.service.clone())];
        if what != What::Services {
            cells.push(row.who.clone().unwrap_or_default().into());
        }
        if what == What::Clients {
            cells.push(row.name.clone().unwrap_or_default().into());
        }
        let bytes =
            if picture.bytes_are_counted { short(row.bytes as f64 / seconds) } else { "-".to_owned() };
        cells.extend([
            format!("{:.1}", row.new as f64 / seconds).into(),
            row.open.to_string().into(),
            bytes.into(),
            bad(row.failed_handshakes),
            bad(row.resets),
        ]);
        table.row(cells);
    }
    let mut text =
        if table.is_empty() { "no connections of Services\n".to_owned() } else { table.print(look) };
    if picture.more_rows > 0 {
        text += &format!("and {} more (--rows)\n", picture.more_rows);
    }
    if picture.missed_events > 0 {
        text += &format!("{} events were missed: the kernel had no room for them\n", picture.missed_events);
    }
    if !picture.bytes_are_counted {
        text += "bytes are not counted: net.netfilter.nf_conntrack_acct is 0\n";
    }
    text
}

/// `512`, `1.5k`, `20M`: three digits or so.
fn short(number: f64) -> String {
    let mut number = number;
    for unit in ["", "k", "M", "G"] {
        if number < 1000.0 {
            let digits = usize::from(!unit.is_empty() && number < 10.0);
            return format!("{number:.digits$}{unit}");
        }
        number /= 1000.0;
    }
    format!("{number:.0}T")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, text) in
            [(0.0, "0"), (999.0, "999"), (1500.0, "1.5k"), (20_000_000.0, "20M"), (3e15, "3000T")]
        {
            assert_eq!(short(number), text);
        }
    }

    fn row(service: &str, who: Option<&str>, new: u64, bad: u64) -> Row {
        Row {
            service: service.to_owned(),
            who: who.map(str::to_owned),
            name: who.map(|_| "endpoint of default/a-service-with-a-long-name".to_owned()),
            new,
            open: 7,
            bytes: 3_000_000,
            failed_handshakes: bad,
            resets: bad,
        }
    }

    fn picture(who: Option<&str>) -> Picture {
        Picture {
            api_version: "v",
            kind: "Top",
            seconds: 2.0,
            rows: vec![
                row("shop/cart-of-the-customer:http-with-a-long-name", who, 2468, 0),
                row("default/web:http", who, 1, 3),
            ],
            more_rows: 4,
            missed_events: 9,
            bytes_are_counted: true,
        }
    }

    /// At 80 and at 160 columns.
    #[test]
    fn the_table_is_cut_to_the_terminal() {
        let at = |width, what, who| {
            table(&picture(who), what, Look { width: Some(width), wide: false, colour: false })
        };
        assert_eq!(
            at(80, What::Services, None),
            "SERVICE                                      NEW/S  OPEN  BYTES/S  FAILED  RESET\n\
             shop/cart-of-the-customer:http-with-a-lon…  1234.0     7     1.5M       0      0\n\
             default/web:http                               0.5     7     1.5M       3      3\n\
             and 4 more (--rows)\n\
             9 events were missed: the kernel had no room for them\n"
        );
        let wide = at(160, What::Clients, Some("10.0.1.2"));
        assert_eq!(
            wide.lines().take(2).collect::<Vec<_>>(),
            [
                "SERVICE                                          CLIENT    NAME                                             NEW/S  OPEN  BYTES/S  FAILED  RESET",
                "shop/cart-of-the-customer:http-with-a-long-name  10.0.1.2  endpoint of default/a-service-with-a-long-name  1234.0     7     1.5M       0      0",
            ]
        );
        let narrow = at(80, What::Clients, Some("10.0.1.2"));
        assert!(narrow.lines().take(3).all(|line| line.chars().count() <= 80), "{narrow}");
    }
}
