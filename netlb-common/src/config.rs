//! What the agent tells the datapath about its node, in one record that may change while packets flow.

use crate::addr::Addr;
use crate::pod::record;

/// Service CIDRs the datapath knows; more are reported by the agent.
pub const MAX_CIDRS: usize = 8;

record! {
    /// The only value of `CONFIG`.
    pub struct Config [296] {
        /// Cookie of the node's network namespace: socket hooks act on sockets of this one only, unless [`flags::SOCKET_ALL`].
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
        pub pad: [u64; 2],
    }
}

record! {
    /// `address & mask == net` means inside. Wire-order bytes.
    pub struct Cidr [32] {
        pub net: Addr,
        pub mask: Addr,
    }
}

/// Bits of [`Config::flags`].
pub mod flags {
    /// The redirect road is open on this node.
    pub const REDIRECT: u32 = 1;
    /// Socket hooks act on pods' sockets too (`--accel socket`).
    pub const SOCKET_ALL: u32 = 2;
}
