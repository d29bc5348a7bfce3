//! The log: klog's text format or Kubernetes' JSON format, with klog's verbosities, out of `tracing` events.
//!
//! Verbosities stand for levels: information from 0, debugging from 2, tracing from 4. Libraries are quieter: their
//! debugging needs 6 and their tracing 9.

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    path::Path,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    subscriber::Interest,
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt as _},
};

use crate::{
    settings::{
        effective::{LogFormat, LoggingSettings, Settings},
        version,
    },
    telemetry::metrics,
};

mod bounds;

use bounds::Bounds;

/// Events of this target are written as they are, without quotes.
const PLAIN: &str = "kube_proxy::plain";
/// How the names of our own modules begin; everything else is a library.
const OWN: &[&str] =
    &["kube_proxy", "proxy_core", "backend_", "switchyard", "netlink", "nft_netlink", "ipvs_netlink"];

/// Says of every failed request what the caller says too, and better.
const REPEATS: &str = "kube_client::client::builder";

/// Starts the log. Errors only where one was started before.
pub(crate) fn init(
    settings: &LoggingSettings,
) -> Result<LogControl, tracing::subscriber::SetGlobalDefaultError> {
    let control = LogControl::new(settings);
    let klog = Klog {
        control: control.clone(),
        bounds: Bounds::default(),
        format: settings.format,
        split: settings.split_stream,
        time: TimeZone::system(),
    };
    tracing::subscriber::set_global_default(Registry::default().with(klog))?;
    Ok(control)
}

/// Which program this is and with which flags, as kube-proxy says it at its start.
pub(crate) fn announce(settings: &Settings) {
    if settings.logging.verbosity >= 1 {
        for (name, value) in &settings.flags {
            tracing::info!(target: PLAIN, "FLAG: --{name}={value:?}");
        }
    }
    tracing::info!(version = version::COMPATIBLE, switchyard = version::OWN, "Version info");
}

/// Changes how much is logged while the process runs.
#[derive(Debug, Clone)]
pub(crate) struct LogControl {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    verbosity: AtomicU32,
    modules: RwLock<Vec<(String, u32)>>,
}

impl LogControl {
    fn new(settings: &LoggingSettings) -> Self {
        Self {
            shared: Arc::new(Shared {
                verbosity: AtomicU32::new(settings.verbosity),
                modules: RwLock::new(settings.vmodule.clone()),
            }),
        }
    }

