//! A live cluster whose nodes run different proxies: the same churn for all, judged by what each proxy's metrics gained.
//!
//! Everything made is in one namespace, labelled, needs no pods and leads nowhere (198.18.0.0/15 is for benchmarks, RFC 2544).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use crate::connection::{Connection, fetch};
use crate::interrupt;

use super::exposition::Snapshot;
use super::results::{Results, Sample, WorkloadFacts};

/// Who made an object, for whoever finds one.
pub const LABEL: &str = "app.kubernetes.io/managed-by";
pub const LABEL_VALUE: &str = "switchyard-scale";

/// Above these the answer is to be sure first.
const MANY_SERVICES: usize = 500;
const MANY_CHANGES: f64 = 100.0;
const LARGE_CLUSTER: usize = 2_000;
/// What kube-proxies may still have to do after the last change of a round.
const AFTERMATH: Duration = Duration::from_secs(5);
const ENDPOINTS: u32 = 0xc612_0000;

#[derive(Debug, Clone)]
pub struct ClusterPlan {
    pub kubeconfig: PathBuf,
    pub namespace: String,
    pub services: usize,
    pub endpoints: usize,
    pub per_second: f64,
    pub time: Duration,
    pub repetitions: usize,
    /// Names of nodes to watch; all that answer if empty.
    pub nodes: Vec<String>,
    /// Where a node's metrics are, if not behind the API server: `http://HOST:PORT`.
    pub metrics: BTreeMap<String, String>,
    /// For API servers that allocate no cluster IPs.
    pub cluster_ips: Option<Ipv4Net>,
    pub even_if_it_hurts: bool,
    pub folder: PathBuf,
}

/// What a clean-up took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    pub services: usize,
    pub slices: usize,
}

/// Makes the objects, churns them, reads the metrics before and after, and takes the objects away, whatever happens.
pub fn measure(plan: &ClusterPlan, mut results: Results) -> Result<Results> {
    let connection = Connection::open(&plan.kubeconfig)?;
    refuse_what_could_hurt(plan, &connection)?;
    let nodes = nodes_to_watch(plan, &connection)?;
    std::fs::create_dir_all(&plan.folder).with_context(|| format!("creating {}", plan.folder.display()))?;
    let name = format!("{}x{}", plan.services, plan.endpoints);
    results.workloads = vec![WorkloadFacts {
        name: name.clone(),
        source: format!("{} changes a second on a live cluster", plan.per_second),
        services: plan.services,
        endpoints: plan.services * plan.endpoints,
    }];
    results.notes.push(
        "Measured on a live cluster by the nodes' own metrics: latencies are no finer than their histograms' buckets. \
         The machine named here is the one that made the changes."
            .to_owned(),
    );
    let measured = churn_in_rounds(plan, &connection, &nodes, &name, &mut results);
    let removed = remove(&connection, &plan.namespace);
    measured?;
    removed?;
    results.ended = Some(super::machine::now());
    results.write(&plan.folder.join("results.json"))?;
    Ok(results)
}

/// Removes what an interrupted comparison left. Touches nothing that does not carry the label.
pub fn clean_up(kubeconfig: &Path, namespace: &str) -> Result<Removed> {
    remove(&Connection::open(kubeconfig)?, namespace)
}

fn refuse_what_could_hurt(plan: &ClusterPlan, connection: &Connection) -> Result<()> {
    if let Some(found) = connection.get(&format!("/api/v1/namespaces/{}", plan.namespace))? {
        if found["metadata"]["labels"][LABEL] == LABEL_VALUE {
            if !found["metadata"]["deletionTimestamp"].is_null() {
                bail!(
                    "namespace {} of an earlier comparison is still being removed by the cluster: wait, or name another one with --namespace",
                    plan.namespace
                );
            }
            bail!(
                "namespace {} is left from an earlier comparison: run `scale cleanup` first",
                plan.namespace
            );
        }
        bail!("namespace {} exists and is not of this program's making: name another one", plan.namespace);
    }
    if plan.services == 0 || plan.endpoints == 0 || plan.endpoints > 1_000 {
        bail!("give at least one Service, and from 1 to 1000 endpoints of each");
    }
    if !(plan.per_second > 0.0 && plan.per_second <= 10_000.0) {
        bail!("{} changes a second cannot be made", plan.per_second);
    }
    if plan.even_if_it_hurts {
        return Ok(());
    }
    let counted = connection.get("/api/v1/services?limit=1")?.unwrap_or_default();
    let more = counted["metadata"]["remainingItemCount"].as_u64().unwrap_or(0);
    let present = usize::try_from(more).unwrap_or(usize::MAX).saturating_add(1);
    let reason = if present > LARGE_CLUSTER {
        format!("the cluster has {present} Services, and each change may make its proxies rewrite them all")
    } else if plan.services > MANY_SERVICES {
        format!("{} Services take as many cluster IPs and a place in every node's rules", plan.services)
    } else if plan.per_second > MANY_CHANGES {
        format!("{} changes a second go to every node of the cluster", plan.per_second)
    } else {
        return Ok(());
    };
    bail!("{reason}: if that is all right, say --even-if-it-hurts")
}

