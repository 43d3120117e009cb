//! The route of a packet that comes in: from a pod (ingress on the host side of its veth), or from outside (ingress on an uplink).
//!
//! To a Service: translate, then deliver to a pod of this node (redirect road), forward to another node (routed), or leave it to the stack. Answers
//! on the redirect road, and of routed flows, get the VIP back here. On the stack road an answer passes as it is: a source that is a VIP is a
//! martian to the stack, so the VIP is put back where the answer leaves it (`leave`).

use netlb_common::backend::{self, BackendValue};
use netlb_common::config::{self, Config};
use netlb_common::conntrack::{CtKey, event, flags};
use netlb_common::endpoint::EndpointValue;
use netlb_common::{Addr, Port, Reason, hash};

use crate::conntrack::{self, Found, Way};
use crate::detour::Detour;
use crate::packet::{Hop, Packet};
use crate::parse::{Parsed, parse};
use crate::service::{self, Target};
use crate::tables::{self, Ct, Tables};
use crate::verdict::{Decision, Verdict};
use crate::{fragment, nat, refuse};

/// The device of a hook, in one word: it crosses function boundaries in a register.
#[derive(Clone, Copy)]
pub struct Device(u64);

impl Device {
    const OUTSIDE: u64 = 1 << 32;

    /// A pod's veth, its host side, by interface index.
    #[inline(always)]
    pub const fn pod(ifindex: u32) -> Self {
        Device(ifindex as u64)
    }

    #[inline(always)]
    pub const fn uplink(ifindex: u32) -> Self {
        Device(ifindex as u64 | Self::OUTSIDE)
    }

    /// As a plain word, for a function of the object's own.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Back from [`word`](Self::word).
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Device(word)
    }

    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn is_uplink(self) -> bool {
        self.0 & Self::OUTSIDE != 0
    }
}

#[inline(always)]
pub fn enter<P: Detour, T: Tables>(p: &mut P, t: &T, device: Device) -> Verdict {
    let Some(scratch) = t.scratch() else { return Verdict::drop(Reason::NO_SCRATCH) };
    // SAFETY: this CPU's own record; only the routes write the field, before anybody reads it.
    let key = unsafe { &mut (*scratch.as_ptr()).key };
    let parsed = parse(p, t, key);
    if parsed.not_ours() {
        return Verdict::PASS;
    }
    if let Some(reason) = parsed.fault() {
        return Verdict::drop(reason);
    }
    let parsed = fragment::follow(t, parsed, key);
    let mut verdict = Verdict::SKIP;
    let mut flow = None;
    if parsed.has_ports() {
        let now = t.now();
        match conntrack::find_entering(t, key, parsed, now) {
            Found::Elsewhere => return Verdict::PASS,
            Found::Flow(ct) => {
                ct.touch(now, p.len());
                flow = Some(ct);
            }
            Found::Dead(reason) => return Verdict::drop(reason),
            Found::Miss => {}
        }
    } else if parsed.icmp_error() {
        verdict = p.error_entering(t, parsed);
    }
    if flow.is_none() && verdict == Verdict::SKIP {
        verdict = p.unknown_entering(t, parsed, device);
        if verdict == Verdict::OPEN {
            // The records of the new flow are still in the scratch.
            flow = t.scratch().and_then(tables::opened);
        }
    }
    if let Some(ct) = flow {
        verdict = forward(p, t, parsed, ct);
    }
    match verdict.decide() {
        Decision::Refuse(reason, mtu) => p.refuse(t, parsed, reason, mtu),
        Decision::Pass
        | Decision::Drop(_)
        | Decision::Open
        | Decision::Skip
        | Decision::Reflect
        | Decision::Route(_)
        | Decision::Deliver(_) => verdict,
    }
}

