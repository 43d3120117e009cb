//! The controller: world, compiled tables and plan behind one door. Pure: it does not know what time it is, or where the store is.
//!
//! A round is [`update`](Controller::update) (what changed, what time it is → writes), then [`apply`](Controller::apply) (writes → store). What
//! failed is in the next round's plan again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use netlb_common::Addr;
use netlb_common::backend::state;
use netlb_common::config::{Cidr, Config};

use super::endpoints::Endpoints;
use super::host::Host;
use super::names::{Names, PortLabel};
use super::op::MapOp;
use super::order::{Draft, Phase, Plan};
use super::services::{Services, Shortage, Wanted};
use super::shadow::Shadow;
use crate::compile::Compiled;
use crate::model::{self, Change, Dirty, HostState, NodeName, PodDevice, Problem, Scheduler, ServiceName, World};
use crate::store::{Capacity, MapStore, StoreError, Tables};

/// What the agent finds out about its node for `CONFIG`; the Service CIDRs come from the world.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeConfig {
    /// Cookie of the node's network namespace.
    pub netns_cookie: u64,
    /// Jiffies a second.
    pub hz: u32,
    /// See [`netlb_common::config::flags`].
    pub flags: u32,
    /// Seed of the flow hash: the one already in `CONFIG` after a restart.
    pub seed: u32,
    /// The node's primary addresses.
    pub node4: Option<IpAddr>,
    pub node6: Option<IpAddr>,
    /// First source port (host order) of masqueraded flows, and how many there are.
    pub snat_first: u32,
    pub snat_count: u32,
    /// Whose packets count as a pod's: one of [`netlb_common::config::pods`].
    pub pods: u32,
    /// For `pods::CIDRS`; what is beyond [`MAX_POD_CIDRS`](netlb_common::config::MAX_POD_CIDRS) is left out.
    pub pod_cidrs: Vec<model::Cidr>,
}

/// What became of a plan.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Applied {
    /// Writes the store accepted.
    pub done: usize,
    /// Writes it did not.
    pub failed: Vec<(MapOp, StoreError)>,
    /// Writes not tried, because one before them in their chain failed.
    pub skipped: usize,
}

/// From changes to writes.
pub struct Controller {
    world: World,
    compiled: Compiled,
    shadow: Shadow,
    services: Services,
    endpoints: Endpoints,
    host: Host,
    host_addresses: BTreeSet<IpAddr>,
    /// Of what was set between two plans.
    dirty: Dirty,
    node: Option<NodeConfig>,
    /// The source has been read whole.
    synced: bool,
    /// The devices have been listed.
    devices_known: bool,
    now: Duration,
    /// The last plan was empty.
    idle: bool,
    /// Removed backends as they were when the running sweep began.
    candidates: BTreeSet<u32>,
    short_services: BTreeMap<ServiceName, Shortage>,
    short_devices: BTreeSet<u32>,
    /// Services that changes touched since somebody asked.
    touched: BTreeSet<ServiceName>,
    store_problems: BTreeSet<Problem>,
}

impl Controller {
    /// Starts from what the store holds: empty, or what an agent before this one left. Nothing in it is removed before
    /// [`Change::Synced`] has come, without [`Change::Incomplete`].
    pub fn new(restored: &Tables, capacity: Capacity) -> Self {
        let shadow = Shadow::new(restored);
        Controller {
            world: World::default(),
            compiled: Compiled::default(),
            services: Services::new(capacity, restored, &shadow),
            endpoints: Endpoints::new(capacity, restored),
            shadow,
            host: Host::default(),
            host_addresses: BTreeSet::new(),
            dirty: Dirty::default(),
            node: None,
            // Empty maps hold nothing that could be missed.
            synced: restored.frontends.is_empty() && restored.backends.is_empty() && restored.endpoints.is_empty(),
            devices_known: false,
            now: Duration::ZERO,
            idle: true,
            candidates: BTreeSet::new(),
            short_services: BTreeMap::new(),
            short_devices: BTreeSet::new(),
            touched: BTreeSet::new(),
            store_problems: BTreeSet::new(),
        }
    }

    /// Sets what `CONFIG` says of the node; the next plan writes it.
    pub fn set_node(&mut self, node: NodeConfig) {
        let addresses = [node.node4, node.node6].into_iter().flatten().collect();
        self.dirty.merge(self.world.set_node_addresses(addresses));
        self.node = Some(node);
        self.know_own_addresses();
    }

    /// Sets the name of the node we are on: endpoints there are local. Without it none is.
    pub fn set_node_name(&mut self, name: Option<NodeName>) {
        self.dirty.merge(self.world.set_here(name));
    }

    /// Sets how Services choose a backend that do not say.
    pub fn set_scheduler(&mut self, scheduler: Scheduler) {
        self.dirty.merge(self.world.set_scheduler(scheduler));
    }

