//! A node with nothing but the program as a kubeadm cluster runs it: a ConfigMap volume, the exact command line, and an
//! API server. Questions are asked as the kubelet and load balancers ask them: by HTTP.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::apiserver::ApiServer;
use integration::lab::{confine, program};
use integration::network::Namespace;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(90);
pub(crate) const NODE: &str = "worker-1";
pub(crate) const HEALTH: u16 = 10256;
pub(crate) const METRICS: u16 = 10249;

pub(crate) struct Rig {
    pub(crate) api: ApiServer,
    namespace: Namespace,
    folder: PathBuf,
    version: u32,
    child: Option<Child>,
}

/// An answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Rig {
    /// A node, its API server, and the files that kubeadm mounts.
    pub(crate) fn new() -> Self {
        let namespace = Namespace::create("node").expect("namespaces can be made (this needs root)");
        namespace
            .ip(
                "link add pods type veth peer name outside\naddress add 10.0.0.1/24 dev pods\n\
                 address add fd00::1/64 dev pods\nlink set pods up\nlink set outside up\nroute add default dev pods\n",
                &[],
            )
            .expect("an interface");
        let api = namespace
            .run(|| ApiServer::start(SocketAddr::from(([127, 0, 0, 1], 6443))))
            .expect("a thread")
            .expect("an API server");
        api.apply(node(json!({}))).expect("a complete object");
        let folder = std::env::temp_dir().join(format!("drop-in-{}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).expect("a folder");
        for file in ["config.conf", "kubeconfig.conf"] {
            symlink(PathBuf::from("..data").join(file), folder.join(file)).expect("a link");
        }
        Self { api, namespace, folder, version: 0, child: None }
    }

    /// Fills the ConfigMap volume: kubeadm's fields, with some of them changed. Files appear as the kubelet makes them
    /// appear, by the exchange of a link.
    pub(crate) fn config(&mut self, changes: &[(&str, Value)]) {
        let mut config: Value =
            serde_saphyr::from_str(include_str!("../../../kube-proxy/tests/data/kubeadm-fields.yaml"))
                .expect("YAML");
        config["apiVersion"] = json!("kubeproxy.config.k8s.io/v1alpha1");
        config["kind"] = json!("KubeProxyConfiguration");
        config["clientConnection"]["kubeconfig"] = json!(self.folder.join("kubeconfig.conf"));
        for (pointer, value) in changes {
            let (parent, field) = pointer.rsplit_once('/').expect("a JSON pointer");
            config.pointer_mut(parent).expect("a field of the configuration")[field] = value.clone();
        }
        self.raw_config(&config.to_string());
    }

    pub(crate) fn raw_config(&mut self, text: &str) {
        self.version += 1;
        let name = format!("..v{}", self.version);
        let folder = self.folder.join(&name);
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("config.conf"), text).expect("a file");
        fs::write(folder.join("kubeconfig.conf"), self.api.kubeconfig()).expect("a file");
        let new = self.folder.join("..data_tmp");
        symlink(&name, &new).expect("a link");
        fs::rename(&new, self.folder.join("..data")).expect("an exchange");
    }

    /// Starts it with the arguments of kubeadm's DaemonSet.
    pub(crate) fn start(&mut self) {
        self.start_by(Command::new(program().expect("kube-proxy was built")));
    }

    /// Starts it where /proc/sys cannot be written, as in many containers.
    pub(crate) fn start_with_read_only_sysctls(&mut self) {
        let mut command = Command::new("unshare");
        let script =
            "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(program().expect("kube-proxy was built"));
        self.start_by(command);
    }

    /// Starts what becomes the program, all arguments but its own being given.
    pub(crate) fn start_by(&mut self, mut command: Command) {
        let config = format!("--config={}", self.folder.join("config.conf").display());
        let log = File::options().create(true).append(true).open(self.folder.join("log")).expect("a log");
        confine(&mut command)
            .args([&config, "--hostname-override=Worker-1"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        self.child = Some(self.namespace.spawn(&mut command).expect("it starts"));
    }

    /// Starts it and waits until its rules are in force.
    pub(crate) fn start_and_settle(&mut self) {
        self.start();
        self.settle();
    }

    pub(crate) fn settle(&mut self) {
        self.eventually("the first sync", |rig| {
            let text = rig.get(METRICS, "/metrics").map(|answer| answer.body).unwrap_or_default();
            ["IPv4", "IPv6"].iter().all(|family| {
                text.contains(&format!(
                    "kubeproxy_sync_proxy_rules_last_timestamp_seconds{{ip_family=\"{family}\"}}"
                ))
            })
        });
    }

    /// Waits for its end.
    pub(crate) fn exit(&mut self) -> ExitStatus {
        let deadline = now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(now() < deadline, "it runs on:\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().expect("it was started").try_wait().expect("it is our child")
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the kernel says of the process.
    pub(crate) fn status(&self) -> String {
        let process = self.child.as_ref().expect("it was started").id();
        fs::read_to_string(format!("/proc/{process}/status")).expect("it runs")
    }

    /// A file as the process sees it: its /run is its own.
    pub(crate) fn read(&self, path: &str) -> String {
        let process = self.child.as_ref().expect("it was started").id();
        fs::read_to_string(format!("/proc/{process}/root{path}")).expect("it is there")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Asks on the node; `None` if nobody listens.
    pub(crate) fn get(&self, port: u16, path: &str) -> Option<Answer> {
        self.get_at(SocketAddr::from(([127, 0, 0, 1], port)), path)
    }

    pub(crate) fn get_at(&self, address: SocketAddr, path: &str) -> Option<Answer> {
        let text = self
            .namespace
            .run(|| {
                let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
                stream.set_read_timeout(Some(PATIENCE)).ok()?;
                write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
                let mut text = String::new();
                stream.read_to_string(&mut text).ok()?;
                Some(text)
            })
            .expect("a thread")?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let code = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { code, head: head.to_lowercase(), body: body.to_owned() })
    }

    pub(crate) fn code(&self, port: u16, path: &str) -> Option<u16> {
        self.get(port, path).map(|answer| answer.code)
    }

    /// Opens so many connections to a port and says nothing on them.
    pub(crate) fn idle_connections(&self, address: SocketAddr, count: usize) -> Vec<TcpStream> {
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(10)).expect("a connection");
        self.namespace.run(|| (0..count).map(|_| connect()).collect()).expect("a thread")
    }

    /// What a program on the node prints.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> String {
        let run = || Command::new(program).args(arguments).output();
        let output = self.namespace.run(run).expect("a thread").expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `ip` commands on the node.
    pub(crate) fn ip(&self, batch: &str) {
        self.namespace.ip(batch, &[]).expect("a change of the node's addresses");
    }

    /// Holds a port of the node.
    pub(crate) fn hold(&self, address: IpAddr, port: u16) -> TcpListener {
        self.namespace.run(|| TcpListener::bind((address, port))).expect("a thread").expect("a free port")
    }

    /// Events of a reason.
    pub(crate) fn events(&self, reason: &str) -> Vec<Value> {
        let mut events = self.api.objects("events.events.k8s.io");
        events.retain(|event| event["reason"] == reason);
        events
    }

    pub(crate) fn eventually(&mut self, what: &str, check: impl Fn(&Self) -> bool) {
        let deadline = now() + PATIENCE;
        while !check(self) {
            assert!(self.ended().is_none(), "{what}: it ended:\n{}", self.log());
            assert!(now() < deadline, "{what}: not within {PATIENCE:?}:\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// The Node object as kubeadm registers it, with some fields beside.
pub(crate) fn node(spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE }, "spec": spec,
        "status": { "addresses": [
            { "type": "InternalIP", "address": "10.0.0.1" },
            { "type": "InternalIP", "address": "fd00::1" },
            { "type": "Hostname", "address": NODE },
        ] },
    })
}

/// A load balancer Service with externalTrafficPolicy Local.
pub(crate) fn balanced(name: &str, number: u8, health: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "shop", "name": name },
        "spec": {
            "type": "LoadBalancer", "clusterIP": format!("10.96.0.{number}"), "clusterIPs": [format!("10.96.0.{number}")],
            "ipFamilies": ["IPv4"], "externalTrafficPolicy": "Local", "healthCheckNodePort": health,
            "ports": [{ "name": "web", "protocol": "TCP", "port": 80, "targetPort": 8080 }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": format!("203.0.113.{number}") }] } },
    })
}

/// Its endpoints: so many on this node, one elsewhere; those here ready or terminating.
pub(crate) fn endpoints(service: &str, here: u8, terminating: bool) -> Value {
    let condition = json!({ "ready": !terminating, "serving": true, "terminating": terminating });
    let mut endpoints: Vec<Value> = (1..=here)
        .map(|number| json!({ "addresses": [format!("10.244.1.{number}")], "nodeName": NODE, "conditions": condition }))
        .collect();
    endpoints
        .push(json!({ "addresses": ["10.244.2.1"], "nodeName": "other", "conditions": { "ready": true } }));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "shop", "name": format!("{service}-1"), "labels": { "kubernetes.io/service-name": service },
        },
        "ports": [{ "name": "web", "protocol": "TCP", "port": 8080 }],
        "endpoints": endpoints,
    })
}

pub(crate) fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "real processes take real time")]
    Instant::now()
}
