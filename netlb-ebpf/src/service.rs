//! From a frontend to a backend. Works on addresses, not on packets: the socket hooks use it too.

use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::backend::state;
use netlb_common::config::{Config, MAX_CIDRS};
use netlb_common::conntrack::age;
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::{Addr, hash};

use crate::tables::Tables;

/// What an address without a frontend for the packet's port means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Not a Service's.
    Foreign,
    /// A VIP: what it does not serve is refused.
    Vip,
    /// In a Service CIDR, and nobody's.
    Unallocated,
}

/// Chooses a backend for a new flow: the one of the client's session if it still serves, else by hash. `None`: no endpoint takes new flows.
#[inline(always)]
pub fn choose<T: Tables>(t: &T, frontend: &FrontendValue, client: Addr, flow: u32, hz: u32, now: u32) -> Option<u32> {
    if frontend.count == 0 {
        return None;
    }
    if frontend.affinity_s == 0 {
        return t.slot(frontend.slots.wrapping_add(hash::scale(flow, frontend.count)));
    }
    let scratch = t.scratch()?.as_ptr();
    // SAFETY: this CPU's own record; only this function uses these two fields, and no reference to them leaves.
    let (key, session) = unsafe { (&mut (*scratch).session, &mut (*scratch).session_backend) };
    *key = AffinityKey { client, service: frontend.service, pad: 0 };
    let kept = match t.affinity(key) {
        Some(last) if age(now, last.seen) as u64 <= frontend.affinity_s as u64 * hz as u64 => t
            .backend(last.backend)
            .filter(|b| b.generation == last.backend_generation && b.state == state::ACTIVE)
            .map(|_| last.backend),
        _ => None,
    };
    let id = match kept {
        Some(id) => id,
        None => t.slot(frontend.slots.wrapping_add(hash::scale(flow, frontend.count)))?,
    };
    let generation = t.backend(id)?.generation;
    *session = AffinityValue { backend: id, backend_generation: generation, seen: now, pad: 0 };
    t.set_affinity(key, session);
    Some(id)
}

/// What an address is to the Services, apart from their ports.
#[inline(always)]
pub fn address<T: Tables>(t: &T, config: &Config, addr: Addr) -> Address {
    if t.frontend(&FrontendKey::address(addr)).is_some() {
        return Address::Vip;
    }
    for (i, cidr) in config.cidrs.iter().enumerate().take(MAX_CIDRS) {
        if i as u32 >= config.cidrs_used {
            break;
        }
        if addr.hi & cidr.mask.hi == cidr.net.hi && addr.lo & cidr.mask.lo == cidr.net.lo {
            return Address::Unallocated;
        }
    }
    Address::Foreign
}