    /// Sets what the agent found on its node; the next plan follows it. Before the first call, what a restarted agent left stays.
    pub fn set_host(&mut self, host: &HostState) {
        if self.services.node_addresses.is_none() {
            // Backends that a restarted agent found may have been on this node, and no longer be.
            self.dirty.services.extend(self.world.services().map(|spec| spec.name.clone()));
        }
        let addresses = host.node_port_addresses.iter().map(|addr| Addr::from_ip(*addr)).collect();
        self.services.set_node_addresses(&self.shadow, addresses);
        self.host.set(host, self.services.capacity);
        let uplinks = host.uplinks.values().flat_map(|uplink| [uplink.v4, uplink.v6]).flatten();
        self.host_addresses = host.node_port_addresses.iter().copied().chain(uplinks).collect();
        self.know_own_addresses();
    }

    fn know_own_addresses(&mut self) {
        let all = self.host_addresses.union(self.world.node_addresses()).copied().collect();
        self.dirty.merge(self.world.set_own_addresses(all));
    }

    /// Takes in what changed (`devices`: all pod devices there are; `None`: not listed yet, or unchanged) and plans. `now` is any clock that
    /// does not go backwards. The plan replaces every plan before it; it may be empty.
    pub fn update(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        devices: Option<&BTreeMap<u32, PodDevice>>,
        now: Duration,
    ) -> Plan {
        self.now = now;
        self.services.tick(now);
        self.endpoints.tick(now);
        let (mut dirty, mut whole) = (std::mem::take(&mut self.dirty), true);
        for change in changes {
            match change {
                Change::Apply(object) => dirty.merge(self.world.apply(object)),
                Change::Delete(key) => dirty.merge(self.world.delete(&key)),
                Change::Incomplete => whole = false,
                Change::Synced => self.synced |= std::mem::replace(&mut whole, true),
            }
        }
        if let Some(devices) = devices {
            if !std::mem::replace(&mut self.devices_known, true) {
                // Backends that a restarted agent found may name endpoints that are gone.
                dirty.services.extend(self.world.services().map(|spec| spec.name.clone()));
            }
            dirty.merge(self.world.set_devices(devices));
        }
        self.touched.extend(dirty.services.iter().cloned());
        self.plan(dirty)
    }

    /// Does a plan's writes. A failed write holds back the later ones of its chain, and nothing else.
    pub fn apply(&mut self, plan: &Plan, store: &mut impl MapStore) -> Applied {
        let (mut applied, mut broken) = (Applied::default(), BTreeSet::new());
        for step in &plan.steps {
            if broken.contains(&step.chain) {
                applied.skipped += 1;
                continue;
            }
            match store.apply(&step.op) {
                Ok(()) => {
                    self.accepted(&step.op);
                    applied.done += 1;
                }
                Err(error) => {
                    broken.insert(step.chain);
                    applied.failed.push((step.op.clone(), error));
                }
            }
        }
        self.store_problems = applied.failed.iter().map(|(op, error)| self.store_problem(op, error)).collect();
        applied
    }

    /// The store accepted this write of the last plan. [`apply`](Self::apply) says so itself.
    pub fn accepted(&mut self, op: &MapOp) {
        self.services.accepted(&self.shadow, op);
        self.endpoints.accepted(&self.shadow, op);
        let freed = match op {
            MapOp::SetBackend { id, .. } => self.shadow.backends.get(id).map(|old| old.service),
            MapOp::SetFrontend { key, .. } | MapOp::DeleteFrontend { key } => {
                self.shadow.frontends.get(key).map(|old| old.service)
            }
            MapOp::SetSourceRange { key } | MapOp::DeleteSourceRange { key } => Some(key.service),
            MapOp::SetConfig(_)
            | MapOp::SetEndpoint { .. }
            | MapOp::SetEndpointByAddr { .. }
            | MapOp::DeleteEndpointByAddr { .. }
            | MapOp::SetEndpointByIfindex { .. }
            | MapOp::DeleteEndpointByIfindex { .. }
            | MapOp::ClearBackendFlows { .. }
            | MapOp::SetSlots { .. }
            | MapOp::SetUplink { .. }
            | MapOp::DeleteUplink { .. }
            | MapOp::SetClient { .. }
            | MapOp::DeleteClient { .. } => None,
        };
        self.shadow.apply(op);
        if let Some(service) = freed {
            self.services.forget_service(&self.shadow, service);
        }
    }

    /// A sweep over conntrack begins: these backends are removed, and may be freed if it finds that no flow names them. Backends removed
    /// later are not among them, since the sweep may already have passed their flows by.
    pub fn begin_sweep(&mut self) -> BTreeSet<u32> {
        let removed = self.shadow.backends.iter().filter(|(_, b)| b.state == state::REMOVED);
        self.candidates = removed.map(|(id, _)| *id).collect();
        self.candidates.clone()
    }

