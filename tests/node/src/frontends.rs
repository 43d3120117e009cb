//! What a correct load balancer would do: every address at which a Service is reached, and for each client there and node
//! that its packets meet first, who is to answer and as whom the client is to be seen. Pure, and written from Kubernetes'
//! documentation: it knows no load balancer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use crate::address::{self, Dual, Family};
use crate::cluster::{Cluster, PodKey, zone};
use crate::objects::{self, Meta, ObjectKey, ServiceSpec, ServiceStatus, Slice, view};
use crate::topology;
use crate::wire::Transport;

/// What kind of address a Service is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// Its own.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// A node's, on a port of the Service's.
    NodePort,
    /// One that its load balancer's controller wrote into its status.
    LoadBalancer,
    /// One that its author routes to nodes.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
}

impl Kind {
    /// All, in the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::ClusterIp, Self::NodePort, Self::LoadBalancer, Self::ExternalIp];

    /// As Kubernetes spells it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
        }
    }
}

/// An endpoint of a Service's port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it serves.
    pub address: SocketAddr,
    /// The number of its node.
    pub node: Option<u8>,
    /// May get new connections.
    pub ready: bool,
    /// Still serves, on its way out.
    pub leaving: bool,
    /// The zones it is meant for; empty: nobody said.
    pub for_zones: BTreeSet<String>,
    /// The nodes it is meant for.
    pub for_nodes: BTreeSet<String>,
}

/// Where a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A pod on a node.
    Pod(u8, Dual),
    /// A node itself.
    Node(u8),
    /// A host that is neither.
    Outside(Dual),
}

impl Origin {
    /// Whom node `at` sees: pods and nodes that ask another node are, by the CNI's masquerade, their node, from outside.
    fn seen_at(&self, at: u8) -> Self {
        match self {
            Self::Pod(node, _) | Self::Node(node) if *node != at => Self::Outside(address::node(*node)),
            Self::Pod(..) | Self::Node(_) | Self::Outside(_) => self.clone(),
        }
    }

    fn address(&self, family: Family) -> IpAddr {
        match self {
            Self::Pod(_, addresses) | Self::Outside(addresses) => addresses.of(family),
            Self::Node(node) => address::node(*node).of(family),
        }
    }

    fn is_outside(&self) -> bool {
        matches!(self, Self::Outside(_))
    }
}

/// What is to become of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Each of these answers some of them.
    Answered(BTreeSet<SocketAddr>),
    /// All are refused: there is nobody.
    Refused,
    /// Nothing comes back: there is somebody, but not for this client, or not here.
    Dropped,
}

/// One port of one Service in one family, at one kind of address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// `namespace/name`.
    pub service: String,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// What kind of address it is.
    pub kind: Kind,
    /// The address and port.
    pub address: SocketAddr,
    /// The node whose address it is, of a NodePort.
    pub node: Option<u8>,
    /// The protocol.
    pub transport: Transport,
    /// Whether a client stays with its backend (`sessionAffinity: ClientIP`).
    pub affinity: bool,
    /// `internalTrafficPolicy: Local`.
    pub inside_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub outside_local: bool,
    /// Networks whose clients are served; empty: all.
    pub ranges: Vec<IpNet>,
    /// All endpoints, in no state to serve too.
    pub endpoints: Vec<Endpoint>,
}

