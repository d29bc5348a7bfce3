use std::{
    collections::HashSet,
    fs, io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};

use super::*;

fn wanted(seccomp: Option<Level>, landlock: Option<Level>) -> Wanted {
    Wanted { seccomp, landlock }
}

/// What is confined stays so: on a thread of its own, and seccomp for the whole process, which under nextest is this test's.
fn confined<T: Send + 'static>(wanted: Wanted, needs: Needs, work: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(move || {
        confine(wanted, &needs);
        work()
    })
    .join()
    .expect("the work does not panic")
}

#[test]
fn the_profile_is_known_on_every_architecture_and_gives_reasons() {
    for arch in [TargetArch::x86_64, TargetArch::aarch64, TargetArch::riscv64] {
        let names = allowed(arch).expect("a profile");
        let unique: HashSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "each once");
        for level in [Level::Log, Level::Enforce] {
            let filters = compiled(arch, level).expect("every name is one of a system call");
            // BPF_MAXINSNS of linux/bpf_common.h
            assert!(filters["all"].len() < 4096);
        }
    }
    let names = allowed(TargetArch::x86_64).expect("a profile");
    for never in [
        "ptrace",
        "process_vm_writev",
        "mount",
        "fsmount",
        "open_tree",
        "setns",
        "unshare",
        "pivot_root",
        "bpf",
        "perf_event_open",
        "kexec_load",
        "kexec_file_load",
        "reboot",
        "keyctl",
        "add_key",
        "userfaultfd",
        "io_uring_setup",
        "iopl",
        "ioperm",
        "swapon",
        "settimeofday",
        "clock_settime",
        "mknodat",
        "acct",
        "delete_module",
        "open_by_handle_at",
        "pidfd_getfd",
        "personality",
    ] {
        assert!(!names.iter().any(|name| name == never), "{never}");
    }
}

#[test]
fn what_nobody_chose_depends_on_whether_there_is_a_plugin() {
    let read = |seccomp: Option<&str>, landlock: Option<&str>| {
        Wanted::read(|name| (if name == SECCOMP { seccomp } else { landlock }).map(str::to_owned))
    };
    let levels = |wanted: Result<Wanted, String>, plugin| wanted.expect("good").levels(plugin);
    assert_eq!(levels(read(None, Some("")), false), (Level::Log, Level::Enforce));
    assert_eq!(levels(read(None, None), true), (Level::Off, Level::Off));
    assert_eq!(levels(read(Some("enforce"), Some("enforce")), true), (Level::Enforce, Level::Enforce));
    assert_eq!(levels(read(Some("off"), Some("off")), false), (Level::Off, Level::Off));
    assert_eq!(
        read(Some("yes"), None).unwrap_err(),
        "SWITCHYARD_SECCOMP: \"yes\" is none of off, log, enforce"
    );
    assert_eq!(read(None, Some("log")).unwrap_err(), "SWITCHYARD_LANDLOCK: \"log\" is none of off, enforce");
}

#[test]
fn a_system_call_that_is_not_in_the_profile_fails() {
    let call = || unshare(CloneFlags::CLONE_NEWUTS);
    assert_eq!(confined(wanted(Some(Level::Log), Some(Level::Off)), Needs::default(), call), Ok(()));
    let enforced = confined(wanted(Some(Level::Enforce), Some(Level::Off)), Needs::default(), call);
    assert_eq!(enforced, Err(Errno::ENOSYS));
    let status = fs::read_to_string("/proc/self/status").expect("it can be read");
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
}

#[test]
fn files_are_written_where_they_have_to_be_and_read_everywhere() {
    let folder = std::env::temp_dir().join(format!("confined-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let token = folder.join("token");
    fs::write(&token, "old").expect("before");
    let run = PathBuf::from(format!("/run/confined-{}", std::process::id()));
    let (ours, there) = (token, run.clone());
    let (write, exchange, mark, read, null) =
        confined(wanted(Some(Level::Off), Some(Level::Enforce)), Needs::default(), move || {
            let write = fs::write(&ours, "new");
            let exchange = fs::rename(&ours, ours.with_extension("new"));
            let mark = fs::create_dir(&there).and_then(|()| fs::write(there.join("lock"), ""));
            (write, exchange, mark, fs::read_to_string(&ours), fs::write("/dev/null", "nothing"))
        });
    let denied = |result: io::Result<()>| result.expect_err("it is not allowed").kind();
    assert_eq!(denied(write), io::ErrorKind::PermissionDenied);
    assert!(matches!(denied(exchange), io::ErrorKind::PermissionDenied | io::ErrorKind::CrossesDevices));
    mark.expect("locks and sockets are in /run");
    null.expect("/dev/null");
    assert_eq!(read.expect("reading is free"), "old");
    fs::remove_dir_all(run).expect("it is there");
    fs::remove_dir_all(folder).expect("it is there");
}

#[test]
fn connections_go_to_the_ports_of_the_api_server_alone() {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let (server, other) = (listen(), listen());
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    let (to_server, to_other) = (port(&server), port(&other));
    let connect = move || {
        let connect = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop);
        (connect(to_server), connect(to_other))
    };
    let enforce = wanted(Some(Level::Off), Some(Level::Enforce));
    let needs = Needs { ports: Some(vec![to_server]), ..Needs::default() };
    let (allowed, refused) = confined(enforce, needs, connect);
    allowed.expect("the API server's port");
    assert_eq!(refused.expect_err("another port").kind(), io::ErrorKind::PermissionDenied);
    let (allowed, free) = confined(enforce, Needs::default(), connect);
    allowed.and(free).expect("endpoints may have any port");
}
