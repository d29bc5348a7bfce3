//! Which Services have topology hints that are not followed, and why: told once, when that begins or its reason changes.

use std::{collections::HashMap, sync::Arc};

use proxy_core::{
    model::{Family, ServiceName, ServicePortName},
    route::{HintsIgnored, Route, hints_ignored},
    store::Store,
};

/// Those that were told, of one family.
#[derive(Debug, Default)]
pub(crate) struct TopologyHints {
    ignored: HashMap<ServiceName, HintsIgnored>,
}

impl TopologyHints {
    /// Those among `services` whose hints are ignored now and were not before, or not for this reason.
    pub(crate) fn news<'a, 'b>(
        &mut self,
        family: Family,
        services: &'a [ServiceName],
        store: &Store,
        zone: Option<&str>,
        installed: impl Fn(&ServiceName) -> &'b [(ServicePortName, Arc<Route>)],
    ) -> Vec<(&'a ServiceName, HintsIgnored)> {
        let mut news = Vec::new();
        for name in services {
            match why(family, name, store, zone, installed(name)) {
                None => drop(self.ignored.remove(name)),
                Some(why) if self.ignored.insert(name.clone(), why) != Some(why) => news.push((name, why)),
                Some(_) => {}
            }
        }
        news
    }

    /// How many Services there are of each reason.
    pub(crate) fn counts(&self) -> [(HintsIgnored, usize); 3] {
        HintsIgnored::ALL.map(|why| (why, self.ignored.values().filter(|known| **known == why).count()))
    }
}

/// Of the first port whose traffic goes to endpoints of all nodes: under policy Local no hint counts.
fn why(
    family: Family,
    name: &ServiceName,
    store: &Store,
    zone: Option<&str>,
    ports: &[(ServicePortName, Arc<Route>)],
) -> Option<HintsIgnored> {
    let entry = store.entry(name)?;
    let endpoints = entry.endpoints(family);
    ports
        .iter()
        .filter(|(_, route)| !route.cluster.is_empty())
        .find_map(|(port, _)| hints_ignored(&endpoints.of(&port.port, port.protocol), zone))
}

/// For metrics and Events.
pub(crate) const fn word(why: HintsIgnored) -> &'static str {
    match why {
        HintsIgnored::Incomplete => "incomplete",
        HintsIgnored::NoZone => "no_zone",
        HintsIgnored::NoneHere => "none_here",
    }
}
