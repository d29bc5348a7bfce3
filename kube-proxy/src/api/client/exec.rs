//! Credentials that a program hands out (client.authentication.k8s.io, `exec` in a kubeconfig).
//!
//! The program is run when there is no credential, when the one that there is has expired, and when the API server refused
//! it: as often as client-go would. It is never run twice at the same time, and it gets a time, a size and a pause when it
//! fails: nobody is there who would notice that it hangs.

use std::{
    env, fmt, io,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http::HeaderValue;
use jiff::Timestamp;
use kube::config::{ExecAuthCluster, ExecConfig, ExecInteractiveMode};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use rustls::sign::CertifiedKey;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    sync::Mutex,
};
use tower::BoxError;

use super::{identity::Identity, secret::bearer, stream::Connections, tls::private_key};

/// The versions of the interface; both have the same fields.
const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];
const LONGEST_RUN: Duration = Duration::from_secs(60);
/// Far more than a token and a chain of certificates.
const MOST_OUTPUT: u64 = 1 << 20;
/// Of what it says on the error stream, the last part.
const MOST_COMPLAINT: usize = 2048;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A program, and what it said last.
pub(super) struct Plugin {
    command: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    version: String,
    hint: Option<String>,
    longest_run: Duration,
    identity: Arc<Identity>,
    connections: Connections,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Credential>,
    number: u64,
    /// The last run failed: not before then, and why.
    failed: Option<(Instant, String)>,
    failures: u32,
    /// Credentials in a row that the server refused.
    refusals: u32,
    last_run: Option<Instant>,
}

struct Credential {
    token: Option<HeaderValue>,
    expires: Option<Timestamp>,
    refused: bool,
    /// It came with a certificate.
    certified: bool,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Plugin").field("command", &self.command).finish_non_exhaustive()
    }
}

/// What the program writes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: Option<String>,
    api_version: Option<String>,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    expiration_timestamp: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// What was made of it.
struct Fresh {
    token: Option<HeaderValue>,
    certified: Option<CertifiedKey>,
    expires: Option<Timestamp>,
}

#[expect(clippy::disallowed_methods, reason = "credentials age with the clock")]
fn clock() -> (Instant, Timestamp) {
    (Instant::now(), Timestamp::now())
}

/// 1 s, 2 s, 4 s ... 30 s.
fn pause(times: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << times.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
}

impl Plugin {
    /// `cluster` is told to the program where the kubeconfig wants that.
    pub(super) fn new(
        exec: &ExecConfig,
        cluster: &ExecAuthCluster,
        identity: &Arc<Identity>,
        connections: &Connections,
    ) -> anyhow::Result<Self> {
        let command = exec.command.as_deref().filter(|command| !command.is_empty());
        let command = command.context("exec: command must be specified to use an exec plugin")?;
        let version = exec.api_version.clone().unwrap_or_default();
        anyhow::ensure!(
            VERSIONS.contains(&version.as_str()),
            "exec plugin: invalid apiVersion {version:?}: {} and {} are known",
            VERSIONS[0],
            VERSIONS[1]
        );
        match &exec.interactive_mode {
            None if version == VERSIONS[0] => {
                anyhow::bail!(
                    "interactiveMode must be specified for {command} to use exec authentication plugin"
                )
            }
            Some(ExecInteractiveMode::Always) => {
                anyhow::bail!(
                    "exec plugin {command} cannot support interactive mode: there is nobody at the standard input"
                )
            }
            _ => {}
        }
        let mut spec = json!({ "interactive": false });
        if exec.provide_cluster_info {
            spec["cluster"] = serde_json::to_value(cluster).context("exec: cluster")?;
        }
        let info = json!({ "kind": "ExecCredential", "apiVersion": version, "spec": spec });
        let given = exec.env.iter().flatten();
        let mut variables: Vec<(String, String)> =
            given.filter_map(|pair| Some((pair.get("name")?.clone(), pair.get("value").cloned()?))).collect();
        variables.push(("KUBERNETES_EXEC_INFO".to_owned(), info.to_string()));
        Ok(Self {
            // A path is relative to the kubeconfig: the library saw to that. A bare name is looked for in $PATH.
            command: command.into(),
            arguments: exec.args.clone().unwrap_or_default(),
            variables,
            version,
            hint: exec.install_hint.clone(),
            longest_run: LONGEST_RUN,
            identity: Arc::clone(identity),
            connections: connections.clone(),
            state: Mutex::default(),
        })
    }

    /// The token for the next request, where there is one, and its number.
    pub(super) async fn credential(&self) -> Result<(u64, Option<HeaderValue>), BoxError> {
        // Whoever comes while it runs waits here, and uses what it brings.
        let mut state = self.state.lock().await;
        let (now, time) = clock();
        if let Some(current) = &state.current
            && !state.due(current, now, time)
        {
            return Ok((state.number, current.token.clone()));
        }
        if let Some((until, reason)) = &state.failed
            && now < *until
        {
            let left = until.duration_since(now).as_secs() + 1;
            return Err(format!("{reason} (it is run again in {left} s)").into());
        }
        state.last_run = Some(now);
        match self.run().await {
            Ok(fresh) => {
                state.number += 1;
                (state.failed, state.failures) = (None, 0);
                let (certified, before) = (fresh.certified.is_some(), state.current.as_ref());
                // One that an earlier run brought goes when this one brings none.
                if (certified || before.is_some_and(|before| before.certified))
                    && self.identity.set(fresh.certified)
                    && before.is_some()
                {
                    self.connections.renew();
                }
                let (token, expires) = (fresh.token, fresh.expires);
                state.current = Some(Credential { token: token.clone(), expires, refused: false, certified });
                Ok((state.number, token))
            }
            Err(error) => {
                let reason = format!("getting credentials: {error:#}");
                state.failures += 1;
                state.failed = Some((clock().0 + pause(state.failures), reason.clone()));
                Err(reason.into())
            }
        }
    }

