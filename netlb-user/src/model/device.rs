//! Pod devices: which addresses sit behind which veth of this node.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// One pod device, as the agent discovered it on its node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodDevice {
    /// Interface index of the host side of the veth; not 0.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Bytes of IP packet it takes.
    pub mtu: u32,
    /// Interface index of the bridge it is a port of; 0: none (routed).
    pub bridge: u32,
    /// MAC of the pod's side; all zero: not known, so nothing can be delivered past the stack.
    pub pod_mac: [u8; 6],
    /// MAC of the host side.
    pub host_mac: [u8; 6],
    /// Addresses of the pod behind it.
    pub addrs: BTreeSet<IpAddr>,
    /// What comes from it counts as a pod's (detectLocalMode InterfaceNamePrefix or BridgeInterface names it).
    pub pod_source: bool,
}
