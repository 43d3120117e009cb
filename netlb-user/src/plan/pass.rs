//! One pass over Services: the writes with which one enters, and those with which it, or a part of it, leaves.

use std::collections::{BTreeMap, BTreeSet};

use netlb_common::backend::{BackendValue, state};
use netlb_common::frontend::{FrontendKey, FrontendValue, flags};
use netlb_common::{Addr, Port};

use super::op::MapOp;
use super::order::{Draft, Phase};
use super::services::{BackendKey, PortState, Services, Shortage, Wanted, frontend_key};
use super::shadow::Shadow;
use crate::compile::{BackendState, PortTables, ServicePortKey, ServiceTables};
use crate::model::ServiceName;

/// What the Services of one plan share.
pub(super) struct Pass<'a, 'd> {
    shadow: &'a Shadow,
    wanted: &'a Wanted<'a>,
    pub(super) draft: &'d mut Draft,
    /// Chains with writes.
    pub(super) touched: BTreeSet<usize>,
    /// Keys that come into `FRONTENDS`, and the chain that brings them.
    inserted: BTreeMap<FrontendKey, usize>,
    /// Port entries written, and by which chain.
    switched: BTreeMap<FrontendKey, usize>,
    /// Port entries deleted, and by which chain.
    withdrawn: BTreeMap<FrontendKey, usize>,
}

impl<'a, 'd> Pass<'a, 'd> {
    pub(super) fn new(shadow: &'a Shadow, wanted: &'a Wanted<'a>, draft: &'d mut Draft) -> Self {
        Pass {
            shadow,
            wanted,
            draft,
            touched: BTreeSet::new(),
            inserted: BTreeMap::new(),
            switched: BTreeMap::new(),
            withdrawn: BTreeMap::new(),
        }
    }

    fn push(&mut self, phase: Phase, chain: usize, op: MapOp) {
        self.touched.insert(chain);
        self.draft.push(phase, chain, op);
    }

    /// A port entry loses its Service: another's switch overwrites it in this plan, or it is deleted.
    fn withdraw(&mut self, key: FrontendKey, chain: usize) {
        match self.switched.get(&key) {
            Some(other) => self.draft.join(chain, *other),
            None => {
                self.withdrawn.insert(key, chain);
                self.push(Phase::Withdraw, chain, MapOp::DeleteFrontend { key });
            }
        }
    }

    /// A backend that no list will name.
    fn remove(&mut self, id: u32, chain: usize) {
        if let Some(old) = self.shadow.backends.get(&id).filter(|b| b.state != state::REMOVED) {
            let value = BackendValue { state: state::REMOVED, endpoint: 0, ..*old };
            self.push(Phase::Leave, chain, MapOp::SetBackend { id, value });
        }
    }
}

/// What the ports of a Service have been given in this pass, so that it can be taken back.
#[derive(Default)]
struct Given {
    services: Vec<ServicePortKey>,
    backends: Vec<BackendKey>,
    lists: Vec<super::lists::ListId>,
}

impl Services {
    /// Writes with which a Service becomes what it wants to be, up to its switches. On a shortage nothing has changed.
    pub(super) fn enter(
        &mut self,
        pass: &mut Pass<'_, '_>,
        name: &ServiceName,
        tables: &ServiceTables,
        chain: usize,
    ) -> Result<(), Shortage> {
        self.drop_unseen(pass.shadow, name, tables);
        self.has_room(pass, tables)?;
        let mut given = Given::default();
        for (key, port) in &tables.ports {
            if let Err(shortage) = self.assign(pass.shadow, key, port, &mut given) {
                self.take_back(given);
                return Err(shortage);
            }
        }
        self.hold(name, tables);
        for addr in &tables.addresses {
            let key = FrontendKey::address(Addr::from_ip(*addr));
            if pass.shadow.frontends.contains_key(&key) {
                continue;
            }
            match pass.inserted.get(&key).copied() {
                Some(other) => pass.draft.join(chain, other),
                None => {
                    pass.inserted.insert(key, chain);
                    let value = FrontendValue { flags: flags::VIP, generation: 1, ..bytemuck::Zeroable::zeroed() };
                    pass.push(Phase::Address, chain, MapOp::SetFrontend { key, value });
                }
            }
        }
        for (key, port) in &tables.ports {
            self.write_port(pass, key, port, chain);
        }
        Ok(())
    }

