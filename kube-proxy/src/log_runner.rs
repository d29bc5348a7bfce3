//! `/go-runner` of kube-proxy's image: runs a command and keeps what it prints in a file.
//!
//! kops starts kube-proxy as `/go-runner --log-file=/var/log/kube-proxy.log --also-stdout kube-proxy …`. In our image
//! that name is a link to this program, which tells by its own name what it is asked for. Flags, defaults and the names of
//! rotated files are those of Kubernetes' kube-log-runner (component-base/logs/kube-log-runner).

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use clap::Parser;
use nix::{sys::signal, unistd::Pid};
use tokio::signal::unix::{SignalKind, signal as listen};

use crate::settings::go_text::{GoDuration, parse_quantity};

/// Runs a command and keeps its output in a file.
#[derive(Debug, Parser, PartialEq)]
#[command(name = "go-runner", disable_version_flag = true)]
struct Arguments {
    /// Save what the command prints in this file.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Print it as well; without --log-file it is only printed.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    also_stdout: bool,
    /// Treat the command's stderr like its stdout.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    redirect_stderr: bool,
    /// Begin a new file when this one reaches that size (500K, 10M, 1Gi); 0 is never.
    #[arg(long, default_value = "0", value_parser = parse_quantity, value_name = "QUANTITY")]
    log_file_size: u64,
    /// Remove files that were full longer ago than this (24h); 0 is never.
    #[arg(long, default_value = "0", value_parser = duration, value_name = "DURATION")]
    log_file_age: Duration,
    /// Accepted: here every line is in the file at once.
    #[arg(long, default_value = "0", value_parser = duration, value_name = "DURATION")]
    flush_interval: Duration,
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    GoDuration::parse(text)?.to_std().ok_or_else(|| format!("{text} is negative"))
}

/// Whether the program was started under the runner's name.
pub(crate) fn is_asked_for(name: Option<&OsStr>) -> bool {
    name.map(Path::new)
        .and_then(Path::file_name)
        .is_some_and(|name| name == "go-runner" || name == "kube-log-runner")
}

/// Ends with the command's exit code, or with 128 and the number of the signal that ended it.
pub(crate) fn run() -> anyhow::Result<u8> {
    // Go's flag package takes one dash or two.
    let arguments = Arguments::parse_from(two_dashes(std::env::args()));
    let mut command = Command::new(&arguments.command[0]);
    command.args(&arguments.command[1..]);
    let output = match &arguments.log_file {
        None => {
            if arguments.redirect_stderr {
                command.stderr(io::stdout());
            }
            None
        }
        Some(path) => {
            let file = LogFile::open(path, arguments.log_file_size, arguments.log_file_age)?;
            let (reader, writer) = io::pipe().context("a pipe")?;
            if arguments.redirect_stderr {
                command.stderr(writer.try_clone().context("a pipe")?);
            }
            command.stdout(writer);
            Some((reader, file))
        }
    };
    let child = command.stdin(Stdio::null()).spawn().with_context(|| arguments.command[0].clone())?;
    // It holds the pipe's other end, which must be nobody's but the command's.
    drop(command);
    let copier =
        output.map(|(reader, file)| std::thread::spawn(move || copy(reader, file, arguments.also_stdout)));
    let status = wait(child)?;
    // A grandchild that keeps the pipe open does not keep us.
    if let Some(copier) = copier {
        let mut looks = 0;
        while !copier.is_finished() && looks < 20 {
            std::thread::sleep(Duration::from_millis(50));
            looks += 1;
        }
    }
    Ok(code(status))
}

fn two_dashes(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut flags = true;
    arguments
        .enumerate()
        .map(|(place, argument)| {
            flags &= place == 0 || argument.starts_with('-');
            let single =
                flags && argument.starts_with('-') && !argument.starts_with("--") && argument.len() > 2;
            if single { format!("-{argument}") } else { argument }
        })
        .collect()
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Until the command ends; what would end us is passed on to it.
fn wait(mut child: Child) -> anyhow::Result<ExitStatus> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        let mut hangup = listen(SignalKind::hangup())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let mut quit = listen(SignalKind::quit())?;
        let mut ended = tokio::task::spawn_blocking(move || child.wait());
        loop {
            let passed_on = tokio::select! {
                status = &mut ended => return status.map_err(io::Error::other)?,
                _ = hangup.recv() => signal::Signal::SIGHUP,
                _ = interrupt.recv() => signal::Signal::SIGINT,
                _ = terminate.recv() => signal::Signal::SIGTERM,
                _ = quit.recv() => signal::Signal::SIGQUIT,
            };
            // It may have ended in this moment.
            let _ = signal::kill(pid, passed_on);
        }
    });
    status.context("waiting for the command")
}

/// A disk that is full must not stop the command: what cannot be written is lost.
fn copy(mut reader: io::PipeReader, mut file: LogFile, also_stdout: bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        let _ = file.write(&buffer[..length]);
        if also_stdout {
            let mut stdout = io::stdout().lock();
            let _ = stdout.write_all(&buffer[..length]).and_then(|()| stdout.flush());
        }
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    written: u64,
    /// 0 is no limit.
    limit: u64,
    age: Duration,
}

