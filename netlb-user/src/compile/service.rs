//! One Service → its tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlb_common::frontend::{flags, scheduler};

use super::choice::{Choice, Here, Target, Uses, choose};
use super::merge::{Endpoints, merge};
use super::slots::slots;
use crate::model::{
    Cidr, Claim, EndpointSpec, Family, FrontendKind, PortName, Problem, Protocol, Scheduler, ServiceName, ServicePort,
    ServiceSpec, TrafficPolicy, Weighed, World,
};

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
    pub frontends: BTreeMap<Claim, FrontendTable>,
    pub backends: BTreeMap<Target, BackendTable>,
    /// The cluster list, in slot order; empty also if no frontend uses it.
    pub cluster: Vec<Target>,
    /// The local list.
    pub local: Vec<Target>,
    /// Who may reach its load balancer addresses; `None`: everybody.
    pub source_ranges: Option<BTreeSet<Cidr>>,
    /// Seconds; 0: no affinity.
    pub affinity_s: u32,
}

impl PortTables {
    /// Backends in slot order.
    pub fn list(&self, which: List) -> &[Target] {
        match which {
            List::Cluster => &self.cluster,
            List::Local => &self.local,
        }
    }
}

/// Which list of its Service port a client is given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum List {
    Cluster,
    Local,
}

/// One frontend of a Service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrontendTable {
    /// For clients inside the cluster: pods, the node.
    pub inside: List,
    /// For clients outside.
    pub outside: List,
    /// As in the map: [`netlb_common::frontend::flags`].
    pub flags: u32,
}

/// One backend of a Service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendTable {
    pub state: BackendState,
    /// Interface index of the pod device it sits behind, if it is a pod of this node and that is known.
    pub device: Option<u32>,
    /// It is on this node: its EndpointSlice says so, or its address is a local pod's or the node's own. The local list goes by the slice alone.
    pub on_node: bool,
    pub in_cluster_list: bool,
    pub in_local_list: bool,
}

/// What a backend that exists may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BackendState {
    /// Takes new flows: stands in a list.
    Active,
    /// Keeps those it has.
    Draining,
}

/// Compiles one Service. A Service that is gone, or has nothing to be programmed, has empty tables.
pub fn compile_service(world: &World, name: &ServiceName) -> (ServiceTables, BTreeSet<Problem>) {
    let Some(spec) = world.service(name).filter(|spec| spec.is_served()) else {
        return (ServiceTables::default(), BTreeSet::new());
    };
    let (endpoints, mut problems) = merge(world, name);
    let mut tables = ServiceTables { addresses: spec.cluster_ips.iter().copied().collect(), ports: BTreeMap::new() };
    let mut claimed: BTreeMap<Claim, usize> = BTreeMap::new();
    let families: BTreeSet<Family> = spec.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
    for addr in spec.external_ips.iter().filter(|addr| !families.contains(&Family::of(**addr))) {
        problems.insert(other_family(spec, *addr));
    }
    for port in &spec.ports {
        let mut frontends: BTreeMap<Family, BTreeMap<Claim, FrontendKind>> = BTreeMap::new();
        for (claim, kind) in spec.claims(port) {
            match claimed.insert(claim, port.index) {
                // One address under two names.
                Some(index) if index == port.index => continue,
                Some(index) => {
                    claimed.insert(claim, index);
                    problems.insert(repeated(spec, port, index));
                    continue;
                }
                None => {}
            }
            match world.owner(&claim) {
                Some(owner) if owner != name => {
                    problems.insert(taken(spec, port, &claim, kind, owner));
                }
                Some(_) | None => {
                    frontends.entry(Family::of(claim.addr)).or_default().insert(claim, kind);
                }
            }
        }
        for (family, frontends) in frontends {
            let key =
                ServicePortKey { service: name.clone(), port: port.name.clone(), protocol: port.protocol, family };
            let known = endpoints.get(&(port.name.clone(), port.protocol, family));
            tables.ports.insert(key, port_tables(world, spec, &frontends, known));
        }
    }
    (tables, problems)
}