    /// Gives back ids of backends that are no longer wanted and that no plan ever brought into the store.
    fn drop_unseen(&mut self, shadow: &Shadow, name: &ServiceName, tables: &ServiceTables) {
        let nothing = PortTables::default();
        let ports = self.ports_of(name).map(|(key, port)| (key, port.id, tables.ports.get(key).unwrap_or(&nothing)));
        let unseen = ports.flat_map(|(key, service, port)| {
            let wanted: BTreeSet<BackendKey> = keys_of(service, key, port).map(|(backend, _)| backend).collect();
            let idle = self.backends_of(service).filter(move |(backend, _)| !wanted.contains(backend));
            idle.filter(|(_, id)| shadow.backend_state(*id) == state::FREE)
        });
        for (backend, id) in unseen.map(|(backend, id)| (*backend, id)).collect::<Vec<_>>() {
            self.backends.remove(&backend);
            self.backend_ids.give_back(id);
        }
    }

    /// Counts frontends and backends before anything is given out.
    fn has_room(&self, pass: &Pass<'_, '_>, tables: &ServiceTables) -> Result<(), Shortage> {
        let addresses = tables.addresses.iter().map(|addr| FrontendKey::address(Addr::from_ip(*addr)));
        let ports = tables.ports.values().flat_map(|port| port.frontends.iter().map(frontend_key));
        let is_new = |key: &FrontendKey| !pass.shadow.frontends.contains_key(key) && !pass.inserted.contains_key(key);
        let needed = addresses.chain(ports).filter(is_new).count();
        let used = pass.shadow.frontends.len() + pass.inserted.len();
        let left = (self.capacity.frontends as usize).saturating_sub(used);
        if needed > left {
            return Err(Shortage::Frontends { needed, left });
        }
        let mut needed = 0;
        for (key, port) in &tables.ports {
            needed += match self.known_id(pass.shadow, key, port) {
                Some(id) => keys_of(id, key, port).filter(|(key, _)| !self.backends.contains_key(key)).count(),
                None => port.backends.len(),
            };
        }
        let left = self.backend_ids.available();
        if needed > left { Err(Shortage::Backends { needed, left }) } else { Ok(()) }
    }

    /// Gives a Service port its ids and the block of its list.
    fn assign(
        &mut self,
        shadow: &Shadow,
        key: &ServicePortKey,
        port: &PortTables,
        given: &mut Given,
    ) -> Result<(), Shortage> {
        if !self.ports.contains_key(key) {
            let (id, list) = match self.known_id(shadow, key, port) {
                Some(id) => {
                    let ours = |value: &&FrontendValue| value.service == id && value.count > 0;
                    let values = port.frontends.iter().filter_map(|claim| shadow.frontends.get(&frontend_key(claim)));
                    self.orphans.remove(&id);
                    (id, values.filter(ours).find_map(|value| self.lists.at(value.slots)))
                }
                None => {
                    given.services.push(key.clone());
                    (self.service_ids.take().expect("ids outnumber what FRONTENDS and BACKENDS can name"), None)
                }
            };
            self.ports.insert(key.clone(), PortState { id, list, wanted: true });
            self.by_id.insert(id, key.clone());
        }
        let id = self.ports[key].id;
        for (backend, _) in keys_of(id, key, port) {
            if !self.backends.contains_key(&backend) {
                let id = self.backend_ids.take().expect("has_room counted the ids");
                given.backends.push(backend);
                self.backends.insert(backend, id);
            }
        }
        let active = keys_of(id, key, port).filter(|(_, b)| b.state == BackendState::Active);
        let list: Vec<u32> = active.map(|(backend, _)| self.backends[&backend]).collect();
        let current = self.ports[key].list;
        if current.and_then(|id| self.lists.get(id)).unwrap_or_default() == list {
            return Ok(());
        }
        if let Some(current) = current {
            self.lists.abandon(current);
        }
        let fresh = if list.is_empty() {
            None
        } else {
            let backends = list.len();
            let fresh = self.lists.add(list).ok_or(Shortage::Slots { backends })?;
            given.lists.push(fresh);
            Some(fresh)
        };
        if let Some(port) = self.ports.get_mut(key) {
            port.list = fresh;
        }
        Ok(())
    }

