//! The route of a packet that the stack sends out: to a pod (egress on the host side of its veth), or outside (egress on an uplink). What a redirect
//! delivered to a pod does not pass here.
//!
//! Puts the VIP back on answers of flows that took the stack, masquerades those whose client the backend may not see, and catches what is still
//! addressed to a Service: it slipped past a veth without programs, and never leaves the node as it is.

use netlb_common::config::{Config, flags as config};
use netlb_common::conntrack::{CtKey, event, flags};
use netlb_common::{Port, Reason, hash};

use crate::conntrack::{self, Found};
use crate::detour::Detour;
use crate::enter::{self, Device};
use crate::packet::Packet;
use crate::parse::{Parsed, parse};
use crate::service::{self, Target};
use crate::tables::{self, Ct, Tables};
use crate::verdict::{Decision, Verdict};
use crate::{fragment, nat};

#[inline(always)]
pub fn leave<P: Detour, T: Tables>(p: &mut P, t: &T, device: Device) -> Verdict {
    let Some(scratch) = t.scratch() else { return Verdict::drop(Reason::NO_SCRATCH) };
    // SAFETY: this CPU's own record; only the routes write the field, before anybody reads it.
    let key = unsafe { &mut (*scratch.as_ptr()).key };
    let parsed = parse(p, t, key);
    if parsed.not_ours() || parsed.fault().is_some() {
        return Verdict::PASS;
    }
    let parsed = fragment::follow(t, parsed, key);
    if parsed.icmp_error() {
        let verdict = p.error_leaving(t, parsed);
        if verdict != Verdict::SKIP {
            return verdict;
        }
    }
    let mut flow = None;
    if parsed.has_ports() {
        let now = t.now();
        // The client's own direction leaves through `enter` only: here it would be a packet that came in by another way.
        flow = match conntrack::find_leaving(p, t, key, parsed, now) {
            Found::Flow(ct) => {
                ct.touch(now, p.len());
                Some(ct)
            }
            Found::Miss | Found::Elsewhere | Found::Dead(_) => None,
        };
    }
    if flow.is_none() {
        let Some(config) = t.config() else { return Verdict::PASS };
        if !device.is_uplink() && config.flags & config::MASQUERADE_LOCAL == 0 {
            return Verdict::PASS;
        }
        let verdict = p.unknown_leaving(t, parsed, device);
        match verdict.decide() {
            // The records of the new flow are still in the scratch.
            Decision::Open => flow = t.scratch().and_then(tables::opened),
            // Nobody can be answered from here.
            Decision::Refuse(reason, _) => return Verdict::drop(reason),
            Decision::Pass
            | Decision::Drop(_)
            | Decision::Skip
            | Decision::Reflect
            | Decision::Route(_)
            | Decision::Deliver(_) => return verdict,
        }
    }
    let Some(ct) = flow else { return Verdict::drop(Reason::NO_SCRATCH) };
    if parsed.later_fragment() {
        t.count(Reason::FRAGMENT_FOLLOWED);
    }
    if ct.is(flags::ROUTED) {
        let verdict = enter::route(p, t, parsed, ct);
        // Nobody can be answered from here.
        return if let Decision::Refuse(reason, _) = verdict.decide() { Verdict::drop(reason) } else { verdict };
    }
    if nat::rewrite(p, parsed, &ct, false) { Verdict::PASS } else { Verdict::drop(Reason::REWRITE_FAILED) }
}