    /// The server does not take it.
    pub(super) async fn refused(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.number == number
            && let Some(current) = &mut state.current
            && !current.refused
        {
            current.refused = true;
            state.refusals += 1;
        }
    }

    pub(super) async fn accepted(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.number == number {
            state.refusals = 0;
        }
    }

    async fn run(&self) -> anyhow::Result<Fresh> {
        let mut command = Command::new(&self.command);
        command.args(&self.arguments).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // With whatever it starts, so that all of it can be stopped.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| self.not_started(&error))?;
        let group = child.id();
        let ended = tokio::time::timeout(self.longest_run, outcome(&mut child)).await;
        let problem = match ended {
            Ok(Ok((status, output, _))) if status.success() => return self.understand(&output),
            Ok(Ok((status, _, complaint))) => {
                anyhow::bail!("exec: executable {} failed with {status}{complaint}", self.command.display())
            }
            Ok(Err(error)) => format!("exec: executable {}: {error}", self.command.display()),
            Err(_) => format!(
                "exec: executable {} did not end within {} s, and was stopped",
                self.command.display(),
                self.longest_run.as_secs()
            ),
        };
        if let Some(group) = group.and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        anyhow::bail!(problem)
    }

    fn not_started(&self, error: &io::Error) -> anyhow::Error {
        let hint = self.hint.as_deref().map(|hint| format!("; {}", hint.trim())).unwrap_or_default();
        let command = self.command.display();
        if error.kind() == io::ErrorKind::NotFound {
            let path = env::var("PATH").unwrap_or_default();
            return anyhow::anyhow!("exec: executable {command} not found (PATH is {path}){hint}");
        }
        anyhow::anyhow!("exec: executable {command} cannot be started: {error}{hint}")
    }

    /// JSON, or YAML, which Kubernetes' programs read as well.
    fn understand(&self, output: &[u8]) -> anyhow::Result<Fresh> {
        let name = self.command.display();
        let answer: Answer = serde_saphyr::from_slice(output)
            .map_err(|_| anyhow::anyhow!("exec: {name} did not write an ExecCredential"))?;
        let version = answer.api_version.unwrap_or_default();
        anyhow::ensure!(
            answer.kind.as_deref() == Some("ExecCredential") && version == self.version,
            "exec plugin is configured to use API version {}, plugin returned version {version}",
            self.version
        );
        let status = answer.status.context("exec plugin didn't return a status field")?;
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let (token, certificate, key) =
            (some(status.token), some(status.client_certificate_data), some(status.client_key_data));
        let certified = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let certified = private_key::certified(certificate.as_bytes(), key.as_bytes());
                Some(certified.with_context(|| format!("exec: {name}"))?)
            }
            (None, None) => None,
            _ => anyhow::bail!("exec plugin returned only certificate or key, not both"),
        };
        anyhow::ensure!(
            token.is_some() || certified.is_some(),
            "exec plugin didn't return a token or cert/key pair"
        );
        let token = token.map(|token| bearer(&token)).transpose();
        let expires = some(status.expiration_timestamp).map(|text| text.parse()).transpose();
        Ok(Fresh {
            token: token.with_context(|| format!("exec: the token of {name}"))?,
            certified,
            expires: expires.with_context(|| format!("exec: the expirationTimestamp of {name}"))?,
        })
    }
}

impl State {
    /// Whether another credential is wanted. One that was had within the last second is used whatever it says, and where the
    /// server refuses one after the other, the pauses grow.
    fn due(&self, current: &Credential, now: Instant, time: Timestamp) -> bool {
        let age = self.last_run.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        let expired = current.expires.is_some_and(|expires| time > expires);
        if current.refused && (self.refusals <= 1 || age >= pause(self.refusals)) {
            return true;
        }
        expired && age >= FIRST_PAUSE
    }
}

/// How it ended, what it wrote, and what it complained about.
async fn outcome(child: &mut Child) -> io::Result<(std::process::ExitStatus, Vec<u8>, String)> {
    let (output, complaint) = (child.stdout.take(), child.stderr.take());
    let output = async {
        let mut bytes = Vec::new();
        if let Some(output) = output {
            output.take(MOST_OUTPUT + 1).read_to_end(&mut bytes).await?;
        }
        if bytes.len() as u64 > MOST_OUTPUT {
            return Err(io::Error::other(format!("it wrote more than {MOST_OUTPUT} bytes, and was stopped")));
        }
        Ok(bytes)
    };
    let (status, output, complaint) = tokio::try_join!(child.wait(), output, last_words(complaint))?;
    Ok((status, output, complaint))
}

/// The end of what a program says on its error stream; all of it is read, so that it can go on.
async fn last_words(stream: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let (mut kept, mut part) = (Vec::new(), [0; 1024]);
    if let Some(mut stream) = stream {
        loop {
            let read = stream.read(&mut part).await?;
            if read == 0 {
                break;
            }
            kept.extend_from_slice(&part[..read]);
            let surplus = kept.len().saturating_sub(MOST_COMPLAINT);
            kept.drain(..surplus);
        }
    }
    let text = String::from_utf8_lossy(&kept);
    let text = text.trim();
    Ok(if text.is_empty() { String::new() } else { format!(": {text}") })
}

#[cfg(test)]
mod tests;
