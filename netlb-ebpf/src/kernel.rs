//! The core's tables, answered from kernel maps.

use core::ptr::NonNull;

use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::maps::lpm_trie::Key;
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

use crate::maps::*;

/// BPF_NOEXIST: insert only.
const NO_EXIST: u64 = 1;
const EEXIST: i32 = -17;

pub(crate) struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<&FrontendValue> {
        // SAFETY: an update replaces the element as a whole; an element freed under us stays readable until the program ends (RCU).
        unsafe { FRONTENDS.get(key) }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&BackendValue> {
        BACKENDS.get(id)
    }

    #[inline(always)]
    fn endpoint(&self, id: u32) -> Option<&EndpointValue> {
        ENDPOINTS.get(id)
    }

    #[inline(always)]
    fn endpoint_by_addr(&self, addr: &Addr) -> Option<u32> {
        // SAFETY: copied at once.
        unsafe { ENDPOINT_BY_ADDR.get(addr) }.copied()
    }

    #[inline(always)]
    fn endpoint_by_ifindex(&self, ifindex: u32) -> Option<u32> {
        // SAFETY: copied at once.
        unsafe { ENDPOINT_BY_IFINDEX.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn uplink(&self, ifindex: u32) -> Option<&UplinkValue> {
        // SAFETY: as for frontends.
        unsafe { UPLINKS.get(ifindex) }
    }

    #[inline(always)]
    fn client(&self, netns: u64) -> Option<&ClientValue> {
        // SAFETY: as for frontends.
        unsafe { CLIENTS.get(netns) }
    }

    #[inline(always)]
    fn in_source_range(&self, key: &SourceRangeKey) -> bool {
        // SAFETY: the same 24 bytes: a u32, then five more.
        let key = unsafe { &*(&raw const *key).cast::<Key<[u32; 5]>>() };
        SOURCE_RANGES.get(key).is_some()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentValue> {
        // SAFETY: copied at once; an entry evicted under us sends a fragment astray, which reassembly or the checksum finds.
        unsafe { FRAGMENTS.get(key) }
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, value: &FragmentValue) {
        // A full LRU map evicts; if even that fails the later fragments are dropped and counted.
        let _ = FRAGMENTS.insert(key, value, 0);
    }

    #[inline(always)]
    fn turn(&self, slots: u32) -> u32 {
        let Some(turn) = TURNS.get_ptr_mut(slots) else { return 0 };
        // SAFETY: an array's element stays; two CPUs may take one turn, which skews nothing for long.
        unsafe {
            let now = turn.read_volatile();
            turn.write_volatile(now.wrapping_add(1));
            now
        }
    }

    #[inline(always)]
    fn load(&self, backend: u32) -> u32 {
        BACKEND_LOAD.get(backend).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn add_load(&self, backend: u32, by: i32) {
        if let Some(load) = BACKEND_LOAD.get_ptr_mut(backend) {
            // SAFETY: as for turns; the agent's sweep sets what was lost right.
            unsafe { load.write_volatile(load.read_volatile().saturating_add_signed(by)) };
        }
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<&AffinityValue> {
        // SAFETY: an entry evicted under us may change; its backend id is checked against its generation.
        unsafe { AFFINITY.get(key) }
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, value: &AffinityValue) {
        // A full LRU map evicts; nothing to do if even that fails: the session is then as good as new.
        let _ = AFFINITY.insert(key, value, 0);
    }

    #[inline(always)]
    fn socket(&self, key: &SocketKey) -> Option<&SocketValue> {
        // SAFETY: as for affinity.
        unsafe { SOCKETS.get(key) }
    }

    #[inline(always)]
    fn set_socket(&self, key: &SocketKey, value: &SocketValue) {
        // As for affinity: getpeername() then shows the backend.
        let _ = SOCKETS.insert(key, value, 0);
    }

    #[inline(always)]
    fn ct(&self, tier: Tier, key: &CtKey) -> Option<Ct> {
        let entry = match tier {
            Tier::Assured => CT.get_ptr_mut(key),
            Tier::New => CT_NEW.get_ptr_mut(key),
        }?;
        // SAFETY: map values are aligned to 8, and readable and writable until the program ends (RCU), though perhaps by another flow's name.
        NonNull::new(entry).map(|entry| unsafe { Ct::new(entry) })
    }

    #[inline(always)]
    fn ct_insert(&self, tier: Tier, key: &CtKey, value: &CtValue) -> bool {
        match tier {
            Tier::Assured => CT.insert(key, value, 0).is_ok(),
            Tier::New => CT_NEW.insert(key, value, 0).is_ok(),
        }
    }

    #[inline(always)]
    fn ct_claim(&self, key: &CtKey, value: &CtValue) -> Claim {
        match CT_NEW.insert(key, value, NO_EXIST) {
            Ok(()) => Claim::Done,
            Err(EEXIST) => Claim::Taken,
            Err(_) => Claim::Full,
        }
    }

    #[inline(always)]
    fn ct_delete(&self, tier: Tier, key: &CtKey) {
        // An absent key is what was wanted.
        let _ = match tier {
            Tier::Assured => CT.remove(key),
            Tier::New => CT_NEW.remove(key),
        };
    }

    #[inline(always)]
    fn scratch(&self) -> Option<NonNull<Scratch>> {
        SCRATCH.get_ptr_mut(0).and_then(NonNull::new)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: no arguments, no side effects.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        if let Some(counter) = COUNTERS.get_ptr_mut(reason.0 as u32) {
            // SAFETY: this CPU's own counter.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn count_flow(&self, backend: u32) {
        if let Some(counter) = BACKEND_FLOWS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own counter.
            unsafe { *counter += 1 };
        }
    }
}
