//! Asks: one node as if one were there, several at once, a bounded number at a time.

use std::{
    io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _},
    process::{Child, ChildStderr, ChildStdout, ExitCode, ExitStatus, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    arguments::{FAILED, Options},
    kubectl::Kubectl,
    merge::{self, Answer},
    pods::Proxy,
};

/// How many nodes are asked at once: each costs the API server a connection that it carries to a kubelet.
const AT_ONCE: usize = 16;
/// What one node may answer, where several do; a dump of 10,000 Services with 10 endpoints each fits.
const MOST_BYTES: u64 = 256 << 20;

/// Its output is ours, as it comes.
pub(crate) fn one(
    kubectl: &Kubectl,
    options: &Options,
    proxy: &Proxy,
    verb: &[String],
) -> anyhow::Result<ExitCode> {
    let is_help = verb.iter().any(|word| word == "-h" || word == "--help");
    if is_help {
        let output =
            kubectl.exec(options, &proxy.pod, false, verb).output().with_context(|| kubectl.missing())?;
        let text = String::from_utf8_lossy(&output.stdout)
            .replace("Usage: kube-proxy ", "Usage: kubectl switchyard ");
        std::io::stdout().write_all(text.as_bytes())?;
        std::io::stderr().write_all(&output.stderr)?;
        return Ok(code(output.status));
    }
    // What is shown live wants a terminal, and to be told when somebody presses a key.
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let status =
        kubectl.exec(options, &proxy.pod, terminal, verb).status().with_context(|| kubectl.missing())?;
    Ok(code(status))
}

/// One answer made of all.
pub(crate) fn several(
    kubectl: &Kubectl,
    options: &Options,
    proxies: &[Proxy],
    verb: &[String],
) -> anyhow::Result<ExitCode> {
    let follows = verb.iter().any(|word| matches!(word.as_str(), "-f" | "--follow" | "--watch"));
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(Vec::with_capacity(proxies.len()));
    thread::scope(|scope| {
        // Those that never end are all asked at once, or the last would never be.
        let threads = if follows { proxies.len() } else { AT_ONCE.min(proxies.len()) };
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(proxy) = proxies.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let answer = if follows {
                        followed(kubectl, options, proxy, verb)
                    } else {
                        asked(kubectl, options, proxy, verb)
                    };
                    let answer =
                        answer.unwrap_or_else(|error| Answer::failed(&proxy.node, &format!("{error:#}")));
                    answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
                }
            });
        }
    });
    let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    answers.sort_by(|a, b| a.node.cmp(&b.node));
    let mut out = std::io::stdout().lock();
    if !follows {
        merge::print(&answers, merge::format(verb), &mut out)?;
    }
    out.flush()?;
    for answer in &answers {
        for line in
            answer.errors.lines().filter(|line| !line.starts_with("command terminated with exit code"))
        {
            writeln!(std::io::stderr(), "{}: {line}", answer.node)?;
        }
    }
    Ok(ExitCode::from(answers.iter().map(|answer| answer.code).max().unwrap_or(FAILED)))
}

fn started(
    kubectl: &Kubectl,
    options: &Options,
    proxy: &Proxy,
    verb: &[String],
) -> anyhow::Result<(Child, ChildStdout, ChildStderr)> {
    let mut command = kubectl.exec(options, &proxy.pod, false, verb);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| kubectl.missing())?;
    let (out, err) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
    Ok((child, out, err))
}

fn text(from: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came until it broke off is shown; the exit code says that it did.
    let _ = from.take(MOST_BYTES).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn asked(kubectl: &Kubectl, options: &Options, proxy: &Proxy, verb: &[String]) -> anyhow::Result<Answer> {
    let (mut child, out, err) = started(kubectl, options, proxy, verb)?;
    let (status, out, err) = thread::scope(|scope| {
        let out = scope.spawn(|| text(out));
        let err = scope.spawn(|| text(err));
        let status = waited(&mut child, options.patience());
        (status, out.join().unwrap_or_default(), err.join().unwrap_or_default())
    });
    let mut answer = Answer { node: proxy.node.clone(), code: 0, text: out, errors: err };
    match status? {
        Some(status) => answer.code = number(status),
        None => {
            answer.code = FAILED;
            let seconds = options.patience().as_secs();
            answer.errors.push_str(&format!("no answer within {seconds} s (--timeout gives it longer)\n"));
        }
    }
    Ok(answer)
}

/// Line by line, each with its node.
fn followed(kubectl: &Kubectl, options: &Options, proxy: &Proxy, verb: &[String]) -> anyhow::Result<Answer> {
    let (mut child, out, err) = started(kubectl, options, proxy, verb)?;
    let errors = thread::scope(|scope| {
        let errors = scope.spawn(|| text(err));
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let shown = writeln!(std::io::stdout(), "{}: {line}", proxy.node);
            if shown.is_err() {
                let _ = child.kill();
                break;
            }
        }
        errors.join().unwrap_or_default()
    });
    let code = number(child.wait()?);
    Ok(Answer { node: proxy.node.clone(), code, text: String::new(), errors })
}

/// `None`: it took too long, and was ended.
#[expect(clippy::disallowed_methods, reason = "how long a node may take is a matter of real time")]
fn waited(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// kubectl ends as the command in the pod did; by a signal, or unlike any verb, it failed itself.
fn number(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED)
}

fn code(status: ExitStatus) -> ExitCode {
    number(status).into()
}