/// A packet of no flow: opens one, if it is to a frontend.
#[inline(always)]
pub fn unknown<P: Detour, T: Tables>(p: &mut P, t: &T, parsed: Parsed, device: Device) -> Verdict {
    let Some(scratch) = t.scratch() else { return Verdict::drop(Reason::NO_SCRATCH) };
    // SAFETY: this CPU's own record, written by the route before.
    let key = unsafe { &(*scratch.as_ptr()).key };
    let Some(config) = t.config() else { return Verdict::PASS };
    let event = if parsed.connects() { event::of_tcp(parsed.tcp_flags()) } else { event::SYN };
    let (port, proto) = if parsed.has_ports() { (key.dport(), key.proto()) } else { (Port(0), 0) };
    let frontend = match service::target(t, config, key.dst, port, proto) {
        Target::Foreign => {
            let begins = parsed.has_ports() && event == event::SYN && !device.is_uplink();
            // Of datagrams each may be the first. Without translated sockets nobody changes sides often enough to be worth a look at each.
            if begins && (parsed.connects() || config.flags & config::flags::SOCKET_ALL != 0) {
                conntrack::overtake(t, key, device.ifindex());
            }
            return Verdict::PASS;
        }
        Target::Unallocated => return Verdict::drop(Reason::UNALLOCATED),
        // Nobody's flow here, so perhaps one of the node's own sockets: an ephemeral port may fall into the NodePort range. The host answers if not.
        Target::NodePort(_) if parsed.later_fragment() || event != event::SYN => return Verdict::PASS,
        Target::Frontend(_) | Target::Undefined if parsed.later_fragment() => return Verdict::drop(Reason::FRAGMENT),
        Target::Frontend(_) | Target::Undefined if parsed.has_ports() && event == event::RST => {
            return Verdict::drop(Reason::STRAY_RST);
        }
        // An ICMP error is never answered by one (RFC 1122 3.2.2).
        Target::Undefined if parsed.icmp_error() => return Verdict::drop(Reason::UNDEFINED_PORT),
        Target::Undefined => return Verdict::refuse(Reason::UNDEFINED_PORT),
        Target::Frontend(frontend) | Target::NodePort(frontend) => frontend,
    };
    if !service::in_range(t, frontend, key.src) {
        return Verdict::drop(Reason::SOURCE_RANGE);
    }
    if event != event::SYN {
        return Verdict::refuse(Reason::NO_FLOW);
    }
    let pod = service::is_pod(t, config, key.src, device.ifindex(), device.is_uplink());
    let list = service::list(frontend, !pod);
    if list.count == 0 {
        return if list.empty == Reason::NO_ENDPOINTS {
            Verdict::refuse(list.empty)
        } else {
            Verdict::drop(list.empty)
        };
    }
    let now = t.now();
    let Some(id) = service::choose(t, list, key.src, hash::flow(config.seed, key), config, now) else {
        return Verdict::drop(Reason::NO_SCRATCH);
    };
    let Some(b) = t.backend(id) else { return Verdict::drop(Reason::NO_SCRATCH) };
    let masquerade = service::masquerades(config, frontend.flags, b.flags, pod);
    let way = match way(p, t, config, parsed, key, b, device, masquerade) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    match conntrack::open(p, t, key, id, way, now) {
        Ok(()) => Verdict::OPEN,
        Err(reason) => Verdict::drop(reason),
    }
}

/// Decides how a new flow is handled, where its packets go and what its source becomes.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "always inlined: a struct would go through memory")]
fn way<P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    config: &Config,
    parsed: Parsed,
    key: &CtKey,
    b: &BackendValue,
    device: Device,
    masquerade: bool,
) -> Result<Way, Verdict> {
    let mut way = Way { flags: 0, hop: 0, client: 0, source: Addr::UNSPECIFIED };
    if device.is_uplink() {
        if !masquerade || b.flags & backend::flags::ON_NODE != 0 {
            way.flags = if masquerade { flags::MASQUERADE } else { 0 };
            return Ok(way);
        }
        return routed(p, t, config, parsed, key, b.addr);
    }
    if b.addr == key.src {
        way.flags = flags::HAIRPIN;
        return Ok(way);
    }
    if masquerade {
        // Hidden where it leaves the stack. On the redirect road an answer that does not fit the client's device could not be left to the stack: it is
        // addressed to the node.
        way.flags = flags::MASQUERADE;
        return Ok(way);
    }
    // A packet's source proves nothing: the client is the pod behind the device, and only if the address is that pod's.
    let client = match t.endpoint_by_ifindex(device.ifindex()) {
        Some(id) if t.endpoint_by_addr(&key.src) == Some(id) => id,
        _ => return Ok(way),
    };
    let (Some(to), Some(from)) = (t.endpoint(b.endpoint), t.endpoint(client)) else { return Ok(way) };
    if to.ifindex == 0 || from.ifindex == 0 {
        return Ok(way);
    }
    (way.hop, way.client) = (b.endpoint, client);
    if config.flags & config::flags::REDIRECT != 0 {
        way.flags = flags::REDIRECT;
    } else if to.bridge != 0 && to.bridge == from.bridge {
        way.flags = flags::BRIDGED;
    }
    Ok(way)
}