    /// The sweep found no flow that names these backends. Those that are still removed, and have been since
    /// [`begin_sweep`](Self::begin_sweep), are freed by the next plan.
    pub fn release(&mut self, ids: impl IntoIterator<Item = u32>) {
        let candidates = std::mem::take(&mut self.candidates);
        self.services.release(ids.into_iter().filter(|id| candidates.contains(id)));
    }

    /// When to call [`update`](Self::update) next even if nothing changes, by the clock given there: at once after a plan with writes (the
    /// next one does again what failed; wait a little if something did), later if something waits for room.
    pub fn due(&self) -> Option<Duration> {
        if !self.idle || self.services.has_released() {
            return Some(self.now);
        }
        let services = if self.short_services.is_empty() { None } else { self.services.due() };
        let endpoints = if self.short_devices.is_empty() { None } else { self.endpoints.due() };
        [services, endpoints].into_iter().flatten().min()
    }

    /// What could not be done as asked, beside what the source itself reports.
    pub fn problems(&self) -> Vec<Problem> {
        let services = self.short_services.iter().map(|(name, shortage)| self.does_not_fit(name, *shortage));
        let devices = self.short_devices.iter().filter_map(|ifindex| self.world.devices().get(ifindex));
        let devices = devices.map(device_does_not_fit);
        let addresses = self.services.short_addresses.iter().map(|addr| address_does_not_fit(*addr));
        let mut all: BTreeSet<Problem> = self.compiled.problems().cloned().chain(services).chain(devices).collect();
        all.extend(addresses.chain(self.host.problems().iter().cloned()));
        all.extend(self.store_problems.iter().cloned());
        all.into_iter().collect()
    }

    /// Objects netlb reads and does not act on yet.
    pub fn not_enforced(&self) -> Vec<String> {
        self.world.policies().map(|name| format!("NetworkPolicy {name}")).collect()
    }

    /// Names of ids.
    pub fn names(&self) -> Names {
        let label = |key: &crate::compile::ServicePortKey| PortLabel {
            service: key.service.to_string(),
            port: key.port.to_string(),
            protocol: key.protocol.name().to_owned(),
            family: key.family.name().to_owned(),
        };
        let pods = self.world.pods().filter(|pod| !pod.host_network);
        Names {
            services: self.services.names().map(|(id, key)| (id, label(key))).collect(),
            pods: pods.flat_map(|pod| pod.ips.iter().map(|ip| (*ip, pod.name.to_string()))).collect(),
            devices: self.world.devices().iter().map(|(ifindex, device)| (*ifindex, device.name.clone())).collect(),
        }
    }