/// One node under measurement.
struct Watched {
    node: String,
    mode: String,
}

impl Watched {
    fn name(&self) -> String {
        format!("{} ({})", self.node, self.mode)
    }
}

fn nodes_to_watch(plan: &ClusterPlan, connection: &Connection) -> Result<Vec<Watched>> {
    let mut names = plan.nodes.clone();
    if names.is_empty() {
        let all = connection.get("/api/v1/nodes")?.unwrap_or_default();
        let items = all["items"].as_array().cloned().unwrap_or_default();
        names.extend(items.iter().filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned)));
    }
    let mut watched = Vec::new();
    let mut refusals = Vec::new();
    for node in names {
        match read(plan, connection, &node, "proxyMode") {
            Ok(mode) => watched.push(Watched { node, mode: mode.trim().to_owned() }),
            // A node that was asked for by name must answer.
            Err(error) if plan.nodes.contains(&node) => return Err(error),
            Err(error) => refusals.push(format!("{node}: {error:#}")),
        }
    }
    if watched.is_empty() {
        bail!(
            "no node's proxy can be read ({}). Its metricsBindAddress must be reachable from the API server (0.0.0.0:10249), or give --metrics NODE=http://HOST:PORT",
            refusals.join("; ")
        );
    }
    Ok(watched)
}

fn read(plan: &ClusterPlan, connection: &Connection, node: &str, what: &str) -> Result<String> {
    let text = match plan.metrics.get(node) {
        Some(url) => fetch(&format!("{}/{what}", url.trim_end_matches('/'))),
        None => connection.text(&format!("/api/v1/nodes/{node}:10249/proxy/{what}")),
    };
    text.with_context(|| format!("reading {what} of the proxy on node {node}"))
}

fn churn_in_rounds(
    plan: &ClusterPlan,
    connection: &Connection,
    nodes: &[Watched],
    workload: &str,
    results: &mut Results,
) -> Result<()> {
    create(plan, connection)?;
    pause(AFTERMATH);
    let look = || -> Result<Vec<Snapshot>> {
        let texts = nodes.iter().map(|watched| read(plan, connection, &watched.node, "metrics"));
        texts.map(|text| text.map(|text| Snapshot::parse(&text))).collect()
    };
    for repetition in 1..=plan.repetitions {
        let before = look()?;
        let begun = Instant::now();
        let made = churn(plan, connection, repetition)?;
        let elapsed = begun.elapsed().as_secs_f64();
        pause(AFTERMATH);
        let after = look()?;
        eprintln!("round {repetition}: {made} changes in {elapsed:.0} s");
        for (watched, (before, after)) in nodes.iter().zip(before.iter().zip(&after)) {
            let mut note = |measure: &str, value: Option<f64>, missing: &str| {
                results.samples.push(Sample {
                    measure: measure.to_owned(),
                    contender: watched.name(),
                    workload: workload.to_owned(),
                    repetition,
                    values: value.into_iter().collect(),
                    unfinished: value.is_none().then(|| missing.to_owned()),
                    load: super::machine::load(),
                });
            };
            let gained = |name: &str, share: f64| after.since(before).quantile(name, share);
            let silent = "the proxy's metrics show no change";
            for (share, name) in [(0.5, "50"), (0.99, "99")] {
                note(
                    &format!("cluster-propagation-{name}"),
                    gained("kubeproxy_network_programming_duration_seconds", share),
                    silent,
                );
                note(
                    &format!("cluster-sync-{name}"),
                    gained("kubeproxy_sync_proxy_rules_duration_seconds", share),
                    silent,
                );
            }
            let cpu = after.value("process_cpu_seconds_total").zip(before.value("process_cpu_seconds_total"));
            note(
                "cluster-cpu",
                cpu.map(|(after, before)| (after - before) / elapsed),
                "no process_cpu_seconds_total",
            );
            note(
                "cluster-memory",
                after.value("process_resident_memory_bytes"),
                "no process_resident_memory_bytes",
            );
        }
        results.write(&plan.folder.join("results.json"))?;
        if interrupt::asked() {
            bail!("interrupted; what was made is taken away");
        }
    }
    Ok(())
}

