//! The differences of pod devices: `ENDPOINTS` and the two ways to find one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use netlb_common::Addr;
use netlb_common::endpoint::{EndpointValue, flags};

use super::ids::IdPool;
use super::op::MapOp;
use super::order::{Draft, Phase};
use super::pass::next;
use super::shadow::Shadow;
use crate::model::{PodDevice, World};
use crate::store::{Capacity, Tables};

/// Ids of pod devices.
#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    capacity: Capacity,
    ids: IdPool,
    by_ifindex: BTreeMap<u32, u32>,
    /// Names as last planned: another name under the same index is another device.
    names: BTreeMap<u32, String>,
    /// The last plan had writes, or not everything fitted.
    unsettled: bool,
}

/// What a plan of endpoints found.
#[derive(Default)]
pub(super) struct Outcome {
    /// Addresses whose endpoint id is not what it was: backends there name it.
    pub moved: BTreeSet<IpAddr>,
    /// Devices that do not fit, by interface index.
    pub short: BTreeSet<u32>,
}

impl Endpoints {
    pub(super) fn new(capacity: Capacity, tables: &Tables) -> Self {
        let used = tables.endpoints.iter().filter(|(_, e)| e.ifindex != 0);
        Endpoints {
            capacity,
            ids: IdPool::new(capacity.endpoints, used.clone().map(|(id, _)| *id)),
            // Should two ids name one device, the lower one is kept: the last one collected wins.
            by_ifindex: used.rev().map(|(id, e)| (e.ifindex, *id)).collect(),
            names: BTreeMap::new(),
            unsettled: true,
        }
    }

    /// Endpoint ids by interface index.
    pub(super) fn ids(&self) -> &BTreeMap<u32, u32> {
        &self.by_ifindex
    }

    pub(super) fn tick(&mut self, now: Duration) {
        self.ids.tick(now);
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.ids.due()
    }

    /// The store accepted a write. Call before the shadow learns of it.
    pub(super) fn accepted(&mut self, shadow: &Shadow, op: &MapOp) {
        if let MapOp::SetEndpoint { id, value } = op {
            let was_used = shadow.endpoints.get(id).is_some_and(|e| e.ifindex != 0);
            if value.ifindex == 0 && was_used {
                self.ids.release(*id);
            }
        }
    }

    /// Writes that bring the endpoints to the world's devices, if these are `dirty` or an earlier plan was not done.
    pub(super) fn plan(&mut self, shadow: &Shadow, world: &World, dirty: bool, draft: &mut Draft) -> Outcome {
        let mut outcome = Outcome::default();
        if !dirty && !self.unsettled {
            return outcome;
        }
        let before = self.by_ifindex.clone();
        let mut plan = EndpointPass::new(shadow, draft);
        self.gone(world, &mut plan);
        for device in world.devices().values().filter(|device| device.ifindex != 0 && device.pod_mac != [0; 6]) {
            let addrs: BTreeSet<Addr> = device
                .addrs
                .iter()
                .filter(|addr| world.device_at(**addr) == Some(device.ifindex))
                .map(|addr| Addr::from_ip(*addr))
                .collect();
            if self.has_room(device, &addrs, &plan) {
                self.set(device, addrs, &mut plan);
            } else {
                outcome.short.insert(device.ifindex);
            }
        }
        plan.delete_stale();
        self.unsettled = plan.touched || !outcome.short.is_empty();
        let changed = before
            .iter()
            .chain(&self.by_ifindex)
            .filter(|(ifindex, _)| before.get(ifindex) != self.by_ifindex.get(ifindex));
        let devices = changed.filter_map(|(ifindex, _)| world.devices().get(ifindex));
        outcome.moved = devices.flat_map(|device| device.addrs.iter().copied()).collect();
        outcome
    }

    /// Devices that are gone lose their record first.
    fn gone(&mut self, world: &World, plan: &mut EndpointPass<'_, '_>) {
        let usable = |ifindex: &u32| world.devices().get(ifindex).is_some_and(|device| device.pod_mac != [0; 6]);
        let gone: Vec<u32> = self.by_ifindex.keys().filter(|ifindex| !usable(ifindex)).copied().collect();
        for ifindex in gone {
            let Some(id) = self.by_ifindex.remove(&ifindex) else { continue };
            self.names.remove(&ifindex);
            if plan.shadow.endpoints.get(&id).is_none_or(|e| e.ifindex == 0) {
                self.ids.give_back(id);
            }
        }
        let used: BTreeSet<u32> = self.by_ifindex.values().copied().collect();
        for (id, old) in plan.shadow.endpoints.iter().filter(|(id, e)| e.ifindex != 0 && !used.contains(id)) {
            let free: EndpointValue = bytemuck::Zeroable::zeroed();
            let value = EndpointValue { generation: next(old.generation), ..free };
            let chain = plan.draft.chain();
            plan.push(Phase::Endpoint, chain, MapOp::SetEndpoint { id: *id, value });
        }
    }

