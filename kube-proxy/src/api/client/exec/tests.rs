use std::{collections::HashMap, fs, os::unix::fs::PermissionsExt as _};

use rustls::client::ResolvesClientCert as _;

use super::*;
use crate::api::client::tls::tests::Folder;

/// A program that notes each run in a file.
struct Script {
    folder: Folder,
    plugin: Plugin,
    identity: Arc<Identity>,
}

fn config(path: &std::path::Path) -> ExecConfig {
    ExecConfig {
        api_version: Some(VERSIONS[0].to_owned()),
        command: Some(path.display().to_string()),
        interactive_mode: Some(ExecInteractiveMode::Never),
        ..serde_json::from_value(json!({})).expect("an empty one")
    }
}

impl Script {
    fn new(name: &str, body: &str) -> Self {
        Self::with(name, body, |_| {})
    }

    fn with(name: &str, body: &str, change: impl FnOnce(&mut ExecConfig)) -> Self {
        let folder = Folder::new(&format!("exec-{name}"));
        let path = folder.0.join("plugin");
        let text = format!("#!/bin/sh\ncd {}\necho run >> runs\n{body}\n", folder.0.display());
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may be run");
        let mut exec = config(&path);
        change(&mut exec);
        let identity = Arc::new(Identity::default());
        let cluster = ExecAuthCluster { server: Some("https://one:6443".to_owned()), ..Default::default() };
        let plugin = Plugin::new(&exec, &cluster, &identity, &Connections::new()).expect("a plugin");
        Self { folder, plugin, identity }
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.folder.0.join("runs")).unwrap_or_default().lines().count()
    }

    async fn token(&self) -> Result<String, String> {
        let (_, header) = self.plugin.credential().await.map_err(|error| error.to_string())?;
        Ok(header.expect("a token").to_str().expect("text").to_owned())
    }
}

/// What a plugin writes whose token is `$1` and lives for `$2`.
const WRITE: &str = r#"
write() {
  echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"'$1'"'$2'}}'
}
"#;

