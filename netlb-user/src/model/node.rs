//! Nodes, namespaces and Service CIDRs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::names::NodeName;
use super::types::{Cidr, Meta};

/// What we keep of a Node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSpec {
    pub name: NodeName,
    pub meta: Meta,
    /// `status.addresses` of type InternalIP, then those of type ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    pub pod_cidrs: Vec<Cidr>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Keys of `spec.taints`.
    pub taints: Vec<Arc<str>>,
}

/// What we keep of a Namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceSpec {
    pub name: Arc<str>,
    pub meta: Meta,
    pub labels: BTreeMap<String, String>,
}

/// What we keep of a ServiceCIDR: ranges Services get their addresses from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceCidrSpec {
    pub name: Arc<str>,
    pub meta: Meta,
    pub cidrs: Vec<Cidr>,
}
