//! The core's tables, answered from kernel maps.

use core::ptr::NonNull;

use aya_ebpf::helpers::bpf_jiffies64;
use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::backend::BackendValue;
use netlb_common::config::Config;
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::endpoint::EndpointValue;
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::socket::{SocketKey, SocketValue};
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
