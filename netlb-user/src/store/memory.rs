//! The tables in memory: for tests, and as the planner's picture of what the store accepted.

use super::{Capacity, MapStore, StoreError, Tables};
use crate::plan::MapOp;
use netlb_common::maps::name;

/// A store that keeps its tables in memory, and refuses what the kernel would refuse for want of room.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    pub tables: Tables,
    pub capacity: Capacity,
}

impl MemoryStore {
    pub fn new(capacity: Capacity) -> Self {
        MemoryStore { tables: Tables::default(), capacity }
    }

    /// Refuses an id beyond an array's end.
    fn within(map: &'static str, end: u64, capacity: u32) -> Result<(), StoreError> {
        if end <= u64::from(capacity) { Ok(()) } else { Err(StoreError::Full { map }) }
    }
}

/// Refuses a new key when a hash is full.
fn room(map: &'static str, used: usize, known: bool, capacity: u32) -> Result<(), StoreError> {
    if known || used < capacity as usize { Ok(()) } else { Err(StoreError::Full { map }) }
}

impl MapStore for MemoryStore {
    fn apply(&mut self, op: &MapOp) -> Result<(), StoreError> {
        let (t, capacity) = (&mut self.tables, self.capacity);
        match op {
            MapOp::SetConfig(config) => t.config = Some(**config),
            MapOp::SetEndpoint { id, value } => {
                Self::within(name::ENDPOINTS, u64::from(*id) + 1, capacity.endpoints)?;
                t.endpoints.insert(*id, *value);
            }
            MapOp::SetEndpointByAddr { addr, id } => {
                let known = t.endpoint_by_addr.contains_key(addr);
                room(name::ENDPOINT_BY_ADDR, t.endpoint_by_addr.len(), known, capacity.endpoint_addrs)?;
                t.endpoint_by_addr.insert(*addr, *id);
            }
            MapOp::DeleteEndpointByAddr { addr } => {
                t.endpoint_by_addr.remove(addr);
            }
            MapOp::SetEndpointByIfindex { ifindex, id } => {
                let known = t.endpoint_by_ifindex.contains_key(ifindex);
                room(name::ENDPOINT_BY_IFINDEX, t.endpoint_by_ifindex.len(), known, capacity.endpoints)?;
                t.endpoint_by_ifindex.insert(*ifindex, *id);
            }
            MapOp::DeleteEndpointByIfindex { ifindex } => {
                t.endpoint_by_ifindex.remove(ifindex);
            }
            MapOp::ClearBackendFlows { .. } => {}
            MapOp::SetBackend { id, value } => {
                Self::within(name::BACKENDS, u64::from(*id) + 1, capacity.backends)?;
                t.backends.insert(*id, *value);
            }
            MapOp::SetSlots { base, backends } => {
                Self::within(name::SLOTS, u64::from(*base) + backends.len() as u64, capacity.slots)?;
                t.slots.extend((*base..).zip(backends.iter().copied()));
            }
            MapOp::SetFrontend { key, value } => {
                room(name::FRONTENDS, t.frontends.len(), t.frontends.contains_key(key), capacity.frontends)?;
                t.frontends.insert(*key, *value);
            }
            MapOp::DeleteFrontend { key } => {
                t.frontends.remove(key);
            }
            MapOp::SetSourceRange { key } => {
                let known = t.source_ranges.contains(key);
                room(name::SOURCE_RANGES, t.source_ranges.len(), known, capacity.source_ranges)?;
                t.source_ranges.insert(*key);
            }
            MapOp::DeleteSourceRange { key } => {
                t.source_ranges.remove(key);
            }
            MapOp::SetUplink { ifindex, value } => {
                room(name::UPLINKS, t.uplinks.len(), t.uplinks.contains_key(ifindex), capacity.uplinks)?;
                t.uplinks.insert(*ifindex, *value);
            }
            MapOp::DeleteUplink { ifindex } => {
                t.uplinks.remove(ifindex);
            }
            MapOp::SetClient { netns, value } => {
                room(name::CLIENTS, t.clients.len(), t.clients.contains_key(netns), capacity.clients)?;
                t.clients.insert(*netns, *value);
            }
            MapOp::DeleteClient { netns } => {
                t.clients.remove(netns);
            }
        }
        Ok(())
    }

    fn read(&self) -> Result<Tables, StoreError> {
        Ok(self.tables.clone())
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }
}
