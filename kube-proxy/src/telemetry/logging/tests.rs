use std::{sync::Mutex, time::Duration};

use super::*;

/// Renders every event that the control lets through.
struct Recorder {
    control: LogControl,
    format: LogFormat,
    lines: Arc<Mutex<Vec<String>>>,
}

impl<S: Subscriber> Layer<S> for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.control.wants(metadata)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now: Timestamp = "2026-11-21T01:02:03.000004Z".parse().expect("a timestamp");
        let line = match self.format {
            LogFormat::Text => text_line(event.metadata(), &fields, now, &TimeZone::UTC),
            LogFormat::Json => json_line(event.metadata(), &fields, now),
        };
        self.lines.lock().expect("one thread").push(line);
    }
}

fn settings(format: LogFormat, verbosity: u32, vmodule: &[(&str, u32)]) -> LoggingSettings {
    LoggingSettings {
        format,
        flush_frequency: Duration::from_secs(5),
        verbosity,
        vmodule: vmodule.iter().map(|&(pattern, level)| (pattern.to_owned(), level)).collect(),
        split_stream: false,
    }
}

fn record(settings: &LoggingSettings, log: impl FnOnce()) -> Vec<String> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let recorder =
        Recorder { control: LogControl::new(settings), format: settings.format, lines: Arc::clone(&lines) };
    tracing::subscriber::with_default(Registry::default().with(recorder), log);
    let mut lines = lines.lock().expect("one thread");
    std::mem::take(&mut *lines)
}

/// The line without its header, which holds this process's id and this file's line numbers.
fn body(line: &str) -> &str {
    line.split_once("] ").expect("a header").1.trim_end_matches('\n')
}

#[test]
fn text_lines_have_the_header_of_klog() {
    let lines = record(&settings(LogFormat::Text, 0, &[]), || {
        tracing::info!("a");
        tracing::warn!("b");
        tracing::error!("c");
    });
    let pid = format!("{:7}", std::process::id());
    for (line, letter) in lines.iter().zip(["I", "W", "E"]) {
        let start = format!("{letter}1121 01:02:03.000004 {pid} tests.rs:");
        assert!(line.starts_with(&start), "{line}");
    }
    assert_eq!(body(&lines[0]), "\"a\"");
}

#[test]
fn fields_are_written_as_klog_writes_them() {
    let lines = record(&settings(LogFormat::Text, 0, &[]), || {
        let error = io::Error::other("no \"such\" thing");
        tracing::info!(text = "x y", number = 3, yes = true, list = ?["10.0.0.1"], shown = %"v", family = ?Some(1), "Sync \"done\"");
        tracing::error!(error = %error, "Sync failed");
        tracing::info!(text = "one\ntwo", "lines");
    });
    assert_eq!(
        body(&lines[0]),
        r#""Sync \"done\"" text="x y" number=3 yes=true list=["10.0.0.1"] shown="v" family="Some(1)""#
    );
    assert_eq!(body(&lines[1]), r#""Sync failed" err="no \"such\" thing""#);
    assert_eq!(body(&lines[2]), "\"lines\" text=<\n\tone\n\ttwo\n >");
}

#[test]
fn what_a_terminal_would_obey_is_written_out() {
    let lines = record(&settings(LogFormat::Text, 0, &[]), || {
        tracing::info!(text = "one\n\u{1b}[2Jtwo\r\n\u{202e}three\u{7}", list = ?["a"], shown = %"[\u{1b}[31m]", "lines");
        tracing::info!(target: PLAIN, "FLAG: \u{1b}]0;x\u{7}");
    });
    assert_eq!(
        body(&lines[0]),
        "\"lines\" text=<\n\tone\n\t\\u{1b}[2Jtwo\n\t\\u{202e}three\\u{7}\n > list=[\"a\"] shown=[\\u{1b}[31m]"
    );
    assert_eq!(body(&lines[1]), "FLAG: \\u{1b}]0;x\\u{7}");
}

/// Notes which events would be written.
struct Counting(Bounds, Arc<Mutex<Vec<bool>>>);

impl<S: Subscriber> Layer<S> for Counting {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.1.lock().expect("one thread").push(admitted(&self.0, event.metadata()).is_some());
    }
}

