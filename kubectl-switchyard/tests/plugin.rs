//! The plugin beside a kubectl that knows a cluster of three nodes, and tells what it was asked to execute.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
};

/// Nodes a and b answer, the one of node c ends with an error. `services` answers JSON where it is asked for.
const KUBECTL: &str = r#"#!/bin/bash
line="$*"
echo "$line" >>"$CALLS"
case "$*" in
*"get -o json pods -n kube-system -l k8s-app=kube-proxy"*)
    pod() { echo "{\"metadata\":{\"name\":\"proxy-$1\"},\"spec\":{\"nodeName\":\"$1\"},\"status\":{\"phase\":\"Running\"}}"; }
    echo "{\"items\":[$(pod b),$(pod a),$(pod c)]}" ;;
*"get -o json pods "*) echo '{"items":[]}' ;;
*"get -o json pod web-1 -n shop"*) echo '{"spec":{"nodeName":"b"},"status":{"podIP":"10.0.2.7"}}' ;;
*"get -o json pod six"*) echo '{"spec":{"nodeName":"b"},"status":{"podIP":"fd00::7"}}' ;;
*"get -o json pod "*) echo "Error from server (NotFound)" >&2; exit 1 ;;
*"get -o json node a"*) echo '{"status":{"addresses":[{"type":"Hostname","address":"a"},{"type":"InternalIP","address":"192.0.2.1"}]}}' ;;
*"exec -n kube-system proxy-c "*) echo "no process answers" >&2; echo "command terminated with exit code 70" >&2; exit 70 ;;
*"exec -n kube-system proxy-b "*diff*) echo "differs"; exit 1 ;;
*"exec "*" -h"*) echo "Usage: kube-proxy services [OPTIONS]" ;;
*"exec "*json*) echo "{\"said\":\"${line##*-- }\"}" ;;
*"exec "*) echo "said: ${line##*-- }" ;;
*) echo "unexpected: $*" >&2; exit 9 ;;
esac
"#;

struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("plugin-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the test");
        let program = folder.join("kubectl");
        fs::write(&program, KUBECTL).expect("it is ours");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
        Self { folder }
    }

    fn ask(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_kubectl-switchyard"))
            .args(line.split(' '))
            .env("KUBECTL", self.folder.join("kubectl"))
            .env("CALLS", self.folder.join("calls"))
            .output()
            .expect("the plugin starts")
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.folder.join("calls")).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn one_node_answers_as_if_it_were_here() {
    let cluster = Cluster::new("one");
    let output = cluster.ask("services -n shop web --node b --context prod");
    assert_eq!(out(&output), "said: kube-proxy services -n shop web\n");
    assert_eq!(output.status.code(), Some(0));
    let calls = cluster.calls();
    assert!(calls.lines().all(|call| call.starts_with("--context prod ")), "{calls}");
    let output = cluster.ask("diff --node b");
    assert_eq!((out(&output).as_str(), output.status.code()), ("differs\n", Some(1)));
}

#[test]
fn without_a_choice_the_first_node_answers_and_it_is_said_which() {
    let cluster = Cluster::new("first");
    let output = cluster.ask("services");
    assert_eq!(out(&output), "said: kube-proxy services\n");
    assert_eq!(err(&output), "node a of 3 answers; choose with --node NAME or --all-nodes\n");
}

#[test]
fn all_nodes_answer_in_one_and_the_worst_code_is_the_answers() {
    let cluster = Cluster::new("all");
    let output = cluster.ask("services --all-nodes -o json");
    let text = out(&output);
    for expected in [
        "\"node\": \"a\"",
        "\"node\": \"b\"",
        "\"said\": \"kube-proxy services -o json\"",
        "\"exitCode\": 70",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(err(&output), "c: no process answers\n");
    assert_eq!(output.status.code(), Some(70));
    let output = cluster.ask("diff --node a --node b");
    assert_eq!(out(&output), "== a\nsaid: kube-proxy diff\n\n== b\ndiffers\n");
    assert_eq!(output.status.code(), Some(1));
    let output = cluster.ask("flows --watch --node a --node b");
    let mut lines: Vec<String> = out(&output).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["a: said: kube-proxy flows --watch", "b: said: kube-proxy flows --watch"]);
}

#[test]
fn the_node_of_the_client_answers_for_it() {
    let cluster = Cluster::new("client");
    let output = cluster.ask("explain -n shop pod/web-1 node/a:30080");
    assert_eq!(
        out(&output),
        "said: kube-proxy explain -n shop 10.0.2.7 192.0.2.1:30080\n",
        "{}",
        err(&output)
    );
    assert!(cluster.calls().contains("exec -n kube-system proxy-b -c kube-proxy "), "{}", cluster.calls());
    let output = cluster.ask("explain pod/shop/web-1 pod/six:53 --node a");
    assert_eq!(out(&output), "said: kube-proxy explain 10.0.2.7 [fd00::7]:53\n", "{}", err(&output));
}

#[test]
fn what_cannot_be_asked_is_said_with_what_to_do() {
    let cluster = Cluster::new("wrong");
    for (line, code, says) in [
        (
            "services --node nowhere",
            70,
            "no running pod of k8s-app=kube-proxy in namespace kube-system is on node nowhere",
        ),
        ("services --selector app=other", 70, "name others with --selector and --proxy-namespace"),
        ("explain pod/none web", 70, "NotFound"),
        ("--nonsense services", 64, "unexpected argument '--nonsense'"),
    ] {
        let output = cluster.ask(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", err(&output));
        assert!(err(&output).contains(says), "{line}: {}", err(&output));
    }
    let missing = Command::new(env!("CARGO_BIN_EXE_kubectl-switchyard"))
        .arg("services")
        .env("KUBECTL", cluster.folder.join("no-kubectl"))
        .output()
        .expect("the plugin starts");
    assert_eq!(missing.status.code(), Some(70));
    assert!(err(&missing).contains("cannot be run: is it installed?"), "{}", err(&missing));
}

#[test]
fn help_speaks_of_the_plugin() {
    let cluster = Cluster::new("help");
    assert!(out(&cluster.ask("-h")).contains("Usage: kubectl switchyard VERB"));
    assert_eq!(out(&cluster.ask("services -h --node a")), "Usage: kubectl switchyard services [OPTIONS]\n");
    assert_eq!(cluster.ask("-V").status.code(), Some(0));
}
