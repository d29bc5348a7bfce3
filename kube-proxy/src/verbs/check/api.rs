//! Whether the API server answers, and lets the proxy read what it needs.

use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use serde_json::{Value, json};

use super::report::Finding;
use crate::{api::client, settings::effective::ClientSettings};

/// For each question.
const PATIENCE: Duration = Duration::from_secs(10);

/// What kube-proxy's role (`system:node-proxier`) may do, and whether nothing works without it.
const NEEDED: [(&str, &str, &[&str], bool); 5] = [
    ("", "services", &["list", "watch"], true),
    ("discovery.k8s.io", "endpointslices", &["list", "watch"], true),
    ("", "nodes", &["get", "list", "watch"], true),
    ("networking.k8s.io", "servicecidrs", &["list", "watch"], false),
    ("events.k8s.io", "events", &["create", "patch"], false),
];

/// Asks the API server that the process asks.
pub(crate) fn check(settings: &ClientSettings) -> Vec<Finding> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("no runtime") {
        Ok(runtime) => runtime.block_on(all(settings)),
        Err(error) => vec![Finding::fail("api.reachable", format!("{error:#}"), "")],
    }
}

async fn all(settings: &ClientSettings) -> Vec<Finding> {
    let client = match client::server(settings).and_then(client::connect) {
        // Nothing here lives long enough for a certificate to be renewed.
        Ok((client, _)) => client,
        Err(error) => {
            let mend = "name the kubeconfig of the process with --kubeconfig, or run it in its pod";
            return vec![Finding::fail("api.reachable", format!("{error:#}"), mend)];
        }
    };
    let ask = |request: Request<Vec<u8>>| {
        let client = client.clone();
        async move {
            let answer = tokio::time::timeout(PATIENCE, client.request::<Value>(request)).await;
            answer
                .map_err(|_| anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs()))?
                .map_err(anyhow::Error::from)
        }
    };
    let version = Request::get("/version").body(Vec::new());
    let Ok(version) = version else { return Vec::new() };
    let mut findings = match ask(version).await {
        Ok(answer) => {
            let version =
                answer["gitVersion"].as_str().unwrap_or("a version that it does not tell").to_owned();
            vec![Finding::ok("api.reachable", format!("the API server answers ({version})"))]
        }
        Err(error) => {
            let mend = "see the server's address in the kubeconfig, its certificate, and firewalls between";
            return vec![Finding::fail("api.reachable", format!("{error:#}"), mend)];
        }
    };
    for (group, resource, verbs, vital) in NEEDED {
        findings.push(of_rights(group, resource, verbs, vital, &ask).await);
    }
    findings
}

async fn of_rights<F>(
    group: &str,
    resource: &str,
    verbs: &[&str],
    vital: bool,
    ask: &impl Fn(Request<Vec<u8>>) -> F,
) -> Finding
where
    F: Future<Output = anyhow::Result<Value>>,
{
    let check = format!("api.{resource}");
    let mut refused = Vec::new();
    for verb in verbs {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": { "group": group, "resource": resource, "verb": verb } },
        });
        let request = Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
            .header("Content-Type", "application/json")
            .body(review.to_string().into_bytes());
        let Ok(request) = request else { continue };
        match ask(request).await {
            Ok(answer) if answer["status"]["allowed"] == json!(true) => {}
            Ok(_) => refused.push(*verb),
            Err(error) => {
                let what = format!("it is not known whether it may {verb} {resource}: {error:#}");
                return Finding::warn(check, what, "kubectl auth can-i, as the proxy's account");
            }
        }
    }
    if refused.is_empty() {
        return Finding::ok(check, format!("may {}", verbs.join(", ")));
    }
    let what = format!("may not {} {resource}", refused.join(" and "));
    let mend = "bind the proxy's account to the role system:node-proxier";
    if vital { Finding::fail(check, what, mend) } else { Finding::warn(check, what, mend) }
}
