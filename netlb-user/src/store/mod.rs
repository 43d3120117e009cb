//! Where the tables live: the kernel's maps, or memory for tests.

use std::collections::{BTreeMap, BTreeSet};

use netlb_common::Addr;
use netlb_common::backend::BackendValue;
use netlb_common::client::ClientValue;
use netlb_common::config::Config;
use netlb_common::endpoint::EndpointValue;
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;

use crate::plan::MapOp;

pub mod dump;
pub mod faulty;
pub mod kernel;
pub mod memory;

pub use faulty::FaultyStore;
pub use kernel::KernelStore;
pub use memory::MemoryStore;

/// The maps of the contract that the agent writes. The datapath's own (conntrack, affinity, sockets, counters) are not here.
pub trait MapStore {
    /// Does one write. On an error nothing is visible that was not before; the caller may repeat it.
    fn apply(&mut self, op: &MapOp) -> Result<(), StoreError>;

    /// Reads everything back: how a restarted agent learns what it wrote.
    fn read(&self) -> Result<Tables, StoreError>;

    /// How much fits.
    fn capacity(&self) -> Capacity;
}

/// Why a write or read did not happen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The kernel's map has no room (E2BIG, ENOSPC), although the plan counted some.
    #[error("{map} is full; start the agent with larger capacities")]
    Full { map: &'static str },
    /// May work when repeated (EBUSY, ENOMEM, EINTR, EAGAIN).
    #[error("{map} could not be written now ({cause}); it is tried again")]
    Busy { map: &'static str, cause: String },
    /// Will not work by itself.
    #[error("{map} cannot be used: {cause}; see `netlb status`")]
    Broken { map: &'static str, cause: String },
}

/// The content of the maps the agent writes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Tables {
    pub config: Option<Config>,
    pub frontends: BTreeMap<FrontendKey, FrontendValue>,
    /// At least every slot that an entry of `frontends` points at.
    pub slots: BTreeMap<u32, u32>,
    /// Every record that is not all zero: a free one keeps its generation.
    pub backends: BTreeMap<u32, BackendValue>,
    /// Every record that is not all zero.
    pub endpoints: BTreeMap<u32, EndpointValue>,
    pub endpoint_by_addr: BTreeMap<Addr, u32>,
    pub endpoint_by_ifindex: BTreeMap<u32, u32>,
    pub source_ranges: BTreeSet<SourceRangeKey>,
    /// By interface index.
    pub uplinks: BTreeMap<u32, UplinkValue>,
    /// By the cookie of a network namespace.
    pub clients: BTreeMap<u64, ClientValue>,
}

impl Tables {
    /// The backend ids a frontend sends new flows of clients inside to, in slot order. Missing slots read 0.
    pub fn list(&self, frontend: &FrontendValue) -> Vec<u32> {
        self.block(frontend.slots, frontend.count)
    }

    /// The same for clients outside.
    pub fn outside_list(&self, frontend: &FrontendValue) -> Vec<u32> {
        self.block(frontend.outside_slots, frontend.outside_count)
    }

    fn block(&self, base: u32, count: u32) -> Vec<u32> {
        (0..count).map(|i| self.slots.get(&base.wrapping_add(i)).copied().unwrap_or(0)).collect()
    }
}

/// Entries that fit, by map. Id 0 of the arrays is never used, and counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    pub frontends: u32,
    pub slots: u32,
    pub backends: u32,
    pub endpoints: u32,
    pub endpoint_addrs: u32,
    pub source_ranges: u32,
    pub uplinks: u32,
    pub clients: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        use netlb_common::maps::capacity;
        Capacity {
            frontends: capacity::FRONTENDS,
            slots: capacity::SLOTS,
            backends: capacity::BACKENDS,
            endpoints: capacity::ENDPOINTS,
            endpoint_addrs: capacity::ENDPOINTS * 4,
            source_ranges: capacity::SOURCE_RANGES,
            uplinks: capacity::UPLINKS,
            clients: capacity::CLIENTS,
        }
    }
}
