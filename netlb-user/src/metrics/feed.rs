//! What the one loop tells the metrics, round by round.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netlb_common::backend::state;
use netlb_common::frontend::flags;
use netlb_common::maps::name;

use super::kube_proxy::{EXTERNAL, INTERNAL};
use super::latency::Latency;
use super::{Metrics, own};
use crate::compile::Compiled;
use crate::model::object::{Kind, ObjectKey};
use crate::model::{Change, Family, Object, ServiceName, SliceName, SliceSpec, World};
use crate::observe::status::Status;
use crate::observe::sweep::Swept;
use crate::plan::{Applied, Controller};

/// Keeps the metrics in step with the agent.
pub struct Feed {
    metrics: Metrics,
    latency: Latency,
    /// Services whose change is not in effect yet.
    services: BTreeSet<ServiceName>,
}

/// How the agent is, after a round.
pub struct Seen<'a> {
    pub status: &'a Status,
    pub controller: &'a Controller,
    pub source_connected: bool,
    /// Hooks that have programs, and those that wait for one.
    pub programs: (usize, usize),
}

impl Feed {
    pub fn new(metrics: Metrics) -> Self {
        Feed { metrics, latency: Latency::new(now()), services: BTreeSet::new() }
    }

    /// These changes are about to be taken into the world.
    pub fn heard(&mut self, world: &World, changes: &[Change]) {
        let kube_proxy = &self.metrics.kube_proxy;
        // Of slices that change more than once here.
        let mut slices: BTreeMap<SliceName, Option<&SliceSpec>> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Apply(Object::Service(spec)) => {
                    kube_proxy.service_changes.inc();
                    self.services.insert(spec.name.clone());
                }
                Change::Delete(ObjectKey { kind: Kind::Service, namespace, name }) => {
                    kube_proxy.service_changes.inc();
                    self.services.insert(ServiceName::new(namespace, name));
                }
                Change::Apply(Object::EndpointSlice(spec)) => {
                    kube_proxy.endpoint_changes.inc();
                    let known = slices.insert(spec.name.clone(), Some(spec));
                    let known = known.unwrap_or_else(|| world.slice(&spec.name));
                    if !known.is_some_and(|known| leads_as(known, spec)) {
                        kube_proxy.endpoint_changes_pending.inc();
                        self.latency.changed(spec);
                    }
                }
                Change::Delete(ObjectKey { kind: Kind::EndpointSlice, namespace, name }) => {
                    kube_proxy.endpoint_changes.inc();
                    let name = SliceName::new(namespace, name);
                    let known = slices.insert(name.clone(), None).unwrap_or_else(|| world.slice(&name));
                    if let Some(known) = known {
                        kube_proxy.endpoint_changes_pending.inc();
                        self.latency.removed(known);
                    }
                }
                Change::Apply(_) | Change::Delete(_) | Change::Incomplete | Change::Synced => {}
            }
        }
        kube_proxy.service_changes_pending.set(self.services.len() as i64);
        kube_proxy.queued(now());
    }

    /// Writes were tried.
    pub fn written(&self, applied: &Applied) {
        let count = |result, writes: usize| {
            self.metrics.own.map_writes.with_label_values(&[result]).inc_by(writes as u64);
        };
        count("done", applied.done);
        count("failed", applied.failed.len());
    }

    /// A round that had news of the source, or wrote to the maps, took so long. `full`: it was the first that knew the source whole.
    pub fn synced(&self, took: Duration, full: bool) {
        self.metrics.kube_proxy.synced(took, full);
    }

    /// All that was heard is in effect.
    pub fn applied(&mut self) {
        let (kube_proxy, now) = (&self.metrics.kube_proxy, now());
        for (family, took) in self.latency.applied(now) {
            kube_proxy.programmed(family, took);
        }
        self.services.clear();
        kube_proxy.service_changes_pending.set(0);
        kube_proxy.endpoint_changes_pending.set(0);
        kube_proxy.in_effect(now);
    }

    /// A sweep over the connections is over.
    pub fn swept(&self, took: Duration, swept: &Swept) {
        self.metrics.kube_proxy.swept(took);
        for (family, entries) in &swept.removed {
            self.metrics.kube_proxy.removed(*family, *entries);
        }
    }

    /// The agent is like this now.
    pub fn see(&self, seen: &Seen<'_>) {
        let (own, status, shadow) = (&self.metrics.own, seen.status, seen.controller.shadow());
        own.ready.set(i64::from(status.ready.ready));
        own.synced.set(i64::from(status.synced));
        own.source_connected.set(i64::from(seen.source_connected));
        own.revision.set(status.revision.as_deref().and_then(|text| text.trim().parse().ok()).unwrap_or(0.0));
        own.services.set(status.services as i64);
        own.frontends.set(shadow.frontends.len() as i64);
        let mut backends = [(own::ACTIVE, 0), (own::DRAINING, 0), (own::REMOVED, 0)];
        for backend in shadow.backends.values() {
            match backend.state {
                state::ACTIVE => backends[0].1 += 1,
                state::DRAINING => backends[1].1 += 1,
                state::REMOVED => backends[2].1 += 1,
                _ => {}
            }
        }
        for (state, count) in backends {
            own.backends.with_label_values(&[state]).set(count);
        }
        let in_maps: i64 = backends.iter().map(|(_, count)| count).sum();
        for (map, entries) in [
            (name::FRONTENDS, shadow.frontends.len()),
            (name::SLOTS, seen.controller.slots_in_use()),
            (name::BACKENDS, in_maps as usize),
            (name::ENDPOINTS, shadow.endpoints.len()),
            (name::ENDPOINT_BY_ADDR, shadow.endpoint_by_addr.len()),
            (name::ENDPOINT_BY_IFINDEX, shadow.endpoint_by_ifindex.len()),
            (name::SOURCE_RANGES, shadow.ranges()),
            (name::UPLINKS, shadow.uplinks.len()),
            (name::CLIENTS, shadow.clients.len()),
            (name::CT, status.conntrack.entries),
            (name::CT_NEW, status.conntrack.new_entries),
        ] {
            own.map_entries.with_label_values(&[map]).set(entries as i64);
        }
        let pods = status.devices.iter().map(|device| ("pod", device.attached));
        let uplinks = status.uplinks.iter().filter(|uplink| uplink.is_uplink).map(|uplink| ("uplink", uplink.attached));
        let mut devices = BTreeMap::from([("pod", [0, 0]), ("uplink", [0, 0])]);
        for (kind, attached) in pods.chain(uplinks) {
            devices.entry(kind).or_default()[usize::from(attached)] += 1;
        }
        for (kind, [without, with]) in devices {
            own.devices.with_label_values(&[kind, "true"]).set(with);
            own.devices.with_label_values(&[kind, "false"]).set(without);
        }
        let (attached, pending) = seen.programs;
        own.programs.with_label_values(&["attached"]).set(attached as i64);
        own.programs.with_label_values(&["pending"]).set(pending as i64);
        own.set_problems(status.problems.iter().map(|problem| problem.object.as_str()));
        for (policy, family, count) in no_local(seen.controller.compiled()) {
            self.metrics.kube_proxy.no_local(policy, family, count);
        }
    }
}

