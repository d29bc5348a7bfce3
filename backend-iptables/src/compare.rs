//! What the tables hold against what they should, chain by chain and rule by rule. Reads only: no lock is taken
//! (`iptables-save` takes none), no table is created by name and no counter is made.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    process::{Command, Stdio},
    sync::Arc,
};

use proxy_core::{
    difference::{Comparison, DifferenceKind, Unreadable},
    environment::Environment,
    model::{Family, ServicePortName},
    route::Route,
};

use crate::{
    kernel::{
        accounting,
        variant::{self, Machine, Programs, Variant, Version},
    },
    plan::{
        planner::LARGE_CLUSTER_ENDPOINTS,
        scaffold,
        service::{
            rules::{Context, EndpointComments},
            write,
        },
    },
    schema::{
        chains::{
            CANARY, Dispatcher, FORWARD, IPVS_CHAINS, IPVS_JUMPS, JUMPS, Jump, KUBELET_FIREWALL,
            KUBELET_JUMPS, SERVICES, Table, is_service_chain,
        },
        counters::{Counters, INVALID_DROPPED, LOCALHOST_ACCEPTED},
        found::{Found, Host, is_known},
    },
};

/// What a table must hold of ours: the lines of each chain, with the Service port that each belongs to.
type Wanted = BTreeMap<(Table, Box<str>), Vec<(Box<str>, Option<usize>)>>;

/// What it holds.
#[derive(Debug, Default)]
struct Held {
    chains: BTreeMap<(Table, Box<str>), Vec<Box<str>>>,
}

/// Compares the tables of one family with what these routes (sorted by name) want.
///
/// # Errors
/// Where the programs are missing or may not read.
pub fn compare(
    routes: &[(ServicePortName, Arc<Route>)],
    environment: &Environment,
    chosen: Option<Variant>,
) -> Result<Comparison, Unreadable> {
    let (text, version) = read(environment.family, chosen)?;
    let held = Held::read(&text);
    let found = Found::read(text.as_bytes(), Host::default()).map_err(|error| missing(&error.to_string()))?;
    let host = host(&version, &held, environment);
    let mut comparison = Comparison::default();
    chains(routes, environment, host, &held, &found, &mut comparison);
    jumps(&found, &mut comparison);
    comparison.settle();
    Ok(comparison)
}

/// What a full plan needs to know, without anything that a survey writes (packet counters, a trial of them).
///
/// # Errors
/// Where the programs are missing or may not read.
pub fn survey(environment: &Environment, chosen: Option<Variant>) -> Result<Found, Unreadable> {
    let (text, version) = read(environment.family, chosen)?;
    let host = host(&version, &Held::read(&text), environment);
    Found::read(text.as_bytes(), host).map_err(|error| missing(&error.to_string()))
}

/// All tables as text, and the version of the programs.
fn read(family: Family, chosen: Option<Variant>) -> Result<(String, Version), Unreadable> {
    let variant = chosen.or_else(|| match variant::installed(family)[..] {
        [] => None,
        [only] => Some(only),
        _ => Some(variant::choose(&Machine)),
    });
    let programs = Programs::of(family, variant);
    let version = variant::version(&programs.iptables).map_err(|error| missing(&error.to_string()))?;
    Ok((save(&programs.save)?, version))
}

fn missing(reason: &str) -> Unreadable {
    Unreadable::NotThere {
        what: "the iptables rules",
        reason: reason.to_owned(),
        mend: "The iptables mode needs the programs iptables and iptables-save of this node",
    }
}