    pub(crate) fn set_verbosity(&self, verbosity: u32) {
        self.shared.verbosity.store(verbosity, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Takes over what may change at run time: verbosity and module patterns.
    pub(crate) fn apply(&self, settings: &LoggingSettings) {
        if let Ok(mut modules) = self.shared.modules.write() {
            modules.clone_from(&settings.vmodule);
        }
        self.set_verbosity(settings.verbosity);
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        verbosity_of(metadata) <= self.verbosity_for(metadata.file())
    }

    fn verbosity_for(&self, file: Option<&str>) -> u32 {
        let global = self.shared.verbosity.load(Ordering::Relaxed);
        let Ok(modules) = self.shared.modules.read() else { return global };
        if modules.is_empty() {
            return global;
        }
        let file = file.unwrap_or_default().trim_end_matches(".rs");
        let found = modules.iter().find(|(pattern, _)| {
            let whole = pattern.contains('/');
            matches_pattern(pattern, if whole { file } else { base_name(file) })
        });
        found.map_or(global, |&(_, verbosity)| verbosity)
    }
}

/// Whether a line is written now, and how many of its kind were not before it. What somebody asked for by a verbosity is
/// written whatever it is, and so is what stands once at the start.
#[expect(clippy::disallowed_methods, reason = "the moment of the line")]
fn admitted(bounds: &Bounds, metadata: &Metadata<'_>) -> Option<u64> {
    if *metadata.level() > Level::INFO || metadata.target() == PLAIN {
        return Some(0);
    }
    bounds.admit(metadata.callsite(), Instant::now())
}

/// From which verbosity on such an event is written.
fn verbosity_of(metadata: &Metadata<'_>) -> u32 {
    if metadata.target().starts_with(REPEATS) {
        return 6;
    }
    let own = OWN.iter().any(|prefix| metadata.target().starts_with(prefix));
    match (*metadata.level(), own) {
        (Level::ERROR | Level::WARN | Level::INFO, _) => 0,
        (Level::DEBUG, true) => 2,
        (Level::TRACE, true) => 4,
        (Level::DEBUG, false) => 6,
        (Level::TRACE, false) => 9,
    }
}

/// Shell patterns of `*` and `?`, as klog's `-vmodule` has them.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = &pattern[1..];
            text.char_indices()
                .map(|(at, _)| at)
                .chain([text.len()])
                .any(|at| matches_pattern(rest, &text[at..]))
        }
        Some(first) => text.chars().next().is_some_and(|c| {
            (first == '?' || first == c)
                && matches_pattern(&pattern[first.len_utf8()..], &text[c.len_utf8()..])
        }),
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

struct Klog {
    control: LogControl,
    bounds: Bounds,
    format: LogFormat,
    split: bool,
    time: TimeZone,
}

impl<S: Subscriber> Layer<S> for Klog {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Changing the verbosity rebuilds this cache.
        if self.control.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.control.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        None
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(withheld) = admitted(&self.bounds, event.metadata()) else {
            metrics::log_line_withheld();
            return;
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        if withheld > 0 {
            fields.list.push(("withheld", Shown::Json(withheld.into())));
        }
        let line = match self.format {
            LogFormat::Text => text_line(event.metadata(), &fields, Timestamp::now(), &self.time),
            LogFormat::Json => json_line(event.metadata(), &fields, Timestamp::now()),
        };
        let informational = *event.metadata().level() > Level::WARN;
        // A log that cannot be written has nowhere to say so.
        let _ = if self.split && informational {
            io::stdout().lock().write_all(line.as_bytes())
        } else {
            io::stderr().lock().write_all(line.as_bytes())
        };
    }
}

/// What an event says: its message, and its fields as JSON and as text.
#[derive(Default)]
struct Fields {
    message: String,
    list: Vec<(&'static str, Shown)>,
}

enum Shown {
    Json(Value),
    /// A `Debug` or `Display` text.
    Text(String),
}

impl Fields {
    fn push(&mut self, field: &Field, shown: Shown) {
        // Kubernetes' name of the field that holds an error.
        let name = if field.name() == "error" { "err" } else { field.name() };
        self.list.push((name, shown));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.push(field, Shown::Text(format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.push(field, Shown::Json(value.into()));
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Shown::Json(value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Shown::Json(value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Shown::Json(value.into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Shown::Json(value.into()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.push(field, Shown::Json(value.to_string().into()));
    }
}

/// `I1121 01:02:03.000004   12345 file.rs:123] "message" key="value"`
fn text_line(metadata: &Metadata<'_>, fields: &Fields, now: Timestamp, time: &TimeZone) -> String {
    let letter = match *metadata.level() {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        _ => 'I',
    };
    let now = now.to_zoned(time.clone());
    let mut line = format!(
        "{letter}{:02}{:02} {:02}:{:02}:{:02}.{:06} {:7} {}:{}] ",
        now.month(),
        now.day(),
        now.hour(),
        now.minute(),
        now.second(),
        now.subsec_nanosecond() / 1_000,
        std::process::id(),
        base_name(metadata.file().unwrap_or("?")),
        metadata.line().unwrap_or(0),
    );
    if metadata.target() == PLAIN {
        push_visible(&mut line, &fields.message);
    } else {
        let _ = write!(line, "{:?}", fields.message);
    }
    for (name, value) in &fields.list {
        let _ = write!(line, " {name}=");
        match value {
            Shown::Json(Value::String(text)) => push_text(&mut line, text),
            Shown::Json(other) => {
                let _ = write!(line, "{other}");
            }
            // Lists, maps and quoted strings speak for themselves.
            Shown::Text(text) if text.starts_with(['[', '{', '"']) && !text.contains('\n') => {
                push_visible(&mut line, text);
            }
            Shown::Text(text) => push_text(&mut line, text),
        }
    }
    line.push('\n');
    line
}

/// Quoted; several lines are set off as klog does.
fn push_text(line: &mut String, text: &str) {
    if text.contains('\n') {
        line.push_str("<\n");
        for part in text.lines() {
            line.push('\t');
            push_visible(line, part);
            line.push('\n');
        }
        line.push_str(" >");
    } else {
        let _ = write!(line, "{text:?}");
    }
}

/// As it is, but for what a terminal would obey: such characters are written out.
fn push_visible(line: &mut String, text: &str) {
    for c in text.chars() {
        // Besides control characters: those that turn the direction of writing, and the other ends of lines.
        let obeyed = c.is_control() && c != '\t'
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
        if obeyed {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

/// `{"ts":1763686923000.004,"caller":"src/file.rs:123","msg":"...","v":0,...}`, in that order.
fn json_line(metadata: &Metadata<'_>, fields: &Fields, now: Timestamp) -> String {
    let micros = now.as_microsecond();
    let caller = caller(metadata);
    let mut line = format!(
        "{{\"ts\":{}.{:03},\"caller\":{},\"msg\":{}",
        micros / 1_000,
        micros % 1_000,
        Value::from(caller),
        Value::from(fields.message.as_str()),
    );
    if *metadata.level() > Level::ERROR {
        let _ = write!(line, ",\"v\":{}", verbosity_of(metadata));
    }
    let mut seen = Map::new();
    for (name, value) in &fields.list {
        if seen.insert((*name).to_owned(), Value::Null).is_some() {
            continue;
        }
        let value = match value {
            Shown::Json(value) => value.clone(),
            Shown::Text(text) => Value::from(text.as_str()),
        };
        let _ = write!(line, ",{}:{value}", Value::from(*name));
    }
    line.push_str("}\n");
    line
}

/// The last two parts of the path, and the line.
fn caller(metadata: &Metadata<'_>) -> String {
    let path = Path::new(metadata.file().unwrap_or("?"));
    let parent = path.parent().and_then(Path::file_name).map(|name| format!("{}/", name.to_string_lossy()));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{}{name}:{}", parent.unwrap_or_default(), metadata.line().unwrap_or(0))
}

#[cfg(test)]
mod tests;