/// The way of a flow that is translated as a whole and forwarded to a backend elsewhere.
#[inline(always)]
pub(crate) fn routed<P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    config: &Config,
    parsed: Parsed,
    key: &CtKey,
    backend: Addr,
) -> Result<Way, Verdict> {
    // Length 1: size is looked at when the packet is forwarded.
    let ifindex = match p.route(key.src, backend, parsed.proto(), 1) {
        Hop::To(ifindex) => ifindex,
        Hop::TooBig(_) | Hop::Local => 0,
        Hop::Unresolved => return Err(Verdict::PASS),
        Hop::Nowhere => return Err(Verdict::drop(Reason::NO_ROUTE)),
    };
    let source = node_address(t, config, ifindex, backend.is_v4())?;
    Ok(Way { flags: flags::ROUTED, hop: 0, client: 0, source })
}

/// The source of a masqueraded flow that leaves by a device.
#[inline(always)]
pub(crate) fn node_address<T: Tables>(t: &T, config: &Config, ifindex: u32, v4: bool) -> Result<Addr, Verdict> {
    if let Some(uplink) = t.uplink(ifindex) {
        let own = if v4 { uplink.addr4 } else { uplink.addr6 };
        if own != Addr::UNSPECIFIED {
            return Ok(own);
        }
    }
    match if v4 { config.node4 } else { config.node6 } {
        Addr::UNSPECIFIED => Err(Verdict::drop(Reason::NO_ADDRESS)),
        primary => Ok(primary),
    }
}

/// Translates a packet of a flow and sends it on its road.
#[inline(always)]
fn forward<P: Packet, T: Tables>(p: &mut P, t: &T, parsed: Parsed, ct: Ct) -> Verdict {
    if parsed.later_fragment() {
        t.count(Reason::FRAGMENT_FOLLOWED);
    }
    if ct.is(flags::ROUTED) {
        return route(p, t, parsed, ct);
    }
    if ct.is(flags::HAIRPIN) {
        if nat::ttl(p, parsed) <= 1 {
            t.count(Reason::TO_STACK);
            return Verdict::PASS;
        }
        if nat::rewrite(p, parsed, &ct, true) && nat::swap_macs(p) {
            return Verdict::REFLECT;
        }
        return Verdict::drop(Reason::REWRITE_FAILED);
    }
    let to = next_hop(t, &ct);
    if ct.is(flags::REDIRECT) {
        if nat::ttl(p, parsed) <= 1 {
            // The stack answers with "time exceeded", quoting what the sender sent.
            t.count(Reason::TO_STACK);
            return Verdict::PASS;
        }
        if let Some(to) = to {
            let (ifindex, mtu) = (to.ifindex, to.mtu);
            if nat::wire_len(p, parsed) <= mtu {
                if nat::rewrite(p, parsed, &ct, true) && nat::set_macs(p, to) {
                    t.count(Reason::REDIRECTED);
                    return Verdict::deliver(ifindex);
                }
                return Verdict::drop(Reason::REWRITE_FAILED);
            }
        }
        t.count(Reason::TO_STACK);
        if ct.is(flags::REPLY) {
            return Verdict::PASS;
        }
    }
    if !nat::rewrite(p, parsed, &ct, false) {
        return Verdict::drop(Reason::REWRITE_FAILED);
    }
    if ct.is(flags::BRIDGED)
        && let Some(to) = to
        && !nat::set_destination_mac(p, to)
    {
        return Verdict::drop(Reason::REWRITE_FAILED);
    }
    Verdict::PASS
}

/// Forwards a packet as a router would, its addresses translated on the way.
#[inline(always)]
pub(crate) fn route<P: Packet, T: Tables>(p: &mut P, t: &T, parsed: Parsed, ct: Ct) -> Verdict {
    let size = nat::wire_len(p, parsed);
    match p.route(ct.src(), ct.dst(), parsed.proto(), size) {
        Hop::To(_) if nat::ttl(p, parsed) <= 1 => Verdict::refuse(Reason::TTL_EXCEEDED),
        Hop::To(ifindex) if nat::rewrite(p, parsed, &ct, true) => {
            t.count(Reason::ROUTED);
            Verdict::route(ifindex)
        }
        Hop::TooBig(mtu) => refuse::too_big(p, parsed, mtu),
        // A client that the host masqueraded as the node itself: the stack knows whose answer it is.
        Hop::Local if nat::rewrite(p, parsed, &ct, false) => Verdict::PASS,
        Hop::To(_) | Hop::Local => Verdict::drop(Reason::REWRITE_FAILED),
        Hop::Unresolved => Verdict::PASS,
        Hop::Nowhere => Verdict::drop(Reason::NO_ROUTE),
    }
}

/// The pod a flow's packets go to, if it is on this node and still behind the same device.
#[inline(always)]
pub(crate) fn next_hop<'a, T: Tables>(t: &'a T, ct: &Ct) -> Option<&'a EndpointValue> {
    t.endpoint(ct.hop()).filter(|e| ct.hop() != 0 && e.ifindex != 0 && e.generation == ct.hop_generation())
}
