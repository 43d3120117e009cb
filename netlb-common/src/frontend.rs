//! Frontends: the addresses and ports on which Services are reached.

use crate::addr::{Addr, Port};
use crate::pod::record;

record! {
    /// Key of `FRONTENDS`.
    ///
    /// Three kinds share the map: a Service's own address and port; a NodePort, under the unspecified address of its family, for every address
    /// that serves NodePorts ([`node_port`](FrontendKey::node_port)); and with port 0 and protocol 0 an *address*
    /// ([`address`](FrontendKey::address)), whose flags say what it is.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct FrontendKey [24] {
        pub addr: Addr,
        /// Port (wire order) in bits 0..16, IP protocol in 16..24. One word: no narrow stores read back wide.
        pub tail: u64,
    }
}

impl FrontendKey {
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, proto: u8) -> Self {
        FrontendKey { addr, tail: port.0 as u64 | (proto as u64) << 16 }
    }

    /// A NodePort of one family.
    #[inline(always)]
    pub const fn node_port(v4: bool, port: Port, proto: u8) -> Self {
        Self::new(if v4 { Addr::v4(0) } else { Addr::UNSPECIFIED }, port, proto)
    }

    /// The key that stands for the whole address.
    #[inline(always)]
    pub const fn address(addr: Addr) -> Self {
        FrontendKey { addr, tail: 0 }
    }

    pub const fn port(&self) -> Port {
        Port(self.tail as u16)
    }

    pub const fn proto(&self) -> u8 {
        (self.tail >> 16) as u8
    }

    pub const fn is_address(&self) -> bool {
        self.tail == 0
    }

    /// A NodePort rather than a Service's own address.
    pub fn is_node_port(&self) -> bool {
        !self.is_address() && (self.addr == Addr::UNSPECIFIED || self.addr == Addr::v4(0))
    }
}

record! {
    /// Value of `FRONTENDS`. Writing it is the one switch that makes a change of a Service visible.
    ///
    /// A frontend has two lists of backends, because a traffic policy may mean different ones for clients inside the cluster (pods, the node)
    /// and outside; where they are the same, both name one block.
    pub struct FrontendValue [32] {
        /// Id of the Service port (shared by all its frontends); 0 in an address entry.
        pub service: u32,
        /// See [`flags`].
        pub flags: u32,
        /// First slot of the block in `SLOTS` for clients inside.
        pub slots: u32,
        /// Slots in use; 0 refuses at once, or drops ([`flags::DROP_INSIDE`]).
        pub count: u32,
        /// The same for clients outside.
        pub outside_slots: u32,
        pub outside_count: u32,
        /// Session affinity in seconds; 0 is none.
        pub affinity_s: u32,
        /// Grows with each switch of this frontend.
        pub generation: u32,
    }
}

/// Bits of [`FrontendValue::flags`].
pub mod flags {
    /// Address entry: a cluster IP, whose undefined ports are refused.
    pub const VIP: u32 = 1;
    /// Address entry: an address of this node that serves NodePorts.
    pub const NODE: u32 = 1 << 1;

    /// A NodePort, load balancer or external IP: for masquerade, its clients come from outside unless they are pods.
    pub const EXTERNAL: u32 = 1 << 2;
    /// `externalTrafficPolicy: Local` on an external frontend: the client's address is kept.
    pub const KEEP_CLIENT: u32 = 1 << 3;
    /// Without a backend in its list, a client inside is dropped rather than refused: there are backends, but traffic policy forbids them.
    pub const DROP_INSIDE: u32 = 1 << 4;
    /// The same for a client outside.
    pub const DROP_OUTSIDE: u32 = 1 << 5;
    /// Clients must stand in `SOURCE_RANGES`.
    pub const SOURCE_RANGES: u32 = 1 << 6;
    /// The list for clients inside is the one of this node's endpoints.
    pub const INSIDE_LOCAL: u32 = 1 << 7;
    /// The same for clients outside.
    pub const OUTSIDE_LOCAL: u32 = 1 << 8;

    /// A load balancer IP, for people who read the table; the datapath takes it as any external frontend.
    pub const LOAD_BALANCER: u32 = 1 << 9;

    /// The scheduler stands in bits 16..20: one of [`scheduler`](super::scheduler).
    pub const SCHEDULER_SHIFT: u32 = 16;
    pub const SCHEDULER_MASK: u32 = 0xf << SCHEDULER_SHIFT;
}

/// How a backend is chosen, under IPVS's names. Weights are not seen here: the slots repeat a backend as its weight asks.
pub mod scheduler {
    /// By the hash of the flow.
    pub const RANDOM: u32 = 0;
    /// One after the other (`rr`; `wrr` over weighted slots).
    pub const ROUND_ROBIN: u32 = 1;
    /// By the hash of the client's address (`sh`).
    pub const SOURCE_HASH: u32 = 2;
    /// The backend with the fewest flows from this node (`lc`).
    pub const LEAST_CONNECTIONS: u32 = 3;

    /// The word people write.
    pub fn name(scheduler: u32) -> &'static str {
        match scheduler {
            RANDOM => "random",
            ROUND_ROBIN => "rr",
            SOURCE_HASH => "sh",
            LEAST_CONNECTIONS => "lc",
            _ => "?",
        }
    }
}
