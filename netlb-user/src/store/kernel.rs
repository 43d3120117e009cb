//! The tables in the kernel's pinned maps.

use std::io;

use bytemuck::{Pod, Zeroable as _};
use netlb_common::Addr;
use netlb_common::backend::BackendValue;
use netlb_common::client::ClientValue;
use netlb_common::config::Config;
use netlb_common::endpoint::EndpointValue;
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::maps::name;
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;

use super::{Capacity, MapStore, StoreError, Tables};
use crate::bpf::pins::Pins;
use crate::bpf::table::{Table, TableError};
use crate::plan::MapOp;

/// [`MapStore`] over the maps pinned under one pin path.
pub struct KernelStore {
    config: Table<u32, Config>,
    frontends: Table<FrontendKey, FrontendValue>,
    slots: Table<u32, u32>,
    backends: Table<u32, BackendValue>,
    backend_flows: Table<u32, u64>,
    backend_load: Table<u32, u32>,
    endpoints: Table<u32, EndpointValue>,
    endpoint_by_addr: Table<Addr, u32>,
    endpoint_by_ifindex: Table<u32, u32>,
    source_ranges: Table<SourceRangeKey, u32>,
    uplinks: Table<u32, UplinkValue>,
    clients: Table<u64, ClientValue>,
}

impl KernelStore {
    /// Opens the maps; they must be there.
    ///
    /// # Errors
    /// If one is not pinned, or has another layout.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(KernelStore {
            config: Table::open(pins, name::CONFIG)?,
            frontends: Table::open(pins, name::FRONTENDS)?,
            slots: Table::open(pins, name::SLOTS)?,
            backends: Table::open(pins, name::BACKENDS)?,
            backend_flows: Table::open(pins, name::BACKEND_FLOWS)?,
            backend_load: Table::open(pins, name::BACKEND_LOAD)?,
            endpoints: Table::open(pins, name::ENDPOINTS)?,
            endpoint_by_addr: Table::open(pins, name::ENDPOINT_BY_ADDR)?,
            endpoint_by_ifindex: Table::open(pins, name::ENDPOINT_BY_IFINDEX)?,
            source_ranges: Table::open(pins, name::SOURCE_RANGES)?,
            uplinks: Table::open(pins, name::UPLINKS)?,
            clients: Table::open(pins, name::CLIENTS)?,
        })
    }

    /// New flows a backend was given since its id was.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flows(&self, backend: u32) -> Result<u64, StoreError> {
        self.backend_flows.sum(backend).map_err(|e| refused(name::BACKEND_FLOWS, &e))
    }
}

impl MapStore for KernelStore {
    fn apply(&mut self, op: &MapOp) -> Result<(), StoreError> {
        tracing::trace!(?op, "write");
        match op {
            MapOp::SetConfig(value) => put(&self.config, &0, value),
            MapOp::SetEndpoint { id, value } => put(&self.endpoints, id, value),
            MapOp::SetEndpointByAddr { addr, id } => put(&self.endpoint_by_addr, addr, id),
            MapOp::DeleteEndpointByAddr { addr } => delete(&self.endpoint_by_addr, addr),
            MapOp::SetEndpointByIfindex { ifindex, id } => put(&self.endpoint_by_ifindex, ifindex, id),
            MapOp::DeleteEndpointByIfindex { ifindex } => delete(&self.endpoint_by_ifindex, ifindex),
            MapOp::ClearBackendFlows { id } => {
                self.backend_flows.clear(*id).map_err(|e| refused(name::BACKEND_FLOWS, &e))?;
                put(&self.backend_load, id, &0)
            }
            MapOp::SetBackend { id, value } => put(&self.backends, id, value),
            MapOp::SetSlots { base, backends } => {
                (*base..).zip(backends).try_for_each(|(slot, backend)| put(&self.slots, &slot, backend))
            }
            MapOp::SetFrontend { key, value } => put(&self.frontends, key, value),
            MapOp::DeleteFrontend { key } => delete(&self.frontends, key),
            // The value means nothing: what is there is allowed.
            MapOp::SetSourceRange { key } => put(&self.source_ranges, key, &1),
            MapOp::DeleteSourceRange { key } => delete(&self.source_ranges, key),
            MapOp::SetUplink { ifindex, value } => put(&self.uplinks, ifindex, value),
            MapOp::DeleteUplink { ifindex } => delete(&self.uplinks, ifindex),
            MapOp::SetClient { netns, value } => put(&self.clients, netns, value),
            MapOp::DeleteClient { netns } => delete(&self.clients, netns),
        }
    }

    fn read(&self) -> Result<Tables, StoreError> {
        let config = self.config.get(&0).map_err(|e| refused(name::CONFIG, &e))?;
        Ok(Tables {
            config: config.filter(|config| *config != Config::zeroed()),
            frontends: all(&self.frontends)?.into_iter().collect(),
            slots: used(&self.slots)?.collect(),
            backends: used(&self.backends)?.collect(),
            endpoints: used(&self.endpoints)?.collect(),
            endpoint_by_addr: all(&self.endpoint_by_addr)?.into_iter().collect(),
            endpoint_by_ifindex: all(&self.endpoint_by_ifindex)?.into_iter().collect(),
            source_ranges: all(&self.source_ranges)?.into_iter().map(|(key, _)| key).collect(),
            uplinks: all(&self.uplinks)?.into_iter().collect(),
            clients: all(&self.clients)?.into_iter().collect(),
        })
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.frontends.capacity(),
            slots: self.slots.capacity(),
            backends: self.backends.capacity(),
            endpoints: self.endpoints.capacity(),
            endpoint_addrs: self.endpoint_by_addr.capacity(),
            source_ranges: self.source_ranges.capacity(),
            uplinks: self.uplinks.capacity(),
            clients: self.clients.capacity(),
        }
    }
}

fn put<K: Pod, V: Pod>(table: &Table<K, V>, key: &K, value: &V) -> Result<(), StoreError> {
    table.put(key, value).map_err(|e| refused(table.name(), &e))
}

fn delete<K: Pod, V: Pod>(table: &Table<K, V>, key: &K) -> Result<(), StoreError> {
    table.delete(key).map(drop).map_err(|e| refused(table.name(), &e))
}

fn all<K: Pod, V: Pod>(table: &Table<K, V>) -> Result<Vec<(K, V)>, StoreError> {
    table.entries().map_err(|e| refused(table.name(), &e))
}

/// The elements of an array that are not all zero.
fn used<V: Pod + PartialEq>(table: &Table<u32, V>) -> Result<impl Iterator<Item = (u32, V)>, StoreError> {
    Ok(all(table)?.into_iter().filter(|(_, value)| *value != V::zeroed()))
}

fn refused(map: &'static str, error: &io::Error) -> StoreError {
    let cause = error.to_string();
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => StoreError::Full { map },
        Some(libc::EBUSY | libc::ENOMEM | libc::EINTR | libc::EAGAIN) => StoreError::Busy { map, cause },
        _ => StoreError::Broken { map, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_whether_to_try_again() {
        let of = |errno| refused(name::FRONTENDS, &io::Error::from_raw_os_error(errno));
        for errno in [libc::E2BIG, libc::ENOSPC] {
            assert_eq!(of(errno), StoreError::Full { map: name::FRONTENDS });
        }
        for errno in [libc::EBUSY, libc::ENOMEM, libc::EINTR, libc::EAGAIN] {
            assert!(matches!(of(errno), StoreError::Busy { map: name::FRONTENDS, .. }), "{errno}");
        }
        assert!(matches!(of(libc::EPERM), StoreError::Broken { .. }));
    }
}
