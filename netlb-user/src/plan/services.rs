//! The differences of Services: ids, lists and switches of what each wants against what the store has.
//!
//! A Service enters whole or not at all: what it needs is counted first. One that does not fit keeps what it has, is reported, and is tried
//! again with every plan. Services are taken in name order, so what fits is decided by name and not by luck.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netlb_common::backend::{BackendValue, state};
use netlb_common::frontend::{FrontendKey, FrontendValue, flags};
use netlb_common::{Addr, Port};

use super::ids::IdPool;
use super::lists::{ListId, Lists, blocks};
use super::op::MapOp;
use super::order::Draft;
use super::pass::Pass;
use super::shadow::Shadow;
use crate::compile::{PortTables, ServicePortKey, ServiceTables};
use crate::model::{Claim, Family, PortName, Protocol, ServiceName};
use crate::store::{Capacity, Tables};

/// Ids, lists and intentions for Services.
#[derive(Clone, Debug)]
pub(super) struct Services {
    pub(super) capacity: Capacity,
    pub(super) service_ids: IdPool,
    pub(super) backend_ids: IdPool,
    pub(super) lists: Lists,
    /// Service ports that have an id: wanted ones, and those whose backends flows may still name.
    pub(super) ports: BTreeMap<ServicePortKey, PortState>,
    pub(super) by_id: BTreeMap<u32, ServicePortKey>,
    pub(super) backends: BTreeMap<BackendKey, u32>,
    /// Who holds an address live; and addresses to look at, because somebody let go of them, or the node's have changed.
    pub(super) holders: BTreeMap<Addr, BTreeSet<ServiceName>>,
    pub(super) held_by: BTreeMap<ServiceName, BTreeSet<Addr>>,
    pub(super) unsettled_addresses: BTreeSet<Addr>,
    /// Addresses that serve NodePorts; `None`: not known yet, those of a restarted agent stay.
    pub(super) node_addresses: Option<BTreeSet<Addr>>,
    /// Of these, those that do not fit.
    pub(super) short_addresses: BTreeSet<Addr>,
    /// Services to be planned again: their last plan had writes, or did not fit, or had to wait for the source.
    unsettled: BTreeSet<ServiceName>,
    /// Ids of Service ports found at start that no Service has taken up.
    pub(super) orphans: BTreeSet<u32>,
    /// Removed backends that no flow names.
    pub(super) released: BTreeSet<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct PortState {
    pub id: u32,
    /// The lists of the last plan; `None`: empty. Equal lists are one.
    pub cluster: Option<ListId>,
    pub local: Option<ListId>,
    pub wanted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct BackendKey {
    pub service: u32,
    pub addr: Addr,
    /// Host order.
    pub port: u16,
    pub proto: u8,
}

/// Why a Service does not enter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shortage {
    Frontends {
        needed: usize,
        left: usize,
    },
    Backends {
        needed: usize,
        left: usize,
    },
    /// Of a list of this many backends.
    Slots {
        backends: usize,
    },
    SourceRanges {
        needed: usize,
        left: usize,
    },
}

/// What a plan of Services starts from, beside the store.
pub(super) struct Wanted<'a> {
    pub services: &'a BTreeMap<ServiceName, ServiceTables>,
    /// Endpoint ids by interface index.
    pub endpoints: &'a BTreeMap<u32, u32>,
    /// The devices have been listed; until then a backend keeps the endpoint it has.
    pub devices_known: bool,
    /// The source has been read whole: what it does not name may go.
    pub synced: bool,
}

fn backend_key(service: u32, value: &BackendValue) -> BackendKey {
    BackendKey { service, addr: value.addr, port: value.port.get(), proto: value.proto }
}

pub(super) fn frontend_key(claim: &Claim) -> FrontendKey {
    FrontendKey::new(Addr::from_ip(claim.addr), Port::new(claim.port), claim.protocol.number())
}

