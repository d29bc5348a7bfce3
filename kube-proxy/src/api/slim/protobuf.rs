//! The same objects from protobuf. The numbers of the fields are those of Kubernetes' `generated.proto`: of metadata in
//! `k8s.io/apimachinery/pkg/apis/meta/v1`, of the objects in `k8s.io/api/{core,discovery,networking}/v1`.
//!
//! Protobuf writes empty texts that JSON leaves out, so they count as absent where the field cannot tell.

use proxy_core::model::ObjectName;

use super::{
    ClientIp, Conditions, Endpoint, EndpointPort, EndpointSlice, FirstOf, Hints, Ingress, LoadBalancerStatus,
    Metadata, Named, Service, ServiceCidr, ServiceCidrSpec, ServicePort, ServiceSpec, ServiceStatus,
    SessionAffinityConfig,
    metadata::{ANNOTATION_LIST_END, Pairs, is_of_interest},
};
use crate::api::message::{Fields, Malformed, Value};

/// Reads a message: `number => name: what to do with the value`.
macro_rules! read {
    ($fields:expr, $value:ident, { $($number:literal => $name:literal: $action:expr),+ $(,)? }) => {
        $fields.each(&[$(($number, $name)),+], |number, $value| {
            match number {
                $($number => $action,)+
                _ => {}
            }
            Ok(())
        })?
    };
}
pub(crate) use read;

fn push<T>(list: &mut Option<Vec<T>>, item: T) {
    list.get_or_insert_default().push(item);
}

impl Metadata {
    pub(crate) fn from_protobuf(value: Value<'_>) -> Result<Self, Malformed> {
        let mut metadata = Self::default();
        let (mut name, mut namespace) = ("", "");
        read!(value.fields()?, value, {
            1 => "name": name = value.text()?,
            3 => "namespace": namespace = value.text()?,
            6 => "resourceVersion": metadata.version = value.text()?.into(),
            // An empty time is one that is not set.
            8 => "creationTimestamp": metadata.created = seconds(value)?,
            9 => "deletionTimestamp": metadata.is_being_deleted = seconds(value)?.is_some(),
            11 => "labels": entry(value, |_| true, &mut metadata.labels)?,
            12 => "annotations": entry(value, is_of_interest, &mut metadata.annotations)?,
        });
        metadata.name = (!name.is_empty()).then(|| ObjectName::new(namespace, name));
        metadata.ends_list = metadata.annotations.get(ANNOTATION_LIST_END) == Some("true");
        metadata.labels.sort();
        metadata.annotations.sort();
        Ok(metadata)
    }
}

/// Of a `Time`.
fn seconds(value: Value<'_>) -> Result<Option<i64>, Malformed> {
    let mut seconds = None;
    read!(value.fields()?, value, {
        1 => "seconds": seconds = Some(value.number()?),
    });
    Ok(seconds)
}

/// One pair of a map.
fn entry(value: Value<'_>, wanted: fn(&str) -> bool, pairs: &mut Pairs) -> Result<(), Malformed> {
    let (mut key, mut text) = ("", "");
    read!(value.fields()?, value, {
        1 => "key": key = value.text()?,
        2 => "value": text = value.text()?,
    });
    if wanted(key) {
        pairs.push(key, text);
    }
    Ok(())
}

impl Service {
    pub(crate) fn read(fields: Fields<'_>) -> Result<Self, Malformed> {
        let mut service = Self::default();
        read!(fields, value, {
            1 => "metadata": service.metadata = Metadata::from_protobuf(value)?,
            2 => "spec": service.spec = spec(value)?,
            3 => "status": service.status = status(value)?,
        });
        Ok(service)
    }
}

fn spec(value: Value<'_>) -> Result<ServiceSpec, Malformed> {
    let mut spec = ServiceSpec::default();
    read!(value.fields()?, value, {
        1 => "ports": push(&mut spec.ports, service_port(value)?),
        3 => "clusterIP": spec.cluster_ip = value.present()?,
        4 => "type": spec.kind = value.present()?,
        5 => "externalIPs": push(&mut spec.external_ips, value.string()?),
        7 => "sessionAffinity": spec.session_affinity = value.present()?,
        9 => "loadBalancerSourceRanges": push(&mut spec.load_balancer_source_ranges, value.string()?),
        11 => "externalTrafficPolicy": spec.external_traffic_policy = value.present()?,
        12 => "healthCheckNodePort": spec.health_check_node_port = value.not_zero()?,
        14 => "sessionAffinityConfig": spec.session_affinity_config = Some(affinity(value)?),
        18 => "clusterIPs": push(&mut spec.cluster_ips, value.string()?),
        22 => "internalTrafficPolicy": spec.internal_traffic_policy = value.present()?,
    });
    Ok(spec)
}

