//! Runs a test where the kernel has IPVS: in this process if it has, else in the VM of this folder.

use std::io::{BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Run `test` in a network namespace of its own, on a kernel that has IPVS.
///
/// Where this kernel has none, the calling test's program is started again in the VM with this test as the only one,
/// and must succeed there. Call it first thing in a `#[test]` function, once.
///
/// # Panics
/// If the VM is not set up, or the test fails in it. A test is never skipped.
pub fn with_ipvs(test: impl FnOnce()) {
    let is_set = |name| std::env::var_os(name).is_some();
    // VM_RUN asks for a kind of VM, whatever this kernel has.
    if is_set("VM_RUN_GUEST") || (!is_set("VM_RUN") && has_ipvs()) {
        own_namespace();
        test();
        return;
    }
    let thread = thread::current();
    let name =
        thread.name().filter(|name| *name != "main").expect("called from a #[test] function's own thread");
    let program = std::env::current_exe().expect("a program has a path");
    let mut child = Command::new(vm_run())
        .args(["--timeout", "1100", "--"])
        .arg(program)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        // The runner's own variables would have the guest's program believe that it runs under the runner.
        .env_remove("NEXTEST")
        .env_remove("NEXTEST_EXECUTION_MODE")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vm-run starts");
    let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let beside = thread::spawn(|| handed_on(stdout));
    let told = [handed_on(stderr), beside.join().expect("it does not panic")].concat();
    let status = child.wait().expect("it is our child");
    match status.code() {
        Some(0) => {}
        Some(127) => panic!("this kernel has no IPVS and the VM is not set up: run integration/vm/vm-setup"),
        // What went wrong there is repeated at the end, where it is found.
        _ => panic!("{name} failed in the VM: {status}\n{}", told.join("\n")),
    }
}

/// Prints all that comes, and returns the lines of the first panic in it.
fn handed_on(from: impl Read) -> Vec<String> {
    const MOST: usize = 12;
    let mut panicked = Vec::new();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        println!("{line}");
        if (!panicked.is_empty() && panicked.len() < MOST) || line.contains(" panicked at ") {
            panicked.push(line.chars().take(400).collect());
        }
    }
    panicked
}

/// Whether this program runs in a VM for the tests, whose processors are slower than the machine's.
pub fn in_vm() -> bool {
    std::env::var_os("VM_RUN_GUEST").is_some_and(|kind| kind != "host")
}

/// Whether this kernel has IPVS, loaded or to be loaded by who asks for it.
fn has_ipvs() -> bool {
    let loadable = || Command::new("modprobe").args(["--dry-run", "--quiet", "ip_vs"]).status();
    std::path::Path::new("/proc/net/ip_vs").exists() || loadable().is_ok_and(|status| status.success())
}

/// Give the calling thread, and what it starts, a network namespace with its loopback up.
///
/// # Panics
/// Without the privilege to do so: these tests run as root.
pub fn own_namespace() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .expect("a new network namespace: run as root");
    // Mounts made by `ip netns` shall not reach the host.
    nix::mount::mount(
        None::<&str>,
        "/",
        None::<&str>,
        nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .expect("mounts become private");
    // /sys shows the network namespace of who mounted it.
    nix::mount::mount(Some("sys"), "/sys", Some("sysfs"), nix::mount::MsFlags::empty(), None::<&str>)
        .expect("a /sys of the namespace");
    run("ip link set lo up");
}

/// Run a shell command that must succeed, and return what it printed.
///
/// # Panics
/// With what it printed, if it fails.
pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The program that starts the VM.
pub fn vm_run() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vm-run")
}
