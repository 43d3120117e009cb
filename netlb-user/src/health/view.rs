//! From the world to what is answered: which Services want a port, how many endpoints they have here, whether the node may be used.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::server::Site;
use super::table::{HealthPort, Ready};
use crate::compile::merge::merge;
use crate::model::{Family, NodeName, NodeSpec, Problem, ServiceName, ServiceSpec, ServiceType, TrafficPolicy, World};

/// The taint that cluster-autoscaler gives a node before it deletes it.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// The Services that want a port, and their endpoints here; kept up by what changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct View {
    pub(super) ports: BTreeMap<ServiceName, HealthPort>,
    pub(super) ready: BTreeMap<ServiceName, Ready>,
}

impl View {
    /// These Services, or their endpoints, may have changed.
    pub(super) fn update(&mut self, world: &World, here: &NodeName, touched: &BTreeSet<ServiceName>) {
        for name in touched {
            match world.service(name).and_then(port) {
                Some(port) => {
                    self.ports.insert(name.clone(), port);
                    self.ready.insert(name.clone(), ready(world, name, here));
                }
                None => {
                    self.ports.remove(name);
                    self.ready.remove(name);
                }
            }
        }
    }
}

/// The port a Service wants, if it is one of type LoadBalancer with externalTrafficPolicy Local.
fn port(spec: &ServiceSpec) -> Option<HealthPort> {
    let families = spec.cluster_ips.iter().map(|addr| Family::of(*addr)).collect();
    let wanted = spec.is_served() && wants_port(spec);
    wanted.then_some(HealthPort { port: spec.health_check_node_port, families })
}

fn wants_port(spec: &ServiceSpec) -> bool {
    spec.health_check_node_port != 0
        && spec.kind == ServiceType::LoadBalancer
        && spec.external_policy == TrafficPolicy::Local
}

/// A Service's ready endpoints on this node: addresses, all ports together. Those that only serve until they end do not count, though flows
/// still reach them: load balancers shall look elsewhere.
fn ready(world: &World, service: &ServiceName, here: &NodeName) -> Ready {
    let (merged, _) = merge(world, service);
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for endpoints in merged.values() {
        let local = endpoints.iter().filter(|(_, endpoint)| endpoint.ready && endpoint.node.as_ref() == Some(here));
        addresses.extend(local.map(|((addr, _), _)| *addr));
    }
    let mut ready = Ready::new();
    for addr in addresses {
        *ready.entry(Family::of(addr)).or_default() += 1;
    }
    ready
}

/// May load balancers use the node? Not if its Node is missing, about to go, or emptied.
pub(super) fn is_eligible(world: &World, here: &NodeName) -> bool {
    world.node(here).is_some_and(stays)
}

fn stays(node: &NodeSpec) -> bool {
    !node.deleting && !node.taints.iter().any(|taint| **taint == *TO_BE_DELETED)
}

/// A Service's port that could not be opened, for the person who can change that.
pub(super) fn problem(world: &World, site: &Site, at: SocketAddr, reason: &str) -> Option<Problem> {
    let Site::Service(name) = site else { return None };
    let file = world.service(name).and_then(|spec| spec.meta.file.as_deref()).map(str::to_owned);
    let port = at.port();
    Some(Problem {
        file,
        object: format!("Service {name}"),
        field: "spec.healthCheckNodePort".to_owned(),
        message: format!("{at} cannot be opened: {reason}; load balancers that ask there take this node for unhealthy"),
        remedy: format!(
            "end what listens there (`ss -ltnp sport = :{port}`) or give the Service another port; it is tried again"
        ),
    })
}
