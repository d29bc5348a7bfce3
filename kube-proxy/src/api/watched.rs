//! The kinds of objects that the engine is told of, and how they are told.

use std::collections::HashMap;

use ipnet::IpNet;
use proxy_core::model::{Input, Kind, ObjectName};

use crate::{
    api::{
        reflector::{Selection, Told},
        slim,
        watch::{Source, reflect},
    },
    engine::mailbox::Mailbox,
    telemetry::first_sync::FirstLists,
};

/// Label of Services that another proxy serves.
const NOT_OURS: &str = "!service.kubernetes.io/service-proxy-name";
const NOT_HEADLESS: &str = "!service.kubernetes.io/headless";

/// Services with a cluster IP that are not served by another proxy.
pub(crate) async fn services(source: Source, external_ips: bool, first_lists: FirstLists, inputs: Mailbox) {
    let selection = Selection {
        labels: Some(NOT_OURS),
        fields: Some("spec.clusterIP!=None".to_owned()),
        fields_may_be_unknown: true,
        optional: false,
    };
    reflect::<slim::Service>(&source, selection, Some(first_lists.begin()), |told| {
        let input = match told {
            Told::Applied(service) => {
                let name = service.metadata.name();
                let translated = service.translate(external_ips);
                for complaint in translated.complaints {
                    tracing::error!(service = %name, complaint, "Part of a Service is ignored");
                }
                translated.object.map_or(Input::ServiceGone(name), |service| Input::Service(service.into()))
            }
            Told::Gone(name) => Input::ServiceGone(name),
            Told::Listed => Input::Listed(Kind::Service),
        };
        inputs.send(input.into()).is_ok()
    })
    .await;
}

/// EndpointSlices of Services that are not headless.
pub(crate) async fn slices(source: Source, node: String, first_lists: FirstLists, inputs: Mailbox) {
    let selection = Selection { labels: Some(NOT_HEADLESS), ..Selection::default() };
    reflect::<slim::EndpointSlice>(&source, selection, Some(first_lists.begin()), |told| {
        let input = match told {
            Told::Applied(slice) => {
                let name = slice.metadata.name();
                let translated = slice.translate(&node);
                for complaint in translated.complaints {
                    tracing::error!(endpointSlice = %name, complaint, "Part of an EndpointSlice is ignored");
                }
                translated.object.map_or(Input::SliceGone(name), |slice| Input::Slice(slice.into()))
            }
            Told::Gone(name) => Input::SliceGone(name),
            Told::Listed => Input::Listed(Kind::Slice),
        };
        inputs.send(input.into()).is_ok()
    })
    .await;
}

/// ServiceCIDRs; an older API server or an older role may not offer them.
pub(crate) async fn service_cidrs(source: Source, inputs: Mailbox) {
    let selection = Selection { optional: true, ..Selection::default() };
    let mut known: HashMap<ObjectName, Vec<IpNet>> = HashMap::new();
    let mut complete = false;
    reflect::<slim::ServiceCidr>(&source, selection, None, |told| {
        match told {
            Told::Applied(cidr) => drop(known.insert(cidr.metadata.name(), cidr.networks().collect())),
            Told::Gone(name) => drop(known.remove(&name)),
            Told::Listed => complete = true,
        }
        if !complete {
            return true;
        }
        let mut all: Vec<IpNet> = known.values().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        inputs.send(Input::ServiceCidrs(all.into()).into()).is_ok()
    })
    .await;
}
