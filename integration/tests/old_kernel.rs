//! The same tests on an old kernel: Debian 12's unmodified 6.1, in a virtual machine.
//!
//! Its processor is emulated, some ten times slower than the machine's. So `make test` runs a part of each selection, what differs
//! between kernels first; `make test-old-kernel` (`SWITCHYARD_OLD_KERNEL=all`) runs all of it.
//!
//! Each test here boots it once and runs test programs that are built already, one test of theirs after another.
//! `tools/test-binaries` lists them; nextest runs it and sets `SWITCHYARD_TEST_BINARIES`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Runs one test per line of the plan: "folder program test". Tells the kernel first, then each outcome.
const GUEST: &str = r#"
uname -r
for module in sctp dummy; do modprobe $module; done
while read -r folder program name; do
    cd "$folder"
    begin=$EPOCHREALTIME
    if timeout 600 "$program" --exact "$name" --nocapture >/tmp/output 2>&1; then outcome=ok; else outcome=FAILED; fi
    echo "$outcome ${program##*/} $name $(((${EPOCHREALTIME/./} - ${begin/./}) / 1000)) ms"
    [ $outcome = ok ] || tail -n 30 /tmp/output
done <<<"$PLAN"
"#;

/// A test program, and which of its tests: all whose name contains one of the words.
struct Selection {
    program: &'static str,
    folder: &'static str,
    words: Words,
}

/// Parts of names.
struct Words {
    all: &'static [&'static str],
    /// Of those, what every run of the tests does. Empty: all of them.
    always: &'static [&'static str],
}

impl Selection {
    fn words(&self) -> &'static [&'static str] {
        let everything = std::env::var_os("SWITCHYARD_OLD_KERNEL").is_some_and(|value| value == "all");
        if everything || self.words.always.is_empty() { self.words.all } else { self.words.always }
    }
}

const fn select(program: &'static str, folder: &'static str, words: Words) -> Selection {
    Selection { program, folder, words }
}

/// All tests of a program, each time.
const ALL: Words = only(&[""]);

/// These, each time.
const fn only(all: &'static [&'static str]) -> Words {
    Words { all, always: &[] }
}

/// All tests of a program; those that are named, each time.
const fn always(always: &'static [&'static str]) -> Words {
    Words { all: &[""], always }
}

fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("this package is a folder of the repository").to_owned()
}

/// The programs by nextest's names for them.
fn programs() -> BTreeMap<String, PathBuf> {
    let list = std::env::var("SWITCHYARD_TEST_BINARIES").unwrap_or_else(|_| {
        panic!("SWITCHYARD_TEST_BINARIES names no list of test programs: run this with cargo nextest, or make the list with tools/test-binaries")
    });
    let text = fs::read_to_string(&list).unwrap_or_else(|error| panic!("{list}: {error}"));
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{list}: {error}"));
    let binaries = value["rust-binaries"].as_object().unwrap_or_else(|| panic!("{list} lists no programs"));
    let path = |binary: &Value| binary["binary-path"].as_str().map(PathBuf::from);
    binaries.iter().filter_map(|(name, binary)| Some((name.clone(), path(binary)?))).collect()
}

/// One line for each selected test.
fn plan(selections: &[Selection]) -> Vec<String> {
    let programs = programs();
    let mut lines = Vec::new();
    for selection in selections {
        let Selection { program, folder, .. } = selection;
        let path = programs.get(*program).unwrap_or_else(|| panic!("there is no test program {program}"));
        let listed = Command::new(path).args(["--list", "--format", "terse"]).output().expect("it was built");
        let listed = String::from_utf8(listed.stdout).expect("names of tests are text");
        let names: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        for word in selection.words() {
            let found = names.iter().filter(|name| name.contains(word));
            let before = lines.len();
            lines
                .extend(found.map(|name| {
                    format!("{} {} {name}", repository().join(folder).display(), path.display())
                }));
            assert!(lines.len() > before, "no test of {program} is called {word:?}");
        }
    }
    lines
}

/// Runs the selected tests on the old kernel; all must succeed.
fn on_the_old_kernel(selections: &[Selection]) {
    let plan = plan(selections);
    let output = Command::new(vm_test::vm_run())
        .args(["--vm", "qemu", "--timeout", "3000", "--", "bash", "-c", GUEST])
        .env("PLAN", plan.join("\n"))
        .env("INSTA_WORKSPACE_ROOT", repository())
        .env("INSTA_UPDATE", "no")
        // It would be slow there, and the programs shall not believe that they run under the runner.
        .env_remove("SWITCHYARD_NFT_CURRENT")
        .env_remove("NEXTEST")
        .env_remove("NEXTEST_EXECUTION_MODE")
        .output()
        .expect("vm-run starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{text}{errors}");
    assert_ne!(output.status.code(), Some(127), "the VM is not set up: run integration/vm/vm-setup qemu");
    assert!(output.status.success(), "{}", output.status);
    let kernel = text.lines().next().unwrap_or_default();
    assert!(kernel.starts_with("6.1."), "{kernel} is not the kernel that this test is about");
    let good = text.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(good, plan.len(), "tests that succeeded, and tests that were started");
}