/// The whole output of a save program.
fn save(program: &str) -> Result<String, Unreadable> {
    let output = Command::new(program).stdin(Stdio::null()).output();
    let output = output.map_err(|error| missing(&format!("{program}: {error}")))?;
    if !output.status.success() {
        let reason = format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
        let denied = ["ermission denied", "must be root", "not permitted"];
        return Err(if denied.iter().any(|text| reason.contains(text)) {
            Unreadable::NotAllowed { what: "the iptables rules", reason }
        } else {
            missing(&reason)
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What beside routes decided on the rules when they were written. Whether rules may name counters is seen by whether they
/// do: trying it would write.
fn host(version: &Version, held: &Held, environment: &Environment) -> Host {
    let exists = |counter| accounting::packets(counter).ok().flatten().is_some();
    let liberal = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal");
    let counted = |counters| Host {
        tcp_be_liberal: liberal.as_ref().is_ok_and(|value| value.trim() != "0"),
        random_fully: version.is_at_least((1, 6, 2)),
        counters,
    };
    let with = counted(Counters {
        invalid_dropped: exists(INVALID_DROPPED),
        localhost_accepted: exists(LOCALHOST_ACCEPTED),
    });
    let without = counted(Counters::default());
    let forward = held.chains.get(&(Table::Filter, FORWARD.into()));
    let holds = |host: Host| {
        let fixed = scaffold::fixed_chains(environment, host);
        let wanted = fixed.iter().find(|fixed| fixed.chain == FORWARD).map(|fixed| &fixed.rules);
        wanted.zip(forward).is_some_and(|(wanted, held)| wanted.lines().eq(held.iter().map(|line| &**line)))
    };
    if !holds(with) && holds(without) { without } else { with }
}

impl Held {
    /// Reads the output of a save program: only chains whose names begin as ours do.
    fn read(text: &str) -> Self {
        let mut held = Self::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.as_str() == name.trim_end());
            }
            let Some(table) = table else { continue };
            let chain = |rest: &str| -> Option<Box<str>> {
                let name = rest.split_whitespace().next()?;
                name.starts_with("KUBE-").then(|| name.into())
            };
            if let Some(name) = line.strip_prefix(':').and_then(chain) {
                held.chains.entry((table, name)).or_default();
            } else if let Some(name) = line.strip_prefix("-A ").and_then(chain) {
                held.chains.entry((table, name)).or_default().push(line.into());
            }
        }
        held
    }
}

fn chains(
    routes: &[(ServicePortName, Arc<Route>)],
    environment: &Environment,
    host: Host,
    held: &Held,
    found: &Found,
    comparison: &mut Comparison,
) {
    let endpoints: usize = routes.iter().map(|(_, route)| route.endpoints as usize).sum();
    // Chains that did not change since the cluster became large, or small again, stay as they were written.
    let both = [EndpointComments::Written, EndpointComments::LeftOut];
    let usual = both[usize::from(endpoints > LARGE_CLUSTER_ENDPOINTS)];
    let wanted = wanted(routes, environment, host, usual);
    let other = both[usize::from(endpoints <= LARGE_CLUSTER_ENDPOINTS)];
    let mut otherwise = None;
    let names = Names::new(routes, &wanted);
    let none = Vec::new();
    for ((table, chain), lines) in &wanted {
        comparison.compared += 1 + lines.len();
        let key = (*table, chain.clone());
        let Some(own) = held.chains.get(&key) else {
            let owner = lines.first().and_then(|(_, owner)| *owner).filter(|_| is_service_chain(chain));
            let owner = owner.map(|at| &routes[at].0);
            comparison.differs(
                owner,
                DifferenceKind::Missing,
                format!("chain {chain} of table {table}"),
                Some(format!("iptables -t {table} -N {chain}")),
            );
            // Whose rules go with a chain that all share is told of each.
            if !is_service_chain(chain) {
                rules(*table, chain, lines, &none, routes, &names, comparison);
            }
            continue;
        };
        // Kubelet may have rules of its own there.
        let mut own: Vec<Box<str>> = own.clone();
        if &**chain == KUBELET_FIREWALL {
            own.retain(|line| lines.iter().any(|(wanted, _)| wanted == line));
        }
        let equal = |lines: &[(Box<str>, Option<usize>)]| lines.iter().map(|(line, _)| line).eq(own.iter());
        if equal(lines) {
            continue;
        }
        if is_service_chain(chain) {
            let as_before = otherwise
                .get_or_insert_with(|| self::wanted(routes, environment, host, other))
                .get(&key)
                .is_some_and(|lines| equal(lines));
            if as_before {
                continue;
            }
        }
        rules(*table, chain, lines, &own, routes, &names, comparison);
    }
    for ((table, chain), lines) in &held.chains {
        let key = (*table, chain.clone());
        let known = is_known(*table, chain) || *table == Table::Nat && is_service_chain(chain);
        if wanted.contains_key(&key)
            || !known
            || IPVS_CHAINS.contains(&(*table, &**chain)) && lines.is_empty()
        {
            continue;
        }
        if let Some(user) = found.user_of(*table, chain) {
            comparison.owes(
                None,
                format!("chain {chain} of table {table} stays: a rule of others leads to it ({user})"),
            );
            continue;
        }
        let owner = lines.iter().find_map(|line| names.of_line(line)).map(|at| &routes[at].0);
        let mut what = format!("chain {chain} of table {table} with {} rules", lines.len());
        if let Some(name) = lines.iter().find_map(|line| comment(line)).filter(|_| owner.is_none()) {
            what += &format!(", written for {name}");
        }
        let native = format!("iptables -t {table} -F {chain}; iptables -t {table} -X {chain}");
        comparison.differs(owner, DifferenceKind::Extra, what, Some(native));
    }
}

/// All chains with their rules, as a first start would write them.
fn wanted(
    routes: &[(ServicePortName, Arc<Route>)],
    environment: &Environment,
    host: Host,
    comments: EndpointComments,
) -> Wanted {
    let mut wanted = Wanted::new();
    for table in Table::ALL {
        wanted.insert((table, CANARY.into()), Vec::new());
    }
    if !environment.localhost_node_ports {
        wanted.insert((Table::Filter, KUBELET_FIREWALL.into()), Vec::new());
    }
    let unowned = |rules: &str| rules.lines().map(|line| (line.into(), None)).collect();
    for fixed in scaffold::fixed_chains(environment, host) {
        wanted.insert((fixed.table, fixed.chain.into()), unowned(&fixed.rules));
    }
    for dispatcher in Dispatcher::ALL {
        wanted.entry((dispatcher.table(), dispatcher.chain().into())).or_default();
    }
    let context = Context { environment, host, comments };
    for (at, (name, route)) in routes.iter().enumerate() {
        let rules = write(name, route, context);
        let own = |rules: &str| -> Vec<(Box<str>, Option<usize>)> {
            rules.lines().map(|line| (line.into(), Some(at))).collect()
        };
        for (chain, rules) in rules.chains() {
            wanted.insert((Table::Nat, chain.to_string().into()), own(rules));
        }
        for dispatcher in Dispatcher::ALL {
            if let Some(lines) = rules.dispatch.lines(dispatcher) {
                let chain = wanted.entry((dispatcher.table(), dispatcher.chain().into())).or_default();
                chain.extend(own(lines));
            }
        }
    }
    let tail: Vec<_> = unowned(&scaffold::to_node_ports(environment));
    wanted.entry((Table::Nat, SERVICES.into())).or_default().extend(tail);
    wanted
}

/// By what a line is known as a Service port's.
struct Names<'a> {
    by_chain: HashMap<&'a str, usize>,
    by_name: HashMap<String, usize>,
}

