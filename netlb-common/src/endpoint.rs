//! Endpoints: this node's pods, as the datapath delivers to them.

use crate::pod::record;

record! {
    /// Value of `ENDPOINTS`, an array by dense id (0 is never used): one a pod device (host side of a veth).
    pub struct EndpointValue [32] {
        /// Interface index of the host side of the veth; 0: the id is free.
        pub ifindex: u32,
        /// Grows when any field changes its meaning (another device, another pod): conntrack next hops of the former are stale at once.
        pub generation: u32,
        /// Bytes of IP packet the device takes.
        pub mtu: u32,
        /// Interface index of the bridge the device is a port of; 0: none (routed).
        pub bridge: u32,
        /// The first twelve bytes of a frame to the pod: the pod's MAC, then the host side's, wire order.
        pub eth: [u32; 3],
        /// See [`flags`].
        pub flags: u32,
    }
}

/// Bits of [`EndpointValue::flags`].
pub mod flags {
    /// What comes from this device counts as a pod's ([`pods::DEVICES`](crate::config::pods::DEVICES)).
    pub const POD_SOURCE: u32 = 1;
}
