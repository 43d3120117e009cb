//! What the tests of planning share: a store that watches every write, and views of what a client would meet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netlb_common::Addr;
use netlb_common::backend::{flags as backend, state};
use netlb_common::frontend::{FrontendKey, FrontendValue, flags};

use super::blocks::order_of;
use super::{Controller, GRACE, MapOp, NodeConfig};
use crate::model::{Change, NodeName, PodDevice};
use crate::store::{Capacity, MapStore, MemoryStore, StoreError, Tables};

pub(super) fn node() -> NodeConfig {
    NodeConfig { netns_cookie: 7, hz: 250, flags: 1, seed: 42, ..NodeConfig::default() }
}

/// What stands behind each port entry.
pub(super) type View = BTreeMap<FrontendKey, Seen>;

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Seen {
    /// Backends in slot order as `address:port`, for clients inside and outside.
    pub(super) inside: Vec<String>,
    pub(super) outside: Vec<String>,
    flags: u32,
    affinity_s: u32,
    /// Source ranges, if they count, as address and prefix.
    ranges: BTreeSet<(Addr, u32)>,
}

pub(super) fn view(tables: &Tables) -> View {
    let backend = |id: u32| match tables.backends.get(&id) {
        Some(b) => format!("{}:{}", b.addr, b.port.get()),
        None => "missing".to_owned(),
    };
    let ports = tables.frontends.iter().filter(|(key, _)| !key.is_address());
    let names = |list: Vec<u32>| list.into_iter().map(backend).collect();
    let seen = |f: &FrontendValue| {
        let ranges =
            tables.source_ranges.iter().filter(|r| r.service == f.service && f.flags & flags::SOURCE_RANGES != 0);
        Seen {
            inside: names(tables.list(f)),
            outside: names(tables.outside_list(f)),
            flags: f.flags,
            affinity_s: f.affinity_s,
            ranges: ranges.map(|range| (range.addr, range.prefix)).collect(),
        }
    };
    ports.map(|(key, f)| (*key, seen(f))).collect()
}

/// Panics unless each port entry is as in one of two views, and what it points at may be pointed at.
pub(super) fn check(tables: &Tables, old: &View, new: &View) {
    let now = view(tables);
    for key in now.keys().chain(old.keys()).chain(new.keys()) {
        let found = now.get(key);
        // Who is allowed stays so; for a moment those of before and after are.
        let is = |want: Option<&Seen>| match (found, want) {
            (Some(found), Some(want)) => {
                let ranges = found.ranges.clone();
                want.ranges.is_subset(&ranges) && *found == Seen { ranges, ..want.clone() }
            }
            (found, want) => found == want,
        };
        assert!(
            is(old.get(key)) || is(new.get(key)),
            "{key:?}: {found:?}\nold {:?}\nnew {:?}",
            old.get(key),
            new.get(key)
        );
    }
    for (key, frontend) in tables.frontends.iter().filter(|(key, _)| !key.is_address()) {
        if frontend.flags & flags::EXTERNAL == 0 {
            let address = tables.frontends.get(&FrontendKey::address(key.addr));
            assert!(address.is_some_and(|a| a.flags & flags::VIP != 0), "{key:?} without its address entry");
        }
        let lists = [
            (tables.list(frontend), flags::INSIDE_LOCAL, flags::DROP_INSIDE),
            (tables.outside_list(frontend), flags::OUTSIDE_LOCAL, flags::DROP_OUTSIDE),
        ];
        for (list, local, drop) in lists {
            let bit = if frontend.flags & local != 0 { backend::LOCAL_LIST } else { backend::CLUSTER_LIST };
            assert!(list.is_empty() || frontend.flags & drop == 0, "{key:?} drops beside a list");
            for id in list {
                let b = tables.backends.get(&id).expect("a listed backend has a record");
                assert_eq!(
                    (b.state, b.service, b.proto, b.flags & bit),
                    (state::ACTIVE, frontend.service, key.proto(), bit),
                    "{key:?} lists {b:?}"
                );
            }
        }
    }
}

/// A memory store that panics at a write no running datapath could stand: into a block that may still be read, of an id that may still be
/// named, of a record without a new generation. It can be told to fail.
pub(super) struct Watched {
    pub(super) inner: MemoryStore,
    pub(super) now: Duration,
    /// Fails this call, counted down; `None`: never.
    pub(super) fail_in: Option<usize>,
    /// Blocks by first slot: how many slots, and until when they may still be read.
    readable: BTreeMap<u32, (u32, Duration)>,
}

impl Watched {
    pub(super) fn new(tables: Tables, capacity: Capacity) -> Self {
        let inner = MemoryStore { tables, capacity };
        Watched { inner, now: Duration::ZERO, fail_in: None, readable: BTreeMap::new() }
    }

