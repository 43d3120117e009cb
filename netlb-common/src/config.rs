//! What the agent tells the datapath about its node, in one record that may change while packets flow.

use crate::addr::Addr;
use crate::pod::record;

/// Service CIDRs the datapath knows; more are reported by the agent.
pub const MAX_CIDRS: usize = 8;

/// Pod CIDRs the datapath knows ([`pods::CIDRS`]): kube-proxy's local detectors have one a family.
pub const MAX_POD_CIDRS: usize = 4;

record! {
    /// The only value of `CONFIG`.
    pub struct Config [456] {
        /// Cookie of the node's network namespace: socket hooks act on sockets of this one, and with [`flags::SOCKET_ALL`] of those in `CLIENTS`.
        pub netns_cookie: u64,
        /// Jiffies a second (the kernel's CONFIG_HZ).
        pub hz: u32,
        /// See [`flags`].
        pub flags: u32,
        /// Seed of the flow hash.
        pub seed: u32,
        /// Entries used in `cidrs`.
        pub cidrs_used: u32,
        /// Service CIDRs: an address inside one that no Service owns is dropped.
        pub cidrs: [Cidr; MAX_CIDRS],
        /// The node's primary address of each family: what its own sockets count as (session affinity, source ranges), and the source of masqueraded
        /// flows that leave by a device without an address in `UPLINKS`. Unspecified (::): none of that family.
        pub node4: Addr,
        pub node6: Addr,
        /// First source port (host order) of masqueraded flows, and how many there are.
        pub snat_first: u32,
        pub snat_count: u32,
        /// Whose packets count as a pod's: one of [`pods`].
        pub pods: u32,
        /// Entries used in `pod_cidrs`.
        pub pod_cidrs_used: u32,
        pub pod_cidrs: [Cidr; MAX_POD_CIDRS],
    }
}

record! {
    /// `address & mask == net` means inside. Wire-order bytes.
    pub struct Cidr [32] {
        pub net: Addr,
        pub mask: Addr,
    }
}

impl Cidr {
    #[inline(always)]
    pub const fn contains(&self, addr: Addr) -> bool {
        addr.hi & self.mask.hi == self.net.hi && addr.lo & self.mask.lo == self.net.lo
    }
}

/// Bits of [`Config::flags`].
pub mod flags {
    /// The redirect road is open on this node.
    pub const REDIRECT: u32 = 1;
    /// Socket hooks act on pods' sockets too (`--accel socket`).
    pub const SOCKET_ALL: u32 = 2;
    /// Masquerade as kube-proxy does, also towards backends on this node (`--masquerade kube-proxy`).
    pub const MASQUERADE_LOCAL: u32 = 1 << 2;
    /// Masquerade whatever goes to a cluster IP (kube-proxy's `--masquerade-all`).
    pub const MASQUERADE_ALL: u32 = 1 << 3;
}

/// Values of [`Config::pods`], kube-proxy's detectLocalMode.
pub mod pods {
    /// What comes from a pod's device (default).
    pub const KNOWN: u32 = 0;
    /// Sources in `pod_cidrs` (ClusterCIDR, NodeCIDR).
    pub const CIDRS: u32 = 1;
    /// What comes from a marked device (BridgeInterface, InterfaceNamePrefix): `endpoint::flags::POD_SOURCE`, `uplink::flags::POD_SOURCE`.
    pub const DEVICES: u32 = 2;
    /// Nobody can be told to be a pod (no detector).
    pub const NONE: u32 = 3;
}