impl<'a> Names<'a> {
    fn new(routes: &[(ServicePortName, Arc<Route>)], wanted: &'a Wanted) -> Self {
        let mut by_chain = HashMap::new();
        for ((_, chain), lines) in wanted {
            if let Some((_, Some(at))) = lines.first().filter(|_| is_service_chain(chain)) {
                by_chain.insert(&**chain, *at);
            }
        }
        let by_name = routes.iter().enumerate().map(|(at, (name, _))| (name.to_string(), at)).collect();
        Self { by_chain, by_name }
    }

    fn of_line(&self, line: &str) -> Option<usize> {
        let target = line.rsplit_once(" -j ").and_then(|(_, target)| target.split_whitespace().next());
        let chain = line.strip_prefix("-A ").and_then(|rest| rest.split_whitespace().next());
        let by_chain = |name: Option<&str>| name.and_then(|name| self.by_chain.get(name)).copied();
        by_chain(chain).or_else(|| by_chain(target)).or_else(|| self.by_name.get(comment(line)?).copied())
    }
}

/// The first word of a rule's comment: for a Service port's rule, its name.
fn comment(line: &str) -> Option<&str> {
    let (_, comment) = line.split_once("--comment \"")?;
    let first = comment.split([' ', '"']).next()?;
    first.contains('/').then_some(first)
}

