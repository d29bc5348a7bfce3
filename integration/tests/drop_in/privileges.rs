//! What each mode needs of the system, shown by taking everything else away: capabilities, a writable root, the way to new
//! privileges, system calls, files and ports. (Everywhere else too the program runs with seccomp and Landlock in force.)

use std::fs;
use std::process::Command;

use integration::lab::program;
use serde_json::{Value, json};

use super::rig::{METRICS, Rig, balanced, endpoints};

/// Nobody's, as in `runAsUser`.
const USER: u32 = 65_532;

struct Rights {
    mode: &'static str,
    capabilities: &'static [&'static str],
    /// `CapEff` of /proc/PID/status: bits as numbered in linux/capability.h.
    bits: u64,
    user: u32,
}

const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;

#[test]
fn nftables_mode_needs_net_admin_alone() {
    runs(&Rights { mode: "nftables", capabilities: &["net_admin"], bits: NET_ADMIN, user: 0 });
}

#[test]
fn nftables_mode_needs_no_root() {
    runs(&Rights { mode: "nftables", capabilities: &["net_admin"], bits: NET_ADMIN, user: USER });
}

/// The legacy variant of iptables speaks to the kernel by a raw socket.
#[test]
fn iptables_mode_needs_net_raw_besides() {
    runs(&Rights {
        mode: "iptables",
        capabilities: &["net_admin", "net_raw"],
        bits: NET_ADMIN | NET_RAW,
        user: 0,
    });
}

#[test]
fn ipvs_mode_needs_net_admin_alone() {
    vm_test::with_ipvs(|| {
        runs(&Rights { mode: "ipvs", capabilities: &["net_admin"], bits: NET_ADMIN, user: 0 });
    });
}

#[test]
fn ipvs_mode_needs_no_root() {
    vm_test::with_ipvs(|| {
        runs(&Rights { mode: "ipvs", capabilities: &["net_admin"], bits: NET_ADMIN, user: USER });
    });
}

/// It serves, follows changes, and has no more than it was given.
fn runs(rights: &Rights) {
    let mut rig = Rig::new();
    rig.api.load([balanced("web", 10, 30999), endpoints("web", 1, false)]).expect("complete objects");
    rig.config(&[("/mode", json!(rights.mode)), ("/nodePortAddresses", json!(["all"]))]);
    rig.start_by(restricted(rights));
    rig.settle();
    let rules = |rig: &Rig| -> String {
        [
            rig.output("nft", &["list", "ruleset"]),
            rig.output("iptables-legacy-save", &[]),
            rig.output("ipvsadm", &["-Ln"]),
        ]
        .concat()
    };
    assert!(rules(&rig).contains("10.96.0.10"), "{}", rules(&rig));
    rig.eventually("a health check node port", |rig| rig.code(30999, "/") == Some(200));
    rig.api.load([balanced("more", 11, 31000), endpoints("more", 1, false)]).expect("complete objects");
    rig.eventually("a change", |rig| rules(rig).contains("10.96.0.11"));
    let status = rig.status();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.split_whitespace().next().expect("a value").to_owned()
    };
    let bits = |name: &str| u64::from_str_radix(&field(name), 16).expect("bits");
    assert_eq!((bits("CapEff:"), bits("CapBnd:")), (rights.bits, rights.bits), "{status}");
    assert_eq!((field("Uid:"), field("NoNewPrivs:")), (rights.user.to_string(), "1".to_owned()), "{status}");
}

/// A command that gives up all rights but these, with a root that cannot be written, and becomes the program.
fn restricted(rights: &Rights) -> Command {
    let script = "mount -t tmpfs tmpfs /run && mount -o remount,bind,ro / && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", "setpriv"]);
    let kept: String = rights.capabilities.iter().map(|capability| format!(",+{capability}")).collect();
    for set in ["bounding-set", "inh-caps", "ambient-caps"] {
        command.arg(format!("--{set}=-all{kept}"));
    }
    if rights.user != 0 {
        let user = rights.user;
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
    }
    command.arg("--no-new-privs").arg(program().expect("kube-proxy was built"));
    command
}

/// A program that hands out credentials tries what it must not; the proxy serves all the same.
#[test]
fn what_is_given_up_is_given_up_for_programs_that_are_started_too() {
    let mut rig = Rig::new();
    let report = format!("/run/confined-{}", std::process::id());
    let forbidden = rig.folder().join("forbidden");
    // A namespace is a system call, and so is a mount; writing where it must is needed to tell of it.
    let script = format!(
        "{{ unshare --uts true 2>&1 || echo no unshare; \
         touch {0} 2>&1 || echo no write; cat {1} >/dev/null && echo read; }} >{report}; \
         echo '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"t\"}}}}'",
        forbidden.display(),
        rig.folder().join("config.conf").display(),
    );
    rig.config(&[("/mode", json!("nftables"))]);
    let kubeconfig = rig.folder().join("kubeconfig.conf");
    let mut config: Value =
        serde_saphyr::from_str(&fs::read_to_string(&kubeconfig).expect("it was written")).expect("YAML");
    config["users"][0]["user"]["exec"] = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
        "interactiveMode": "Never",
    });
    fs::write(&kubeconfig, config.to_string()).expect("it can be written");
    rig.start_and_settle();
    let told = rig.read(&report);
    for line in ["no unshare", "no write", "read"] {
        assert!(told.lines().any(|told| told == line), "{line} is not in {told}");
    }
    assert!(!forbidden.exists());
    let metrics = rig.get(METRICS, "/metrics").expect("an answer").body;
    for by in ["landlock", "seccomp"] {
        assert!(metrics.contains(&format!("switchyard_confined{{by=\"{by}\"}} 1")), "{metrics}");
    }
    let status = rig.status();
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
}

#[test]
fn a_word_that_is_none_is_refused_by_name() {
    let mut rig = Rig::new();
    rig.config(&[("/mode", json!("nftables"))]);
    let mut command = Command::new(program().expect("kube-proxy was built"));
    command.env("SWITCHYARD_SECCOMP", "yes");
    rig.start_by(command);
    assert!(!rig.exit().success());
    assert!(
        rig.log().contains("SWITCHYARD_SECCOMP: \\\"yes\\\" is none of off, log, enforce"),
        "{}",
        rig.log()
    );
}
