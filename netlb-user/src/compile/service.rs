//! One Service → its tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::choice;
use super::merge::merge;
use crate::model::world::{Claim, is_served};
use crate::model::{Family, PortName, Problem, Protocol, ServiceName, ServicePort, ServiceSpec, World};

/// A Service port in one family: what gets an id, and session affinity, of its own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServicePortKey {
    pub service: ServiceName,
    pub port: PortName,
    pub protocol: Protocol,
    pub family: Family,
}

impl fmt::Display for ServicePortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{} ({})", self.service, self.port, self.protocol, self.family.name())
    }
}

/// Everything a Service wants in the maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceTables {
    /// Its live addresses: ports not served there are refused.
    pub addresses: BTreeSet<IpAddr>,
    pub ports: BTreeMap<ServicePortKey, PortTables>,
}

/// What one Service port wants in one family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortTables {
    /// Where it is reached; not empty.
    pub frontends: BTreeSet<Claim>,
    /// By address and port (host order).
    pub backends: BTreeMap<(IpAddr, u16), BackendTable>,
    /// Seconds; 0: no affinity.
    pub affinity_s: u32,
}

/// One backend of a Service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendTable {
    pub state: BackendState,
    /// Interface index of the pod device it sits behind, if it is a pod of this node and that is known.
    pub device: Option<u32>,
}

/// What a backend that exists may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BackendState {
    /// Takes new flows.
    Active,
    /// Keeps those it has.
    Draining,
}

/// Compiles one Service. A Service that is gone, or has nothing to be programmed, has empty tables.
pub fn compile_service(world: &World, name: &ServiceName) -> (ServiceTables, BTreeSet<Problem>) {
    let Some(spec) = world.service(name).filter(|spec| is_served(spec)) else {
        return (ServiceTables::default(), BTreeSet::new());
    };
    let (endpoints, mut problems) = merge(world, name);
    let mut tables = ServiceTables { addresses: spec.cluster_ips.iter().copied().collect(), ports: BTreeMap::new() };
    for port in &spec.ports {
        if port.protocol == Protocol::Sctp {
            problems.insert(sctp(spec, port));
            continue;
        }
        for addr in &spec.cluster_ips {
            let claim = Claim { addr: *addr, port: port.port, protocol: port.protocol };
            match world.owner(&claim) {
                Some(owner) if owner != name => {
                    problems.insert(taken(spec, port, &claim, owner));
                    continue;
                }
                Some(_) | None => {}
            }
            let family = Family::of(*addr);
            let key =
                ServicePortKey { service: name.clone(), port: port.name.clone(), protocol: port.protocol, family };
            let chosen = endpoints.get(&(port.name.clone(), port.protocol, family)).map(choice::cluster);
            let backend = |((addr, port), state)| ((addr, port), BackendTable { state, device: world.device_at(addr) });
            let table = tables.ports.entry(key).or_insert_with(|| PortTables {
                frontends: BTreeSet::new(),
                backends: chosen.into_iter().flatten().map(backend).collect(),
                affinity_s: spec.affinity_s.unwrap_or(0),
            });
            table.frontends.insert(claim);
        }
    }
    (tables, problems)
}

fn problem(spec: &ServiceSpec, field: String, message: String, remedy: &str) -> Problem {
    Problem {
        file: spec.meta.file.as_deref().map(str::to_owned),
        object: format!("Service {}", spec.name),
        field,
        message,
        remedy: remedy.to_owned(),
    }
}

fn sctp(spec: &ServiceSpec, port: &ServicePort) -> Problem {
    problem(
        spec,
        format!("spec.ports[{}].protocol", port.index),
        "SCTP is not supported yet; this port is not served".to_owned(),
        "serve it by TCP or UDP, or leave it out",
    )
}

fn taken(spec: &ServiceSpec, port: &ServicePort, claim: &Claim, owner: &ServiceName) -> Problem {
    let at = if claim.addr.is_ipv4() {
        format!("{}:{}", claim.addr, claim.port)
    } else {
        format!("[{}]:{}", claim.addr, claim.port)
    };
    problem(
        spec,
        format!("spec.ports[{}].port", port.index),
        format!("{at}/{} belongs to the older Service {owner}; this one does not serve it", claim.protocol),
        "give one of them another clusterIP or port; when the older one goes, this one takes over",
    )
}
