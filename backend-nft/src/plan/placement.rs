//! Where a Service port's endpoints stand in the kernel, and the elements that follow from it.

use proxy_core::{
    model::{Protocol, ServicePortName},
    route::{Answer, Frontend, FrontendKind, Route, Target},
};

use crate::schema::{
    element::{Element, Key, Place},
    name::Set,
    operation::List,
    scaffold::disjoint,
    size_class::SizeClass,
    value::{Plain, Sticky, group_key, sticky_base},
};

/// What is installed for one Service port.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placement {
    pub(crate) cluster: Option<Group>,
    pub(crate) local: Option<Group>,
    pub(crate) sticky: Option<Box<StickyPort>>,
}

/// The endpoints of one list, stored once for all addresses of the Service port.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) id: u32,
    pub(crate) length: u32,
    /// Which endpoint stands in which slot, unless that is the order of the list: most lists never change.
    pub(crate) slots: Option<Box<[Place]>>,
}

/// A Service port with session affinity.
#[derive(Debug, Clone)]
pub(crate) struct StickyPort {
    pub(crate) port: u16,
    pub(crate) wide: bool,
    /// The number of its timeout with its map of clients.
    pub(crate) memory: u16,
    /// Index of each endpoint, sorted by place; indices are kept as long as the endpoint stays.
    pub(crate) members: Vec<(Place, u32)>,
    /// Where the next search for a free index begins.
    pub(crate) cursor: u32,
    /// Endpoint indices under policy Cluster, by slot.
    pub(crate) cluster: Vec<u32>,
    /// Endpoint indices under policy Local, by slot, and the id that stands for that list in `sticky-slots`.
    pub(crate) local: Option<(u16, Vec<u32>)>,
}

/// Which of the two lists a Service port's traffic uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    pub(crate) cluster: bool,
    pub(crate) local: bool,
}

/// What becomes of traffic to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    To(List),
    ExternalLocal { refuse: bool },
    Reject,
    Drop,
}

fn way(route: &Route, frontend: &Frontend) -> Way {
    match route.answer(frontend) {
        Answer::To(targets) if std::ptr::eq(targets, &*route.local) => Way::To(List::Local),
        Answer::To(_) => Way::To(List::Cluster),
        Answer::Local { anywhere, .. } => Way::ExternalLocal { refuse: anywhere.is_empty() },
        Answer::Reject => Way::Reject,
        Answer::Drop => Way::Drop,
    }
}

/// The lists that any of the route's frontends uses.
pub(crate) fn uses(route: &Route) -> Uses {
    let mut uses = Uses::default();
    for frontend in &route.frontends {
        match way(route, frontend) {
            Way::To(List::Cluster) => uses.cluster = true,
            Way::To(List::Local) => uses.local = true,
            // The cluster group is the key to the local one, even when it is empty itself.
            Way::ExternalLocal { .. } => {
                uses.cluster = true;
                uses.local |= !route.local.is_empty();
            }
            Way::Reject | Way::Drop => {}
        }
    }
    uses
}

/// The places of a list, sorted; of several targets that differ in nothing else one is kept.
pub(crate) fn places(targets: &[Target]) -> Vec<Place> {
    let mut places: Vec<_> = targets.iter().map(|target| (target.addr, target.port)).collect();
    if !places.is_sorted() {
        places.sort_unstable();
    }
    places.dedup();
    places
}

impl Group {
    fn size(&self) -> SizeClass {
        SizeClass::of(self.length as usize)
    }
}

impl StickyPort {
    pub(crate) fn base(&self) -> u32 {
        sticky_base(self.port)
    }

    pub(crate) fn place_of(&self, index: u32) -> Option<Place> {
        self.members.iter().find(|(_, own)| *own == index).map(|(place, _)| *place)
    }
}

/// Every small element that follows from a route and its placement: all but slots, what belongs to a sticky Service
/// port, source ranges, and keys shared with other Service ports.
pub(crate) fn derived(route: &Route, placement: &Placement, elements: &mut Vec<Element>) {
    for frontend in &route.frontends {
        derived_from_frontend(route, frontend, placement, elements);
    }
    if let (None, Some(cluster), Some(local)) = (&placement.sticky, &placement.cluster, &placement.local)
        && local.length > 0
        && route.frontends.iter().any(|frontend| matches!(way(route, frontend), Way::ExternalLocal { .. }))
    {
        let value = Plain::Local.value(local.size(), local.id);
        elements.push(Element::id(Set::LocalGroups, Key::Id(group_key(cluster.id)), value));
    }
}

