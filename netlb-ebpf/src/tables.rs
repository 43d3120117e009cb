//! What the core asks of the world: look-ups, conntrack, counters, the clock. The kernel edge answers from maps, host tests from `BTreeMap`s.

use core::ptr::NonNull;

use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::backend::BackendValue;
use netlb_common::client::ClientValue;
use netlb_common::config::Config;
use netlb_common::conntrack::{CtKey, CtValue, REFRESH, age};
use netlb_common::endpoint::EndpointValue;
use netlb_common::fragment::{FragmentKey, FragmentValue};
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::socket::{SocketKey, SocketValue};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;
use netlb_common::{Addr, Reason};

/// Which of the two conntrack maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// `CT`: both ends have spoken.
    Assured,
    /// `CT_NEW`: not answered yet.
    New,
}

/// Result of [`Tables::ct_claim`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    Done,
    Taken,
    Full,
}

/// Records too big for the 512-byte stack, built here. One a CPU; nothing in it outlives a packet.
#[repr(C)]
pub struct Scratch {
    /// The packet's tuple. Set by the route, from `parse`.
    pub key: CtKey,
    pub flow: NewFlow,
    /// Where a flow's other direction is looked for. Set by `conntrack::partner`.
    pub partner: CtKey,
    /// The reversed tuple of a packet. Set by `leave::awaited` of one that leaves, by `conntrack::overtake` of one that comes in.
    pub reversed: CtKey,
    /// The tuple of answers to the node, which one of its sockets may await. Set by `conntrack::move_port`.
    pub answers: CtKey,
    /// The session of a new flow's client. Set by `service::choose`.
    pub session: AffinityKey,
    pub session_backend: AffinityValue,
    /// What the packet's fragments have in common. Set by `parse`, for fragments.
    pub fragment: FragmentKey,
    /// Set by `fragment::follow`.
    pub first: FragmentValue,
    /// Set by `service::in_range`.
    pub range: SourceRangeKey,
    /// See [`Tables::forget_range`].
    pub word: u64,
}

/// The records of a flow that is being opened. Set by `conntrack::open` and `move_port`.
#[repr(C)]
pub struct NewFlow {
    /// The entry of the client's direction, then of the backend's.
    pub forward: CtValue,
    pub reply: CtValue,
    /// The tuple of the answers, which the flow claims.
    pub back: CtKey,
    /// Chooses the next source port to try. Set by `conntrack::move_port`.
    pub chance: u32,
}

/// The client's entry of the flow that `conntrack::open` made for this packet. Good for this packet: the map has a copy.
#[inline(always)]
pub fn opened(scratch: NonNull<Scratch>) -> Option<Ct> {
    // SAFETY: the scratch record outlives the packet, and is readable and writable.
    NonNull::new(unsafe { &raw mut (*scratch.as_ptr()).flow.forward }).map(|entry| unsafe { Ct::new(entry) })
}

pub trait Tables {
    fn config(&self) -> Option<&Config>;
    fn frontend(&self, key: &FrontendKey) -> Option<&FrontendValue>;
    /// Backend id in a slot.
    fn slot(&self, index: u32) -> Option<u32>;
    fn backend(&self, id: u32) -> Option<&BackendValue>;
    fn endpoint(&self, id: u32) -> Option<&EndpointValue>;
    /// Endpoint id that owns an address.
    fn endpoint_by_addr(&self, addr: &Addr) -> Option<u32>;
    /// Endpoint id behind a device.
    fn endpoint_by_ifindex(&self, ifindex: u32) -> Option<u32>;
    /// The uplink of an interface index.
    fn uplink(&self, ifindex: u32) -> Option<&UplinkValue>;
    /// The pod whose network namespace has this cookie.
    fn client(&self, netns: u64) -> Option<&ClientValue>;
    /// Whether a range holds this key.
    fn in_source_range(&self, key: &SourceRangeKey) -> bool;
    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentValue>;
    fn set_fragment(&self, key: &FragmentKey, value: &FragmentValue);
    /// Round robin's next number for the list that begins at this slot.
    fn turn(&self, slots: u32) -> u32;
    /// Open flows of a backend.
    fn load(&self, backend: u32) -> u32;
    /// Adds to the open flows of a backend; they never go below zero.
    fn add_load(&self, backend: u32, by: i32);
    fn affinity(&self, key: &AffinityKey) -> Option<&AffinityValue>;
    fn set_affinity(&self, key: &AffinityKey, value: &AffinityValue);
    fn socket(&self, key: &SocketKey) -> Option<&SocketValue>;
    fn set_socket(&self, key: &SocketKey, value: &SocketValue);

