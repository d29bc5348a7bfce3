//! `apply -f`, `get`, `delete`, for the kinds that a kube-proxy reads.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{client, complete};
use crate::{apiserver, manifest};

const USAGE: &str = "kubectl apply -f FILE|- | get KIND [NAME] [-o json] | delete KIND NAME | delete -f FILE|-   [-n NAMESPACE]
kinds: services, endpointslices, nodes, servicecidrs, events";

/// Where objects of a kind are, and what messages call it.
struct Kind {
    name: &'static str,
    short: &'static str,
    prefix: &'static str,
    plural: &'static str,
    namespaced: bool,
}

const KINDS: [Kind; 5] = [
    Kind { name: "Service", short: "svc", prefix: "/api/v1", plural: "services", namespaced: true },
    Kind {
        name: "EndpointSlice",
        short: "endpointslice",
        prefix: "/apis/discovery.k8s.io/v1",
        plural: "endpointslices",
        namespaced: true,
    },
    Kind { name: "Node", short: "no", prefix: "/api/v1", plural: "nodes", namespaced: false },
    Kind {
        name: "ServiceCIDR",
        short: "servicecidr",
        prefix: "/apis/networking.k8s.io/v1",
        plural: "servicecidrs",
        namespaced: false,
    },
    Kind { name: "Event", short: "ev", prefix: "/apis/events.k8s.io/v1", plural: "events", namespaced: true },
];

impl Kind {
    fn find(word: &str) -> Result<&'static Self> {
        let fits = |kind: &&Self| {
            let one = kind.name.to_lowercase();
            [one.as_str(), kind.short, kind.plural].contains(&word.to_lowercase().as_str())
        };
        KINDS.iter().find(fits).with_context(|| format!("{word}: no such kind here\n{USAGE}"))
    }

    fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut path = self.prefix.to_owned();
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            path += &format!("/namespaces/{namespace}");
        }
        path += &format!("/{}", self.plural);
        if let Some(name) = name {
            path += &format!("/{name}");
        }
        path
    }
}

/// Carries out one command line; what it prints.
pub fn kubectl(arguments: &[String]) -> Result<String> {
    let mut words = Vec::new();
    let (mut namespace, mut file, mut output) = (None, None, None);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} what?\n{USAGE}"));
        match argument.as_str() {
            "-n" | "--namespace" => namespace = Some(value()?.clone()),
            "-f" | "--filename" => file = Some(value()?.clone()),
            "-o" | "--output" => output = Some(value()?.clone()),
            "-A" | "--all-namespaces" => namespace = None,
            other if other.starts_with('-') => bail!("{other} is not known here\n{USAGE}"),
            word => words.push(word),
        }
    }
    let words: Vec<&str> = words;
    match (words.as_slice(), file) {
        (["apply"], Some(file)) => each(&file, |object| apply(object, namespace.as_deref())),
        (["delete"], Some(file)) => each(&file, |object| {
            let (kind, space, name) = whose(&object, namespace.as_deref())?;
            delete(kind, &space, &name)
        }),
        (["delete", kind, name], None) => {
            delete(Kind::find(kind)?, namespace.as_deref().unwrap_or("default"), name)
        }
        (["get", kind, rest @ ..], None) => {
            get(Kind::find(kind)?, namespace.as_deref(), rest.first().copied(), output.as_deref())
        }
        _ => bail!("{USAGE}"),
    }
}

fn each(file: &str, work: impl Fn(Value) -> Result<String>) -> Result<String> {
    let objects = if file == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        manifest::parse(&text)?
    } else {
        manifest::read(Path::new(file))?
    };
    ensure!(!objects.is_empty(), "{file}: there is no object in it");
    let lines: Result<Vec<String>> = objects.into_iter().map(work).collect();
    Ok(lines?.join("\n"))
}

fn whose(object: &Value, namespace: Option<&str>) -> Result<(&'static Kind, String, String)> {
    let kind = Kind::find(object["kind"].as_str().context("an object without a kind")?)?;
    let name = object["metadata"]["name"].as_str().context("an object without a name")?;
    let own = object["metadata"]["namespace"].as_str();
    Ok((kind, own.or(namespace).unwrap_or("default").to_owned(), name.to_owned()))
}

