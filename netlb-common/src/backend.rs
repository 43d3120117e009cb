//! Backends: where a Service port sends its flows. One record a (Service port, address, port), so that counters and states belong to one Service.

use crate::addr::{Addr, Port};
use crate::pod::record;

record! {
    /// Value of `BACKENDS`, an array by dense id. Id 0 is never used.
    pub struct BackendValue [40] {
        pub addr: Addr,
        pub port: Port,
        /// One of [`state`].
        pub state: u8,
        pub proto: u8,
        /// Grows when the id is given to another backend: conntrack entries of the former one are stale at once.
        pub generation: u32,
        /// Id in `ENDPOINTS` if the backend is a pod of this node whose device is known, else 0.
        pub endpoint: u32,
        /// Id of the Service port.
        pub service: u32,
        /// See [`flags`].
        pub flags: u32,
        pub pad: u32,
    }
}

/// Bits of [`BackendValue::flags`].
pub mod flags {
    /// On this node: a pod, known device or not, or the node itself.
    pub const ON_NODE: u32 = 1;
    /// Stands in the cluster-wide list of its Service port.
    pub const CLUSTER_LIST: u32 = 1 << 1;
    /// Stands in the list of this node's endpoints.
    pub const LOCAL_LIST: u32 = 1 << 2;
}

/// States of a backend. A byte that is none of these counts as [`REMOVED`](state::REMOVED).
pub mod state {
    /// The id is free.
    pub const FREE: u8 = 0;
    /// In a list: takes new flows.
    pub const ACTIVE: u8 = 1;
    /// Terminating: keeps its flows (TCP and UDP), takes none.
    pub const DRAINING: u8 = 2;
    /// In no EndpointSlice any more: TCP flows may end by themselves, UDP is chosen anew at once.
    pub const REMOVED: u8 = 3;

    /// The word people read.
    pub fn name(state: u8) -> &'static str {
        match state {
            FREE => "free",
            ACTIVE => "active",
            DRAINING => "draining",
            _ => "removed",
        }
    }
}