/// Whether flows go the same ways by both: what the objects say beside that is no change.
fn leads_as(known: &SliceSpec, now: &SliceSpec) -> bool {
    (&known.service, known.family, &known.ports, &known.endpoints)
        == (&now.service, now.family, &now.ports, &now.endpoints)
}

/// How many Service ports have endpoints, but none that a Local traffic policy may send to, by policy and family.
fn no_local(compiled: &Compiled) -> [(&'static str, Family, usize); 4] {
    let mut counts =
        [(INTERNAL, Family::V4, 0), (INTERNAL, Family::V6, 0), (EXTERNAL, Family::V4, 0), (EXTERNAL, Family::V6, 0)];
    let all = compiled.services.values().flat_map(|service| &service.ports);
    for (key, port) in all {
        let any = |drop: u32, outside: bool| {
            let of = |bits: u32| (bits & flags::EXTERNAL != 0) == outside && bits & drop != 0;
            port.frontends.values().any(|frontend| of(frontend.flags))
        };
        for (policy, drops) in [(INTERNAL, any(flags::DROP_INSIDE, false)), (EXTERNAL, any(flags::DROP_OUTSIDE, true))]
        {
            for (of, family, count) in &mut counts {
                *count += usize::from(drops && *of == policy && *family == key.family);
            }
        }
    }
    counts
}

/// Since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