fn apply(mut object: Value, namespace: Option<&str>) -> Result<String> {
    let (kind, namespace, name) = whose(&object, namespace)?;
    if kind.namespaced {
        object["metadata"]["namespace"] = json!(namespace);
    }
    let mut more = Vec::new();
    if kind.name == "Service" {
        let all = client::expect("GET", &kind.path(None, None), None)?;
        complete::service(&mut object, all["items"].as_array().map_or(&[], Vec::as_slice));
        more = complete::slices(&object);
    }
    let mut lines = vec![put(kind, &namespace, &name, &object)?];
    for slice in &more {
        let (kind, namespace, name) = whose(slice, Some(&namespace))?;
        lines.push(put(kind, &namespace, &name, slice)?);
    }
    Ok(lines.join("\n"))
}

fn put(kind: &Kind, namespace: &str, name: &str, object: &Value) -> Result<String> {
    let path = kind.path(Some(namespace), Some(name));
    let (code, _) = client::request("GET", &path, None)?;
    let what = if code == 404 {
        client::expect("POST", &kind.path(Some(namespace), None), Some(object))?;
        "created"
    } else {
        client::expect("PUT", &path, Some(object))?;
        "configured"
    };
    Ok(format!("{}/{name} {what}", kind.name.to_lowercase()))
}

fn delete(kind: &Kind, namespace: &str, name: &str) -> Result<String> {
    client::expect("DELETE", &kind.path(Some(namespace), Some(name)), None)?;
    if kind.name == "Service" {
        let slices = Kind::find("endpointslices")?;
        let of_service = format!(
            "{}?labelSelector=kubernetes.io/service-name%3D{name}",
            slices.path(Some(namespace), None)
        );
        client::expect("DELETE", &of_service, None)?;
    }
    Ok(format!("{} \"{name}\" deleted", kind.name.to_lowercase()))
}

fn get(kind: &Kind, namespace: Option<&str>, name: Option<&str>, output: Option<&str>) -> Result<String> {
    if let Some(name) = name {
        let object =
            client::expect("GET", &kind.path(Some(namespace.unwrap_or("default")), Some(name)), None)?;
        return Ok(serde_json::to_string_pretty(&object)?);
    }
    let list = client::expect("GET", &kind.path(namespace, None), None)?;
    if output == Some("json") {
        return Ok(serde_json::to_string_pretty(&list)?);
    }
    let mut lines = vec![vec!["NAMESPACE".to_owned(), "NAME".to_owned(), "WHAT".to_owned()]];
    for object in list["items"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        lines.push(vec![
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"]),
            summary(kind, object),
        ]);
    }
    let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or_default();
    let (first, second) = (width(0), width(1));
    let table = lines.iter().map(|line| format!("{:first$}  {:second$}  {}", line[0], line[1], line[2]));
    Ok(table.collect::<Vec<_>>().join("\n"))
}

fn summary(kind: &Kind, object: &Value) -> String {
    let list = |values: &Value, text: &dyn Fn(&Value) -> String| -> String {
        let texts: Vec<String> = values.as_array().into_iter().flatten().map(text).collect();
        texts.join(",")
    };
    let plain = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match kind.name {
        "Service" => {
            let port = |port: &Value| match port["nodePort"].as_u64() {
                Some(node_port) => format!("{}:{node_port}/{}", port["port"], plain(&port["protocol"])),
                None => format!("{}/{}", port["port"], plain(&port["protocol"])),
            };
            let spec = &object["spec"];
            format!(
                "{} {} {}",
                plain(&spec["type"]),
                list(&spec["clusterIPs"], &plain),
                list(&spec["ports"], &port)
            )
        }
        "EndpointSlice" => list(&object["endpoints"], &|endpoint| list(&endpoint["addresses"], &plain)),
        "Node" => list(&object["status"]["addresses"], &|address| plain(&address["address"])),
        "Event" => format!("{} {}", plain(&object["reason"]), plain(&object["note"])),
        _ => list(&object["spec"]["cidrs"], &plain),
    }
}

/// A kubeconfig for the real kubectl.
pub fn kubeconfig() -> String {
    apiserver::kubeconfig(&format!("http://{}", client::ADDRESS))
}