#[tokio::test]
async fn a_token_is_used_until_it_expires() {
    let body = format!(
        r#"{WRITE} write t$(wc -l < runs) ',"expirationTimestamp":"'$(date -u -d '+2 seconds' +%FT%T.%NZ)'"'"#
    );
    let script = Script::new("expiry", &body);
    assert_eq!(script.token().await.expect("a token"), "Bearer t1");
    let mut asked = 0;
    while script.token().await.expect("a token") == "Bearer t1" {
        asked += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(asked > 0 && script.runs() == 2, "{asked} requests, {} runs", script.runs());
}

#[tokio::test]
async fn a_token_without_end_is_asked_for_once_by_all_together() {
    let script = Script::new("once", &format!("{WRITE} sleep 0.3; write forever"));
    let (a, b, c) = tokio::join!(script.token(), script.token(), script.token());
    for token in [a, b, c, script.token().await] {
        assert_eq!(token.expect("a token"), "Bearer forever");
    }
    assert_eq!(script.runs(), 1);
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_and_a_server_that_refuses_all_does_not_run_it_for_ever() {
    let script = Script::new("refused", &format!("{WRITE} write t$(wc -l < runs)"));
    for _ in 0..50 {
        let (number, _) = script.plugin.credential().await.expect("a token");
        script.plugin.refused(number).await;
        // The answer to a request that was sent with an older one says nothing about this one.
        script.plugin.refused(number.wrapping_sub(1)).await;
    }
    assert_eq!(script.runs(), 2, "at once, and then with a pause");
    script.plugin.accepted(2).await;
    script.token().await.expect("a token");
    assert_eq!(script.runs(), 3, "what worked may be refused again");
}

#[tokio::test]
async fn a_program_that_fails_is_quoted_and_left_alone_for_a_while() {
    let script = Script::new("fails", "echo 'the vault is sealed' >&2; exit 3");
    for _ in 0..50 {
        let said = script.token().await.expect_err("it fails");
        assert!(said.contains("the vault is sealed") && said.contains("exit status: 3"), "{said}");
    }
    assert_eq!(script.runs(), 1);
    assert_eq!([1, 2, 3, 4, 5, 6, 60].map(|times| pause(times).as_secs()), [1, 2, 4, 8, 16, 30, 30]);
}

#[tokio::test]
async fn a_program_that_hangs_or_floods_is_stopped_with_all_that_it_started() {
    let mut script = Script::new("hangs", "(echo $$ > group; sleep 600) & sleep 600");
    script.plugin.longest_run = Duration::from_secs(1);
    let said = script.token().await.expect_err("it hangs");
    assert!(said.contains("did not end within 1 s"), "{said}");
    let group = fs::read_to_string(script.folder.0.join("group")).expect("it began");
    let alive = || {
        // A zombie runs no more.
        fs::read_dir("/proc").expect("proc").flatten().any(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            fields.get(2) == Some(&group.trim()) && fields.first() != Some(&"Z")
        })
    };
    for _ in 0..100 {
        if !alive() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!alive(), "group {group}");

    let script = Script::new("floods", "yes");
    let said = script.token().await.expect_err("too much");
    assert!(said.contains("more than 1048576 bytes"), "{said}");
    let script = Script::new("chatters", &format!("{WRITE} seq 100000 >&2; write t"));
    assert_eq!(script.token().await.expect("the error stream does not matter"), "Bearer t");
}

#[tokio::test]
async fn what_it_is_told_and_what_it_may_answer() {
    let variable = |name: &str, value: &str| -> HashMap<String, String> {
        [("name".to_owned(), name.to_owned()), ("value".to_owned(), value.to_owned())].into()
    };
    let body = format!("{WRITE} echo \"$KUBERNETES_EXEC_INFO\" > info; write $OWN-$1");
    let script = Script::with("told", &body, |exec| {
        exec.env = Some(vec![variable("OWN", "mine")]);
        exec.args = Some(vec!["first".to_owned()]);
        exec.provide_cluster_info = true;
    });
    assert_eq!(script.token().await.expect("a token"), "Bearer mine-first");
    let info = fs::read_to_string(script.folder.0.join("info")).expect("it was told");
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["kind"], "ExecCredential");
    assert_eq!(info["apiVersion"], VERSIONS[0]);
    assert_eq!(info["spec"]["interactive"], false);
    assert_eq!(info["spec"]["cluster"]["server"], "https://one:6443");

    let yaml = "printf 'kind: ExecCredential\\napiVersion: client.authentication.k8s.io/v1beta1\\nstatus:\\n  token: y\\n'";
    let beta = |exec: &mut ExecConfig| exec.api_version = Some(VERSIONS[1].to_owned());
    assert_eq!(Script::with("yaml", yaml, beta).token().await.expect("a token"), "Bearer y");

    let head = r#"{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1""#;
    for (name, answer, reason) in [
        ("words", "hello".to_owned(), "did not write an ExecCredential"),
        ("status", format!("{head}}}"), "didn't return a status field"),
        ("empty", format!(r#"{head},"status":{{}}}}"#), "didn't return a token or cert/key pair"),
        (
            "half",
            format!(r#"{head},"status":{{"clientCertificateData":"x"}}}}"#),
            "only certificate or key, not both",
        ),
        (
            "version",
            head.replace("/v1", "/v1beta1") + r#","status":{"token":"t"}}"#,
            "plugin returned version",
        ),
        (
            "time",
            format!(r#"{head},"status":{{"token":"t","expirationTimestamp":"soon"}}}}"#),
            "expirationTimestamp",
        ),
    ] {
        let said = Script::new(name, &format!("echo '{answer}'")).token().await.expect_err(name);
        assert!(said.contains(reason), "{name}: {said}");
    }
}

#[tokio::test]
async fn a_certificate_that_it_hands_out_is_shown_and_a_new_one_ends_connections() {
    let script = Script::new(
        "certificate",
        // JSON with the line ends of PEM spelled out.
        r#"
        text() { awk '{ printf "%s\\n", $0 }' $1; }
        echo '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{' > answer
        echo '"clientCertificateData":"'$(text client.crt)'","clientKeyData":"'$(text ec-P-256.key)'"}}' >> answer
        cat answer
        "#,
    );
    let mut renewals = script.plugin.connections.subscribe();
    script.folder.own("client", "ec:P-256", "", "");
    let (first, token) = script.plugin.credential().await.expect("a certificate");
    assert!(token.is_none() && script.identity.has_certs());
    assert!(!renewals.has_changed().expect("open"), "no connection is older");
    script.plugin.refused(first).await;
    script.folder.own("client", "ec:P-256", "", "");
    let (second, _) = script.plugin.credential().await.expect("a certificate");
    assert!(second > first && renewals.has_changed().expect("open"));
    renewals.mark_unchanged();
}

#[test]
fn a_configuration_that_cannot_work_is_refused_at_once() {
    let path = std::path::Path::new("/bin/true");
    let of = |change: &dyn Fn(&mut ExecConfig)| {
        let mut exec = config(path);
        change(&mut exec);
        let identity = Arc::new(Identity::default());
        let made = Plugin::new(&exec, &ExecAuthCluster::default(), &identity, &Connections::new());
        made.expect_err("refused").to_string()
    };
    assert!(of(&|exec| exec.command = None).contains("command must be specified"));
    assert!(of(&|exec| exec.api_version = None).contains("invalid apiVersion \"\""));
    let alpha = of(&|exec| exec.api_version = Some("client.authentication.k8s.io/v1alpha1".to_owned()));
    assert!(alpha.contains("invalid apiVersion"), "{alpha}");
    assert!(of(&|exec| exec.interactive_mode = None).contains("interactiveMode must be specified"));
    let always = of(&|exec| exec.interactive_mode = Some(ExecInteractiveMode::Always));
    assert!(always.contains("cannot support interactive mode"), "{always}");
}

#[tokio::test]
async fn a_program_that_is_missing_is_named_with_what_the_kubeconfig_says_about_it() {
    let mut exec = config(std::path::Path::new("no-such-plugin"));
    exec.install_hint = Some("install it with your package manager\n".to_owned());
    let identity = Arc::new(Identity::default());
    let plugin =
        Plugin::new(&exec, &ExecAuthCluster::default(), &identity, &Connections::new()).expect("a plugin");
    let said = plugin.credential().await.expect_err("missing").to_string();
    assert!(
        said.contains("executable no-such-plugin not found") && said.contains("package manager"),
        "{said}"
    );
}
