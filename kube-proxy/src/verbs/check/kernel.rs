//! What the kernel can do: rules of the mode are written into a network namespace of their own, and a packet goes through them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use insight::state::Mode;
use netlink::{Pipeline, Protocol as Socket, address, link, scratch};
use proxy_core::{
    backend::{Executor, Planner},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, ObjectName, Protocol, ServicePortName, TrafficPolicy},
    route::{Frontend, FrontendKind, Route, Target},
};

use super::report::Finding;
use crate::verbs::intended::now;

/// A packet to an address of the same machine needs no time; a second try of the kernel's comes after one second.
const PATIENCE: Duration = Duration::from_secs(3);
const PORT: u16 = 80;

/// Checks one mode in one family.
pub(crate) fn mode(mode: Mode, family: Family, ipvs: &backend_ipvs::Settings) -> Finding {
    let check = format!("kernel.{}-{family}", mode.as_str());
    if mode == Mode::Ipvs && !std::path::Path::new("/proc/net/ip_vs").exists() && !has_module("ip_vs") {
        return Finding::fail(
            check,
            "this kernel has no IPVS, loaded or to be loaded",
            "load the module ip_vs (CONFIG_IP_VS), or choose another mode",
        );
    }
    let tried = scratch::with_own_run(|| attempt(mode, family, ipvs));
    match tried {
        Err(error) => Finding::warn(
            check,
            format!("not tried: a network namespace to try it in cannot be made ({error})"),
            "run it as root with CAP_SYS_ADMIN: kubectl exec into a privileged pod, or on the node",
        ),
        Ok(Ok(what)) => Finding::ok(check, what),
        Ok(Err(reason)) => Finding::fail(check, reason, mend(mode)),
    }
}

const fn mend(mode: Mode) -> &'static str {
    match mode {
        Mode::Nftables => "a kernel from 5.13 on with nf_tables and the options named, or another mode",
        Mode::Iptables => "the programs iptables and iptables-restore, and a kernel with what they ask for",
        Mode::Ipvs => "the modules ip_vs, ip_vs_rr, dummy and nf_tables, or another mode",
    }
}

/// Whether a module is installed for this kernel or built into it.
fn has_module(name: &str) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    ["modules.builtin", "modules.dep"].iter().any(|list| {
        let all =
            std::fs::read_to_string(format!("/lib/modules/{}/{list}", release.trim())).unwrap_or_default();
        all.lines().any(|line| {
            let first = line.split([' ', ':']).next().unwrap_or_default();
            first.rsplit('/').next().and_then(|name| name.split('.').next()) == Some(name)
        })
    })
}

