//! The datapath core without a kernel: a packet in a `Vec`, tables in `BTreeMap`s.
//!
//! Checksums are repaired by hand, as at XDP, with the offload state that `gso` stands for as the only thing taken from a socket buffer. An
//! unanswered flow's entry that was deleted or replaced is overwritten with rubbish at once: `CT_NEW` is an LRU map, whose memory another flow
//! may take while the packet is still being processed.

use std::cell::{RefCell, UnsafeCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;

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
use netlb_common::{Addr, Port, Reason, checksum};
use netlb_ebpf::detour::Detour;
use netlb_ebpf::enter::{Device, enter};
use netlb_ebpf::leave::leave;
use netlb_ebpf::packet::{Half, Hop, L4, Packet, Wire};
use netlb_ebpf::tables::{Claim, Ct, Scratch, Tables, Tier};
use netlb_ebpf::verdict::{Decision, Verdict};

use crate::case::{Flow, Got, Hook, Refused, Runner, Seen};
use crate::world::{HZ, UPLINK, World};

/// A frame in memory.
pub struct HostPacket<'w> {
    pub bytes: Vec<u8>,
    /// Payload bytes of each segment of a GSO frame, else 0.
    pub gso: u32,
    /// A socket of the node sent it.
    pub sent_here: bool,
    /// The node's FIB and sockets.
    pub world: &'w World,
}

const ETH_LEN: usize = 14;

impl Packet for HostPacket<'_> {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn gso_size(&self) -> u32 {
        self.gso
    }

    fn pull(&mut self, _len: u32) -> bool {
        true
    }

    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        let bytes = self.bytes.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the slice has the type's size; `Wire` types are packed (alignment 1) and take any bytes.
        Some(unsafe { &*bytes.as_ptr().cast() })
    }

    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        let bytes = self.bytes.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: as in `at`; the exclusive borrow is handed on.
        Some(unsafe { &mut *bytes.as_mut_ptr().cast() })
    }

    fn fix_l4(&mut self, offset: usize, addr: u16, content: u16, l4: L4) -> bool {
        let Some(field) = self.at_mut::<Half>(offset) else { return false };
        let old = field.value;
        if !(l4.zero_is_none && old == 0) {
            let sum = checksum::apply(old, checksum::add(addr, content));
            field.value = if l4.zero_is_none && sum == 0 { 0xffff } else { sum };
        }
        true
    }

    fn set_l4(&mut self, offset: usize, pseudo: u16, content: u16) -> bool {
        let Some(field) = self.at_mut::<Half>(offset) else { return false };
        field.value = !checksum::add(pseudo, content);
        true
    }

    fn trim(&mut self, len: u32) -> bool {
        let len = len as usize;
        if len < ETH_LEN || len > self.bytes.len() {
            return false;
        }
        self.bytes.truncate(len);
        true
    }

    fn route(&mut self, _src: Addr, dst: Addr, _proto: u8, len: u32) -> Hop {
        self.world.hop(dst, len)
    }

    fn sent_here(&self) -> bool {
        self.sent_here
    }

    fn has_socket(&mut self, tuple: &CtKey) -> bool {
        self.world.sockets.iter().any(|socket| socket.gets() == *tuple)
    }

    fn insert_after_eth(&mut self, room: u32) -> bool {
        if self.bytes.len() < ETH_LEN {
            return false;
        }
        self.bytes.splice(ETH_LEN..ETH_LEN, std::iter::repeat_n(0, room as usize));
        true
    }
}

impl Detour for HostPacket<'_> {}

/// Entries at stable addresses. What is replaced or removed stays allocated until [`bury`](Shelf::bury): a handle to it stays valid for the
/// packet that holds it, as RCU has it.
struct Shelf<K, V> {
    live: RefCell<BTreeMap<K, NonNull<V>>>,
    graves: RefCell<Vec<NonNull<V>>>,
    /// Overwrite what is removed.
    poison: bool,
}

impl<K: Ord + Copy, V: bytemuck::Pod> Shelf<K, V> {
    fn new(poison: bool) -> Self {
        Shelf { live: RefCell::default(), graves: RefCell::default(), poison }
    }

    fn get(&self, key: &K) -> Option<NonNull<V>> {
        self.live.borrow().get(key).copied()
    }

