//! netlb's own metrics: what the maps hold, what became of packets, how the agent is.

use std::collections::BTreeMap;
use std::sync::Arc;

use netlb_common::abi::ABI_VERSION;
use netlb_common::maps::{self, name};
use netlb_common::reason::{Kind, Reason};
use prometheus::{Gauge, IntCounterVec, IntGauge, IntGaugeVec, Result};

use super::make::Maker;
use crate::bpf::pins::Pins;
use crate::bpf::table::{Table, TableError};
use crate::model::object;

/// Counters of the datapath, by reason.
pub struct Packets(Table<u32, u64>);

impl Packets {
    /// # Errors
    /// If the counters are not pinned, or have another layout.
    pub fn open(pins: &Pins) -> std::result::Result<Self, TableError> {
        Ok(Packets(Table::open(pins, name::COUNTERS)?))
    }
}

#[derive(Clone)]
pub(super) struct Own {
    pub(super) ready: IntGauge,
    pub(super) synced: IntGauge,
    pub(super) source_connected: IntGauge,
    pub(super) revision: Gauge,
    pub(super) services: IntGauge,
    pub(super) frontends: IntGauge,
    pub(super) backends: IntGaugeVec,
    pub(super) map_entries: IntGaugeVec,
    map_capacity: IntGaugeVec,
    pub(super) map_writes: IntCounterVec,
    pub(super) devices: IntGaugeVec,
    pub(super) programs: IntGaugeVec,
    problems: IntGaugeVec,
    packets: IntCounterVec,
    counters: Option<Arc<Packets>>,
}

/// Problems of what is no object.
const OTHER: &str = "other";

/// States of backends, as people read them.
pub(super) const ACTIVE: &str = "active";
pub(super) const DRAINING: &str = "draining";
pub(super) const REMOVED: &str = "removed";

/// Maps whose entries the agent knows: those it writes, and those its sweep walks.
const COUNTED: [&str; 11] = [
    name::FRONTENDS,
    name::SLOTS,
    name::BACKENDS,
    name::ENDPOINTS,
    name::ENDPOINT_BY_ADDR,
    name::ENDPOINT_BY_IFINDEX,
    name::SOURCE_RANGES,
    name::UPLINKS,
    name::CLIENTS,
    name::CT,
    name::CT_NEW,
];

impl Own {
    pub(super) fn new(maker: &Maker<'_>, counters: Option<Arc<Packets>>) -> Result<Self> {
        let abi = ABI_VERSION.to_string();
        let build =
            maker.gauges("netlb_build_info", "Always 1; the labels say which netlb this is", ["version", "abi"], [])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), &abi]).set(1);
        let kinds = object::Kind::ALL.map(|kind| [kind.name()]).into_iter().chain([[OTHER]]);
        Ok(Own {
            ready: maker.gauge("netlb_ready", "1 while the node balances as it should; see `netlb status`")?,
            synced: maker
                .gauge("netlb_synced", "1 once source and devices have been read whole and programs are attached")?,
            source_connected: maker.gauge("netlb_source_connected", "1 while the source of objects can be read")?,
            revision: maker.float(
                "netlb_revision_applied",
                "State of the source that is in effect, where it has a number; else 0",
            )?,
            services: maker.gauge("netlb_services", "Services with at least one frontend")?,
            frontends: maker.gauge("netlb_frontends", "Entries of the frontend map")?,
            backends: maker.gauges(
                "netlb_backends",
                "Backends, counted once a Service port; removed ones wait until no connection names them",
                ["state"],
                [[ACTIVE], [DRAINING], [REMOVED]],
            )?,
            map_entries: maker.gauges(
                "netlb_map_entries",
                "Entries of a map; of conntrack (CT, CT_NEW) as of the last sweep",
                ["map"],
                COUNTED.map(|map| [map]),
            )?,
            map_capacity: maker.gauges(
                "netlb_map_capacity",
                "Entries a map has room for",
                ["map"],
                maps::ALL.iter().map(|spec| [spec.name]),
            )?,
            map_writes: maker.counters(
                "netlb_map_writes_total",
                "Writes to the maps; failed ones are tried again",
                ["result"],
                [["done"], ["failed"]],
            )?,
            devices: maker.gauges(
                "netlb_devices",
                "Devices netlb serves, and how many of them have its programs",
                ["kind", "attached"],
                [["pod", "true"], ["pod", "false"], ["uplink", "true"], ["uplink", "false"]],
            )?,
            programs: maker.gauges(
                "netlb_programs",
                "Hooks that have netlb's programs, and those that wait for them or cannot get them",
                ["state"],
                [["attached"], ["pending"]],
            )?,
            problems: maker.gauges(
                "netlb_problems",
                "What is wrong with objects, by their kind; see `netlb status`",
                ["kind"],
                kinds,
            )?,
            packets: maker.counters(
                "netlb_packets_total",
                "Packets (and socket calls) by what became of them; the reasons are those of `netlb drops`",
                ["reason", "result"],
                Reason::ALL.iter().map(|(_, name, kind, _)| [*name, result(*kind)]),
            )?,
            counters,
        })
    }

    /// How many entries maps have room for.
    pub(super) fn set_capacities(&self, capacities: impl Iterator<Item = (&'static str, u32)>) {
        for (map, capacity) in capacities {
            self.map_capacity.with_label_values(&[map]).set(i64::from(capacity));
        }
    }

    /// Takes over the datapath's counters. One that cannot be read stays as it was.
    pub(super) fn look(&self) {
        let Some(counters) = &self.counters else { return };
        for (reason, name, kind, _) in Reason::ALL {
            let metric = self.packets.with_label_values(&[*name, result(*kind)]);
            if let Ok(now) = counters.0.sum(u32::from(reason.0)) {
                metric.inc_by(now.saturating_sub(metric.get()));
            }
        }
    }

    /// `objects`: kind and name of each object with a problem, once a problem.
    pub(super) fn set_problems<'a>(&self, objects: impl Iterator<Item = &'a str>) {
        let mut count: BTreeMap<&str, i64> = BTreeMap::new();
        let kinds = object::Kind::ALL.map(object::Kind::name);
        for object in objects {
            let word = object.split(' ').next().unwrap_or_default();
            *count.entry(kinds.into_iter().find(|kind| *kind == word).unwrap_or(OTHER)).or_default() += 1;
        }
        for kind in kinds.into_iter().chain([OTHER]) {
            self.problems.with_label_values(&[kind]).set(count.get(kind).copied().unwrap_or(0));
        }
    }
}

fn result(kind: Kind) -> &'static str {
    match kind {
        Kind::Drop => "dropped",
        Kind::Refuse => "refused",
        Kind::Note => "went_on",
    }
}
