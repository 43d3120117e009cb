//! One pass over Services: the writes with which one enters, and those with which it, or a part of it, leaves.

use std::collections::{BTreeMap, BTreeSet};

use netlb_common::backend::{BackendValue, flags as backend_flag, state};
use netlb_common::frontend::{FrontendKey, FrontendValue, flags};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::{Addr, Port};

use super::lists::ListId;
use super::op::MapOp;
use super::order::{Draft, Phase};
use super::services::{BackendKey, PortState, Services, Shortage, Wanted, frontend_key};
use super::shadow::Shadow;
use crate::compile::{BackendState, BackendTable, List, PortTables, ServicePortKey, ServiceTables, Target};
use crate::model::{Cidr, ServiceName};

/// What the Services of one plan share.
pub(super) struct Pass<'a, 'd> {
    shadow: &'a Shadow,
    wanted: &'a Wanted<'a>,
    pub(super) draft: &'d mut Draft,
    /// Chains with writes.
    pub(super) touched: BTreeSet<usize>,
    /// Keys that come into `FRONTENDS`, and the chain that brings them.
    inserted: BTreeMap<FrontendKey, usize>,
    /// Address entries written, and by which chain.
    addresses: BTreeMap<Addr, usize>,
    /// Source ranges that come.
    new_ranges: usize,
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
            addresses: BTreeMap::new(),
            new_ranges: 0,
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

    /// Writes an address entry.
    fn write_address(&mut self, phase: Phase, chain: usize, addr: Addr, flags: u32) {
        let key = FrontendKey::address(addr);
        let old = self.shadow.frontends.get(&key);
        if old.is_none() {
            self.inserted.insert(key, chain);
        }
        self.addresses.insert(addr, chain);
        let generation = old.map_or(1, |old| next(old.generation));
        let value = FrontendValue { flags, generation, ..bytemuck::Zeroable::zeroed() };
        self.push(phase, chain, MapOp::SetFrontend { key, value });
    }

    /// Source ranges of a Service port that are not among these.
    fn withdraw_ranges(&mut self, service: u32, kept: &BTreeSet<SourceRangeKey>, chain: usize) {
        for range in self.shadow.ranges_of(service).filter(|range| !kept.contains(range)) {
            self.push(Phase::RangeGone, chain, MapOp::DeleteSourceRange { key: *range });
        }
    }

    /// A backend that no list will name.
    fn remove(&mut self, id: u32, chain: usize) {
        if let Some(old) = self.shadow.backends.get(&id).filter(|b| b.state != state::REMOVED) {
            let value = BackendValue { state: state::REMOVED, endpoint: 0, flags: 0, ..*old };
            self.push(Phase::Leave, chain, MapOp::SetBackend { id, value });
        }
    }
}

/// What the ports of a Service have been given in this pass, so that it can be taken back.
#[derive(Default)]
struct Given {
    services: Vec<ServicePortKey>,
    backends: Vec<BackendKey>,
    lists: Vec<ListId>,
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
            let addr = Addr::from_ip(*addr);
            let flags = self.address_flags(pass, addr);
            match pass.addresses.get(&addr).copied() {
                Some(other) => pass.draft.join(chain, other),
                None if pass.shadow.address(addr) != flags => pass.write_address(Phase::Address, chain, addr, flags),
                None => {}
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
        let ports = tables.ports.values().flat_map(|port| port.frontends.keys().map(frontend_key));
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
        if needed > left {
            return Err(Shortage::Backends { needed, left });
        }
        let ranges = tables.ports.iter().map(|(key, port)| match self.known_id(pass.shadow, key, port) {
            Some(id) => ranges_of(id, port).filter(|range| !pass.shadow.has_range(range)).count(),
            None => port.source_ranges.as_ref().map_or(0, BTreeSet::len),
        });
        let needed = ranges.sum();
        let left = (self.capacity.source_ranges as usize).saturating_sub(pass.shadow.ranges() + pass.new_ranges);
        if needed > left { Err(Shortage::SourceRanges { needed, left }) } else { Ok(()) }
    }

