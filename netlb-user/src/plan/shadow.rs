//! The shadow: what the store accepted, with the indexes planning needs.

use std::collections::{BTreeMap, BTreeSet};

use netlb_common::Addr;
use netlb_common::backend::{BackendValue, state};
use netlb_common::client::ClientValue;
use netlb_common::config::Config;
use netlb_common::endpoint::EndpointValue;
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;

use super::op::MapOp;
use crate::store::Tables;

/// The tables as the store has them, without `SLOTS` (their content is kept with the blocks).
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    pub config: Option<Config>,
    pub frontends: BTreeMap<FrontendKey, FrontendValue>,
    pub backends: BTreeMap<u32, BackendValue>,
    pub endpoints: BTreeMap<u32, EndpointValue>,
    pub endpoint_by_addr: BTreeMap<Addr, u32>,
    pub endpoint_by_ifindex: BTreeMap<u32, u32>,
    pub uplinks: BTreeMap<u32, UplinkValue>,
    pub clients: BTreeMap<u64, ClientValue>,
    ranges_of: BTreeMap<u32, BTreeSet<SourceRangeKey>>,
    ranges: usize,
    frontends_of: BTreeMap<u32, BTreeSet<FrontendKey>>,
    backends_of: BTreeMap<u32, BTreeSet<u32>>,
}

impl Shadow {
    pub fn new(tables: &Tables) -> Self {
        let mut shadow = Shadow {
            config: tables.config,
            endpoints: tables.endpoints.clone(),
            endpoint_by_addr: tables.endpoint_by_addr.clone(),
            endpoint_by_ifindex: tables.endpoint_by_ifindex.clone(),
            uplinks: tables.uplinks.clone(),
            clients: tables.clients.clone(),
            ..Shadow::default()
        };
        for (id, value) in &tables.backends {
            shadow.apply(&MapOp::SetBackend { id: *id, value: *value });
        }
        for (key, value) in &tables.frontends {
            shadow.apply(&MapOp::SetFrontend { key: *key, value: *value });
        }
        for key in &tables.source_ranges {
            shadow.apply(&MapOp::SetSourceRange { key: *key });
        }
        shadow
    }

    /// The store accepted a write.
    pub fn apply(&mut self, op: &MapOp) {
        match op {
            MapOp::SetConfig(config) => self.config = Some(**config),
            MapOp::SetEndpoint { id, value } => {
                self.endpoints.insert(*id, *value);
            }
            MapOp::SetEndpointByAddr { addr, id } => {
                self.endpoint_by_addr.insert(*addr, *id);
            }
            MapOp::DeleteEndpointByAddr { addr } => {
                self.endpoint_by_addr.remove(addr);
            }
            MapOp::SetEndpointByIfindex { ifindex, id } => {
                self.endpoint_by_ifindex.insert(*ifindex, *id);
            }
            MapOp::DeleteEndpointByIfindex { ifindex } => {
                self.endpoint_by_ifindex.remove(ifindex);
            }
            MapOp::ClearBackendFlows { .. } | MapOp::SetSlots { .. } => {}
            MapOp::SetBackend { id, value } => {
                if let Some(old) = self.backends.insert(*id, *value) {
                    unlink(&mut self.backends_of, old.service, id);
                }
                if value.state != state::FREE {
                    self.backends_of.entry(value.service).or_default().insert(*id);
                }
            }
            MapOp::SetFrontend { key, value } => {
                if let Some(old) = self.frontends.insert(*key, *value) {
                    unlink(&mut self.frontends_of, old.service, key);
                }
                if !key.is_address() {
                    self.frontends_of.entry(value.service).or_default().insert(*key);
                }
            }
            MapOp::DeleteFrontend { key } => {
                if let Some(old) = self.frontends.remove(key) {
                    unlink(&mut self.frontends_of, old.service, key);
                }
            }
            MapOp::SetSourceRange { key } => {
                self.ranges += usize::from(self.ranges_of.entry(key.service).or_default().insert(*key));
            }
            MapOp::DeleteSourceRange { key } => {
                self.ranges -= usize::from(self.has_range(key));
                unlink(&mut self.ranges_of, key.service, key);
            }
            MapOp::SetUplink { ifindex, value } => {
                self.uplinks.insert(*ifindex, *value);
            }
            MapOp::DeleteUplink { ifindex } => {
                self.uplinks.remove(ifindex);
            }
            MapOp::SetClient { netns, value } => {
                self.clients.insert(*netns, *value);
            }
            MapOp::DeleteClient { netns } => {
                self.clients.remove(netns);
            }
        }
    }

    /// Port entries of a Service port.
    pub fn frontends_of(&self, service: u32) -> impl Iterator<Item = &FrontendKey> {
        self.frontends_of.get(&service).into_iter().flatten()
    }

    /// Backends of a Service port that are not free.
    pub fn backends_of(&self, service: u32) -> impl Iterator<Item = u32> {
        self.backends_of.get(&service).into_iter().flatten().copied()
    }

    /// Source ranges of a Service port.
    pub fn ranges_of(&self, service: u32) -> impl Iterator<Item = &SourceRangeKey> {
        self.ranges_of.get(&service).into_iter().flatten()
    }

    pub fn has_range(&self, key: &SourceRangeKey) -> bool {
        self.ranges_of.get(&key.service).is_some_and(|ranges| ranges.contains(key))
    }

    /// Entries of `SOURCE_RANGES`.
    pub fn ranges(&self) -> usize {
        self.ranges
    }

    /// Whether any frontend, backend or source range names the Service port.
    pub fn knows_service(&self, service: u32) -> bool {
        self.frontends_of.contains_key(&service)
            || self.backends_of.contains_key(&service)
            || self.ranges_of.contains_key(&service)
    }

    /// Ids of all Service ports named anywhere.
    pub fn services(&self) -> BTreeSet<u32> {
        self.frontends_of.keys().chain(self.backends_of.keys()).chain(self.ranges_of.keys()).copied().collect()
    }

    /// What an address entry says: its flags, 0 without one.
    pub fn address(&self, addr: Addr) -> u32 {
        self.frontends.get(&FrontendKey::address(addr)).map_or(0, |entry| entry.flags)
    }

    /// Port entries at an address.
    pub fn ports_at(&self, addr: Addr) -> impl Iterator<Item = &FrontendKey> {
        let range = FrontendKey { addr, tail: 1 }..=FrontendKey { addr, tail: u64::MAX };
        self.frontends.range(range).map(|(key, _)| key)
    }

    /// The generation a record of `BACKENDS` has; 0 if it was never used.
    pub fn backend_generation(&self, id: u32) -> u32 {
        self.backends.get(&id).map_or(0, |b| b.generation)
    }

    /// State of a backend id.
    pub fn backend_state(&self, id: u32) -> u8 {
        self.backends.get(&id).map_or(state::FREE, |b| b.state)
    }
}

fn unlink<V: Ord>(index: &mut BTreeMap<u32, BTreeSet<V>>, service: u32, value: &V) {
    if let Some(set) = index.get_mut(&service) {
        set.remove(value);
        if set.is_empty() {
            index.remove(&service);
        }
    }
}
