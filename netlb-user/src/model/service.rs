//! A Service: everything of it that kube-proxy reads.

use std::net::IpAddr;

use super::names::{PortName, ServiceName};
use super::types::{Cidr, Meta, Protocol};

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
    /// `loadBalancerSourceRanges`; empty: no restriction.
    pub source_ranges: Vec<Cidr>,
    /// 0: none.
    pub health_check_node_port: u16,
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
