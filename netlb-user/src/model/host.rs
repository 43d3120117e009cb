//! This node as the agent finds it, beside what the cluster says: addresses, uplinks, network namespaces of pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the agent found; a change of any part comes as a whole new value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostState {
    /// Addresses that serve NodePorts: those of the node's devices that `nodePortAddresses` selects.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// By interface index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// The pods of this node by the cookie of their network namespace: for `--accel socket`.
    pub clients: BTreeMap<u64, PodAddresses>,
}

/// A device by which packets of the outside, and of other nodes' pods, come and go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uplink {
    pub name: String,
    /// Its first global address of each family: the source of what is masqueraded here.
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// What comes from it counts as a pod's (detectLocalMode InterfaceNamePrefix or BridgeInterface names it).
    pub pod_source: bool,
}

/// Addresses of a pod, one a family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PodAddresses {
    pub v4: Option<IpAddr>,
    pub v6: Option<IpAddr>,
}