/// Rules of one chain that are missing, too many, or in another order.
fn rules(
    table: Table,
    chain: &str,
    wanted: &[(Box<str>, Option<usize>)],
    held: &[Box<str>],
    routes: &[(ServicePortName, Arc<Route>)],
    names: &Names<'_>,
    comparison: &mut Comparison,
) {
    let mut left: HashMap<&str, usize> = HashMap::new();
    held.iter().for_each(|line| *left.entry(line).or_default() += 1);
    let mut complete = true;
    for (line, owner) in wanted {
        match left.get_mut(&**line) {
            Some(count) if *count > 0 => *count -= 1,
            _ => {
                complete = false;
                let owner = owner.map(|at| &routes[at].0);
                let what = format!("rule of {chain} in table {table}: {}", rest(line));
                let native = format!("iptables -t {table} {line}");
                comparison.differs(owner, DifferenceKind::Missing, what, Some(native));
            }
        }
    }
    for line in held {
        let Some(count) = left.get_mut(&**line).filter(|count| **count > 0) else { continue };
        *count -= 1;
        complete = false;
        let owner = names.of_line(line).map(|at| &routes[at].0);
        let what = format!("rule of {chain} in table {table}: {}", rest(line));
        let native = format!("iptables -t {table} -D {}", line.strip_prefix("-A ").unwrap_or(line));
        comparison.differs(owner, DifferenceKind::Extra, what, Some(native));
    }
    if !complete {
        return;
    }
    // The order decides within a chain of a Service port, and at the end of the chain that all begin in; among Services
    // it does not: their addresses differ. But a rule that stands behind the last one is never reached.
    let of_service = is_service_chain(chain);
    let owners: HashSet<Option<usize>> = wanted
        .iter()
        .zip(held)
        .filter(|((line, _), held)| line != *held)
        .map(|((_, owner), _)| *owner)
        .collect();
    if of_service || owners.contains(&None) {
        let owner =
            wanted.first().and_then(|(_, owner)| *owner).filter(|_| of_service).map(|at| &routes[at].0);
        let what = format!("the rules of {chain} in table {table} stand in another order");
        comparison.differs(owner, DifferenceKind::Different, what, None);
    }
}

/// A rule without its chain.
fn rest(line: &str) -> &str {
    line.strip_prefix("-A ").and_then(|line| line.split_once(' ')).map_or(line, |(_, rest)| rest)
}

/// The kernel's own chains must lead to ours, and to nothing that only kube-proxy's ipvs mode has.
fn jumps(found: &Found, comparison: &mut Comparison) {
    let words = |jump: &Jump| format!("rule of {} in table {}: {}", jump.from, jump.table, jump.rule());
    let native = |verb: &str, jump: &Jump| {
        Some(format!("iptables -t {} {verb} {} {}", jump.table, jump.from, jump.rule()))
    };
    for jump in JUMPS.iter().chain(&KUBELET_JUMPS) {
        comparison.compared += 1;
        if !found.has_jump(jump) {
            comparison.differs(None, DifferenceKind::Missing, words(jump), native("-I", jump));
        }
    }
    for jump in IPVS_JUMPS.iter().filter(|jump| found.has_jump(jump)) {
        comparison.differs(None, DifferenceKind::Extra, words(jump), native("-D", jump));
    }
}

/// What removing everything of kube-proxy's iptables and ipvs modes, and of ours, would remove from one family's tables.
/// Nothing is changed.
///
/// # Errors
/// Where a program fails.
pub fn removals(family: Family, variant: Variant) -> Result<Vec<Removal>, Unreadable> {
    let programs = Programs::of(family, Some(variant));
    let text = save(&programs.save)?;
    let read = |error: io::Error| missing(&error.to_string());
    let found = Found::read(text.as_bytes(), Host::default()).map_err(read)?;
    let held = Held::read(&text);
    let plan = crate::plan::removal::plan(&found, &[]);
    let mut removals = Vec::new();
    for op in plan.steps.iter().flat_map(|step| &step.ops).map(|owned| &owned.op) {
        match op {
            crate::schema::op::Op::Remove(jump) => removals.push(Removal {
                table: jump.table,
                what: format!("{} {}", jump.from, jump.rule()),
                rules: 1,
                owner: None,
            }),
            op => removals.extend(op.deleted().into_iter().map(|(table, chain)| {
                let lines = held.chains.get(&(table, chain.clone())).map_or(&[][..], |lines| lines);
                let owner = lines.iter().find_map(|line| comment(line)).filter(|_| is_service_chain(&chain));
                let owner = owner.map(str::to_owned);
                Removal { table, what: chain.into(), rules: lines.len(), owner }
            })),
        }
    }
    Ok(removals)
}

/// A chain, or a rule that leads to one, that would be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Its table.
    pub table: Table,
    /// The chain, or the chain and the rule that leads away from it.
    pub what: String,
    /// How many rules go.
    pub rules: usize,
    /// The Service port that it was written for, as the comments of its rules say: `namespace/name:port`.
    pub owner: Option<String>,
}