/// In a namespace of its own: one Service, written by the mode's own backend, and a connection to it.
fn attempt(mode: Mode, family: Family, ipvs: &backend_ipvs::Settings) -> Result<String, String> {
    let (vip, endpoint) = addresses(family);
    let text = |error: &dyn std::fmt::Display| error.to_string();
    interfaces(vip, endpoint, mode)
        .map_err(|error| format!("the loopback interface cannot be set up: {error}"))?;
    let listener = TcpListener::bind((endpoint, 0)).map_err(|error| format!("no listener: {error}"))?;
    let port = listener.local_addr().map_err(|error| text(&error))?.port();
    let routes = [(name(), Arc::new(route(vip, endpoint, port)))];
    let environment = environment(family, endpoint);
    match mode {
        Mode::Nftables => {
            let missing = backend_nft::probe(family).map_err(|error| text(&error))?;
            let (needed, spared): (Vec<_>, Vec<_>) = missing.into_iter().partition(|part| !part.is_hash());
            if !needed.is_empty() {
                return Err(needed.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
            }
            let mut planner = backend_nft::Planner::new(family);
            if !spared.is_empty() {
                planner = planner.without_hash();
            }
            let executor = backend_nft::Executor::open(family).map_err(|error| text(&error))?;
            write(planner, executor, &routes, &environment)?;
        }
        Mode::Iptables => {
            let executor = backend_iptables::Executor::open(family).map_err(|error| text(&error))?;
            write(backend_iptables::Planner::new(family), executor, &routes, &environment)?;
        }
        Mode::Ipvs => {
            let (planner, executor) =
                backend_ipvs::open(family, ipvs.clone()).map_err(|error| text(&error))?;
            write(planner, executor, &routes, &environment)?;
            let same =
                backend_ipvs::compare(&routes, &environment, ipvs, now()).map_err(|error| text(&error))?;
            return match same.differences.first() {
                None => {
                    Ok("a virtual server, its address and its rules were written and read back".to_owned())
                }
                Some(one) => Err(format!("what was written does not stand: {} {}", one.kind, one.what)),
            };
        }
    }
    TcpStream::connect_timeout(&SocketAddr::new(vip, PORT), PATIENCE)
        .map_err(|error| format!("the rules were written, and a connection through them failed: {error}"))?;
    Ok("a Service was written, and a connection through it reached its endpoint".to_owned())
}

/// Addresses for documentation (RFC 5737, RFC 3849).
fn addresses(family: Family) -> (IpAddr, IpAddr) {
    match family {
        Family::V4 => (Ipv4Addr::new(192, 0, 2, 1).into(), Ipv4Addr::new(192, 0, 2, 2).into()),
        Family::V6 => {
            let at = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into();
            (at(1), at(2))
        }
    }
}

fn interfaces(vip: IpAddr, endpoint: IpAddr, mode: Mode) -> Result<(), netlink::Error> {
    let mut socket = netlink::Socket::open(Socket::Route)?;
    let loopback = link::find(&mut socket, "lo")?.map_or(1, |link| link.index);
    link::set_up(&mut socket, loopback)?;
    let mut pipeline = Pipeline::new();
    address::push_add(&mut pipeline, endpoint, loopback);
    // With IPVS the backend binds it.
    if mode != Mode::Ipvs {
        address::push_add(&mut pipeline, vip, loopback);
    }
    match pipeline.run(&mut socket)?.into_iter().next() {
        Some(failure) => Err(netlink::Error::Refused(failure)),
        None => Ok(()),
    }
}

fn name() -> ServicePortName {
    ServicePortName {
        service: ObjectName::new("switchyard", "check"),
        port: "".into(),
        protocol: Protocol::Tcp,
    }
}

fn route(vip: IpAddr, endpoint: IpAddr, port: u16) -> Route {
    Route {
        policy: Arc::default(),
        protocol: Protocol::Tcp,
        frontends: [Frontend { kind: FrontendKind::ClusterIp, at: Some(vip), port: PORT }].into(),
        external_policy: TrafficPolicy::Cluster,
        cluster: [Target { addr: endpoint, port, local: true }].into(),
        local: Box::default(),
        kept: Box::default(),
        any_endpoint: true,
        lost: Box::default(),
        endpoints: 1,
    }
}

fn environment(family: Family, node: IpAddr) -> Environment {
    Environment {
        family,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Unknown,
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: false,
        loopback_node_ports: Box::default(),
        refused_on_localhost: Box::default(),
        service_cidrs: Box::default(),
        node_ips: [node].into(),
        interface_addresses: [node].into(),
    }
}

fn write<P, X>(
    mut planner: P,
    mut executor: X,
    routes: &[(ServicePortName, Arc<Route>)],
    environment: &Environment,
) -> Result<(), String>
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    let found = executor.survey().map_err(|error| error.to_string())?;
    let plan = planner.plan_full(routes, environment, found, now());
    let outcome = executor.apply(&plan).map_err(|error| error.to_string())?;
    match outcome.rejected.first() {
        Some(rejection) => Err(rejection.reason.clone()),
        None => Ok(()),
    }
}

/// What this process may do: changing the kernel's tables, and making namespaces to try things in.
pub(crate) fn rights() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    of_capabilities(&status)
}

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` of linux/capability.h.
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;

fn of_capabilities(status: &str) -> Finding {
    let check = "rights.capabilities";
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let has = |capability: u32| bits & 1 << capability != 0;
    let mend = "run it as root: in a pod with securityContext.privileged: true, as kube-proxy's is";
    match (has(NET_ADMIN), has(SYS_ADMIN)) {
        (false, _) => Finding::fail(
            check,
            "without CAP_NET_ADMIN the kernel's tables can be neither read nor written",
            mend,
        ),
        (true, false) => {
            Finding::warn(check, "without CAP_SYS_ADMIN nothing can be tried in a namespace of its own", mend)
        }
        (true, true) => Finding::ok(check, "CAP_NET_ADMIN and CAP_SYS_ADMIN"),
    }
}

/// Whether the kernel has IPv6 at all.
pub(crate) fn has_ipv6() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    std::path::Path::new("/proc/net/if_inet6").exists() && disabled.is_ok_and(|value| value.trim() == "0")
}

/// Why something could not be asked.
pub(crate) fn because(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{error} (run it as root)"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::check::report::Status;

    #[test]
    fn what_a_process_may_do_is_read_from_its_capabilities() {
        let of = |bits: &str| of_capabilities(&format!("Name:\tx\nCapEff:\t{bits}\n")).status;
        assert_eq!(of("000001ffffffffff"), Status::Ok);
        assert_eq!(of("0000000000001000"), Status::Warn);
        assert_eq!(of("0000000000200000"), Status::Fail);
        assert_eq!(of_capabilities("").status, Status::Fail);
    }

    #[test]
    fn a_packet_goes_through_the_rules_of_each_mode_that_this_kernel_has() {
        for family in Family::BOTH {
            for mode in [Mode::Nftables, Mode::Iptables] {
                let found = self::mode(mode, family, &backend_ipvs::Settings::default());
                assert_eq!(found.status, Status::Ok, "{found:?}");
                assert!(found.what.contains("reached its endpoint"), "{found:?}");
            }
        }
    }

    #[test]
    fn a_module_is_found_whatever_folder_and_form_it_has() {
        assert!(!has_module("no_such_module_there"));
    }
}
