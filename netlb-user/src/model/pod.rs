//! A Pod: its name for reports, its addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::names::{NodeName, PodName};
use super::types::Meta;

/// What we keep of a Pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodSpec {
    pub name: PodName,
    pub meta: Meta,
    pub node: Option<NodeName>,
    /// Shares the node's addresses, so they are not its own.
    pub host_network: bool,
    /// `status.podIPs`; empty once the pod has finished (Succeeded, Failed), whose addresses others may have by then.
    pub ips: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
}