    fn leaves(&mut self, frontend: Option<&FrontendValue>) {
        let Some(old) = frontend else { return };
        for (base, count) in [(old.slots, old.count), (old.outside_slots, old.outside_count)] {
            if count > 0 {
                self.readable.insert(base, (1 << order_of(count), self.now + GRACE));
            }
        }
    }

    fn inspect(&mut self, op: &MapOp) {
        let tables = self.inner.tables.clone();
        match op {
            MapOp::SetSlots { base, backends } => {
                let fresh = *base..base + backends.len() as u32;
                let lists = |f: &FrontendValue| [(f.slots, f.count), (f.outside_slots, f.outside_count)];
                let seen = tables.frontends.values().flat_map(lists).filter(|(_, count)| *count > 0);
                let seen = seen.map(|(base, count)| base..base + count);
                let late = self.readable.iter().filter(|(_, (_, until))| self.now < *until);
                let late = late.map(|(base, (len, _))| *base..base + len);
                for used in seen.chain(late) {
                    assert!(fresh.end <= used.start || used.end <= fresh.start, "{op:?} writes into {used:?}");
                }
            }
            MapOp::SetFrontend { key, value } => {
                let old = tables.frontends.get(key);
                if let Some(old) = old {
                    assert!(value.generation > old.generation, "{op:?} over {old:?}");
                }
                self.leaves(old);
            }
            MapOp::DeleteFrontend { key } => self.leaves(tables.frontends.get(key)),
            MapOp::SetBackend { id, value } => {
                assert_ne!(*id, 0);
                let lists = |f| [tables.list(f), tables.outside_list(f)].concat();
                let listed: BTreeSet<u32> = tables.frontends.values().flat_map(lists).collect();
                assert!(value.state == state::ACTIVE || !listed.contains(id), "{op:?} while it is listed");
                let Some(old) = tables.backends.get(id) else { return };
                let meaning = |b: &netlb_common::backend::BackendValue| (b.addr, b.port, b.proto, b.service);
                match (old.state, value.state) {
                    (state::FREE, _) => assert!(value.generation > old.generation, "{op:?} over {old:?}"),
                    (state::REMOVED, state::FREE) => assert_eq!(value.generation, old.generation),
                    (_, state::FREE) => panic!("{op:?} frees {old:?}"),
                    (_, _) => assert_eq!((meaning(value), value.generation), (meaning(old), old.generation), "{op:?}"),
                }
            }
            MapOp::SetEndpoint { id, value } => {
                assert_ne!(*id, 0);
                let Some(old) = tables.endpoints.get(id) else { return };
                let same = (value.ifindex, value.eth) == (old.ifindex, old.eth);
                assert!(same || value.generation > old.generation, "{op:?} over {old:?}");
            }
            MapOp::SetConfig(_)
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
}

impl MapStore for Watched {
    fn apply(&mut self, op: &MapOp) -> Result<(), StoreError> {
        if let Some(left) = &mut self.fail_in {
            if *left == 0 {
                self.fail_in = None;
                return Err(StoreError::Busy { map: "watched", cause: "asked to".to_owned() });
            }
            *left -= 1;
        }
        self.inspect(op);
        self.inner.apply(op)
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }

    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }
}

/// A controller and its store.
pub(super) struct Rig {
    pub(super) controller: Controller,
    pub(super) store: Watched,
    pub(super) now: Duration,
}

impl Rig {
    pub(super) fn new(capacity: Capacity) -> Self {
        Rig::restarted(Tables::default(), capacity)
    }

    /// An agent that begins with these maps.
    pub(super) fn restarted(tables: Tables, capacity: Capacity) -> Self {
        let mut controller = Controller::new(&tables, capacity);
        controller.set_node(node());
        controller.set_node_name(Some(NodeName::new("here")));
        Rig { controller, store: Watched::new(tables, capacity), now: Duration::ZERO }
    }

    /// Rounds until nothing is left to do.
    pub(super) fn settle(&mut self, changes: Vec<Change>, devices: Option<&BTreeMap<u32, PodDevice>>) {
        let (mut changes, mut devices) = (Some(changes), devices);
        for _ in 0..8 {
            self.store.now = self.now;
            let plan = self.controller.update(changes.take().unwrap_or_default(), devices.take(), self.now);
            if plan.is_empty() {
                return;
            }
            let applied = self.controller.apply(&plan, &mut self.store);
            assert_eq!(applied.failed, []);
        }
        panic!("the controller does not come to rest");
    }

    /// A sweep that finds no flows.
    pub(super) fn sweep(&mut self) {
        let removed = self.controller.begin_sweep();
        self.controller.release(removed);
        self.settle(Vec::new(), None);
    }

    pub(super) fn tables(&self) -> Tables {
        self.store.inner.tables.clone()
    }

    pub(super) fn dump(&self) -> String {
        crate::store::dump::dump(&self.store.inner.tables)
    }
}
