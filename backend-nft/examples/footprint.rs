//! Measures how much of the kernel's memory the rules take: `cargo run -p backend-nft --example footprint [services endpoints
//! [kube-proxy | file]]`. With `kube-proxy`, of the same Services in the layout of kube-proxy 1.36; of a file that `nft -f`
//! takes, of the rules in it.
//!
//! The memory is what the kernel charges a control group of its own for (version 1, `memory.kmem.usage_in_bytes`), so that
//! nothing else on the machine counts. Rules are taken away again; the difference is theirs.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod bench;

use std::{
    collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, process::Command, thread::sleep,
    time::Duration,
};

use bench::{Proxy, routes};
use nix::sched::{CloneFlags, unshare};

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).expect("measurements run as root");
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (services, endpoints) = (number(10_000), number(10));
    let group = Group::enter();
    let file = arguments.next().map(|given| {
        if given != "kube-proxy" {
            return given;
        }
        let path = std::env::temp_dir().join(format!("footprint-{}.nft", std::process::id()));
        fs::write(&path, layout_of_kube_proxy(services, endpoints))
            .expect("the temporary folder is writable");
        path.display().to_string()
    });
    let before = group.settled();
    if let Some(file) = &file {
        let status = Command::new("nft").args(["-f", file]).status().expect("nft runs");
        assert!(status.success(), "nft -f {file}");
    } else {
        let mut proxy = Proxy::new();
        let routes = routes(services, endpoints, 1);
        proxy.full(&routes);
    }
    let loaded = group.settled();
    let caches = group.caches();
    let status = Command::new("nft").args(["flush", "ruleset"]).status().expect("nft runs");
    assert!(status.success(), "nft flush ruleset");
    let gone = group.settled();
    let of_rules = loaded.saturating_sub(gone);
    println!(
        "{services} Services x {endpoints}{}: {:.2} MB, {:.0} bytes an endpoint (before {:.2} MB, after {:.2} MB)",
        file.map(|file| format!(" of {file}")).unwrap_or_default(),
        of_rules as f64 / 1e6,
        of_rules as f64 / (services * endpoints) as f64,
        before as f64 / 1e6,
        gone as f64 / 1e6,
    );
    for (name, bytes) in caches {
        let rest = group.caches().get(&name).copied().unwrap_or_default();
        let of_rules = bytes.saturating_sub(rest);
        if of_rules > 100_000 {
            println!("  {name}: {:.2} MB", of_rules as f64 / 1e6);
        }
    }
}

/// A chain and an anonymous map for each Service, and an element in two sets; a fiftieth of the endpoints is on this node.
fn layout_of_kube_proxy(services: usize, endpoints: usize) -> String {
    let address = |first: u32, number: usize| std::net::Ipv4Addr::from(first + number as u32);
    let chain = |service: usize| format!("service-{service:08}-bench/service-{service:05}/tcp/http");
    let mut text = String::from(
        "table ip kube-proxy {\n\
         set cluster-ips { type ipv4_addr; }\n\
         set hairpin-connections { type ipv4_addr . ipv4_addr . inet_proto . inet_service; }\n\
         map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }\n\
         map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }\n\
         map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }\n\
         map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }\n\
         map service-nodeports { type inet_proto . inet_service : verdict; }\n\
         chain mark-for-masquerade { meta mark set mark or 0x4000; }\n",
    );
    let mut elements = String::new();
    for service in 0..services {
        let (name, at) = (chain(service), address(0xac10_0000, service));
        let number = |endpoint: usize| service * endpoints + endpoint;
        let map = |endpoint: usize| format!("{endpoint} : {} . 8080", address(0x0a00_0000, number(endpoint)));
        let map: Vec<String> = (0..endpoints).map(map).collect();
        let map = map.join(", ");
        let _ = write!(
            text,
            "chain {name} {{\nip daddr {at} tcp dport 80 ip saddr != 10.0.0.0/8 jump mark-for-masquerade\n\
             meta l4proto tcp dnat ip to numgen random mod {endpoints} map {{ {map} }}\n}}\n"
        );
        let _ =
            writeln!(elements, "add element ip kube-proxy service-ips {{ {at} . tcp . 80 : goto {name} }}");
        let _ = writeln!(elements, "add element ip kube-proxy cluster-ips {{ {at} }}");
        for here in (0..endpoints).map(number).filter(|number| number.is_multiple_of(50)) {
            let at = address(0x0a00_0000, here);
            let _ = writeln!(
                elements,
                "add element ip kube-proxy hairpin-connections {{ {at} . {at} . tcp . 8080 }}"
            );
        }
    }
    text.push_str("chain services {\nip daddr . meta l4proto . th dport vmap @service-ips\n");
    text.push_str("fib daddr type local meta l4proto . th dport vmap @service-nodeports\n}\n");
    for (name, hook, priority) in [("nat-prerouting", "prerouting", -100), ("nat-output", "output", -100)] {
        let _ = writeln!(text, "chain {name} {{ type nat hook {hook} priority {priority}; jump services; }}");
    }
    text.push_str("}\n");
    text + &elements
}

/// A control group that this process is alone in.
struct Group(PathBuf);

impl Group {
    fn enter() -> Self {
        let folder = PathBuf::from(format!("/sys/fs/cgroup/memory/footprint-{}", std::process::id()));
        fs::create_dir(&folder).expect("control groups of version 1");
        fs::write(folder.join("cgroup.procs"), std::process::id().to_string()).expect("it may be entered");
        Self(folder)
    }

    fn now(&self) -> u64 {
        let text = fs::read_to_string(self.0.join("memory.kmem.usage_in_bytes")).expect("kmem accounting");
        text.trim().parse().expect("a number")
    }

    /// Once nothing more is freed in the background.
    fn settled(&self) -> u64 {
        let mut least = self.now();
        for _ in 0..40 {
            sleep(Duration::from_millis(100));
            least = least.min(self.now());
        }
        least
    }

    /// Bytes by the kernel's cache, where it tells.
    fn caches(&self) -> BTreeMap<String, u64> {
        let text = fs::read_to_string(self.0.join("memory.kmem.slabinfo")).unwrap_or_default();
        let lines = text.lines().skip(2).map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines
            .filter_map(|words| {
                let (objects, size): (u64, u64) = (words.get(2)?.parse().ok()?, words.get(3)?.parse().ok()?);
                Some((words[0].to_owned(), objects * size))
            })
            .collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(fs::write("/sys/fs/cgroup/memory/cgroup.procs", std::process::id().to_string()));
        drop(fs::remove_dir(&self.0));
    }
}