/// What a Service port wants in one family.
fn port_tables(
    world: &World,
    spec: &ServiceSpec,
    frontends: &BTreeMap<Claim, FrontendKind>,
    endpoints: Option<&Endpoints<'_>>,
) -> PortTables {
    let none = Endpoints::new();
    let endpoints = endpoints.unwrap_or(&none);
    let here = Here { node: world.here(), zone: world.zone().map(AsRef::as_ref) };
    let used = |list| frontends.values().any(|kind| matches!(lists(spec, *kind), (a, b) if a == list || b == list));
    let weight = |at: &Target, e: &EndpointSpec| weight(spec, at.0, e);
    // Who is drained is passed over, as if it were not ready.
    let taking = endpoints.iter().filter(|(at, e)| weight(at, e) > 0).map(|(at, e)| (*at, *e)).collect();
    let chosen = choose(&taking, Uses { cluster: used(List::Cluster), local: used(List::Local) }, here);
    let backend = |at: &Target, listed: (bool, bool)| BackendTable {
        state: if listed == (false, false) { BackendState::Draining } else { BackendState::Active },
        device: world.device_at(at.0),
        on_node: world.is_on_node(at.0) || endpoints.get(at).is_some_and(|e| here.has(e)),
        in_cluster_list: listed.0,
        in_local_list: listed.1,
    };
    // What still serves, and is in no list, keeps the flows it has.
    let backends = endpoints.iter().filter_map(|(at, e)| {
        let listed = (chosen.cluster.contains(at), chosen.local.contains(at));
        (listed != (false, false) || e.serving || e.ready).then(|| (*at, backend(at, listed)))
    });
    let scheduler = world.scheduler(spec);
    let list = |chosen: &BTreeSet<Target>| {
        let weight = |at: &Target| if scheduler.honours_weights() { weight(at, endpoints[at]) } else { 1 };
        slots(&chosen.iter().map(|at| (*at, weight(at))).collect::<Vec<_>>())
    };
    let source_ranges = source_ranges(world, spec, frontends);
    let common = scheduler_bits(scheduler);
    let frontend = |kind: FrontendKind| {
        let restricted = kind == FrontendKind::LoadBalancer && source_ranges.is_some();
        let mut table = frontend(spec, kind, &chosen);
        table.flags |= common | if restricted { flags::SOURCE_RANGES } else { 0 };
        table
    };
    PortTables {
        frontends: frontends.iter().map(|(claim, kind)| (*claim, frontend(*kind))).collect(),
        backends: backends.collect(),
        cluster: list(&chosen.cluster),
        local: list(&chosen.local),
        source_ranges,
        affinity_s: spec.affinity_s.unwrap_or(0),
    }
}

/// What an endpoint weighs: its Service has the first word, then its slice.
fn weight(spec: &ServiceSpec, addr: IpAddr, endpoint: &EndpointSpec) -> u32 {
    let by_pod = || spec.weights.get(&Weighed::Pod(endpoint.pod.clone()?));
    let named = spec.weights.get(&Weighed::Addr(addr)).or_else(by_pod).copied();
    named.or(endpoint.weight).unwrap_or(1)
}

/// The scheduler as it stands in a frontend's flags. Weights are in the slots.
fn scheduler_bits(scheduler: Scheduler) -> u32 {
    let number = match scheduler {
        Scheduler::Random => scheduler::RANDOM,
        Scheduler::RoundRobin | Scheduler::WeightedRoundRobin => scheduler::ROUND_ROBIN,
        Scheduler::SourceHash => scheduler::SOURCE_HASH,
        Scheduler::LeastConnections => scheduler::LEAST_CONNECTIONS,
    };
    number << flags::SCHEDULER_SHIFT
}