    fn put(&self, key: &K, value: &V) {
        let entry = NonNull::from(Box::leak(Box::new(*value)));
        let old = self.live.borrow_mut().insert(*key, entry);
        self.retire(old);
    }

    fn remove(&self, key: &K) {
        let old = self.live.borrow_mut().remove(key);
        self.retire(old);
    }

    fn retire(&self, old: Option<NonNull<V>>) {
        let Some(old) = old else { return };
        if self.poison {
            // SAFETY: from `put`'s Box, still allocated; `V` takes any bytes.
            unsafe { old.as_ptr().cast::<u8>().write_bytes(0xdd, size_of::<V>()) };
        }
        self.graves.borrow_mut().push(old);
    }

    fn rewrite(&self, change: impl Fn(&mut V)) {
        for (key, mut value) in self.all() {
            change(&mut value);
            self.put(&key, &value);
        }
    }

    fn len(&self) -> usize {
        self.live.borrow().len()
    }

    fn all(&self) -> Vec<(K, V)> {
        // SAFETY: live entries are allocated.
        self.live.borrow().iter().map(|(key, entry)| (*key, unsafe { entry.as_ptr().read() })).collect()
    }

    /// Frees what was removed. `&mut`: no packet is being processed.
    fn bury(&mut self) {
        for entry in self.graves.get_mut().drain(..) {
            // SAFETY: from `put`'s Box; in `graves` once, and in `live` no more.
            drop(unsafe { Box::from_raw(entry.as_ptr()) });
        }
    }
}

impl<K, V> Drop for Shelf<K, V> {
    fn drop(&mut self) {
        let live = std::mem::take(self.live.get_mut()).into_values();
        for entry in live.chain(self.graves.get_mut().drain(..)) {
            // SAFETY: from `put`'s Box; each entry is in one of the two, once.
            drop(unsafe { Box::from_raw(entry.as_ptr()) });
        }
    }
}

/// The core's tables in memory.
pub struct HostTables {
    pub world: World,
    assured: Shelf<CtKey, CtValue>,
    new: Shelf<CtKey, CtValue>,
    affinity: Shelf<AffinityKey, AffinityValue>,
    sockets: Shelf<SocketKey, SocketValue>,
    fragments: Shelf<FragmentKey, FragmentValue>,
    turns: RefCell<BTreeMap<u32, u32>>,
    loads: RefCell<BTreeMap<u32, u32>>,
    scratch: Box<UnsafeCell<Scratch>>,
    /// Jiffies.
    pub now: u32,
    /// `CT_NEW` takes nothing more.
    pub new_is_full: bool,
    /// What leaves the node came in by a device. Otherwise the node sent it, as in a test run of the kernel's.
    pub forwarding: bool,
    counters: RefCell<BTreeMap<u8, u64>>,
    backend_flows: RefCell<BTreeMap<u32, u64>>,
}

impl HostTables {
    pub fn new(world: World) -> Self {
        // SAFETY: integers only, of which zero is a value.
        let zero: Scratch = unsafe { std::mem::zeroed() };
        let tables = HostTables {
            assured: Shelf::new(false),
            new: Shelf::new(true),
            affinity: Shelf::new(false),
            sockets: Shelf::new(false),
            fragments: Shelf::new(false),
            turns: RefCell::default(),
            loads: RefCell::default(),
            scratch: Box::new(UnsafeCell::new(zero)),
            // Close before the 32-bit clock wraps: every scenario crosses it.
            now: 0u32.wrapping_sub(30 * HZ),
            new_is_full: false,
            forwarding: false,
            counters: RefCell::default(),
            backend_flows: RefCell::default(),
            world,
        };
        for (key, value) in &tables.world.flows {
            tables.new.put(key, &CtValue { seen: tables.now.wrapping_sub(value.seen), ..*value });
        }
        tables
    }

