//! What all verbs share: where the state comes from, of which namespace, and how the answer is printed.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use insight::{
    engine::{self, Engine},
    state::{Filter, State},
    table::Look,
};
use proxy_core::model::ServiceName;
use serde::Serialize;

use crate::{
    serve::insight::{PROTOCOL, Request},
    settings::insight::socket,
};

/// How long the running process may be silent: it answers between two syncs, and the first one may take a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// Options that every verb takes.
#[derive(Debug, Args)]
pub(crate) struct CommonOptions {
    /// How to print: a table for people, a wider one, or data for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Services of this namespace (default, where one must be chosen)
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Services of all namespaces
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Where the running process answers [default: as the flag --insight-socket of the process has it by default]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Wide,
    Json,
    Yaml,
}

/// What all verbs share, of one call.
#[derive(Debug)]
pub(crate) struct Common {
    output: Output,
    namespace: Option<String>,
    all_namespaces: bool,
    socket: Option<PathBuf>,
    file: Option<PathBuf>,
}

impl Common {
    pub(super) fn new(options: CommonOptions, file: Option<&Path>) -> Self {
        Self {
            output: options.output,
            namespace: options.namespace,
            all_namespaces: options.all_namespaces,
            socket: options.socket.or_else(|| socket(None)),
            file: file.map(Path::to_owned),
        }
    }

    /// Over a file, for a test.
    #[cfg(test)]
    pub(super) fn of_file(file: &Path) -> Self {
        Self {
            output: Output::Table,
            namespace: None,
            all_namespaces: false,
            socket: None,
            file: Some(file.to_owned()),
        }
    }

    /// The same over a file.
    pub(super) fn over(&self, file: &Path) -> Self {
        Self {
            namespace: self.namespace.clone(),
            socket: None,
            file: Some(file.to_owned()),
            output: self.output,
            all_namespaces: self.all_namespaces,
        }
    }

    /// The state of the node: from the running process, or from the file that is replayed (whole then, whatever the
    /// filter says: a verb must choose for itself).
    pub(crate) fn state(&self, filter: Filter) -> anyhow::Result<State> {
        if let Some(file) = &self.file {
            let name = file.display();
            let opened = File::open(file).with_context(|| format!("{name}"))?;
            return State::read(BufReader::new(opened)).with_context(|| format!("{name}"));
        }
        State::read(BufReader::new(self.ask(filter)?)).context("the answer of the running process")
    }

    /// The lines of the state as the running process sends them.
    pub(crate) fn ask(&self, filter: Filter) -> anyhow::Result<UnixStream> {
        let path =
            self.socket.as_ref().ok_or_else(|| anyhow!("no socket to ask at: give one with --socket"))?;
        let connect = || -> io::Result<UnixStream> {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let request = serde_json::to_string(&Request { protocol: PROTOCOL, state: filter })?;
            writeln!(stream, "{request}")?;
            Ok(stream)
        };
        connect().with_context(|| {
            format!(
                "no kube-proxy of Switchyard answers at {}: run this on the node, in its pod, as root; \
                 or name the socket with --socket (flag --insight-socket of the running process)",
                path.display()
            )
        })
    }

    /// Writes the lines of the whole state as they come. An answer without its end is an error.
    pub(super) fn copy(&self, to: &mut dyn io::Write) -> anyhow::Result<()> {
        let mut from = BufReader::new(self.ask(Filter::default())?);
        let (mut line, mut last) = (Vec::new(), Vec::new());
        while from.read_until(b'\n', &mut line).context("the answer of the running process")? > 0 {
            to.write_all(&line).context("writing")?;
            std::mem::swap(&mut line, &mut last);
            line.clear();
        }
        to.flush().context("writing")?;
        let last: serde_json::Value = serde_json::from_slice(&last).unwrap_or_default();
        match (last["kind"].as_str(), last["error"].as_str()) {
            (Some("End"), _) => Ok(()),
            (_, Some(error)) => Err(anyhow!("the running process: {error}")),
            _ => Err(anyhow!("the answer of the running process was cut")),
        }
    }

    /// The engine over a state: what it has installed is what is intended.
    #[expect(clippy::disallowed_methods, reason = "nothing depends on the time")]
    pub(crate) fn engine(&self, state: &State) -> Engine {
        engine::engine(state, Instant::now())
    }

    /// Whether the state is that of the node on which this runs now, whose kernel may be read.
    pub(crate) fn is_live(&self) -> bool {
        self.file.is_none()
    }

    pub(crate) fn output(&self) -> Output {
        self.output
    }

    /// The namespace whose Services are meant; `None`: all.
    pub(crate) fn namespace(&self) -> Option<&str> {
        if self.all_namespaces { None } else { Some(self.namespace.as_deref().unwrap_or("default")) }
    }

    /// A Service by `namespace/name`, or by its name in the namespace that was chosen.
    pub(crate) fn service(&self, text: &str) -> ServiceName {
        match text.split_once('/') {
            Some((namespace, name)) => ServiceName::new(namespace, name),
            None => ServiceName::new(self.namespace.as_deref().unwrap_or("default"), text),
        }
    }

    /// How tables are printed.
    pub(crate) fn look(&self) -> Look {
        let terminal = io::stdout().is_terminal();
        Look {
            width: if terminal { width() } else { None },
            wide: self.output == Output::Wide,
            colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Prints a text as it is.
    pub(crate) fn print(&self, text: &str) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
    }

    /// Tells who waits what is going on; not part of the answer.
    pub(crate) fn say(&self, text: &str) -> anyhow::Result<()> {
        if io::stderr().is_terminal() {
            writeln!(io::stderr(), "{text}").context("standard error")?;
        }
        Ok(())
    }

    /// Prints an answer as data, or, where people are to read it, as the text that is made then.
    pub(crate) fn answer(
        &self,
        data: &impl Serialize,
        text: impl FnOnce(Look) -> String,
    ) -> anyhow::Result<()> {
        match self.output {
            Output::Table | Output::Wide => self.print(&text(self.look())),
            Output::Json => self.print(&format!("{}\n", serde_json::to_string_pretty(data)?)),
            Output::Yaml => self.print(&serde_saphyr::to_string(data).map_err(|error| anyhow!("{error}"))?),
        }
    }
}

/// The state of one Service, with those that have addresses that it asks for.
pub(crate) fn state_of_one(common: &Common, name: &ServiceName) -> anyhow::Result<State> {
    common.state(Filter { service: Some(name.to_string()), ..Filter::default() })
}

/// Columns of the terminal: what the environment says goes before what the terminal says.
fn width() -> Option<usize> {
    let given = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let asked = || rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    given.or_else(asked).filter(|columns| *columns > 0)
}
