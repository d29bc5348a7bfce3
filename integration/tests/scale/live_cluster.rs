//! `scale cluster` against an API server and a real proxy; whatever happens to it, nothing of it stays.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::Duration;

use integration::apiserver::ApiServer;
use integration::network::Namespace;
use integration::scale::results::Results;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::folder;

/// One node with an API server and a proxy in a network namespace.
struct Cluster {
    node: Namespace,
    api: ApiServer,
    proxy: Child,
    folder: PathBuf,
}

impl Cluster {
    fn start(name: &str) -> Self {
        let folder = folder(name);
        let node = Namespace::create("node").expect("a namespace; run as root");
        node.ip("link add eth0 type veth peer name eth1\nlink set eth0 up\nlink set eth1 up\naddr add 192.168.50.1/24 dev eth0\n", &[])
            .expect("an interface");
        let address = "127.0.0.1:6443".parse().expect("an address");
        let api = node.run(|| ApiServer::start(address)).expect("inside").expect("a server");
        api.load([json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.50.1"}]}})])
            .expect("a node");
        fs::write(folder.join("kubeconfig"), api.kubeconfig()).expect("the folder is writable");
        let log = fs::File::create(folder.join("log")).expect("the folder is writable");
        let mut command = Command::new(integration::lab::program().expect("kube-proxy is built"));
        command.args(["--proxy-mode", "nftables", "--hostname-override", "node-a", "--kubeconfig"]);
        command.arg(folder.join("kubeconfig")).stderr(log);
        let proxy = node.spawn(&mut command).expect("kube-proxy starts");
        let ready = (0..1_200).any(|_| {
            sleep(Duration::from_millis(50));
            let mut ask = Command::new("curl");
            node.output(ask.args(["-sf", "http://127.0.0.1:10249/proxyMode"])).is_ok()
        });
        assert!(ready, "{}", fs::read_to_string(folder.join("log")).unwrap_or_default());
        Self { node, api, proxy, folder }
    }

    fn command(&self, seconds: &str) -> Command {
        self.command_for("5", seconds)
    }

    fn command_for(&self, services: &str, seconds: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scale"));
        command.args([
            "cluster",
            "--services",
            services,
            "--endpoints",
            "3",
            "--churn",
            "20",
            "--repetitions",
            "1",
        ]);
        command.args(["--metrics", "node-a=http://127.0.0.1:10249", "--cluster-ips", "10.96.0.0/24"]);
        command.args(["--churn-seconds", seconds, "--kubeconfig"]).arg(self.folder.join("kubeconfig"));
        command.arg("--out").arg(&self.folder);
        command
    }

    /// What `scale` says, and whether it succeeded.
    fn say(&self, command: &mut Command) -> (bool, String) {
        let output = self.node.run(|| command.output()).expect("inside").expect("scale starts");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn left(&self) -> [usize; 3] {
        ["Service", "EndpointSlice", "Namespace"].map(|kind| self.api.count(kind))
    }

    /// Starts it and waits until it has made all its Services.
    fn begin(&self) -> Child {
        let child = self.node.run(|| self.command("60").spawn()).expect("inside").expect("scale starts");
        let made = (0..1_200).any(|_| {
            sleep(Duration::from_millis(50));
            self.left() == [5, 5, 1]
        });
        assert!(made, "{:?}", self.left());
        child
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.proxy.kill());
        drop(self.proxy.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a process id")), signal).expect("it runs");
}

#[test]
fn a_nodes_propagation_is_read_from_its_metrics_and_nothing_stays() {
    let cluster = Cluster::start("live");
    let (done, text) = cluster.say(&mut cluster.command("3"));
    assert!(done, "{text}");
    assert_eq!(cluster.left(), [0, 0, 0]);
    let results = Results::read(&cluster.folder.join("results.json")).expect("it was saved");
    for measure in [
        "cluster-propagation-50",
        "cluster-propagation-99",
        "cluster-sync-50",
        "cluster-cpu",
        "cluster-memory",
    ] {
        let sample = results.samples.iter().find(|sample| sample.measure == measure).expect(measure);
        assert_eq!(
            (&*sample.contender, sample.unfinished.as_deref()),
            ("node-a (nftables)", None),
            "{measure}"
        );
        assert!(sample.values[0] >= 0.0 && sample.values[0].is_finite(), "{sample:?}");
    }
}

#[test]
fn an_interrupted_comparison_takes_its_objects_away() {
    let cluster = Cluster::start("interrupted-live");
    let mut child = cluster.begin();
    signal(&child, Signal::SIGINT);
    assert!(!child.wait().expect("it ends").success());
    assert_eq!(cluster.left(), [0, 0, 0]);
}

#[test]
fn what_a_crash_left_is_refused_and_then_cleaned_up_without_touching_anything_else() {
    let cluster = Cluster::start("crashed-live");
    let mut child = cluster.begin();
    signal(&child, Signal::SIGKILL);
    child.wait().expect("it ends");
    assert_eq!(cluster.left(), [5, 5, 1]);
    let somebodys = json!({"apiVersion": "v1", "kind": "Service", "spec": {"clusterIP": "10.96.1.1"},
        "metadata": {"name": "somebodys", "namespace": "switchyard-scale"}});
    cluster.api.load([somebodys]).expect("a Service");

    let (done, text) = cluster.say(&mut cluster.command("1"));
    assert!(!done && text.contains("scale cleanup"), "{text}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_scale"));
    command.args(["cleanup", "--kubeconfig"]).arg(cluster.folder.join("kubeconfig"));
    let (done, text) = cluster.say(&mut command);
    assert!(done, "{text}");
    assert_eq!(cluster.left(), [1, 0, 0]);
}

#[test]
fn what_could_hurt_is_refused_unless_told() {
    let cluster = Cluster::start("hurt-live");
    let (done, text) = cluster.say(&mut cluster.command_for("501", "1"));
    assert!(!done && text.contains("--even-if-it-hurts"), "{text}");
    assert_eq!(cluster.left(), [0, 0, 0]);
    cluster
        .api
        .load([json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "switchyard-scale"}})])
        .expect("a namespace");
    let (done, text) = cluster.say(&mut cluster.command("1"));
    assert!(!done && text.contains("not of this program's making"), "{text}");
    assert_eq!(cluster.left(), [0, 0, 1]);
    // Of this program's making, but a cleanup cannot hasten what the cluster is about.
    let leaving = json!({"name": "switchyard-scale", "deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": ["kubernetes"], "labels": {"app.kubernetes.io/managed-by": "switchyard-scale"}});
    cluster
        .api
        .load([json!({"apiVersion": "v1", "kind": "Namespace", "metadata": leaving})])
        .expect("a namespace");
    let (done, text) = cluster.say(&mut cluster.command("1"));
    assert!(!done && text.contains("still being removed by the cluster"), "{text}");
}