    fn has_room(&self, device: &PodDevice, addrs: &BTreeSet<Addr>, plan: &EndpointPass<'_, '_>) -> bool {
        let known = self.by_ifindex.contains_key(&device.ifindex);
        let new = addrs.iter().filter(|addr| !plan.shadow.endpoint_by_addr.contains_key(addr)).count();
        let by_addr = plan.shadow.endpoint_by_addr.len() + plan.new_addrs;
        let by_ifindex = plan.shadow.endpoint_by_ifindex.len() + plan.new_ifindexes;
        let indexed = plan.shadow.endpoint_by_ifindex.contains_key(&device.ifindex);
        (known || self.ids.available() > 0)
            && by_addr + new <= self.capacity.endpoint_addrs as usize
            && (indexed || by_ifindex < self.capacity.endpoints as usize)
    }

    fn set(&mut self, device: &PodDevice, addrs: BTreeSet<Addr>, plan: &mut EndpointPass<'_, '_>) {
        let ifindex = device.ifindex;
        let id = match self.by_ifindex.get(&ifindex) {
            Some(id) => *id,
            None => self.ids.take().expect("has_room saw a free id"),
        };
        self.by_ifindex.insert(ifindex, id);
        let old = plan.shadow.endpoints.get(&id);
        let renamed = self.names.insert(ifindex, device.name.clone()).is_some_and(|name| name != device.name);
        let eth = header(device);
        // An address that left it may be another pod's by now: what was learnt of this endpoint must not be used any more.
        let kept = plan.had.get(&id).is_none_or(|had| had.is_subset(&addrs));
        let same = |e: &EndpointValue| e.ifindex == ifindex && e.eth == eth && e.bridge == device.bridge;
        let generation = match old {
            Some(old) if same(old) && kept && !renamed => old.generation,
            Some(old) => next(old.generation),
            None => 1,
        };
        let flags = if device.pod_source { flags::POD_SOURCE } else { 0 };
        let value = EndpointValue { ifindex, generation, mtu: device.mtu, bridge: device.bridge, eth, flags };
        let chain = plan.draft.chain();
        if old != Some(&value) {
            plan.push(Phase::Endpoint, chain, MapOp::SetEndpoint { id, value });
        }
        for addr in addrs {
            let known = plan.shadow.endpoint_by_addr.get(&addr);
            if known != Some(&id) {
                plan.new_addrs += usize::from(known.is_none());
                plan.push(Phase::EndpointIndex, chain, MapOp::SetEndpointByAddr { addr, id });
            }
            plan.addrs.insert(addr);
        }
        let known = plan.shadow.endpoint_by_ifindex.get(&ifindex);
        if known != Some(&id) {
            plan.new_ifindexes += usize::from(known.is_none());
            plan.push(Phase::EndpointIndex, chain, MapOp::SetEndpointByIfindex { ifindex, id });
        }
        plan.ifindexes.insert(ifindex);
    }
}

/// What the devices of one plan share.
struct EndpointPass<'a, 'd> {
    shadow: &'a Shadow,
    draft: &'d mut Draft,
    touched: bool,
    /// Addresses each id has in the store.
    had: BTreeMap<u32, BTreeSet<Addr>>,
    /// Keys that stay.
    addrs: BTreeSet<Addr>,
    ifindexes: BTreeSet<u32>,
    new_addrs: usize,
    new_ifindexes: usize,
}

impl<'a, 'd> EndpointPass<'a, 'd> {
    fn new(shadow: &'a Shadow, draft: &'d mut Draft) -> Self {
        let mut had: BTreeMap<u32, BTreeSet<Addr>> = BTreeMap::new();
        for (addr, id) in &shadow.endpoint_by_addr {
            had.entry(*id).or_default().insert(*addr);
        }
        EndpointPass {
            shadow,
            draft,
            touched: false,
            had,
            addrs: BTreeSet::new(),
            ifindexes: BTreeSet::new(),
            new_addrs: 0,
            new_ifindexes: 0,
        }
    }

    fn push(&mut self, phase: Phase, chain: usize, op: MapOp) {
        self.touched = true;
        self.draft.push(phase, chain, op);
    }

    fn delete_stale(&mut self) {
        for addr in self.shadow.endpoint_by_addr.keys().filter(|addr| !self.addrs.contains(addr)) {
            let chain = self.draft.chain();
            self.touched = true;
            self.draft.push(Phase::EndpointIndexGone, chain, MapOp::DeleteEndpointByAddr { addr: *addr });
        }
        for ifindex in self.shadow.endpoint_by_ifindex.keys().filter(|i| !self.ifindexes.contains(i)) {
            let chain = self.draft.chain();
            self.touched = true;
            self.draft.push(Phase::EndpointIndexGone, chain, MapOp::DeleteEndpointByIfindex { ifindex: *ifindex });
        }
    }
}

/// The first twelve bytes of a frame to the pod, as three words in wire order.
fn header(device: &PodDevice) -> [u32; 3] {
    let [a, b, c, d, e, f] = device.pod_mac;
    let [g, h, i, j, k, l] = device.host_mac;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}
