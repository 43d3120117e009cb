//! The datapath's tables, answered from the maps; what it writes stays here, and everything is noted.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use bumpalo::Bump;
use bytemuck::Zeroable as _;
use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::backend::BackendValue;
use netlb_common::client::ClientValue;
use netlb_common::config::Config;
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::endpoint::EndpointValue;
use netlb_common::fragment::{FragmentKey, FragmentValue};
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::socket::{SocketKey, SocketValue};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;
use netlb_common::{Addr, Reason};
use netlb_ebpf::tables::{Claim, Ct, Scratch, Tables, Tier};

use super::event::Event;
use crate::store;

/// The maps that packets write, or that need the kernel's own look-up.
pub trait Learnt {
    fn ct(&self, tier: Tier, key: &CtKey) -> Option<CtValue>;
    fn session(&self, key: &AffinityKey) -> Option<AffinityValue>;
    fn socket(&self, key: &SocketKey) -> Option<SocketValue>;
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue>;
    fn turn(&self, slots: u32) -> u32;
    fn load(&self, backend: u32) -> u32;
    fn in_source_range(&self, key: &SourceRangeKey) -> bool;
}

/// Entries by tier (answered or not) and tuple; `None`: deleted, or never there.
type Flows = BTreeMap<(bool, CtKey), Option<NonNull<CtValue>>>;

/// [`Tables`] for one trace.
pub struct Overlay<'a> {
    tables: &'a store::Tables,
    learnt: &'a dyn Learnt,
    /// Jiffies.
    now: u32,
    /// Whatever a look-up returned lives as long as this.
    arena: Bump,
    /// As this trace left them.
    flows: RefCell<Flows>,
    sessions: RefCell<BTreeMap<AffinityKey, AffinityValue>>,
    sockets: RefCell<BTreeMap<SocketKey, SocketValue>>,
    fragments: RefCell<BTreeMap<FragmentKey, FragmentValue>>,
    turns: Cell<u32>,
    loads: RefCell<BTreeMap<u32, u32>>,
    scratch: Box<UnsafeCell<Scratch>>,
    events: RefCell<Vec<Event>>,
}

impl<'a> Overlay<'a> {
    pub fn new(tables: &'a store::Tables, learnt: &'a dyn Learnt, now: u32) -> Self {
        // SAFETY: integers only, of which zero is a value.
        let zero: Scratch = unsafe { MaybeUninit::zeroed().assume_init() };
        Overlay {
            tables,
            learnt,
            now,
            arena: Bump::new(),
            flows: RefCell::default(),
            sessions: RefCell::default(),
            sockets: RefCell::default(),
            fragments: RefCell::default(),
            turns: Cell::default(),
            loads: RefCell::default(),
            scratch: Box::new(UnsafeCell::new(zero)),
            events: RefCell::default(),
        }
    }

    /// The maps that the agent wrote.
    pub fn tables(&self) -> &'a store::Tables {
        self.tables
    }

    pub fn note(&self, event: Event) {
        self.events.borrow_mut().push(event);
    }

    /// What happened since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        self.events.take()
    }

    /// Some packet has this tuple, or had it not long ago.
    pub fn has_flow(&self, key: &CtKey) -> bool {
        [Tier::Assured, Tier::New].into_iter().any(|tier| self.entry(tier, key).is_some())
    }

    fn entry(&self, tier: Tier, key: &CtKey) -> Option<NonNull<CtValue>> {
        let copy = || self.learnt.ct(tier, key).map(|value| NonNull::from(self.arena.alloc(value)));
        *self.flows.borrow_mut().entry((tier == Tier::Assured, *key)).or_insert_with(copy)
    }

    fn put(&self, tier: Tier, key: &CtKey, value: &CtValue) {
        let entry = NonNull::from(self.arena.alloc(*value));
        self.flows.borrow_mut().insert((tier == Tier::Assured, *key), Some(entry));
        if tier == Tier::New {
            self.note(Event::Opened { key: *key, value: *value });
        }
    }

    fn lend<T>(&self, value: Option<T>) -> Option<&T> {
        value.map(|value| &*self.arena.alloc(value))
    }
}

