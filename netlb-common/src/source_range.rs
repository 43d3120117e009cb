//! `loadBalancerSourceRanges`: who may reach a Service by its load balancer addresses.

use core::fmt;

use crate::addr::Addr;
use crate::pod::record;

record! {
    /// Key of `SOURCE_RANGES`, a longest-prefix-match trie. What it holds is allowed; the value means nothing.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct SourceRangeKey [24] {
        /// Bits of what follows that count: 32 for the Service port, then those of the address (an IPv4 prefix counts 96 more).
        pub prefix: u32,
        /// Id of the Service port.
        pub service: u32,
        /// Wire-order bytes.
        pub addr: Addr,
    }
}

impl SourceRangeKey {
    /// Bits of a whole key.
    pub const WHOLE: u32 = 32 + 128;

    /// The key of a range; `len` counts in the address's own family.
    pub fn range(service: u32, net: Addr, len: u8) -> Self {
        let family = if net.is_v4() { 96 } else { 0 };
        SourceRangeKey { prefix: 32 + family + len as u32, service, addr: net.masked(len) }
    }

    /// The key a client is looked up by.
    #[inline(always)]
    pub const fn client(service: u32, addr: Addr) -> Self {
        SourceRangeKey { prefix: Self::WHOLE, service, addr }
    }
}

/// The range, without its Service port.
impl fmt::Display for SourceRangeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = if self.addr.is_v4() { 32 + 96 } else { 32 };
        write!(f, "{}/{}", self.addr, self.prefix.saturating_sub(before))
    }
}
