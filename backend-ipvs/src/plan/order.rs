//! In which order a new virtual server gets its destinations.

use std::net::IpAddr;

use ipvs_netlink::{Destination, Scheduler, ServiceFlags, ServiceKey};

use crate::schema::{
    mix::{mix, number},
    render::Server,
};

/// Round robin begins at the destination that was added last, and most other schedulers prefer it among equals. In one
/// order everywhere, the first connection to a Service would go to the same endpoint on every node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Order(pub(crate) u64);

impl Order {
    /// The destinations of a server in the order of their addition.
    pub(crate) fn of(self, server: Server) -> Box<[Destination]> {
        let Server { service, mut destinations, .. } = server;
        // Maglev's table follows from the order: the same one on all nodes.
        if self.0 != 0 && service.scheduler != Scheduler::MH {
            destinations.sort_by_cached_key(|to| self.rank(&service.key, to));
        }
        destinations.into()
    }

    /// What must be put anew so that a table of Maglev does not depend on what was there before: everything from the
    /// first addition on. Both lists are sorted; `None` where the order does not matter: to other schedulers, and to Maglev
    /// by client address alone (without the second flag), which serves this node only.
    pub(crate) fn anew(after: &Server, added: &[(IpAddr, u16)]) -> Option<Box<[Destination]>> {
        let by_port = after.service.flags.contains(ServiceFlags::SCHEDULER_2);
        let first = added.iter().min().filter(|_| after.service.scheduler == Scheduler::MH && by_port)?;
        let behind: Box<[Destination]> =
            after.destinations.iter().filter(|to| (to.address, to.port) >= *first).copied().collect();
        // One that is alone was put last just now.
        (behind.len() > 1).then_some(behind)
    }

    fn rank(self, key: &ServiceKey, to: &Destination) -> u64 {
        let (addr, port) = match *key {
            ServiceKey::Address { address, port, .. } => (number(address), u64::from(port)),
            ServiceKey::Mark { mark, .. } => (u64::from(mark), 0),
        };
        [addr, port, number(to.address), u64::from(to.port)].into_iter().fold(mix(self.0, 0), mix)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use ipvs_netlink::{Protocol, Service};

    use super::*;

    fn server(number: u8, scheduler: Scheduler) -> Server {
        let key = ServiceKey::new([10, 96, 0, number].into(), 80, Protocol::Tcp);
        let destinations = (1..=5).map(|last| Destination::new([10, 1, 0, last].into(), 8080, 1)).collect();
        Server { service: Service::new(key, scheduler), destinations, drains: true, stays: Vec::new() }
    }

    #[test]
    fn the_last_added_differs_from_service_to_service_and_from_node_to_node() {
        let mut last: HashMap<IpAddr, u32> = HashMap::new();
        for node in 1..=20 {
            for service in 1..=50 {
                let order = Order(node).of(server(service, Scheduler::RR));
                *last.entry(order.last().expect("five").address).or_default() += 1;
            }
        }
        // 200 each on average, with a standard deviation of 12.6.
        assert!(last.len() == 5 && last.values().all(|count| (140..=260).contains(count)), "{last:?}");
    }

    #[test]
    fn maglev_gets_the_same_order_on_every_node() {
        let server = server(1, Scheduler::MH);
        assert_eq!(Order(7).of(server.clone()), Order(8).of(server));
    }
}