    /// Sends a frame through a hook. The decision, and what the frame has become.
    pub fn run(&mut self, hook: Hook, frame: &[u8], gso: u32) -> (Decision, Vec<u8>) {
        let mut p = HostPacket { bytes: frame.to_vec(), gso, sent_here: !self.forwarding, world: &self.world };
        let uplink = Device::uplink(UPLINK);
        let verdict: Verdict = match hook {
            Hook::FromPod(ifindex) => enter(&mut p, self, Device::pod(ifindex)),
            Hook::ToPod => leave(&mut p, self, Device::pod(0)),
            Hook::FromOutside => enter(&mut p, self, uplink),
            Hook::ToOutside => leave(&mut p, self, uplink),
        };
        let bytes = p.bytes;
        let decision = verdict.decide();
        // As each hook's finish() does.
        if let Decision::Drop(reason) = decision {
            self.count(reason);
        }
        self.assured.bury();
        self.new.bury();
        self.affinity.bury();
        self.sockets.bury();
        self.fragments.bury();
        (decision, bytes)
    }

    /// Moves every stamp into the past, where the clock is not the test's to set.
    pub fn age(&mut self, jiffies: u32) {
        for shelf in [&self.assured, &self.new] {
            shelf.rewrite(|v| v.seen = v.seen.wrapping_sub(jiffies));
        }
        self.affinity.rewrite(|v| v.seen = v.seen.wrapping_sub(jiffies));
        self.fragments.rewrite(|v| v.seen = v.seen.wrapping_sub(jiffies));
    }

    /// New flows by backend id.
    pub fn backend_flows(&self) -> BTreeMap<u32, u64> {
        self.backend_flows.borrow().clone()
    }

    /// Sessions.
    pub fn affinities(&self) -> Vec<(AffinityKey, AffinityValue)> {
        self.affinity.all()
    }
}

