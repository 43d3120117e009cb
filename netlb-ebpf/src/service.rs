//! From an address to a frontend, from a frontend to a backend. Works on addresses, not on packets: the socket hooks use it too.

use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::backend::{self, BackendValue, state};
use netlb_common::config::{self, Cidr, Config, MAX_CIDRS, MAX_POD_CIDRS, pods};
use netlb_common::conntrack::age;
use netlb_common::frontend::{FrontendKey, FrontendValue, flags, scheduler};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::{Addr, Port, Reason, endpoint, hash, uplink};

use crate::tables::Tables;

/// Backends compared by the scheduler `lc`: all of a list this long, a sample of a longer one.
const LEAST_OF: u32 = 16;

/// What stands at an address and port.
#[derive(Clone, Copy)]
pub enum Target<'t> {
    Frontend(&'t FrontendValue),
    /// At an address of the node, where its own sockets may use the port as well.
    NodePort(&'t FrontendValue),
    /// Not a Service's.
    Foreign,
    /// At a cluster IP: what it does not serve is refused.
    Undefined,
    /// In a Service CIDR, and nobody's.
    Unallocated,
}

/// Finds what a packet or call is addressed to. Port 0 and protocol 0 ask for the address alone.
#[inline(always)]
pub fn target<'t, T: Tables>(t: &'t T, config: &Config, addr: Addr, port: Port, proto: u8) -> Target<'t> {
    if proto != 0
        && let Some(frontend) = t.frontend(&FrontendKey::new(addr, port, proto))
    {
        return Target::Frontend(frontend);
    }
    if let Some(owner) = t.frontend(&FrontendKey::address(addr)) {
        let kind = owner.flags;
        if proto != 0
            && kind & flags::NODE != 0
            && let Some(frontend) = t.frontend(&FrontendKey::node_port(addr.is_v4(), port, proto))
        {
            return Target::NodePort(frontend);
        }
        return if kind & flags::VIP != 0 { Target::Undefined } else { Target::Foreign };
    }
    if among(&config.cidrs, config.cidrs_used, addr) { Target::Unallocated } else { Target::Foreign }
}

/// Whether one of the first `used` ranges holds the address.
#[inline(always)]
fn among<const N: usize>(cidrs: &[Cidr; N], used: u32, addr: Addr) -> bool {
    const { assert!(N == MAX_CIDRS || N == MAX_POD_CIDRS) };
    for (i, cidr) in cidrs.iter().enumerate() {
        if i as u32 >= used {
            break;
        }
        if cidr.contains(addr) {
            return true;
        }
    }
    false
}

/// Whether a packet from this device counts as a pod's, by the agent's detector.
#[inline(always)]
pub fn is_pod<T: Tables>(t: &T, config: &Config, src: Addr, ifindex: u32, outside: bool) -> bool {
    match config.pods {
        pods::KNOWN => !outside,
        pods::CIDRS => among(&config.pod_cidrs, config.pod_cidrs_used, src),
        pods::DEVICES if outside => t.uplink(ifindex).is_some_and(|u| u.flags & uplink::flags::POD_SOURCE != 0),
        pods::DEVICES => t
            .endpoint_by_ifindex(ifindex)
            .and_then(|id| t.endpoint(id))
            .is_some_and(|e| e.flags & endpoint::flags::POD_SOURCE != 0),
        _ => false,
    }
}

/// Whether a flow's client is to be masqueraded: kube-proxy's truth table, save that a backend on this node keeps the client's address unless
/// the agent asks for all of it. `pod`: what [`is_pod`] said.
#[inline(always)]
pub fn masquerades(config: &Config, frontend: u32, backend: u32, pod: bool) -> bool {
    if backend & backend::flags::ON_NODE != 0 && config.flags & config::flags::MASQUERADE_LOCAL == 0 {
        return false;
    }
    if frontend & flags::EXTERNAL != 0 {
        frontend & flags::KEEP_CLIENT == 0
    } else {
        config.flags & config::flags::MASQUERADE_ALL != 0 || (config.pods != pods::NONE && !pod)
    }
}

/// One of a frontend's two lists.
#[derive(Clone, Copy)]
pub struct List<'t> {
    pub frontend: &'t FrontendValue,
    pub slots: u32,
    pub count: u32,
    /// The flag of the backends in it.
    member: u32,
    /// What an empty one means.
    pub empty: Reason,
}