fn service_port(value: Value<'_>) -> Result<ServicePort, Malformed> {
    let mut port = ServicePort::default();
    read!(value.fields()?, value, {
        1 => "name": port.name = value.present()?,
        2 => "protocol": port.protocol = value.present()?,
        3 => "port": port.port = value.number()?,
        5 => "nodePort": port.node_port = value.not_zero()?,
    });
    Ok(port)
}

fn affinity(value: Value<'_>) -> Result<SessionAffinityConfig, Malformed> {
    let mut config = SessionAffinityConfig::default();
    read!(value.fields()?, value, {
        1 => "clientIP": {
            let mut client_ip = ClientIp::default();
            read!(value.fields()?, value, {
                1 => "timeoutSeconds": client_ip.timeout_seconds = Some(value.number()?),
            });
            config.client_ip = Some(client_ip);
        },
    });
    Ok(config)
}

fn status(value: Value<'_>) -> Result<ServiceStatus, Malformed> {
    let mut status = ServiceStatus::default();
    read!(value.fields()?, value, {
        1 => "loadBalancer": {
            let mut balancer = LoadBalancerStatus::default();
            read!(value.fields()?, value, {
                1 => "ingress": push(&mut balancer.ingress, ingress(value)?),
            });
            status.load_balancer = Some(balancer);
        },
    });
    Ok(status)
}

fn ingress(value: Value<'_>) -> Result<Ingress, Malformed> {
    let mut ingress = Ingress::default();
    read!(value.fields()?, value, {
        1 => "ip": ingress.ip = value.present()?,
        3 => "ipMode": ingress.ip_mode = value.present()?,
    });
    Ok(ingress)
}

impl EndpointSlice {
    pub(crate) fn read(fields: Fields<'_>) -> Result<Self, Malformed> {
        let mut slice = Self::default();
        read!(fields, value, {
            1 => "metadata": slice.metadata = Metadata::from_protobuf(value)?,
            2 => "endpoints": push(&mut slice.endpoints, endpoint(value)?),
            3 => "ports": push(&mut slice.ports, endpoint_port(value)?),
            4 => "addressType": slice.address_type = value.present()?,
        });
        Ok(slice)
    }
}

fn endpoint_port(value: Value<'_>) -> Result<EndpointPort, Malformed> {
    let mut port = EndpointPort::default();
    read!(value.fields()?, value, {
        1 => "name": port.name = Some(value.string()?),
        2 => "protocol": port.protocol = Some(value.string()?),
        3 => "port": port.port = Some(value.number()?),
    });
    Ok(port)
}

fn endpoint(value: Value<'_>) -> Result<Endpoint, Malformed> {
    let mut endpoint = Endpoint::default();
    read!(value.fields()?, value, {
        // Only the first one counts.
        1 => "addresses": if endpoint.addresses.is_none() {
            endpoint.addresses = Some(FirstOf(Some(value.string()?)));
        },
        2 => "conditions": {
            let mut conditions = Conditions::default();
            read!(value.fields()?, value, {
                1 => "ready": conditions.ready = Some(value.truth()?),
                2 => "serving": conditions.serving = Some(value.truth()?),
                3 => "terminating": conditions.terminating = Some(value.truth()?),
            });
            endpoint.conditions = Some(conditions);
        },
        6 => "nodeName": endpoint.node_name = Some(value.string()?),
        8 => "hints": {
            let mut hints = Hints::default();
            read!(value.fields()?, value, {
                1 => "forZones": push(&mut hints.for_zones, named(value)?),
                2 => "forNodes": push(&mut hints.for_nodes, named(value)?),
            });
            endpoint.hints = Some(hints);
        },
    });
    Ok(endpoint)
}

fn named(value: Value<'_>) -> Result<Named, Malformed> {
    let mut named = Named::default();
    read!(value.fields()?, value, {
        1 => "name": named.name = value.string()?,
    });
    Ok(named)
}

impl ServiceCidr {
    pub(crate) fn read(fields: Fields<'_>) -> Result<Self, Malformed> {
        let mut cidr = Self::default();
        read!(fields, value, {
            1 => "metadata": cidr.metadata = Metadata::from_protobuf(value)?,
            2 => "spec": {
                let mut spec = ServiceCidrSpec::default();
                read!(value.fields()?, value, {
                    1 => "cidrs": push(&mut spec.cidrs, value.string()?),
                });
                cidr.spec = spec;
            },
        });
        Ok(cidr)
    }
}