    fn take_back(&mut self, given: Given) {
        for list in given.lists {
            self.lists.abandon(list);
        }
        for backend in given.backends {
            if let Some(id) = self.backends.remove(&backend) {
                self.backend_ids.give_back(id);
            }
        }
        for key in given.services {
            if let Some(port) = self.ports.remove(&key) {
                self.by_id.remove(&port.id);
                self.service_ids.give_back(port.id);
            }
        }
    }

    /// Notes which addresses the Service keeps live, and which it lets go.
    fn hold(&mut self, name: &ServiceName, tables: &ServiceTables) {
        let now: BTreeSet<Addr> = tables.addresses.iter().map(|addr| Addr::from_ip(*addr)).collect();
        let before = self.held_by.remove(name).unwrap_or_default();
        for addr in before.difference(&now) {
            if let Some(holders) = self.holders.get_mut(addr) {
                holders.remove(name);
                if holders.is_empty() {
                    self.holders.remove(addr);
                    self.let_go.insert(*addr);
                }
            }
        }
        for addr in &now {
            self.holders.entry(*addr).or_default().insert(name.clone());
        }
        if !now.is_empty() {
            self.held_by.insert(name.clone(), now);
        }
    }

    fn write_port(&mut self, pass: &mut Pass<'_, '_>, key: &ServicePortKey, port: &PortTables, chain: usize) {
        let shadow = pass.shadow;
        let Some(PortState { id: service, list, wanted }) = self.ports.get_mut(key) else { return };
        *wanted = true;
        let (service, list) = (*service, *list);
        for (backend, table) in keys_of(service, key, port) {
            let id = self.backends[&backend];
            self.released.remove(&id);
            let old = shadow.backends.get(&id).filter(|b| b.state != state::FREE);
            let value = BackendValue {
                addr: backend.addr,
                port: Port::new(backend.port),
                state: match table.state {
                    BackendState::Active => state::ACTIVE,
                    BackendState::Draining => state::DRAINING,
                },
                proto: backend.proto,
                generation: old.map_or_else(|| next(shadow.backend_generation(id)), |old| old.generation),
                endpoint: match old {
                    Some(old) if !pass.wanted.devices_known => old.endpoint,
                    Some(_) | None => {
                        table.device.and_then(|ifindex| pass.wanted.endpoints.get(&ifindex)).copied().unwrap_or(0)
                    }
                },
                service,
                flags: 0,
                pad: 0,
            };
            match old {
                Some(old) if *old == value => continue,
                Some(old) if old.state == state::ACTIVE && value.state == state::DRAINING => {
                    pass.push(Phase::Leave, chain, MapOp::SetBackend { id, value });
                }
                Some(_) => pass.push(Phase::Backend, chain, MapOp::SetBackend { id, value }),
                None => {
                    pass.push(Phase::Backend, chain, MapOp::ClearBackendFlows { id });
                    pass.push(Phase::Backend, chain, MapOp::SetBackend { id, value });
                }
            }
        }
        let (mut slots, mut count) = (0, 0);
        if let Some((list, backends)) = list.and_then(|id| Some((id, self.lists.get(id)?))) {
            (slots, count) = (list.base, backends.len() as u32);
            if !self.lists.is_written(list) {
                let backends = backends.to_vec();
                pass.push(Phase::Slots, chain, MapOp::SetSlots { base: slots, backends });
            }
        }
        for claim in &port.frontends {
            let key = frontend_key(claim);
            let old = shadow.frontends.get(&key);
            let value = FrontendValue {
                service,
                flags: 0,
                slots,
                count,
                outside_slots: slots,
                outside_count: count,
                affinity_s: port.affinity_s,
                generation: old.map_or(1, |old| next(old.generation)),
            };
            if old.is_some_and(|old| FrontendValue { generation: old.generation, ..value } == *old) {
                continue;
            }
            if old.is_none() {
                pass.inserted.insert(key, chain);
            }
            pass.switched.insert(key, chain);
            pass.push(Phase::Switch, chain, MapOp::SetFrontend { key, value });
        }
    }