impl Frontend {
    /// The address family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.address.ip())
    }

    /// Every endpoint that is to get new connections from somewhere: the ready ones; if none is, those that still serve.
    #[must_use]
    pub fn backends(&self) -> BTreeSet<SocketAddr> {
        first_usable(self.endpoints.iter())
    }

    /// What becomes of requests from `origin` that node `at` is the first to see.
    #[must_use]
    pub fn outcome(&self, origin: &Origin, at: u8) -> Outcome {
        let origin = origin.seen_at(at);
        let client = origin.address(self.family());
        if !self.ranges.is_empty() && !self.ranges.iter().any(|range| range.contains(&client)) {
            return Outcome::Dropped;
        }
        let local = match self.kind {
            Kind::ClusterIp => self.inside_local,
            // Inside, the address of a load balancer or node stands for the Service itself: the shortest way is taken.
            Kind::NodePort | Kind::LoadBalancer | Kind::ExternalIp => self.outside_local && origin.is_outside(),
        };
        let list = if local {
            first_usable(self.endpoints.iter().filter(|endpoint| endpoint.node == Some(at)))
        } else {
            self.near(at)
        };
        if !list.is_empty() {
            Outcome::Answered(list)
        } else if self.backends().is_empty() {
            Outcome::Refused
        } else {
            Outcome::Dropped
        }
    }

    /// The backends that the endpoints' hints mean for node `at`; all, if the hints are incomplete or mean nobody.
    fn near(&self, at: u8) -> BTreeSet<SocketAddr> {
        let ready: Vec<&Endpoint> = self.endpoints.iter().filter(|endpoint| endpoint.ready).collect();
        let meant = |hints: fn(&Endpoint) -> &BTreeSet<String>, here: &str| -> Option<BTreeSet<SocketAddr>> {
            let complete = ready.iter().all(|endpoint| !hints(endpoint).is_empty());
            let ours = ready.iter().filter(|endpoint| hints(endpoint).contains(here));
            let ours: BTreeSet<_> = ours.map(|endpoint| endpoint.address).collect();
            (complete && !ours.is_empty()).then_some(ours)
        };
        meant(|endpoint| &endpoint.for_nodes, &topology::name(at))
            .or_else(|| meant(|endpoint| &endpoint.for_zones, zone(at)))
            .unwrap_or_else(|| self.backends())
    }

    /// As whom `backend` may see a client at `origin` whose packets meet node `at` first. By default netlb keeps the
    /// client's address towards pods of the node itself, where kube-proxy would put the node's in its place.
    #[must_use]
    pub fn sources(&self, origin: &Origin, at: u8, backend: SocketAddr) -> BTreeSet<IpAddr> {
        let family = self.family();
        let origin = origin.seen_at(at);
        let client = origin.address(family);
        let here = self.endpoints.iter().any(|endpoint| endpoint.address == backend && endpoint.node == Some(at));
        match (&origin, self.kind) {
            // Who is sent to itself sees the Service: a packet from its own address it would drop.
            (Origin::Pod(..), _) if client == backend.ip() => BTreeSet::from([self.address.ip()]),
            // The node has an address on either side.
            (Origin::Node(node), _) => BTreeSet::from([client, address::pod(*node, 1).of(family)]),
            (Origin::Pod(..), Kind::ClusterIp) => BTreeSet::from([client]),
            (_, Kind::NodePort | Kind::LoadBalancer | Kind::ExternalIp) if self.outside_local => {
                BTreeSet::from([client])
            }
            _ if here => BTreeSet::from([client]),
            _ => BTreeSet::from([address::node(at).of(family)]),
        }
    }
}

/// The addresses of the ready ones; if none is ready, of those that still serve while they go.
fn first_usable<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone) -> BTreeSet<SocketAddr> {
    let collect =
        |wanted: fn(&Endpoint) -> bool| endpoints.clone().filter(move |e| wanted(e)).map(|e| e.address).collect();
    let ready: BTreeSet<SocketAddr> = collect(|endpoint| endpoint.ready);
    if ready.is_empty() { collect(|endpoint| endpoint.leaving) } else { ready }
}

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.service)?;
        if !self.port_name.is_empty() {
            write!(f, ":{}", self.port_name)?;
        }
        write!(
            f,
            " ({}/{}, {}, {}",
            self.address.port(),
            self.transport.word(),
            self.family().word(),
            self.kind.word()
        )?;
        if let Some(node) = self.node {
            write!(f, " of {}", topology::name(node))?;
        }
        write!(f, ")")
    }
}

/// Where a load balancer asks a node whether it has endpoints of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `namespace/name`.
    pub service: String,
    /// The port on every node.
    pub port: u16,
    /// How many ready pods each node has, by the node's number.
    pub ready: BTreeMap<u8, usize>,
}

/// All frontends, and the Services that have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// In the order of Services, ports, families and kinds.
    pub all: Vec<Frontend>,
    /// Health checks of load balancers' Services.
    pub health_checks: Vec<HealthCheck>,
    /// Services without an address of their own: names, which DNS answers.
    pub left_to_dns: Vec<String>,
    /// What cannot be tried here, with the reason.
    pub not_tried: Vec<String>,
}

