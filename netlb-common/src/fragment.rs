//! Fragments: later ones carry no ports and follow what their first recorded.

use crate::addr::Addr;
use crate::pod::record;

record! {
    /// Key of `FRAGMENTS`: what the fragments of one datagram have in common, as they arrive (RFC 791 section 3.2, RFC 8200 section 4.5).
    #[derive(Hash, PartialOrd, Ord)]
    pub struct FragmentKey [40] {
        pub src: Addr,
        pub dst: Addr,
        /// Identification (wire order; IPv4 16 bits) in bits 0..32, protocol in 32..40.
        pub tail: u64,
    }
}

record! {
    pub struct FragmentValue [8] {
        /// As in `CtKey::tail`, bits 0..32.
        pub ports: u32,
        /// Jiffies (low 32 bits).
        pub seen: u32,
    }
}

/// Seconds for which the first fragment is remembered (RFC 8200 gives reassembly 60; Linux takes 30 for IPv4).
pub const TIMEOUT_S: u32 = 30;