impl LogFile {
    fn open(path: &Path, limit: u64, age: Duration) -> anyhow::Result<Self> {
        let file = append(path).with_context(|| path.display().to_string())?;
        let written = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self { path: path.to_owned(), file, written, limit, age })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.limit > 0 && self.written > 0 && self.written + bytes.len() as u64 > self.limit {
            self.rotate()?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "the time is part of the file's name")]
    fn rotate(&mut self) -> io::Result<()> {
        let now = jiff::Zoned::now();
        fs::rename(&self.path, self.full(&now.strftime("%Y%m%d-%H%M%S").to_string()))?;
        self.file = append(&self.path)?;
        self.written = 0;
        if !self.age.is_zero() {
            self.remove_old(SystemTime::now());
        }
        Ok(())
    }

    /// `kube-proxy.log` becomes `kube-proxy-20260102-150405.log`.
    fn full(&self, when: &str) -> PathBuf {
        let mut name = self.path.file_stem().unwrap_or_default().to_owned();
        name.push(format!("-{when}"));
        if let Some(extension) = self.path.extension() {
            name.push(".");
            name.push(extension);
        }
        self.path.with_file_name(name)
    }

    fn remove_old(&self, now: SystemTime) {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let Ok(files) = fs::read_dir(folder.unwrap_or_else(|| Path::new("."))) else { return };
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for file in files.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let rest = name.strip_prefix(&stem).and_then(|rest| rest.strip_prefix('-'));
            let ours = rest.is_some_and(|rest| is_time(rest.split('.').next().unwrap_or_default()));
            let changed = file.metadata().and_then(|metadata| metadata.modified());
            let old =
                changed.is_ok_and(|changed| now.duration_since(changed).is_ok_and(|age| age > self.age));
            if ours && old {
                let _ = fs::remove_file(file.path());
            }
        }
    }
}

fn is_time(text: &str) -> bool {
    text.len() == 15
        && text
            .bytes()
            .enumerate()
            .all(|(place, byte)| if place == 8 { byte == b'-' } else { byte.is_ascii_digit() })
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o644).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(two_dashes(arguments.iter().map(|&argument| argument.to_owned())))
    }

    #[test]
    fn the_command_line_of_kops_is_understood() {
        let line = [
            "/go-runner",
            "--log-file=/var/log/kube-proxy.log",
            "--also-stdout",
            "/usr/local/bin/kube-proxy",
            "--conntrack-max-per-core=131072",
            "-v=2",
            "--",
        ];
        let arguments = parsed(&line).expect("understood");
        assert_eq!(arguments.log_file.as_deref(), Some(Path::new("/var/log/kube-proxy.log")));
        assert!(arguments.also_stdout && arguments.redirect_stderr);
        assert_eq!(arguments.command[..2], ["/usr/local/bin/kube-proxy", "--conntrack-max-per-core=131072"]);
        assert_eq!(arguments.command[2], "-v=2", "the command's own flags are not ours");
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let arguments =
            parsed(&["go-runner", "-log-file=x", "-redirect-stderr=false", "true"]).expect("understood");
        assert!(!arguments.redirect_stderr);
        assert!(parsed(&["go-runner", "-log-file-size=10M", "-log-file-age=24h", "true"]).is_ok());
        assert!(parsed(&["go-runner", "--log-file=x"]).is_err(), "no command");
        assert!(parsed(&["go-runner", "--log-file-size=-1", "true"]).is_err());
    }

    #[test]
    fn it_is_known_by_its_name() {
        assert!(is_asked_for(Some(OsStr::new("/go-runner"))));
        assert!(!is_asked_for(Some(OsStr::new("/usr/local/bin/kube-proxy"))));
        assert!(!is_asked_for(None));
    }

    #[test]
    fn a_full_file_is_put_aside_and_an_old_one_removed() {
        let folder = std::env::temp_dir().join(format!("go-runner-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("kube-proxy.log");
        let old = folder.join("kube-proxy-20200102-150405.log");
        fs::write(&old, "old").expect("written");
        fs::write(folder.join("kube-proxy-notes.log"), "not ours").expect("written");
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        File::options().append(true).open(&old).and_then(|file| file.set_modified(long_ago)).expect("aged");

        let mut log = LogFile::open(&path, 10, Duration::from_secs(3600)).expect("opened");
        log.write(b"12345678").expect("written");
        log.write(b"9abc").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"9abc");
        let mut names: Vec<String> = fs::read_dir(&folder)
            .expect("listed")
            .flatten()
            .map(|file| file.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(is_time(&names[0]["kube-proxy-".len()..][..15]), "{names:?}");
        assert_eq!(names[1..], ["kube-proxy-notes.log", "kube-proxy.log"]);
        fs::remove_dir_all(&folder).expect("removed");
    }
}
