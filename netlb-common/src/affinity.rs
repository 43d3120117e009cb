//! Session affinity (`sessionAffinity: ClientIP`): the backend a client was sent to last, per Service port.

use crate::addr::Addr;
use crate::pod::record;

record! {
    /// Key of `AFFINITY`. A client on the node itself has no single address before it connects: it counts as the node's primary one.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct AffinityKey [24] {
        pub client: Addr,
        /// Id of the Service port.
        pub service: u32,
        pub pad: u32,
    }
}

record! {
    pub struct AffinityValue [16] {
        pub backend: u32,
        pub backend_generation: u32,
        /// Jiffies (low 32 bits) of the last new flow.
        pub seen: u32,
        pub pad: u32,
    }
}