    /// What the cluster says, as far as this agent knows.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Services that may have changed in the world since this was last asked; some of them may be gone.
    pub fn take_touched(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.touched)
    }

    /// What the world wants in the maps.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// What the store accepted.
    pub fn shadow(&self) -> &Shadow {
        &self.shadow
    }

    /// Slots that lists take up in `SLOTS`.
    pub fn slots_in_use(&self) -> usize {
        self.services.slots_in_use()
    }

    fn plan(&mut self, mut dirty: Dirty) -> Plan {
        self.compiled.update(&self.world, &dirty);
        let mut draft = Draft::default();
        self.plan_config(&mut draft);
        self.host.plan(&self.shadow, &mut draft);
        if self.devices_known {
            let outcome = self.endpoints.plan(&self.shadow, &self.world, dirty.devices, &mut draft);
            self.short_devices = outcome.short;
            dirty.services.extend(outcome.moved.into_iter().flat_map(|addr| self.world.services_at(addr)));
        }
        let wanted = Wanted {
            services: &self.compiled.services,
            endpoints: self.endpoints.ids(),
            devices_known: self.devices_known,
            synced: self.synced,
        };
        self.short_services = self.services.plan(&self.shadow, &wanted, dirty.services, &mut draft);
        let plan = draft.finish();
        self.idle = plan.is_empty();
        // What was removed when a running sweep began, and now is not, must not be freed by it.
        for op in plan.ops() {
            if let MapOp::SetBackend { id, .. } = op {
                self.candidates.remove(id);
            }
        }
        plan
    }

    fn plan_config(&self, draft: &mut Draft) {
        let Some(node) = &self.node else { return };
        let mut config: Config = bytemuck::Zeroable::zeroed();
        config.netns_cookie = node.netns_cookie;
        config.hz = node.hz;
        config.flags = node.flags;
        config.seed = node.seed;
        config.node4 = node.node4.map_or(Addr::UNSPECIFIED, Addr::from_ip);
        config.node6 = node.node6.map_or(Addr::UNSPECIFIED, Addr::from_ip);
        (config.snat_first, config.snat_count) = (node.snat_first, node.snat_count);
        config.pods = node.pods;
        config.pod_cidrs_used = fill(&mut config.pod_cidrs, &node.pod_cidrs);
        // Ranges a restarted agent found stay until the source has been read whole.
        match self.shadow.config.filter(|_| !self.synced) {
            Some(old) => (config.cidrs, config.cidrs_used) = (old.cidrs, old.cidrs_used),
            None => config.cidrs_used = fill(&mut config.cidrs, &self.compiled.cidrs),
        }
        if self.shadow.config != Some(config) {
            let chain = draft.chain();
            draft.push(Phase::Config, chain, MapOp::SetConfig(Box::new(config)));
        }
    }

    fn does_not_fit(&self, name: &ServiceName, shortage: Shortage) -> Problem {
        let file = self.world.service(name).and_then(|spec| spec.meta.file.as_deref()).map(str::to_owned);
        let (needs, flag) = match shortage {
            Shortage::Frontends { needed, left } => {
                (format!("needs {needed} more entries of FRONTENDS, and {left} are left"), "--max-services")
            }
            Shortage::Backends { needed, left } => {
                (format!("needs {needed} more entries of BACKENDS, and {left} are left"), "--max-backends")
            }
            Shortage::SourceRanges { needed, left } => {
                (format!("needs {needed} more entries of SOURCE_RANGES, and {left} are left"), "--max-services")
            }
            Shortage::Slots { backends } => {
                (format!("needs a block of SLOTS for {backends} backends, and none is left"), "--max-backends")
            }
        };
        Problem {
            file,
            object: format!("Service {name}"),
            field: String::new(),
            message: format!("{needs}; the Service stays as it was until there is room"),
            remedy: format!("start the agent with a larger {flag}, or delete Services"),
        }
    }

    fn store_problem(&self, op: &MapOp, error: &StoreError) -> Problem {
        let names = |id: u32| self.services.names().find(|(known, _)| *known == id).map(|(_, key)| key.service.clone());
        let service = match op {
            MapOp::SetBackend { value, .. } => names(value.service),
            MapOp::SetFrontend { value, .. } => names(value.service),
            MapOp::DeleteFrontend { key } => self.shadow.frontends.get(key).and_then(|value| names(value.service)),
            MapOp::SetSourceRange { key } | MapOp::DeleteSourceRange { key } => names(key.service),
            MapOp::SetConfig(_)
            | MapOp::SetEndpoint { .. }
            | MapOp::SetEndpointByAddr { .. }
            | MapOp::DeleteEndpointByAddr { .. }
            | MapOp::SetEndpointByIfindex { .. }
            | MapOp::DeleteEndpointByIfindex { .. }
            | MapOp::ClearBackendFlows { .. }
            | MapOp::SetSlots { .. }
            | MapOp::SetUplink { .. }
            | MapOp::DeleteUplink { .. }
            | MapOp::SetClient { .. }
            | MapOp::DeleteClient { .. } => None,
        };
        let remedy = match error {
            StoreError::Full { .. } => "start the agent with larger capacities, or delete Services",
            StoreError::Busy { .. } => "nothing: it is tried again",
            StoreError::Broken { .. } => "read the agent's log, and restart the agent if this stays",
        };
        Problem {
            file: None,
            object: service.map_or_else(|| "maps".to_owned(), |name| format!("Service {name}")),
            field: String::new(),
            message: format!("a write failed: {error}"),
            remedy: remedy.to_owned(),
        }
    }
}

/// Writes ranges as the datapath reads them, as many as there is room for; answers with how many.
fn fill(room: &mut [Cidr], ranges: &[model::Cidr]) -> u32 {
    let cidr = |cidr: &model::Cidr| Cidr {
        net: Addr::from_ip(cidr.addr).masked(cidr.len),
        mask: Addr::mask(cidr.len, cidr.addr.is_ipv4()),
    };
    room.iter_mut().zip(ranges).map(|(entry, range)| *entry = cidr(range)).count() as u32
}

fn address_does_not_fit(addr: Addr) -> Problem {
    Problem {
        file: None,
        object: "maps".to_owned(),
        field: String::new(),
        message: format!("FRONTENDS has no room for {addr}, an address of this node; it serves no node ports"),
        remedy: "start the agent with a larger --max-services, or delete Services".to_owned(),
    }
}

fn device_does_not_fit(device: &PodDevice) -> Problem {
    Problem {
        file: None,
        object: format!("device {}", device.name),
        field: String::new(),
        message: "ENDPOINTS has no room for it; its pod is reached through the stack".to_owned(),
        remedy: "limit the devices with --pod-interfaces".to_owned(),
    }
}