fn create(plan: &ClusterPlan, connection: &Connection) -> Result<()> {
    let labels = json!({LABEL: LABEL_VALUE});
    connection.create(
        "/api/v1/namespaces",
        &json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": plan.namespace, "labels": labels},
        }),
    )?;
    let mut addresses = plan.cluster_ips.map(|range| range.hosts());
    for index in 0..plan.services {
        if interrupt::asked() {
            bail!("interrupted; what was made is taken away");
        }
        let mut spec = json!({"ports": [{"name": "main", "port": 80, "protocol": "TCP"}]});
        if let Some(addresses) = &mut addresses {
            let address = addresses.next().context("the range of cluster IPs is too small")?;
            spec["clusterIP"] = json!(address);
            spec["clusterIPs"] = json!([address]);
            spec["type"] = json!("ClusterIP");
        }
        connection.create(
            &format!("/api/v1/namespaces/{}/services", plan.namespace),
            &json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
                "metadata": {"name": service_name(index), "namespace": plan.namespace, "labels": labels}}),
        )?;
        connection.create(
            &format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", plan.namespace),
            &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": service_name(index), "namespace": plan.namespace, "labels": {
                    LABEL: LABEL_VALUE, "kubernetes.io/service-name": service_name(index),
                    "endpointslice.kubernetes.io/managed-by": LABEL_VALUE}},
                "ports": [{"name": "main", "port": 80, "protocol": "TCP"}],
                "endpoints": endpoints(plan, index, 0)}),
        )?;
    }
    Ok(())
}

/// Replaces one endpoint after the other, with the time of the change for the proxies to measure from.
fn churn(plan: &ClusterPlan, connection: &Connection, round: usize) -> Result<usize> {
    let begun = Instant::now();
    let mut made = 0;
    while begun.elapsed() < plan.time && !interrupt::asked() {
        let due = (begun.elapsed().as_secs_f64() * plan.per_second) as usize + 1;
        if made >= due {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        let index = made % plan.services;
        // Never the state that is there already, in this round or the one before.
        let step = made / plan.services + 1 + round * 10_000;
        let now = jiff::Timestamp::now().to_string();
        connection.patch(
            &format!(
                "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices/{}",
                plan.namespace,
                service_name(index)
            ),
            &json!({"metadata": {"annotations": {"endpoints.kubernetes.io/last-change-trigger-time": now}},
                "endpoints": endpoints(plan, index, step)}),
        )?;
        made += 1;
    }
    Ok(made)
}

/// Sleeps, but not when the user wants to end.
fn pause(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time && !interrupt::asked() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn service_name(index: usize) -> String {
    format!("scale-{index:05}")
}

/// All of a Service's endpoints; the first one depends on the step.
fn endpoints(plan: &ClusterPlan, index: usize, step: usize) -> Value {
    let address = |number: usize| {
        let within = if number < 0x1_0000 { number } else { 0x1_0000 + number % 0x1_0000 };
        Ipv4Addr::from(ENDPOINTS + 1 + u32::try_from(within).expect("below 2^17")).to_string()
    };
    let one = |place: usize| {
        // Only the first one moves, within the lower half of the range; the others are in the upper half.
        let number = if place == 0 {
            (step * 7_919 + index) % 0xfffe
        } else {
            0x1_0000 + (index * plan.endpoints + place) % 0xfffe
        };
        let at = address(number);
        json!({"addresses": [at], "conditions": {"ready": true, "serving": true, "terminating": false}})
    };
    (0..plan.endpoints).map(one).collect()
}

/// By label, and only in the namespace; then the namespace itself, if it carries the label too.
fn remove(connection: &Connection, namespace: &str) -> Result<Removed> {
    let count = |path: &str| -> Result<Vec<String>> {
        let found =
            connection.get(&format!("{path}?labelSelector={LABEL}%3D{LABEL_VALUE}"))?.unwrap_or_default();
        let items = found["items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect())
    };
    let mut removed = [0, 0];
    let paths = [
        format!("/api/v1/namespaces/{namespace}/services"),
        format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
    ];
    for (path, removed) in paths.iter().zip(&mut removed) {
        for name in count(path)? {
            connection.delete(&format!("{path}/{name}"))?;
            *removed += 1;
        }
        let left = count(path)?;
        if !left.is_empty() {
            bail!("{} objects are still there, the first {path}/{}", left.len(), left[0]);
        }
    }
    let own = format!("/api/v1/namespaces/{namespace}");
    if connection.get(&own)?.is_some_and(|found| found["metadata"]["labels"][LABEL] == LABEL_VALUE) {
        connection.delete(&own)?;
    }
    Ok(Removed { services: removed[0], slices: removed[1] })
}
