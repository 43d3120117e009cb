//! Frontends: the addresses and ports on which Services are reached.

use crate::addr::{Addr, Port};
use crate::pod::record;

record! {
    /// Key of `FRONTENDS`. With port 0 and protocol 0 it names the *address*: an allocated VIP, whose other ports are refused.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct FrontendKey [24] {
        pub addr: Addr,
        /// Port (wire order) in bits 0..16, IP protocol in 16..24, scope in 24..32. One word: no narrow stores read back wide.
        pub tail: u64,
    }
}

/// Who a frontend serves: today one scope; outside scopes of traffic policies come beside it.
pub const SCOPE_INSIDE: u8 = 0;

impl FrontendKey {
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, proto: u8) -> Self {
        FrontendKey { addr, tail: port.0 as u64 | (proto as u64) << 16 | (SCOPE_INSIDE as u64) << 24 }
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
}

record! {
    /// Value of `FRONTENDS`. Writing it is the one switch that makes a change of a Service visible.
    pub struct FrontendValue [24] {
        /// Id of the Service port (shared by all its frontends); 0 in an address entry.
        pub service: u32,
        /// First slot of the block in `SLOTS`.
        pub slots: u32,
        /// Slots in use; 0 refuses at once.
        pub count: u32,
        /// Session affinity in seconds; 0 is none.
        pub affinity_s: u32,
        /// Grows with each switch of this frontend.
        pub generation: u32,
        pub flags: u32,
    }
}