#[test]
fn too_many_lines_of_one_kind_are_withheld_and_other_kinds_are_not() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let layer = Counting(Bounds::default(), Arc::clone(&seen));
    tracing::subscriber::with_default(Registry::default().with(layer), || {
        for number in 0..1000 {
            tracing::warn!(number, "Two Services claim one address");
        }
        tracing::error!("something else");
        for number in 0..1000 {
            tracing::debug!(number, "asked for by a verbosity");
        }
    });
    let seen = seen.lock().expect("one thread");
    let counts = [&seen[..1000], &seen[1000..1001], &seen[1001..]];
    let counts = counts.map(|part| part.iter().filter(|yes| **yes).count());
    // A slow machine lets a token or two come in between.
    assert!((50..100).contains(&counts[0]), "{}", counts[0]);
    assert_eq!((counts[1], counts[2]), (1, 1000));
}

#[test]
fn json_lines_have_the_keys_of_kubernetes() {
    let lines = record(&settings(LogFormat::Json, 2, &[]), || {
        tracing::debug!(services = 3, family = %"IPv4", "Syncing");
        tracing::error!(error = %io::Error::other("x"), "Failed");
    });
    let first: Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!(first["ts"], Value::from(1_795_222_923_000.004));
    assert_eq!((&first["msg"], &first["v"]), (&Value::from("Syncing"), &Value::from(2)));
    assert_eq!((&first["services"], &first["family"]), (&Value::from(3), &Value::from("IPv4")));
    assert!(first["caller"].as_str().is_some_and(|caller| caller.starts_with("logging/tests.rs:")));
    let second: Value = serde_json::from_str(&lines[1]).expect("JSON");
    assert_eq!(second["err"], Value::from("x"));
    assert_eq!(second.get("v"), None);
}

#[test]
fn verbosity_decides_which_levels_are_written() {
    for (verbosity, expected) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (8, 4), (9, 5)] {
        let lines = record(&settings(LogFormat::Text, verbosity, &[]), || {
            tracing::info!("information");
            tracing::debug!("debugging");
            tracing::trace!("tracing");
            tracing::debug!(target: "hyper::client", "a library's debugging");
            tracing::trace!(target: "hyper::client", "a library's tracing");
        });
        assert_eq!(lines.len(), expected, "{verbosity}: {lines:?}");
    }
}

#[test]
fn what_the_caller_says_better_is_not_said_twice() {
    let log = || {
        tracing::error!(target: "kube_client::client::builder", "failed with error client error (Connect)");
        tracing::error!(target: "kube_client::other", "something else");
    };
    assert_eq!(record(&settings(LogFormat::Text, 0, &[]), log).len(), 1);
    assert_eq!(record(&settings(LogFormat::Text, 6, &[]), log).len(), 2);
}

#[test]
fn modules_may_have_a_verbosity_of_their_own() {
    let log = || tracing::trace!("x");
    assert_eq!(record(&settings(LogFormat::Text, 0, &[("te?ts", 4)]), log).len(), 1);
    assert_eq!(record(&settings(LogFormat::Text, 9, &[("tes*", 0)]), log).len(), 0);
    assert_eq!(record(&settings(LogFormat::Text, 0, &[("*logging/tests", 4)]), log).len(), 1);
    assert_eq!(record(&settings(LogFormat::Text, 0, &[("other", 9)]), log).len(), 0);
}

#[test]
fn verbosity_changes_while_the_process_runs() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let control = LogControl::new(&settings(LogFormat::Text, 0, &[]));
    let recorder = Recorder { control: control.clone(), format: LogFormat::Text, lines: Arc::clone(&lines) };
    tracing::subscriber::with_default(Registry::default().with(recorder), || {
        let log = || tracing::trace!("x");
        log();
        control.set_verbosity(4);
        log();
        control.apply(&settings(LogFormat::Text, 4, &[("tests", 1)]));
        log();
    });
    assert_eq!(lines.lock().expect("one thread").len(), 1);
}

#[test]
fn plain_lines_have_no_quotes() {
    let lines = record(&settings(LogFormat::Text, 0, &[]), || {
        tracing::info!(target: PLAIN, "FLAG: --{}={:?}", "config", "/x");
    });
    assert_eq!(body(&lines[0]), "FLAG: --config=\"/x\"");
}