    /// Gives a Service port its ids and the block of its list.
    fn assign(
        &mut self,
        shadow: &Shadow,
        key: &ServicePortKey,
        port: &PortTables,
        given: &mut Given,
    ) -> Result<(), Shortage> {
        // Lists that may be what is wanted.
        let mut known: Vec<ListId> = Vec::new();
        if !self.ports.contains_key(key) {
            let id = match self.known_id(shadow, key, port) {
                Some(id) => {
                    self.orphans.remove(&id);
                    known.extend(self.restored_lists(shadow, port));
                    id
                }
                None => {
                    given.services.push(key.clone());
                    self.service_ids.take().expect("ids outnumber what the maps can name")
                }
            };
            self.ports.insert(key.clone(), PortState { id, cluster: None, local: None, wanted: true });
            self.by_id.insert(id, key.clone());
        }
        let id = self.ports[key].id;
        known.extend([self.ports[key].cluster, self.ports[key].local].into_iter().flatten());
        for (backend, _) in keys_of(id, key, port) {
            if !self.backends.contains_key(&backend) {
                let id = self.backend_ids.take().expect("has_room counted the ids");
                given.backends.push(backend);
                self.backends.insert(backend, id);
            }
        }
        let proto = key.protocol.number();
        let ids = |list| -> Vec<u32> {
            let backend =
                |(addr, port): &Target| BackendKey { service: id, addr: Addr::from_ip(*addr), port: *port, proto };
            port.list(list).iter().map(|target| self.backends[&backend(target)]).collect()
        };
        let wanted = [ids(List::Cluster), ids(List::Local)];
        for old in &known {
            if self.lists.get(*old).is_some_and(|list| !wanted.iter().any(|ids| ids == list)) {
                self.lists.abandon(*old);
            }
        }
        let [cluster, local] = wanted;
        let cluster = self.list(cluster, &mut known, given)?;
        let local = self.list(local, &mut known, given)?;
        if let Some(port) = self.ports.get_mut(key) {
            (port.cluster, port.local) = (cluster, local);
        }
        Ok(())
    }

    /// The list of these backends: a known one, or a fresh one, which is then known.
    fn list(&mut self, ids: Vec<u32>, known: &mut Vec<ListId>, given: &mut Given) -> Result<Option<ListId>, Shortage> {
        if ids.is_empty() {
            return Ok(None);
        }
        if let Some(same) = known.iter().find(|list| self.lists.get(**list) == Some(ids.as_slice())) {
            return Ok(Some(*same));
        }
        let backends = ids.len();
        let fresh = self.lists.add(ids).ok_or(Shortage::Slots { backends })?;
        given.lists.push(fresh);
        known.push(fresh);
        Ok(Some(fresh))
    }