impl Tables for Overlay<'_> {
    fn config(&self) -> Option<&Config> {
        self.tables.config.as_ref()
    }

    fn frontend(&self, key: &FrontendKey) -> Option<&FrontendValue> {
        let found = self.tables.frontends.get(key);
        self.note(Event::Frontend { key: *key, found: found.copied() });
        found
    }

    fn slot(&self, index: u32) -> Option<u32> {
        // An array map: what was never written is there, and zero. So below.
        let backend = self.tables.slots.get(&index).copied().unwrap_or(0);
        self.note(Event::Slot { index, backend });
        Some(backend)
    }

    fn backend(&self, id: u32) -> Option<&BackendValue> {
        let found = self.tables.backends.get(&id).copied().unwrap_or_else(BackendValue::zeroed);
        self.note(Event::Backend { id, found });
        self.lend(Some(found))
    }

    fn endpoint(&self, id: u32) -> Option<&EndpointValue> {
        let found = self.tables.endpoints.get(&id).copied().unwrap_or_else(EndpointValue::zeroed);
        self.note(Event::Endpoint { id, found });
        self.lend(Some(found))
    }

    fn endpoint_by_addr(&self, addr: &Addr) -> Option<u32> {
        let found = self.tables.endpoint_by_addr.get(addr).copied();
        self.note(Event::EndpointByAddr { addr: *addr, found });
        found
    }

    fn endpoint_by_ifindex(&self, ifindex: u32) -> Option<u32> {
        let found = self.tables.endpoint_by_ifindex.get(&ifindex).copied();
        self.note(Event::EndpointByIfindex { ifindex, found });
        found
    }

    fn uplink(&self, ifindex: u32) -> Option<&UplinkValue> {
        let found = self.tables.uplinks.get(&ifindex);
        self.note(Event::Uplink { ifindex, found: found.copied() });
        found
    }

    fn client(&self, netns: u64) -> Option<&ClientValue> {
        let found = self.tables.clients.get(&netns);
        self.note(Event::Client { netns, known: found.is_some() });
        found
    }

    fn in_source_range(&self, key: &SourceRangeKey) -> bool {
        let allowed = self.learnt.in_source_range(key);
        self.note(Event::SourceRange { key: *key, allowed });
        allowed
    }

    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentValue> {
        let found = self.fragments.borrow().get(key).copied().or_else(|| self.learnt.fragment(key));
        self.note(Event::Fragment { key: *key, found });
        self.lend(found)
    }

    fn set_fragment(&self, key: &FragmentKey, value: &FragmentValue) {
        self.fragments.borrow_mut().insert(*key, *value);
    }

    fn turn(&self, slots: u32) -> u32 {
        let turn = self.learnt.turn(slots).wrapping_add(self.turns.get());
        self.turns.set(self.turns.get().wrapping_add(1));
        self.note(Event::Turn { turn });
        turn
    }

    fn load(&self, backend: u32) -> u32 {
        let flows = *self.loads.borrow_mut().entry(backend).or_insert_with(|| self.learnt.load(backend));
        self.note(Event::Load { backend, flows });
        flows
    }

    fn add_load(&self, backend: u32, by: i32) {
        let mut loads = self.loads.borrow_mut();
        let flows = loads.entry(backend).or_insert_with(|| self.learnt.load(backend));
        *flows = flows.saturating_add_signed(by);
    }

    fn affinity(&self, key: &AffinityKey) -> Option<&AffinityValue> {
        let found = self.sessions.borrow().get(key).copied().or_else(|| self.learnt.session(key));
        self.note(Event::Session { key: *key, found });
        self.lend(found)
    }

    fn set_affinity(&self, key: &AffinityKey, value: &AffinityValue) {
        self.sessions.borrow_mut().insert(*key, *value);
        self.note(Event::SessionKept { key: *key, value: *value });
    }

    fn socket(&self, key: &SocketKey) -> Option<&SocketValue> {
        let found = self.sockets.borrow().get(key).copied().or_else(|| self.learnt.socket(key));
        self.lend(found)
    }

    fn set_socket(&self, key: &SocketKey, value: &SocketValue) {
        self.sockets.borrow_mut().insert(*key, *value);
    }

    fn ct(&self, tier: Tier, key: &CtKey) -> Option<Ct> {
        let entry = self.entry(tier, key);
        // SAFETY: memory of the arena, which never frees; nobody else refers to it while this runs.
        let found = entry.map(|entry| unsafe { entry.read() });
        self.note(Event::Flow { tier, key: *key, found });
        // SAFETY: as above, and aligned.
        entry.map(|entry| unsafe { Ct::new(entry) })
    }

    fn ct_insert(&self, tier: Tier, key: &CtKey, value: &CtValue) -> bool {
        self.put(tier, key, value);
        true
    }

    fn ct_claim(&self, key: &CtKey, value: &CtValue) -> Claim {
        if self.entry(Tier::New, key).is_some() {
            return Claim::Taken;
        }
        self.put(Tier::New, key, value);
        Claim::Done
    }

    fn ct_delete(&self, tier: Tier, key: &CtKey) {
        self.flows.borrow_mut().insert((tier == Tier::Assured, *key), None);
    }

    fn scratch(&self) -> Option<NonNull<Scratch>> {
        NonNull::new(self.scratch.get())
    }

    fn now(&self) -> u32 {
        self.now
    }

    fn count(&self, reason: Reason) {
        self.note(Event::Counted(reason));
    }

    fn count_flow(&self, backend: u32) {
        self.note(Event::Chosen { backend });
    }
}