/// A packet of no flow that is translated here: one to masquerade, one of the node's own whose port a masqueraded flow has, or one that slipped.
#[inline(always)]
pub fn unknown<P: Detour, T: Tables>(p: &mut P, t: &T, parsed: Parsed, device: Device) -> Verdict {
    let Some(scratch) = t.scratch() else { return Verdict::drop(Reason::NO_SCRATCH) };
    // SAFETY: this CPU's own record, written by the route before.
    let key = unsafe { &(*scratch.as_ptr()).key };
    let Some(config) = t.config() else { return Verdict::PASS };
    let awaited = if parsed.has_ports() { awaited(t, key) } else { None };
    if let Some(reply) = awaited {
        let source = if reply.is(flags::MASQUERADE) {
            match enter::node_address(t, config, device.ifindex(), key.dst.is_v4()) {
                Ok(source) => Some(source),
                Err(verdict) => return verdict,
            }
        } else if collides(p, parsed, key, &reply) {
            Some(key.src)
        } else {
            None
        };
        if let Some(source) = source {
            return match conntrack::masquerade(p, t, key, &source) {
                Ok(()) => Verdict::OPEN,
                Err(reason) => Verdict::drop(reason),
            };
        }
    }
    if device.is_uplink() { slipped(p, t, config, parsed, key) } else { Verdict::PASS }
}

/// The entry of the flow that the answers to this packet belong to.
#[inline(always)]
fn awaited<T: Tables>(t: &T, key: &CtKey) -> Option<Ct> {
    let scratch = t.scratch()?;
    // SAFETY: this CPU's own record; only this function uses the field, and no reference to it leaves.
    let reversed = unsafe { &mut (*scratch.as_ptr()).reversed };
    reversed.set(key.dst, key.src, key.ports().rotate_left(16), key.proto());
    conntrack::lookup(t, reversed, t.now()).map(|(ct, _)| ct).filter(|ct| ct.is(flags::REPLY))
}

/// Whether this is the first packet of a socket of the node's, to a backend that a masqueraded flow reached, or reaches, from the same port: its
/// answers would go to that flow's client. Forwarded packets of the flow itself leave here too, but came in by a device.
#[inline(always)]
fn collides<P: Packet>(p: &P, parsed: Parsed, key: &CtKey, reply: &Ct) -> bool {
    let first = !parsed.connects() || event::of_tcp(parsed.tcp_flags()) == event::SYN;
    // The flow of a socket of the node's that was forwarded from here (`slipped`) is this packet's own.
    let others = reply.is(flags::SNAT) || reply.is(flags::ROUTED) && reply.dst() != key.src;
    first && others && p.sent_here()
}

/// A packet that leaves the node: if it is still addressed to a Service, a flow is opened whose answers come back here.
#[inline(always)]
fn slipped<P: Detour, T: Tables>(p: &mut P, t: &T, config: &Config, parsed: Parsed, key: &CtKey) -> Verdict {
    let event = if parsed.connects() { event::of_tcp(parsed.tcp_flags()) } else { event::SYN };
    let (port, proto) = if parsed.has_ports() { (key.dport(), key.proto()) } else { (Port(0), 0) };
    let frontend = match service::target(t, config, key.dst, port, proto) {
        // A packet to the node's own address does not leave it.
        Target::Foreign | Target::NodePort(_) => return Verdict::PASS,
        Target::Unallocated => return Verdict::drop(Reason::UNALLOCATED),
        Target::Undefined => return Verdict::drop(Reason::UNDEFINED_PORT),
        Target::Frontend(_) if parsed.later_fragment() => return Verdict::drop(Reason::FRAGMENT),
        Target::Frontend(_) if event == event::RST => return Verdict::drop(Reason::STRAY_RST),
        Target::Frontend(_) if event != event::SYN => return Verdict::drop(Reason::NO_FLOW),
        Target::Frontend(frontend) => frontend,
    };
    if !service::in_range(t, frontend, key.src) {
        return Verdict::drop(Reason::SOURCE_RANGE);
    }
    let list = service::list(frontend, false);
    if list.count == 0 {
        return Verdict::drop(list.empty);
    }
    let now = t.now();
    let Some(id) = service::choose(t, list, key.src, hash::flow(config.seed, key), config, now) else {
        return Verdict::drop(Reason::NO_SCRATCH);
    };
    let Some(backend) = t.backend(id) else { return Verdict::drop(Reason::NO_SCRATCH) };
    let way = match enter::routed(p, t, config, parsed, key, backend.addr) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    match conntrack::open(p, t, key, id, way, now) {
        Ok(()) => {
            t.count(Reason::SLIPPED);
            Verdict::OPEN
        }
        Err(reason) => Verdict::drop(reason),
    }
}