fn derived_from_frontend(
    route: &Route,
    frontend: &Frontend,
    placement: &Placement,
    elements: &mut Vec<Element>,
) {
    let key = frontend_key(route.protocol, frontend);
    let by_address = frontend.at.is_some();
    let (refuse, serve) =
        if by_address { (Set::RefuseVips, Set::Vips) } else { (Set::RefuseNodePorts, Set::NodePorts) };
    let restricted = by_address && route.sources(frontend).is_some();
    let way = way(route, frontend);
    let value = match way {
        Way::Reject | Way::Drop => restricted.then(|| Plain::RestrictedOnly.value(SizeClass::of(0), 0)),
        Way::To(_) | Way::ExternalLocal { .. } => value(frontend.kind, restricted, way, placement),
    };
    match way {
        // Under policy Local only this node and its pods get there untranslated.
        Way::Reject | Way::ExternalLocal { refuse: true } => elements.push(Element::member(refuse, key)),
        // A cluster IP under internal policy Local: nothing else is dropped for want of endpoints.
        Way::Drop => elements.push(Element::member(Set::DropVips, key)),
        _ => {}
    }
    if let Some(value) = value {
        elements.push(Element::id(serve, key, value));
    }
}

fn value(kind: FrontendKind, restricted: bool, way: Way, placement: &Placement) -> Option<u32> {
    let cluster_ip = kind == FrontendKind::ClusterIp;
    if let Some(sticky) = &placement.sticky {
        let class = match way {
            Way::ExternalLocal { .. } if restricted => Sticky::RestrictedExternalLocal,
            Way::ExternalLocal { .. } => Sticky::ExternalLocal,
            Way::To(List::Local) => Sticky::ClusterIpLocal,
            _ if cluster_ip => Sticky::ClusterIp,
            _ if restricted => Sticky::RestrictedExternal,
            _ => Sticky::External,
        };
        return Some(class.value(sticky.memory, sticky.wide, sticky.port));
    }
    let group = match way {
        Way::To(List::Local) => &placement.local,
        _ => &placement.cluster,
    };
    let group = group.as_ref()?;
    let class = match way {
        Way::ExternalLocal { .. } if restricted => Plain::RestrictedExternalLocal,
        Way::ExternalLocal { .. } => Plain::ExternalLocal,
        _ if cluster_ip => Plain::ClusterIp,
        _ if restricted => Plain::RestrictedExternal,
        _ => Plain::External,
    };
    Some(class.value(group.size(), group.id))
}

fn frontend_key(protocol: Protocol, frontend: &Frontend) -> Key {
    match frontend.at {
        Some(addr) => Key::Frontend(addr, protocol, frontend.port),
        None => Key::Port(protocol, frontend.port),
    }
}

/// The elements of one frontend's source ranges. Ranges inside others are left out: an interval set refuses overlaps.
pub(crate) fn source_elements(route: &Route, frontend: &Frontend, elements: &mut Vec<Element>) {
    let (Some(addr), Some(sources)) = (frontend.at, route.sources(frontend)) else { return };
    let (protocol, port) = (route.protocol, frontend.port);
    let own = sources.own_vips.iter().map(|vip| (*vip).into());
    let nets: Vec<ipnet::IpNet> = sources.ranges.iter().copied().chain(own).collect();
    for net in disjoint(nets) {
        elements.push(Element::member(Set::AllowedSources, Key::Allowed(addr, protocol, port, net)));
    }
}

/// nft's limit for comments is 128 bytes.
const LONGEST_COMMENT: usize = 120;

/// The name of a Service port as a comment: long ones are cut, and a hash keeps them apart.
pub(crate) fn comment(name: &ServicePortName) -> Box<str> {
    let full = format!("{name}/{}", name.protocol);
    if full.len() <= LONGEST_COMMENT {
        return full.into();
    }
    // FNV-1a: the same in every version of this program.
    let hash = full
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let cut: String = full.chars().take(LONGEST_COMMENT - 17).collect();
    format!("{cut}~{hash:016x}").into()
}