impl Tables for HostTables {
    fn config(&self) -> Option<&Config> {
        Some(&self.world.config)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<&FrontendValue> {
        self.world.frontends.get(key)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        // An array map: what was never written is there, and zero. So below.
        Some(self.world.slots.get(&index).copied().unwrap_or(0))
    }

    fn backend(&self, id: u32) -> Option<&BackendValue> {
        static FREE: BackendValue = BackendValue {
            addr: Addr::UNSPECIFIED,
            port: Port(0),
            state: 0,
            proto: 0,
            generation: 0,
            endpoint: 0,
            service: 0,
            flags: 0,
            pad: 0,
        };
        Some(self.world.backends.get(&id).unwrap_or(&FREE))
    }

    fn endpoint(&self, id: u32) -> Option<&EndpointValue> {
        static FREE: EndpointValue =
            EndpointValue { ifindex: 0, generation: 0, mtu: 0, bridge: 0, eth: [0; 3], flags: 0 };
        Some(self.world.endpoints.get(&id).unwrap_or(&FREE))
    }

    fn endpoint_by_addr(&self, addr: &Addr) -> Option<u32> {
        self.world.endpoint_by_addr.get(addr).copied()
    }

    fn endpoint_by_ifindex(&self, ifindex: u32) -> Option<u32> {
        self.world.endpoint_by_ifindex.get(&ifindex).copied()
    }

    fn uplink(&self, ifindex: u32) -> Option<&UplinkValue> {
        self.world.uplinks.get(&ifindex)
    }

    fn client(&self, netns: u64) -> Option<&ClientValue> {
        self.world.clients.get(&netns)
    }

    fn in_source_range(&self, key: &SourceRangeKey) -> bool {
        let covers = |range: &SourceRangeKey| {
            let v4 = key.addr.is_v4() && range.addr.is_v4();
            let len = range.prefix - 32 - if v4 { 96 } else { 0 };
            range.service == key.service && key.addr.masked(len as u8) == range.addr
        };
        self.world.source_ranges.iter().any(covers)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentValue> {
        // SAFETY: as for affinity.
        self.fragments.get(key).map(|entry| unsafe { &*entry.as_ptr() })
    }

    fn set_fragment(&self, key: &FragmentKey, value: &FragmentValue) {
        self.fragments.put(key, value);
    }

    fn turn(&self, slots: u32) -> u32 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(slots).or_default();
        *turn += 1;
        *turn - 1
    }

    fn load(&self, backend: u32) -> u32 {
        self.loads.borrow().get(&backend).copied().unwrap_or(0)
    }

    fn add_load(&self, backend: u32, by: i32) {
        let mut loads = self.loads.borrow_mut();
        let load = loads.entry(backend).or_default();
        *load = load.saturating_add_signed(by);
    }

    fn affinity(&self, key: &AffinityKey) -> Option<&AffinityValue> {
        // SAFETY: allocated until `bury`, which needs `&mut self`; entries of this shelf are never written in place.
        self.affinity.get(key).map(|entry| unsafe { &*entry.as_ptr() })
    }

    fn set_affinity(&self, key: &AffinityKey, value: &AffinityValue) {
        self.affinity.put(key, value);
    }

    fn socket(&self, key: &SocketKey) -> Option<&SocketValue> {
        // SAFETY: as for affinity.
        self.sockets.get(key).map(|entry| unsafe { &*entry.as_ptr() })
    }

    fn set_socket(&self, key: &SocketKey, value: &SocketValue) {
        self.sockets.put(key, value);
    }

    fn ct(&self, tier: Tier, key: &CtKey) -> Option<Ct> {
        let shelf = match tier {
            Tier::Assured => &self.assured,
            Tier::New => &self.new,
        };
        // SAFETY: a Box's memory, aligned, allocated until `bury` after the packet.
        shelf.get(key).map(|entry| unsafe { Ct::new(entry) })
    }

    fn ct_insert(&self, tier: Tier, key: &CtKey, value: &CtValue) -> bool {
        match tier {
            Tier::Assured => {
                let full = self.world.ct_capacity.is_some_and(|max| self.assured.len() >= max as usize);
                if full && self.assured.get(key).is_none() {
                    return false;
                }
                self.assured.put(key, value);
            }
            Tier::New if self.new_is_full && self.new.get(key).is_none() => return false,
            Tier::New => self.new.put(key, value),
        }
        true
    }

    fn ct_claim(&self, key: &CtKey, value: &CtValue) -> Claim {
        if self.new.get(key).is_some() {
            Claim::Taken
        } else if self.new_is_full {
            Claim::Full
        } else {
            self.new.put(key, value);
            Claim::Done
        }
    }

    fn ct_delete(&self, tier: Tier, key: &CtKey) {
        match tier {
            Tier::Assured => self.assured.remove(key),
            Tier::New => self.new.remove(key),
        }
    }

    fn scratch(&self) -> Option<NonNull<Scratch>> {
        NonNull::new(self.scratch.get())
    }

    fn now(&self) -> u32 {
        self.now
    }

    fn count(&self, reason: Reason) {
        *self.counters.borrow_mut().entry(reason.0).or_default() += 1;
    }

    fn count_flow(&self, backend: u32) {
        *self.backend_flows.borrow_mut().entry(backend).or_default() += 1;
    }
}

impl Runner for HostTables {
    fn send(&mut self, hook: Hook, frame: &[u8], gso: u32) -> Result<Got, Refused> {
        let (decision, frame) = self.run(hook, frame, gso);
        let verdict = match decision {
            Decision::Pass => Seen::Pass,
            Decision::Drop(_) => Seen::Drop,
            Decision::Reflect => Seen::Reflect,
            Decision::Deliver(ifindex) => Seen::Deliver(Some(ifindex)),
            Decision::Route(_) => Seen::Route,
            Decision::Refuse(..) | Decision::Open | Decision::Skip => {
                return Err(Refused(format!("the route returned {decision:?}, which no hook knows")));
            }
        };
        Ok(Got { verdict, frame })
    }

    fn wait(&mut self, seconds: u32) -> anyhow::Result<()> {
        self.now = self.now.wrapping_add(seconds * HZ);
        Ok(())
    }

    fn change(&mut self, change: &dyn Fn(&mut World)) -> anyhow::Result<()> {
        change(&mut self.world);
        Ok(())
    }

    fn counters(&self) -> anyhow::Result<BTreeMap<u8, u64>> {
        Ok(self.counters.borrow().clone())
    }

    fn flows(&self) -> anyhow::Result<Vec<Flow>> {
        let tier = |assured: bool, shelf: &Shelf<CtKey, CtValue>| {
            shelf
                .all()
                .into_iter()
                .map(|(key, value)| Flow { assured, key, age: self.now.wrapping_sub(value.seen), value })
                .collect::<Vec<_>>()
        };
        Ok([tier(true, &self.assured), tier(false, &self.new)].concat())
    }
}
