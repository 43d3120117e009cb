//! A Service: everything of it that kube-proxy reads.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::names::{PortName, ServiceName};
use super::scheduler::{Scheduler, Weights};
use super::types::{Cidr, Family, Meta, Protocol};
use super::world::Claim;

/// What we keep of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSpec {
    pub name: ServiceName,
    pub meta: Meta,
    pub kind: ServiceType,
    /// At most one a family. Empty: headless, or no address given yet.
    pub cluster_ips: Vec<IpAddr>,
    /// In the order of the object; names differ, and so do (port, protocol) pairs.
    pub ports: Vec<ServicePort>,
    /// Seconds a client stays with its backend (`sessionAffinity: ClientIP`); `None` without affinity.
    pub affinity_s: Option<u32>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    pub external_ips: Vec<IpAddr>,
    /// Addresses of `status.loadBalancer` that packets may carry to the node (`ipMode` VIP or absent).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`.
    pub source_ranges: SourceRanges,
    /// 0: none.
    pub health_check_node_port: u16,
    /// Annotation `netlb.io/scheduler`; `None`: the agent's.
    pub scheduler: Option<Scheduler>,
    /// Annotation `netlb.io/weights`.
    pub weights: Weights,
    /// False if a label hands the Service to another proxy, or marks it headless: it is as good as absent.
    pub ours: bool,
}

/// `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrafficPolicy {
    Cluster,
    Local,
}

/// Who may reach load balancer addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SourceRanges {
    /// Those that could be read.
    pub ranges: Vec<Cidr>,
    /// There are others. Nobody is let in by them, and what they were meant to restrict stays shut.
    pub unreadable: bool,
}

impl SourceRanges {
    /// The ranges of one family; `None`: everybody may come, since none is given, or one that holds every address. As kube-proxy, a family
    /// without a range is open.
    pub fn of(&self, family: Family) -> Option<BTreeSet<Cidr>> {
        let ranges: BTreeSet<Cidr> =
            self.ranges.iter().filter(|range| Family::of(range.addr) == family).copied().collect();
        let open = ranges.iter().any(|range| range.len == 0) || ranges.is_empty() && !self.unreadable;
        (!open).then_some(ranges)
    }
}

/// What a frontend is to its Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrontendKind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its place in `spec.ports`, for messages.
    pub index: usize,
    pub name: PortName,
    pub protocol: Protocol,
    /// 1..=65535, host order.
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
}

impl ServiceSpec {
    /// Whether anything is programmed for the Service: not for another proxy's, nor for what DNS alone answers (ExternalName, headless).
    pub fn is_served(&self) -> bool {
        self.ours && self.kind != ServiceType::ExternalName && !self.cluster_ips.is_empty()
    }

    /// Where one of its ports is to be reached, in families in which it has a cluster IP; an address that is several things stands first as
    /// what counts. As kube-proxy, whatever is written is served: `type` has no say in it.
    pub fn claims(&self, port: &ServicePort) -> Vec<(Claim, FrontendKind)> {
        let families: Vec<Family> = self.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
        let at = |addr, number, kind| (Claim { addr, port: number, protocol: port.protocol }, kind);
        let own = self.cluster_ips.iter().map(|ip| at(*ip, port.port, FrontendKind::ClusterIp));
        let node = families.iter().filter(|_| port.node_port != 0);
        let node = node.map(|family| at(family.unspecified(), port.node_port, FrontendKind::NodePort));
        let served = |ip: &&IpAddr| families.contains(&Family::of(**ip));
        let balancer = self.load_balancer_ips.iter().filter(served);
        let balancer = balancer.map(|ip| at(*ip, port.port, FrontendKind::LoadBalancer));
        let external = self.external_ips.iter().filter(served).map(|ip| at(*ip, port.port, FrontendKind::ExternalIp));
        own.chain(node).chain(balancer).chain(external).collect()
    }

    /// `externalTrafficPolicy: Local`, where it has a meaning: for a Service that is reached from outside.
    pub fn keeps_clients(&self) -> bool {
        self.external_policy == TrafficPolicy::Local
            && (self.kind != ServiceType::ClusterIp || !self.external_ips.is_empty())
    }
}