    fn ct(&self, tier: Tier, key: &CtKey) -> Option<Ct>;
    /// Inserts, or replaces an entry of that key. False if there is no room.
    fn ct_insert(&self, tier: Tier, key: &CtKey, value: &CtValue) -> bool;
    /// Inserts into `CT_NEW` unless the key is taken.
    fn ct_claim(&self, key: &CtKey, value: &CtValue) -> Claim;
    fn ct_delete(&self, tier: Tier, key: &CtKey);

    fn scratch(&self) -> Option<NonNull<Scratch>>;
    /// The same number, of which the kernel's verifier knows nothing any more: paths that differ only in it converge, instead of being checked one
    /// by one to the end of the program.
    #[inline(always)]
    fn forget_range(&self, number: u64) -> u64 {
        let Some(scratch) = self.scratch() else { return 0 };
        // SAFETY: this CPU's own record; volatile, so that the number really goes through memory.
        unsafe {
            let word = &raw mut (*scratch.as_ptr()).word;
            word.write_volatile(number);
            word.read_volatile()
        }
    }

    /// Jiffies, low 32 bits.
    fn now(&self) -> u32;
    fn count(&self, reason: Reason);
    /// A new flow to this backend.
    fn count_flow(&self, backend: u32);
}

/// A conntrack entry in its map. The map's owner keeps the memory valid while the packet that asked is being processed; other CPUs may write to
/// it meanwhile (the kernel gives no better), so every read is a copy and every write a single store.
#[derive(Clone, Copy)]
pub struct Ct(NonNull<CtValue>);

macro_rules! read {
    ($($field:ident: $ty:ty),* $(,)?) => { $(
        #[inline(always)]
        pub fn $field(&self) -> $ty {
            // SAFETY: `new`'s contract: the entry is readable while the packet is processed.
            unsafe { (*self.0.as_ptr()).$field }
        }
    )* };
}

impl Ct {
    /// # Safety
    /// `entry` must be aligned to 8 and stay readable and writable until the packet at hand has been processed.
    #[inline(always)]
    pub unsafe fn new(entry: NonNull<CtValue>) -> Self {
        Ct(entry)
    }

    read! {
        src: Addr, dst: Addr, ports: u32, delta_addr: u16, delta_port: u16, flags: u16, state: u8, seen: u32, timeout: u32,
        backend: u32, backend_generation: u32, hop: u32, hop_generation: u32,
    }

    /// The whole entry.
    #[inline(always)]
    pub fn value(&self) -> &CtValue {
        // SAFETY: as above; only handed to the map for a copy.
        unsafe { self.0.as_ref() }
    }

    /// Has a flag.
    #[inline(always)]
    pub fn is(&self, flag: u16) -> bool {
        self.flags() & flag != 0
    }

    #[inline(always)]
    pub fn expired(&self, now: u32) -> bool {
        age(now, self.seen()) > self.timeout()
    }

    /// Stamps and counts a packet. The stamp is stored only when it is old enough to matter.
    #[inline(always)]
    pub fn touch(&self, now: u32, bytes: u32) {
        let entry = self.0.as_ptr();
        // SAFETY: as above. Counters are plain adds: two CPUs on one flow may lose a few.
        unsafe {
            if age(now, (*entry).seen) >= REFRESH {
                (*entry).seen = now;
            }
            (*entry).packets = (*entry).packets.wrapping_add(1);
            (*entry).bytes = (*entry).bytes.wrapping_add(bytes as u64);
        }
    }

    /// Moves the entry to a state, with its timeout in jiffies.
    #[inline(always)]
    pub fn set_state(&self, state: u8, timeout: u32, now: u32) {
        let entry = self.0.as_ptr();
        // SAFETY: as above.
        unsafe {
            (*entry).state = state;
            (*entry).timeout = timeout;
            (*entry).seen = now;
        }
    }
}