/// The list for a client.
#[inline(always)]
pub fn list(frontend: &FrontendValue, outside: bool) -> List<'_> {
    let member = |local: bool| if local { backend::flags::LOCAL_LIST } else { backend::flags::CLUSTER_LIST };
    let has = |flag: u32| frontend.flags & flag != 0;
    let no_local = if has(flags::EXTERNAL) { Reason::NO_LOCAL_EXTERNAL } else { Reason::NO_LOCAL_INTERNAL };
    let (slots, count, local, drops) = if outside {
        (frontend.outside_slots, frontend.outside_count, has(flags::OUTSIDE_LOCAL), has(flags::DROP_OUTSIDE))
    } else {
        (frontend.slots, frontend.count, has(flags::INSIDE_LOCAL), has(flags::DROP_INSIDE))
    };
    let empty = if drops { no_local } else { Reason::NO_ENDPOINTS };
    List { frontend, slots, count, member: member(local), empty }
}

/// Whether `loadBalancerSourceRanges` lets a client in.
#[inline(always)]
pub fn in_range<T: Tables>(t: &T, frontend: &FrontendValue, client: Addr) -> bool {
    if frontend.flags & flags::SOURCE_RANGES == 0 {
        return true;
    }
    let Some(scratch) = t.scratch() else { return false };
    // SAFETY: this CPU's own record; only this function uses the field, and no reference to it leaves.
    let key = unsafe { &mut (*scratch.as_ptr()).range };
    *key = SourceRangeKey::client(frontend.service, client);
    t.in_source_range(key)
}

/// Chooses a backend for a new flow from a list that is not empty: the one of the client's session if it still stands in the list, else by the
/// scheduler. `flow` is a hash of the flow.
#[inline(always)]
pub fn choose<T: Tables>(t: &T, list: List<'_>, client: Addr, flow: u32, config: &Config, now: u32) -> Option<u32> {
    let frontend = list.frontend;
    if frontend.affinity_s == 0 {
        return schedule(t, list, client, flow, config.seed);
    }
    let scratch = t.scratch()?.as_ptr();
    // SAFETY: this CPU's own record; only this function uses these two fields, and no reference to them leaves.
    let (key, session) = unsafe { (&mut (*scratch).session, &mut (*scratch).session_backend) };
    *key = AffinityKey { client, service: frontend.service, pad: 0 };
    let serves = |b: &&BackendValue| b.state == state::ACTIVE && b.flags & list.member != 0;
    let kept = match t.affinity(key) {
        Some(last) if age(now, last.seen) as u64 <= frontend.affinity_s as u64 * config.hz as u64 => t
            .backend(last.backend)
            .filter(|b| b.generation == last.backend_generation)
            .filter(serves)
            .map(|_| last.backend),
        _ => None,
    };
    let id = match kept {
        Some(id) => id,
        None => schedule(t, list, client, flow, config.seed)?,
    };
    let generation = t.backend(id)?.generation;
    *session = AffinityValue { backend: id, backend_generation: generation, seen: now, pad: 0 };
    t.set_affinity(key, session);
    Some(id)
}

#[inline(always)]
fn schedule<T: Tables>(t: &T, list: List<'_>, client: Addr, flow: u32, seed: u32) -> Option<u32> {
    let index = match (list.frontend.flags & flags::SCHEDULER_MASK) >> flags::SCHEDULER_SHIFT {
        scheduler::ROUND_ROBIN => t.turn(list.slots) % list.count,
        scheduler::SOURCE_HASH => hash::scale((hash::words(seed, client.hi, client.lo) >> 32) as u32, list.count),
        scheduler::LEAST_CONNECTIONS => return least(t, list.slots, list.count, flow),
        _ => hash::scale(flow, list.count),
    };
    t.slot(list.slots.wrapping_add(index))
}

/// The backend with the fewest open flows, looking at [`LEAST_OF`] slots from a random one on.
#[inline(never)]
fn least<T: Tables>(t: &T, slots: u32, count: u32, flow: u32) -> Option<u32> {
    let mut index = hash::scale(flow, count);
    let (mut best, mut fewest) = (0, u32::MAX);
    for step in 0..LEAST_OF {
        if step >= count {
            break;
        }
        let id = t.slot(slots.wrapping_add(index))?;
        let load = t.load(id);
        if load < fewest {
            (best, fewest) = (id, load);
        }
        index = if index + 1 < count { index + 1 } else { 0 };
    }
    Some(best)
}