#[test]
fn netlink_and_transactions_work() {
    on_the_old_kernel(&[
        select(
            "switchyard-netlink::routes",
            "netlink",
            always(&[
                "a_link_is_made",
                "addresses_come_and_go",
                "each_refused_request",
                "read_back_as_written",
            ]),
        ),
        select("switchyard-nft-netlink::monitor", "nft-netlink", ALL),
        select(
            "switchyard-netlink::conntrack",
            "netlink",
            always(&["an_entry_is_read_back", "each_filter", "exactly_the_named"]),
        ),
        select(
            "switchyard-nft-netlink::transaction",
            "nft-netlink",
            always(&[
                "generation",
                "a_full_set",
                "interrupted",
                "every_error_names",
                "but_not_a_destroy",
                "within_one_batch",
                "are_flushed",
                "intervals_hold",
                "is_read_back",
            ]),
        ),
        select("switchyard-nft-netlink::listing", "nft-netlink", ALL),
    ]);
}

#[test]
fn the_nftables_backend_keeps_its_table() {
    on_the_old_kernel(&[
        select(
            "backend-nft::kernel_state",
            "backend-nft",
            always(&[
                "this_kernel_has_all",
                "died_half_way",
                "gone_already",
                "refuses_is_named",
                "maps_grow",
            ]),
        ),
        select(
            "backend-nft::drift",
            "backend-nft",
            always(&[
                "an_element_that_goes",
                "a_rule_that_is_deleted",
                "c2_",
                "for_ipv6_is_found",
                "networks_side",
            ]),
        ),
        select("backend-nft::listing", "backend-nft", always(&["the_table_is_listed"])),
    ]);
}

#[test]
fn the_nftables_backend_translates_packets() {
    on_the_old_kernel(&[select(
        "backend-nft::packets",
        "backend-nft",
        always(&[
            "a_cluster_ip_reaches",
            "under_policy_cluster_by_ipv6",
            "the_source_and_the_node_by_ipv6",
            "whom_they_name_by_ipv6",
            "with_its_endpoint_by_ipv6",
            "on_localhost",
        ]),
    )]);
}

#[test]
fn the_iptables_backend_works() {
    on_the_old_kernel(&[
        select(
            "backend-iptables::cluster_ip",
            "backend-iptables",
            always(&["in_nft_ipv4", "in_legacy_ipv6"]),
        ),
        select("backend-iptables::features", "backend-iptables", always(&["policy_local_keeps"])),
        select(
            "backend-iptables::kernel",
            "backend-iptables",
            Words {
                all: &["restart", "is_no_damage", "cleanup", "refused"],
                always: &["restart", "cleanup"],
            },
        ),
    ]);
}

#[test]
fn the_ipvs_backend_works() {
    on_the_old_kernel(&[
        select("ipvs-netlink::kernel", "ipvs-netlink", ALL),
        select(
            "backend-ipvs::kernel",
            "backend-ipvs",
            Words {
                all: &[
                    "damage",
                    "every_scheduler",
                    "maglev",
                    "keeps_its_connections",
                    "ipv6",
                    "taken_over",
                    "host_port",
                    "strict_arp",
                ],
                always: &["every_scheduler", "maglev", "keeps_its_connections", "taken_over"],
            },
        ),
    ]);
}

#[test]
fn the_whole_program_works_in_every_mode() {
    on_the_old_kernel(&[select(
        "integration::scenarios",
        "integration",
        Words {
            all: &[
                "cluster_ip::all_protocols_reach_every_endpoint::in_nftables_mode",
                "cluster_ip::endpoints_come_and_go::",
                "affinity::a_client_stays_with_its_endpoint::in_nftables_mode",
                "masquerade::by_node_cidr_only_pods_of_this_node_keep_their_address::in_nftables_mode",
                "policies::external_policy_local_keeps_the_source::in_nftables_mode",
                "source_ranges::only_listed_sources_may_use_the_load_balancer_address::in_nftables_mode",
                "udp::a_flow_leaves_an_endpoint_that_goes::in_nftables_mode",
            ],
            always: &[
                "cluster_ip::all_protocols_reach_every_endpoint::in_nftables_mode",
                "cluster_ip::endpoints_come_and_go::",
                "udp::a_flow_leaves_an_endpoint_that_goes::in_nftables_mode",
            ],
        },
    )]);
}