    /// Writes with which what a Service no longer wants goes.
    pub(super) fn leave(&mut self, pass: &mut Pass<'_, '_>, name: &ServiceName, tables: &ServiceTables, chain: usize) {
        let ports: Vec<_> = self.ports_of(name).map(|(key, port)| (key.clone(), port.id)).collect();
        let nothing = PortTables::default();
        for (key, service) in ports {
            let port = tables.ports.get(&key);
            let wanted = port.unwrap_or(&nothing);
            let frontends: BTreeSet<FrontendKey> = wanted.frontends.iter().map(frontend_key).collect();
            for frontend in pass.shadow.frontends_of(service).filter(|f| !frontends.contains(f)) {
                pass.withdraw(*frontend, chain);
            }
            let backends = keys_of(service, &key, wanted).filter_map(|(backend, _)| self.backends.get(&backend));
            let kept: BTreeSet<u32> = backends.copied().collect();
            for id in pass.shadow.backends_of(service).filter(|id| !kept.contains(id)) {
                pass.remove(id, chain);
            }
            if port.is_none() {
                if let Some(state) = self.ports.get_mut(&key) {
                    state.wanted = false;
                    if let Some(list) = state.list.take() {
                        self.lists.abandon(list);
                    }
                }
                self.forget_service(pass.shadow, service);
            }
        }
    }

    /// Writes with which goes what a restarted agent found, and nobody wants.
    pub(super) fn leave_orphans(&mut self, pass: &mut Pass<'_, '_>) {
        for service in std::mem::take(&mut self.orphans) {
            let chain = pass.draft.chain();
            for frontend in pass.shadow.frontends_of(service) {
                pass.withdraw(*frontend, chain);
            }
            for id in pass.shadow.backends_of(service) {
                pass.remove(id, chain);
            }
            // Kept while something is there: flows may name its removed backends, and a plan may fail.
            if pass.shadow.knows_service(service) {
                self.orphans.insert(service);
            } else {
                self.service_ids.release(service);
            }
        }
    }

    /// Address entries that no Service holds, and where no port is left.
    pub(super) fn withdraw_addresses(&mut self, pass: &mut Pass<'_, '_>) {
        for addr in std::mem::take(&mut self.let_go) {
            let key = FrontendKey::address(addr);
            if self.holders.contains_key(&addr) || !pass.shadow.frontends.contains_key(&key) {
                continue;
            }
            self.let_go.insert(addr);
            let ports: Option<Vec<usize>> =
                pass.shadow.ports_at(addr).map(|port| pass.withdrawn.get(port).copied()).collect();
            if let Some(chains) = ports {
                let chain = pass.draft.chain();
                for other in chains {
                    pass.draft.join(chain, other);
                }
                pass.push(Phase::WithdrawAddress, chain, MapOp::DeleteFrontend { key });
            }
        }
    }

    /// Frees removed backends that no flow names.
    pub(super) fn free_released(&mut self, pass: &mut Pass<'_, '_>) {
        self.released.retain(|id| pass.shadow.backend_state(*id) == state::REMOVED);
        for id in &self.released {
            let free: BackendValue = bytemuck::Zeroable::zeroed();
            let value = BackendValue { generation: pass.shadow.backend_generation(*id), ..free };
            let chain = pass.draft.chain();
            pass.push(Phase::Free, chain, MapOp::SetBackend { id: *id, value });
        }
    }
}

/// The generation after this one; 0 is no generation.
pub(super) fn next(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

/// The backends of a Service port, by the key of their ids, in the order of addresses.
fn keys_of<'a>(
    service: u32,
    key: &ServicePortKey,
    port: &'a PortTables,
) -> impl Iterator<Item = (BackendKey, &'a crate::compile::BackendTable)> + use<'a> {
    let proto = key.protocol.number();
    port.backends.iter().map(move |((addr, port), table)| {
        (BackendKey { service, addr: Addr::from_ip(*addr), port: *port, proto }, table)
    })
}