impl Services {
    pub(super) fn new(capacity: Capacity, tables: &Tables, shadow: &Shadow) -> Self {
        let used = tables.backends.iter().filter(|(_, b)| b.state != state::FREE);
        let ids = shadow.services();
        Services {
            capacity,
            service_ids: IdPool::new(u32::MAX, ids.iter().copied()),
            backend_ids: IdPool::new(capacity.backends, used.clone().map(|(id, _)| *id)),
            lists: Lists::new(capacity.slots, tables),
            ports: BTreeMap::new(),
            by_id: BTreeMap::new(),
            // Should two ids name one backend, the lower one is kept: the last one collected wins.
            backends: used.rev().map(|(id, b)| (backend_key(b.service, b), *id)).collect(),
            holders: BTreeMap::new(),
            held_by: BTreeMap::new(),
            unsettled_addresses: tables.frontends.keys().filter(|key| key.is_address()).map(|key| key.addr).collect(),
            node_addresses: None,
            short_addresses: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            orphans: ids,
            released: BTreeSet::new(),
        }
    }

    /// Writes that bring the dirty Services, and those unsettled, to what they want. Answers with those that do not fit.
    pub(super) fn plan(
        &mut self,
        shadow: &Shadow,
        wanted: &Wanted<'_>,
        dirty: BTreeSet<ServiceName>,
        draft: &mut Draft,
    ) -> BTreeMap<ServiceName, Shortage> {
        let mut names = dirty;
        names.append(&mut self.unsettled);
        let mut pass = Pass::new(shadow, wanted, draft);
        let nothing = ServiceTables::default();
        let (mut short, mut entered) = (BTreeMap::new(), Vec::new());
        for name in names {
            let tables = wanted.services.get(&name).unwrap_or(&nothing);
            if !wanted.synced && self.would_lose(shadow, tables) {
                self.unsettled.insert(name);
                continue;
            }
            let chain = pass.draft.chain();
            match self.enter(&mut pass, &name, tables, chain) {
                Ok(()) => entered.push((name, tables, chain)),
                Err(shortage) => {
                    self.unsettled.insert(name.clone());
                    short.insert(name, shortage);
                }
            }
        }
        for (name, tables, chain) in &entered {
            self.leave(&mut pass, name, tables, *chain);
        }
        if wanted.synced {
            self.leave_orphans(&mut pass);
        }
        self.settle_addresses(&mut pass);
        self.free_released(&mut pass);
        let touched = pass.touched;
        self.unsettled.extend(entered.into_iter().filter(|(_, _, c)| touched.contains(c)).map(|(name, _, _)| name));
        short
    }

    /// The store accepted a write. Call before the shadow learns of it.
    pub(super) fn accepted(&mut self, shadow: &Shadow, op: &MapOp) {
        match op {
            MapOp::SetSlots { base, backends } => self.lists.accept(*base, backends),
            MapOp::SetFrontend { key, value } => {
                blocks(value).into_iter().flatten().for_each(|base| self.lists.link(base));
                self.unlink(shadow.frontends.get(key));
            }
            MapOp::DeleteFrontend { key } => self.unlink(shadow.frontends.get(key)),
            MapOp::SetBackend { id, value } if value.state == state::FREE => {
                self.released.remove(id);
                if let Some(old) = shadow.backends.get(id) {
                    let key = backend_key(old.service, old);
                    if self.backends.get(&key) == Some(id) {
                        self.backends.remove(&key);
                    }
                    self.backend_ids.release(*id);
                }
            }
            MapOp::SetBackend { .. }
            | MapOp::SetConfig(_)
            | MapOp::SetEndpoint { .. }
            | MapOp::SetEndpointByAddr { .. }
            | MapOp::DeleteEndpointByAddr { .. }
            | MapOp::SetEndpointByIfindex { .. }
            | MapOp::DeleteEndpointByIfindex { .. }
            | MapOp::ClearBackendFlows { .. }
            | MapOp::SetSourceRange { .. }
            | MapOp::DeleteSourceRange { .. }
            | MapOp::SetUplink { .. }
            | MapOp::DeleteUplink { .. }
            | MapOp::SetClient { .. }
            | MapOp::DeleteClient { .. } => {}
        }
    }

    /// These addresses serve NodePorts. What is not known yet counts as what the store has.
    pub(super) fn set_node_addresses(&mut self, shadow: &Shadow, now: BTreeSet<Addr>) {
        let before = self.node_addresses.take().unwrap_or_else(|| {
            let entries =
                shadow.frontends.iter().filter(|(key, value)| key.is_address() && value.flags & flags::NODE != 0);
            entries.map(|(key, _)| key.addr).collect()
        });
        self.unsettled_addresses.extend(before.symmetric_difference(&now));
        self.node_addresses = Some(now);
    }