/// Who may reach the load balancer addresses of a port in one family.
fn source_ranges(
    world: &World,
    spec: &ServiceSpec,
    frontends: &BTreeMap<Claim, FrontendKind>,
) -> Option<BTreeSet<Cidr>> {
    let balanced = frontends.iter().find(|(_, kind)| **kind == FrontendKind::LoadBalancer);
    let family = balanced.map(|(claim, _)| Family::of(claim.addr))?;
    let mut ranges = spec.source_ranges.of(family)?;
    // Where the address is also one of the node's (a route puts it there), what the node sends to it loops back with it as source.
    if world.node_addresses().iter().any(|addr| ranges.iter().any(|range| range.contains(*addr))) {
        let own = spec.load_balancer_ips.iter().filter(|ip| Family::of(**ip) == family);
        ranges.extend(own.map(|ip| Cidr { addr: *ip, len: if ip.is_ipv4() { 32 } else { 128 } }));
    }
    Some(ranges)
}

/// The lists for clients inside and outside.
fn lists(spec: &ServiceSpec, kind: FrontendKind) -> (List, List) {
    match kind {
        FrontendKind::ClusterIp if spec.internal_policy == TrafficPolicy::Local => (List::Local, List::Local),
        FrontendKind::ClusterIp => (List::Cluster, List::Cluster),
        // A client inside may go anywhere: its address survives the way (KEP-1669).
        FrontendKind::NodePort | FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
            (List::Cluster, if spec.keeps_clients() { List::Local } else { List::Cluster })
        }
    }
}

fn frontend(spec: &ServiceSpec, kind: FrontendKind, chosen: &Choice) -> FrontendTable {
    let (inside, outside) = lists(spec, kind);
    let mut bits = match kind {
        FrontendKind::ClusterIp => 0,
        FrontendKind::NodePort | FrontendKind::ExternalIp => flags::EXTERNAL,
        FrontendKind::LoadBalancer => flags::EXTERNAL | flags::LOAD_BALANCER,
    };
    if kind != FrontendKind::ClusterIp && spec.keeps_clients() {
        bits |= flags::KEEP_CLIENT;
    }
    for (list, local, drop) in
        [(inside, flags::INSIDE_LOCAL, flags::DROP_INSIDE), (outside, flags::OUTSIDE_LOCAL, flags::DROP_OUTSIDE)]
    {
        let (backends, is_local) = match list {
            List::Cluster => (&chosen.cluster, false),
            List::Local => (&chosen.local, true),
        };
        bits |= if is_local { local } else { 0 };
        bits |= if backends.is_empty() && chosen.any { drop } else { 0 };
    }
    FrontendTable { inside, outside, flags: bits }
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

fn other_family(spec: &ServiceSpec, addr: IpAddr) -> Problem {
    problem(
        spec,
        "spec.externalIPs".to_owned(),
        format!("{addr} is of a family in which the Service has no cluster IP, and is not served"),
        "give the Service both families, or take the address out",
    )
}

fn repeated(spec: &ServiceSpec, port: &ServicePort, first: usize) -> Problem {
    problem(
        spec,
        format!("spec.ports[{}].nodePort", port.index),
        format!("{}/{} is spec.ports[{first}]'s, and leads there", port.node_port, port.protocol),
        "give each port of a protocol its own node port",
    )
}

fn taken(spec: &ServiceSpec, port: &ServicePort, claim: &Claim, kind: FrontendKind, owner: &ServiceName) -> Problem {
    let at = SocketAddr::new(claim.addr, claim.port);
    let (field, at, remedy) = match kind {
        FrontendKind::ClusterIp => {
            (format!("spec.ports[{}].port", port.index), at.to_string(), "give one of them another clusterIP or port")
        }
        FrontendKind::NodePort => (
            format!("spec.ports[{}].nodePort", port.index),
            format!("node port {}", claim.port),
            "give one of them another node port",
        ),
        FrontendKind::LoadBalancer => (
            "status.loadBalancer.ingress".to_owned(),
            at.to_string(),
            "give one of them another load balancer address or port",
        ),
        FrontendKind::ExternalIp => {
            ("spec.externalIPs".to_owned(), at.to_string(), "give one of them another external IP or port")
        }
    };
    problem(
        spec,
        field,
        format!("{at}/{} belongs to the older Service {owner}; this one does not serve it", claim.protocol),
        &format!("{remedy}; when the older one goes, this one takes over"),
    )
}