    /// What the entry of an address is to say; 0: nothing, so there is none. What is not known yet stays as it is in the store.
    fn address_flags(&self, pass: &Pass<'_, '_>, addr: Addr) -> u32 {
        let found = pass.shadow.address(addr);
        let vip = self.holders.contains_key(&addr) || !pass.wanted.synced && found & flags::VIP != 0;
        let node = match &self.node_addresses {
            Some(known) => known.contains(&addr),
            None => found & flags::NODE != 0,
        };
        (if vip { flags::VIP } else { 0 }) | (if node { flags::NODE } else { 0 })
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
                    self.unsettled_addresses.insert(*addr);
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
        let Some(state) = self.ports.get_mut(key) else { return };
        state.wanted = true;
        let PortState { id: service, cluster, local, .. } = *state;
        for (backend, table) in keys_of(service, key, port) {
            let id = self.backends[&backend];
            self.released.remove(&id);
            let old = shadow.backends.get(&id).filter(|b| b.state != state::FREE);
            // What may only not be known yet stays.
            let kept = match old {
                Some(old) if !pass.wanted.devices_known || self.node_addresses.is_none() => {
                    old.flags & backend_flag::ON_NODE
                }
                Some(_) | None => 0,
            };
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
                flags: backend_flags(table) | kept,
                pad: 0,
            };
            let Some(old) = old else {
                pass.push(Phase::Backend, chain, MapOp::ClearBackendFlows { id });
                pass.push(Phase::Backend, chain, MapOp::SetBackend { id, value });
                continue;
            };
            // While the switch is under way it stands in the old lists and the new.
            let lists = old.flags & (backend_flag::CLUSTER_LIST | backend_flag::LOCAL_LIST);
            let state = if old.state == state::ACTIVE { state::ACTIVE } else { value.state };
            let between = BackendValue { flags: value.flags | lists, state, ..value };
            if between != *old {
                pass.push(Phase::Backend, chain, MapOp::SetBackend { id, value: between });
            }
            if between != value {
                pass.push(Phase::Leave, chain, MapOp::SetBackend { id, value });
            }
        }
        for range in ranges_of(service, port).filter(|range| !shadow.has_range(range)) {
            pass.new_ranges += 1;
            pass.push(Phase::Range, chain, MapOp::SetSourceRange { key: range });
        }
        let mut written = BTreeSet::new();
        let mut block = |pass: &mut Pass<'_, '_>, list: Option<ListId>| -> (u32, u32) {
            let Some((list, backends)) = list.and_then(|id| Some((id, self.lists.get(id)?))) else { return (0, 0) };
            if !self.lists.is_written(list) && written.insert(list.base) {
                let backends = backends.to_vec();
                pass.push(Phase::Slots, chain, MapOp::SetSlots { base: list.base, backends });
            }
            (list.base, backends.len() as u32)
        };
        let (cluster, local) = (block(pass, cluster), block(pass, local));
        for (claim, table) in &port.frontends {
            let key = frontend_key(claim);
            let old = shadow.frontends.get(&key);
            let at = |list| match list {
                List::Cluster => cluster,
                List::Local => local,
            };
            let ((slots, count), (outside_slots, outside_count)) = (at(table.inside), at(table.outside));
            let value = FrontendValue {
                service,
                flags: table.flags,
                slots,
                count,
                outside_slots,
                outside_count,
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
            let frontends: BTreeSet<FrontendKey> = wanted.frontends.keys().map(frontend_key).collect();
            for frontend in pass.shadow.frontends_of(service).filter(|f| !frontends.contains(f)) {
                pass.withdraw(*frontend, chain);
            }
            let backends = keys_of(service, &key, wanted).filter_map(|(backend, _)| self.backends.get(&backend));
            let kept: BTreeSet<u32> = backends.copied().collect();
            for id in pass.shadow.backends_of(service).filter(|id| !kept.contains(id)) {
                pass.remove(id, chain);
            }
            let ranges: BTreeSet<SourceRangeKey> = ranges_of(service, wanted).collect();
            pass.withdraw_ranges(service, &ranges, chain);
            if port.is_none() {
                if let Some(state) = self.ports.get_mut(&key) {
                    state.wanted = false;
                    for list in [state.cluster.take(), state.local.take()].into_iter().flatten() {
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
            pass.withdraw_ranges(service, &BTreeSet::new(), chain);
            // Kept while something is there: flows may name its removed backends, and a plan may fail.
            if pass.shadow.knows_service(service) {
                self.orphans.insert(service);
            } else {
                self.service_ids.release(service);
            }
        }
    }

    /// Address entries that are not what they should be: of the node's addresses, and those that no Service holds any more. A VIP stays until
    /// none of its own ports is left.
    pub(super) fn settle_addresses(&mut self, pass: &mut Pass<'_, '_>) {
        self.short_addresses.clear();
        for addr in std::mem::take(&mut self.unsettled_addresses) {
            let key = FrontendKey::address(addr);
            let (found, flags) = (pass.shadow.address(addr), self.address_flags(pass, addr));
            if found == flags && !pass.addresses.contains_key(&addr) {
                continue;
            }
            self.unsettled_addresses.insert(addr);
            if pass.addresses.contains_key(&addr) {
                continue;
            }
            let chain = pass.draft.chain();
            if flags & !found != 0 {
                let full = pass.shadow.frontends.len() + pass.inserted.len() >= self.capacity.frontends as usize;
                if found == 0 && full {
                    self.short_addresses.insert(addr);
                } else {
                    pass.write_address(Phase::Address, chain, addr, flags | found);
                }
                continue;
            }
            if found & !flags & flags::VIP != 0 {
                let own = pass.shadow.ports_at(addr).filter(|port| {
                    pass.shadow.frontends.get(port).is_some_and(|value| value.flags & flags::EXTERNAL == 0)
                });
                let Some(chains) = own.map(|port| pass.withdrawn.get(port).copied()).collect::<Option<Vec<usize>>>()
                else {
                    continue;
                };
                for other in chains {
                    pass.draft.join(chain, other);
                }
            }
            if flags == 0 {
                pass.push(Phase::WithdrawAddress, chain, MapOp::DeleteFrontend { key });
            } else {
                pass.write_address(Phase::WithdrawAddress, chain, addr, flags);
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
) -> impl Iterator<Item = (BackendKey, &'a BackendTable)> + use<'a> {
    let proto = key.protocol.number();
    port.backends.iter().map(move |((addr, port), table)| {
        (BackendKey { service, addr: Addr::from_ip(*addr), port: *port, proto }, table)
    })
}

/// The keys of a Service port's source ranges; equal networks have one.
fn ranges_of(service: u32, port: &PortTables) -> impl Iterator<Item = SourceRangeKey> + use<> {
    let key = |range: &Cidr| SourceRangeKey::range(service, Addr::from_ip(range.addr), range.len);
    let keys: BTreeSet<SourceRangeKey> = port.source_ranges.iter().flatten().map(key).collect();
    keys.into_iter()
}

fn backend_flags(table: &BackendTable) -> u32 {
    let bits = [
        (table.on_node, backend_flag::ON_NODE),
        (table.in_cluster_list, backend_flag::CLUSTER_LIST),
        (table.in_local_list, backend_flag::LOCAL_LIST),
    ];
    bits.into_iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum()
}