    /// Frees the id of a Service port that nothing wants, and that nothing in the store names.
    pub(super) fn forget_service(&mut self, shadow: &Shadow, id: u32) {
        if shadow.knows_service(id) {
            return;
        }
        let Some(key) = self.by_id.get(&id) else {
            if self.orphans.remove(&id) {
                self.service_ids.release(id);
            }
            return;
        };
        if self.ports.get(key).is_some_and(|port| !port.wanted) {
            self.ports.remove(key);
            self.by_id.remove(&id);
            self.service_ids.release(id);
        }
    }

    /// No flow names these removed backends any more.
    pub(super) fn release(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.released.extend(ids);
    }

    pub(super) fn tick(&mut self, now: Duration) {
        self.service_ids.tick(now);
        self.backend_ids.tick(now);
        self.lists.tick(now);
    }

    /// When room may appear for Services that do not fit.
    pub(super) fn due(&self) -> Option<Duration> {
        [self.lists.due(), self.backend_ids.due()].into_iter().flatten().min()
    }

    /// Whether backends are to be freed.
    pub(super) fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// Slots of all lists, those on their way out among them.
    pub(super) fn slots_in_use(&self) -> usize {
        self.lists.slots_in_use()
    }

    /// Service ports by id.
    pub(super) fn names(&self) -> impl Iterator<Item = (u32, &ServicePortKey)> {
        self.by_id.iter().map(|(id, key)| (*id, key))
    }

    fn unlink(&mut self, old: Option<&FrontendValue>) {
        old.into_iter().flat_map(blocks).flatten().for_each(|base| self.lists.unlink(base));
    }

    /// Before the source is whole, a Service just found keeps frontends and backends that may only be missing because a file could not be
    /// read: its own, and those of an older Service that claims the same address.
    fn would_lose(&self, shadow: &Shadow, tables: &ServiceTables) -> bool {
        tables.ports.iter().filter(|(key, _)| !self.ports.contains_key(key)).any(|(key, port)| {
            let lists = self.restored_lists(shadow, port).into_iter().filter_map(|list| self.lists.get(list));
            let known = |b: &BackendValue| port.backends.contains_key(&(b.addr.to_ip(), b.port.get()));
            let frontends: BTreeSet<FrontendKey> = port.frontends.keys().map(frontend_key).collect();
            let found = self.known_id(shadow, key, port).into_iter();
            let mut found = found.flat_map(|service| shadow.frontends_of(service));
            found.any(|frontend| !frontends.contains(frontend))
                || lists.flatten().any(|id| shadow.backends.get(id).is_none_or(|b| !known(b)))
        })
    }

    /// The lists that the frontends of a Service port have in the store.
    pub(super) fn restored_lists(&self, shadow: &Shadow, port: &PortTables) -> Vec<ListId> {
        let values = port.frontends.keys().filter_map(|claim| shadow.frontends.get(&frontend_key(claim)));
        values.flat_map(blocks).flatten().filter_map(|base| self.lists.at(base)).collect()
    }

    /// The id a Service port has, or had before a restart: then one of its frontends names it.
    pub(super) fn known_id(&self, shadow: &Shadow, key: &ServicePortKey, port: &PortTables) -> Option<u32> {
        if let Some(port) = self.ports.get(key) {
            return Some(port.id);
        }
        // The cluster IP first: other addresses, and node ports above all, change hands.
        let (own, external): (Vec<_>, Vec<_>) =
            port.frontends.iter().partition(|(_, table)| table.flags & flags::EXTERNAL == 0);
        let claims = own.into_iter().chain(external);
        let restored = claims.filter_map(|(claim, _)| shadow.frontends.get(&frontend_key(claim)));
        restored.map(|value| value.service).find(|id| self.orphans.contains(id))
    }

    /// All ports of a Service that have an id.
    pub(super) fn ports_of<'a>(
        &'a self,
        name: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a ServicePortKey, &'a PortState)> {
        let first = ServicePortKey {
            service: name.clone(),
            port: PortName::new(""),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        self.ports.range(first..).take_while(move |(key, _)| key.service == *name)
    }

    /// All backends of a Service port that have an id.
    pub(super) fn backends_of(&self, service: u32) -> impl Iterator<Item = (&BackendKey, u32)> {
        let first = BackendKey { service, addr: Addr::UNSPECIFIED, port: 0, proto: 0 };
        self.backends.range(first..).take_while(move |(key, _)| key.service == service).map(|(key, id)| (key, *id))
    }
}
