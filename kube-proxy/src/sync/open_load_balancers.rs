//! Which Services restrict the sources of their load balancer in one family only: told once, when that begins.

use std::collections::HashSet;

use proxy_core::{
    model::{Family, ServiceName},
    route::open_by_omission,
    store::Store,
};

/// Those that were told.
#[derive(Debug, Default)]
pub(crate) struct OpenLoadBalancers {
    told: HashSet<(Family, ServiceName)>,
}

impl OpenLoadBalancers {
    /// Those among `services` that were not open in this family before.
    pub(crate) fn news<'a>(
        &mut self,
        family: Family,
        services: &'a [ServiceName],
        store: &Store,
    ) -> Vec<&'a ServiceName> {
        let mut news = Vec::new();
        for name in services {
            let service = store.entry(name).and_then(|entry| entry.service.as_deref());
            let key = (family, name.clone());
            if !service.is_some_and(|service| open_by_omission(service, family)) {
                self.told.remove(&key);
            } else if self.told.insert(key) {
                news.push(name);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use proxy_core::model::Service;
    use serde_json::json;

    use super::*;
    use crate::api::slim;

    fn web(ranges: &[&str]) -> Service {
        let object = json!({
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "type": "LoadBalancer", "ports": [{"port": 80}],
                "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
                "loadBalancerSourceRanges": ranges,
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]}},
        });
        let object: slim::Service = serde_json::from_value(object).expect("it fits");
        object.translate(true).object.expect("it has a cluster IP")
    }

    #[test]
    fn an_open_family_is_told_once_each_time_it_becomes_so() {
        let mut store = Store::default();
        let mut open = OpenLoadBalancers::default();
        let names = [web(&[]).name];
        for (ranges, expected) in [
            (&[][..], [0, 0]),
            (&["10.0.0.0/8"], [0, 1]),
            (&["10.0.0.0/8", "192.168.0.0/16"], [0, 0]),
            (&["10.0.0.0/8", "::/0"], [0, 0]),
            (&["fd00::/8"], [1, 0]),
            (&["10.0.0.0/8"], [0, 1]),
        ] {
            store.set_service(web(ranges));
            let told = Family::BOTH.map(|family| open.news(family, &names, &store).len());
            assert_eq!(told, expected, "{ranges:?}");
        }
        store.remove_service(&names[0]);
        assert!(open.news(Family::V6, &names, &store).is_empty() && open.told.is_empty());
    }
}