/// The frontends of a cluster.
#[must_use]
pub fn frontends(cluster: &Cluster) -> Frontends {
    let mut out = Frontends::default();
    let pods: BTreeMap<IpAddr, &PodKey> =
        cluster.pods().iter().flat_map(|(key, pod)| pod.addresses.both().map(|address| (address, key))).collect();
    let slices = cluster.slices();
    for (key, spec) in cluster.services() {
        let service = format!("{}/{}", key.namespace, key.name);
        let object = cluster.object(&key).cloned().unwrap_or_default();
        let labels = view::<Meta>(&object, "/metadata").unwrap_or_default().labels;
        if spec.is_external_name() || spec.is_headless() {
            out.left_to_dns.push(service);
            continue;
        }
        if let Some(other) = labels.get("service.kubernetes.io/service-proxy-name") {
            out.not_tried.push(format!("{service}: left to the proxy {other}"));
            continue;
        }
        let own: Vec<Slice> =
            slices.iter().filter(|slice| belongs(slice, &key)).filter_map(|s| view(s, "").ok()).collect();
        let status: ServiceStatus = view(&object, "/status").unwrap_or_default();
        for port in &spec.ports {
            let (Some(transport), Ok(_)) = (port.transport(), u16::try_from(port.port)) else {
                out.not_tried.push(format!("{service}: pods here cannot serve port {}/{}", port.port, port.protocol()));
                continue;
            };
            for family in spec.families() {
                let endpoints = endpoints(cluster.nodes(), &own, family, &port.name, transport);
                let base = Frontend {
                    service: service.clone(),
                    port_name: port.name.clone(),
                    kind: Kind::ClusterIp,
                    address: SocketAddr::new(address::OUTSIDE.of(family), 0),
                    node: None,
                    transport,
                    affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
                    inside_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
                    outside_local: spec.external_traffic_policy.as_deref() == Some("Local"),
                    ranges: Vec::new(),
                    endpoints,
                };
                if let Some(stranger) = base.backends().iter().find(|backend| !pods.contains_key(&backend.ip())) {
                    out.not_tried.push(format!("{service}: its endpoint {stranger} is no pod of this run"));
                    continue;
                }
                out.all.extend(addresses(cluster.nodes(), &spec, &status, port, family).map(
                    |(kind, node, address)| {
                        let ranges = if kind == Kind::LoadBalancer { ranges(&spec, family) } else { Vec::new() };
                        Frontend { kind, node, address, ranges, ..base.clone() }
                    },
                ));
            }
        }
        if let Ok(port @ 1..) = u16::try_from(spec.health_check_node_port) {
            let ready = |node| -> usize {
                let here = out.all.iter().filter(|frontend| frontend.service == service);
                let here = here.flat_map(|frontend| &frontend.endpoints).filter(|e| e.ready && e.node == Some(node));
                here.filter_map(|e| pods.get(&e.address.ip())).collect::<BTreeSet<_>>().len()
            };
            let ready = (1..=cluster.nodes()).map(|node| (node, ready(node))).collect();
            out.health_checks.push(HealthCheck { service, port, ready });
        }
    }
    out.not_tried.sort();
    out.not_tried.dedup();
    out
}

fn belongs(slice: &Value, service: &ObjectKey) -> bool {
    let text = |pointer: &str| slice.pointer(pointer).and_then(Value::as_str);
    text("/metadata/namespace").unwrap_or("default") == service.namespace
        && text("/metadata/labels/kubernetes.io~1service-name") == Some(&service.name)
}

/// Every address of a Service's port in one family; a NodePort has one a node.
fn addresses(
    nodes: u8,
    spec: &ServiceSpec,
    status: &ServiceStatus,
    port: &objects::ServicePort,
    family: Family,
) -> impl Iterator<Item = (Kind, Option<u8>, SocketAddr)> {
    let number = u16::try_from(port.port).unwrap_or_default();
    let at = move |kind, addresses: Vec<IpAddr>| {
        let of_family = addresses.into_iter().filter(move |address| Family::of(*address) == family);
        of_family.map(move |address| (kind, None, SocketAddr::new(address, number)))
    };
    let external = spec.external_ips.iter().filter_map(|text| text.parse().ok()).collect();
    let balanced = if spec.kind.as_deref() == Some("LoadBalancer") { status.balancer_addresses() } else { Vec::new() };
    let node_port = port.node_port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
    let node_ports = node_port.into_iter().flat_map(move |number| {
        (1..=nodes)
            .map(move |node| (Kind::NodePort, Some(node), SocketAddr::new(address::node(node).of(family), number)))
    });
    at(Kind::ClusterIp, spec.addresses())
        .chain(node_ports)
        .chain(at(Kind::LoadBalancer, balanced))
        .chain(at(Kind::ExternalIp, external))
}

/// The source ranges of one family; none if one of them is everything.
fn ranges(spec: &ServiceSpec, family: Family) -> Vec<IpNet> {
    let ranges = spec.load_balancer_source_ranges.iter().filter_map(|text| text.trim().parse::<IpNet>().ok());
    let ranges: Vec<IpNet> = ranges.filter(|range| Family::of(range.addr()) == family).collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) { Vec::new() } else { ranges }
}

fn endpoints(nodes: u8, slices: &[Slice], family: Family, port_name: &str, transport: Transport) -> Vec<Endpoint> {
    let names: BTreeMap<String, u8> = (1..=nodes).map(|node| (topology::name(node), node)).collect();
    let mut found: Vec<Endpoint> = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == family.address_type()) {
        for port in &slice.ports {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let Some(number) = port.port.and_then(|number| u16::try_from(number).ok()) else { continue };
            if port.name != port_name || protocol != transport.word() {
                continue;
            }
            found.extend(slice.endpoints.iter().filter_map(|endpoint| {
                let conditions = endpoint.conditions;
                let hints = endpoint.hints.clone().unwrap_or_default();
                Some(Endpoint {
                    address: SocketAddr::new(endpoint.addresses.first()?.parse().ok()?, number),
                    node: endpoint.node_name.as_ref().and_then(|name| names.get(name).copied()),
                    ready: conditions.ready != Some(false),
                    leaving: conditions.terminating == Some(true) && conditions.serving != Some(false),
                    for_zones: hints.for_zones.into_iter().map(|hint| hint.name).collect(),
                    for_nodes: hints.for_nodes.into_iter().map(|hint| hint.name).collect(),
                })
            }));
        }
    }
    found
}

#[cfg(test)]
#[path = "frontends_tests.rs"]
mod tests;
