//! A shell on a node of its own: an API server, kube-proxy for real, pods that answer, and whatever Services one likes to try.
//!
//! Everything lives in namespaces of this process and goes with it.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use integration::{
    lab::{Lab, Mode, Options},
    network::Place,
    playground,
};

#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, value_enum, default_value_t = ModeName::Nftables)]
    mode: ModeName,
    /// Carry out these commands of the shell instead of asking for some.
    #[arg(short = 'c', long)]
    commands: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeName {
    Nftables,
    Iptables,
    /// Where the kernel has IPVS.
    Ipvs,
}

const WELCOME: &str = "\
This is a shell on a node. kube-proxy runs, and follows an API server. Nothing here touches the machine.

  kubectl apply -f web.yaml          a Service of five pods (this kubectl is a small one; the real one, called by
                                     its path, finds KUBECONFIG: complete objects, apply --validate=false)
  kubectl get services               addresses, ports
  ask 172.30.0.1:80 5                 connects five times: who answers, and whom they see
  from client ask 192.168.50.1:30080   the same from another place: node2, client, pod-a to pod-e
  nft list ruleset                   what the kernel holds
  exit                               all of it goes
";

const SAMPLE: &str = "\
# Pods here have the labels app: web, pod: pod-a (to pod-e) and node: node (or node2). They answer on ports 8080, 8081, 9090 and 53.
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  selector:
    app: web
  ports:
  - name: http
    port: 80
    targetPort: 8080
    nodePort: 30080
";

fn main() -> Result<ExitCode> {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    // The shell's programs are links to this one.
    match name.rsplit('/').next() {
        Some("kubectl") => println!("{}", playground::kubectl(&words)?),
        Some("ask") => {
            let usage = "ask ADDRESS:PORT [TIMES]";
            let times = words.get(1).map_or(Ok(1), |times| times.parse()).context(usage)?;
            println!("{}", playground::ask(words.first().context(usage)?, times)?);
        }
        Some("from") => {
            let [place, program, arguments @ ..] = words.as_slice() else {
                anyhow::bail!("from PLACE COMMAND")
            };
            playground::enter(place)?;
            return Err(Command::new(program).args(arguments).exec()).with_context(|| program.clone());
        }
        _ => return play(&Arguments::parse()),
    }
    Ok(ExitCode::SUCCESS)
}

fn play(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "the playground makes network namespaces: run it as root");
    let mode = match arguments.mode {
        ModeName::Nftables => Mode::Nftables,
        ModeName::Iptables => Mode::IptablesNft,
        ModeName::Ipvs => Mode::Ipvs,
    };
    if mode == Mode::Ipvs {
        ensure!(std::path::Path::new("/proc/net/ip_vs").exists(), "this kernel has no IPVS (module ip_vs)");
    }
    let mut lab = Lab::start(Options { mode, ..Options::default() })?;
    lab.settle();
    let folder = std::env::temp_dir().join(format!("playground-{}", std::process::id()));
    let programs = folder.join("bin");
    fs::create_dir_all(&programs).with_context(|| format!("creating {}", folder.display()))?;
    let itself = std::env::current_exe().context("a program has a path")?;
    let path = std::env::var("PATH").unwrap_or_default();
    for name in ["kubectl", "ask", "from"] {
        symlink(&itself, programs.join(name)).with_context(|| format!("the command {name}"))?;
    }
    fs::write(folder.join("kubeconfig"), playground::kubeconfig())?;
    fs::write(folder.join("web.yaml"), SAMPLE)?;
    let node = lab.network.namespace(Place::Node);
    let mut shell = Command::new("bash");
    match &arguments.commands {
        Some(commands) => shell.args(["-e", "-c", commands]),
        None => {
            print!("{WELCOME}");
            shell.args(["--norc", "-i"])
        }
    };
    shell
        .current_dir(&folder)
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("PS1", "node# ")
        .env(playground::PLACES, playground::places(|place| lab.network.namespace(place).path()));
    let ended = node.spawn(&mut shell).and_then(|mut child| child.wait());
    drop(lab);
    drop(fs::remove_dir_all(&folder));
    let code = ended.context("the shell")?.code().unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1).into())
}
