//! A real kube-apiserver with its etcd, from the folder that KUBEBUILDER_ASSETS names, on loopback.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt;

/// May do anything.
const ADMINISTRATOR: &str = "conformance";
/// Of the user that Kubernetes' own role for kube-proxy is bound to, and no more.
const PROXY: &str = "kube-proxy";
/// Tries, a tenth of a second apart, until a server must be up.
const PATIENCE: usize = 600;

/// Both processes and their folder; all go when this is dropped.
#[derive(Debug)]
pub struct RealApiServer {
    folder: PathBuf,
    port: u16,
    /// etcd first.
    processes: Vec<Child>,
}

/// How a server differs from one for a handful of objects.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// For cluster IPs.
    pub service_range: &'a str,
    pub node_ports: &'a str,
    /// What an earlier server's etcd held ([`RealApiServer::stop_and_keep`]), to begin with a copy of.
    pub data: Option<&'a Path>,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self { service_range: "10.0.0.0/16", node_ports: "30000-32767", data: None }
    }
}

/// The folder of the programs, where one is named.
pub fn assets() -> Option<PathBuf> {
    std::env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty()).map(PathBuf::from)
}

impl RealApiServer {
    /// Starts one, or answers `None` where no binaries are installed.
    pub fn start_if_installed() -> Result<Option<Self>> {
        assets().map(|assets| Self::start(&assets, Settings::default())).transpose()
    }

    /// Starts one on loopback of the calling thread's network namespace.
    pub fn start(assets: &Path, settings: Settings<'_>) -> Result<Self> {
        let [port, etcd_client, etcd_peer] = free_ports()?;
        let folder = std::env::temp_dir().join(format!("apiserver-{}-{port}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        interrupt::remember_folder(&folder);
        let mut server = Self { folder, port, processes: Vec::new() };
        server.write_credentials()?;
        if let Some(data) = settings.data {
            copy_folder(data, &server.data())?;
        }
        let etcd_url = format!("http://127.0.0.1:{etcd_client}");
        let peer_url = format!("http://127.0.0.1:{etcd_peer}");
        server.spawn(
            &assets.join("etcd"),
            "etcd",
            &[
                format!("--data-dir={}", server.data().display()),
                format!("--listen-client-urls={etcd_url}"),
                format!("--advertise-client-urls={etcd_url}"),
                format!("--listen-peer-urls={peer_url}"),
                format!("--initial-advertise-peer-urls={peer_url}"),
                format!("--initial-cluster=default={peer_url}"),
                "--unsafe-no-fsync=true".to_owned(),
            ],
        )?;
        wait_for("etcd", || TcpStream::connect(("127.0.0.1", etcd_client)).is_ok())?;
        let file = |name: &str| server.folder.join(name).display().to_string();
        let arguments = [
            format!("--etcd-servers={etcd_url}"),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--cert-dir={}", file("certificates")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            format!("--service-cluster-ip-range={}", settings.service_range),
            format!("--service-node-port-range={}", settings.node_ports),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("accounts.key")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        server.spawn(&assets.join("kube-apiserver"), "kube-apiserver", &arguments)?;
        let ready = wait_for("kube-apiserver", || server.is_ready());
        ready.with_context(|| server.last_words("kube-apiserver"))?;
        Ok(server)
    }

    /// For its administrator.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_of(ADMINISTRATOR)
    }

    /// With the rights of kube-proxy in a cluster (role `system:node-proxier`).
    pub fn proxy_kubeconfig(&self) -> String {
        self.kubeconfig_of(PROXY)
    }

    /// Ends both processes in good order and moves what etcd holds to `folder`.
    pub fn stop_and_keep(mut self, folder: &Path) -> Result<()> {
        for process in self.processes.iter_mut().rev() {
            let id = i32::try_from(process.id()).context("a process id")?;
            kill(Pid::from_raw(id), Signal::SIGTERM).context("ending the API server")?;
            process.wait()?;
            interrupt::forget(process.id());
        }
        self.processes.clear();
        fs::rename(self.data(), folder).with_context(|| format!("moving etcd's data to {}", folder.display()))
    }

    fn data(&self) -> PathBuf {
        self.folder.join("etcd")
    }

    fn kubeconfig_of(&self, token: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: real\n  cluster:\n    server: https://127.0.0.1:{}\n    \
             insecure-skip-tls-verify: true\ncontexts:\n- name: real\n  context: {{cluster: real, user: user, namespace: default}}\n\
             current-context: real\nusers:\n- name: user\n  user:\n    token: {token}\n",
            self.port
        )
    }

    fn write_credentials(&self) -> Result<()> {
        let mut tokens = File::create(self.folder.join("tokens.csv"))?;
        writeln!(tokens, "{ADMINISTRATOR},admin,1,\"system:masters\"\n{PROXY},system:kube-proxy,2")?;
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(self.folder.join("accounts.key"))
            .arg("2048")
            .stderr(Stdio::null())
            .status()
            .context("running openssl")?;
        if made.success() { Ok(()) } else { bail!("openssl genrsa failed: {made}") }
    }

    fn spawn(&mut self, program: &Path, name: &str, arguments: &[String]) -> Result<()> {
        let log = File::create(self.folder.join(format!("{name}.log")))?;
        let child = Command::new(program)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        interrupt::remember(child.id());
        self.processes.push(child);
        Ok(())
    }

    /// The end of a program's log.
    fn last_words(&self, name: &str) -> String {
        let log = fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("its log ends:\n{}", lines[lines.len().saturating_sub(5)..].join("\n"))
    }

    /// Asks `/readyz` through openssl, so that this needs no TLS of its own.
    fn is_ready(&self) -> bool {
        let connect = format!("127.0.0.1:{}", self.port);
        let spawned = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &connect])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = spawned else { return false };
        let request = format!(
            "GET /readyz HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMINISTRATOR}\r\nConnection: close\r\n\r\n"
        );
        let mut answer = String::new();
        if let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) {
            drop(stdin.write_all(request.as_bytes()));
            drop(stdout.read_to_string(&mut answer));
        }
        drop(child.kill());
        drop(child.wait());
        answer.starts_with("HTTP/1.1 200")
    }
}

impl Drop for RealApiServer {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            drop(process.kill());
            drop(process.wait());
            interrupt::forget(process.id());
        }
        drop(fs::remove_dir_all(&self.folder));
        interrupt::forget_folder(&self.folder);
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().context("running cp")?;
    if copied.success() { Ok(()) } else { bail!("copying {}: {copied}", from.display()) }
}

/// Ports below those that the kernel hands out (`ip_local_port_range` begins at 32768): nobody gets one by chance between
/// now and the start of the server.
fn free_ports() -> Result<[u16; 3]> {
    const LOWEST: u32 = 20_000;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let first = std::process::id() * 3;
    let ports = (first..first + 12_000).map(|number| (LOWEST + number % 12_000) as u16);
    let ports: Vec<u16> = ports.filter(free).take(3).collect();
    ports.try_into().map_err(|_| anyhow::anyhow!("no free ports from {LOWEST} on"))
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    for _ in 0..PATIENCE {
        if ready() {
            return Ok(());
        }
        sleep(Duration::from_millis(100));
    }
    bail!("{what} was not ready in time")
}
