//! The route of a packet that leaves a pod (ingress on the host side of its veth).
//!
//! To a Service: translate, then deliver to a pod of this node (redirect road) or leave it to the stack. From a backend on the redirect road:
//! put the VIP back and deliver to the client. On the stack road an answer passes as it is: a source that is a VIP is a martian to the stack, so
//! the VIP is put back where the answer leaves it (`to_pod`).

use core::mem::MaybeUninit;

use netlb_common::conntrack::{CtKey, event, flags};
use netlb_common::endpoint::EndpointValue;
use netlb_common::frontend::FrontendKey;
use netlb_common::{Reason, hash, proto};

use crate::conntrack::{self, Found};
use crate::packet::Packet;
use crate::parse::{Parsed, parse};
use crate::service::{self, Address};
use crate::tables::{self, Ct, Tables};
use crate::verdict::{Decision, Verdict};
use crate::{icmp, nat, refuse};

/// `ifindex`: the device the packet arrived on.
#[inline(always)]
pub fn from_pod<P: Packet, T: Tables>(p: &mut P, t: &T, ifindex: u32) -> Verdict {
    let mut key = MaybeUninit::<CtKey>::uninit();
    let parsed = parse(p, t, &mut key);
    if parsed.not_ours() {
        return Verdict::PASS;
    }
    if let Some(reason) = parsed.fault() {
        return Verdict::drop(reason);
    }
    // SAFETY: `parse` wrote the key: the packet is ours and without fault.
    let key = unsafe { key.assume_init_ref() };
    if parsed.has_ports() {
        let now = t.now();
        match conntrack::find_from_pod(t, key, parsed, now) {
            Found::Elsewhere => return Verdict::PASS,
            Found::Flow(ct) => {
                ct.touch(now, p.len());
                return forward(p, t, parsed, ct);
            }
            Found::Dead(reason) => return Verdict::drop(reason),
            Found::Miss => {}
        }
    } else if parsed.icmp_error() {
        let verdict = icmp::from_pod(p, t, parsed);
        if verdict != Verdict::SKIP {
            return verdict;
        }
    }
    let verdict = unknown(t, parsed, key, ifindex, p.len());
    match verdict.decide() {
        // The records of the new flow are still in the scratch.
        Decision::Open => match t.scratch().and_then(tables::opened) {
            Some(ct) => forward(p, t, parsed, ct),
            None => Verdict::drop(Reason::NO_SCRATCH),
        },
        Decision::Refuse(reason) => refuse::refuse(p, t, parsed, reason),
        Decision::Pass | Decision::Drop(_) | Decision::Skip | Decision::Reflect | Decision::Deliver(_) => verdict,
    }
}

/// A packet of no flow: opens one, if it is to a frontend.
#[inline(never)]
fn unknown<T: Tables>(t: &T, parsed: Parsed, key: &CtKey, ifindex: u32, bytes: u32) -> Verdict {
    let Some(config) = t.config() else { return Verdict::PASS };
    let tcp_event = if parsed.proto() == proto::TCP { event::of_tcp(parsed.tcp_flags()) } else { event::SYN };
    if parsed.has_ports() {
        let service = FrontendKey::new(key.dst, key.dport(), key.proto());
        if let Some(frontend) = t.frontend(&service) {
            if tcp_event == event::RST {
                return Verdict::drop(Reason::STRAY_RST);
            } else if tcp_event != event::SYN {
                return Verdict::refuse(Reason::NO_FLOW);
            }
            let now = t.now();
            let Some(backend) = service::choose(t, frontend, key.src, hash::flow(config.seed, key), config.hz, now)
            else {
                return Verdict::refuse(Reason::NO_ENDPOINTS);
            };
            return match conntrack::open(t, key, backend, ifindex, bytes, now) {
                Ok(()) => Verdict::OPEN,
                Err(reason) => Verdict::drop(reason),
            };
        }
    }
    match service::address(t, config, key.dst) {
        Address::Foreign => Verdict::PASS,
        Address::Unallocated => Verdict::drop(Reason::UNALLOCATED),
        Address::Vip if parsed.later_fragment() => Verdict::drop(Reason::FRAGMENT),
        Address::Vip if parsed.has_ports() && tcp_event == event::RST => Verdict::drop(Reason::STRAY_RST),
        // An ICMP error is never answered by one (RFC 1122 3.2.2).
        Address::Vip if parsed.icmp_error() => Verdict::drop(Reason::UNDEFINED_PORT),
        Address::Vip => Verdict::refuse(Reason::UNDEFINED_PORT),
    }
}

/// Translates a packet of a flow and sends it on its road.
#[inline(always)]
pub(crate) fn forward<P: Packet, T: Tables>(p: &mut P, t: &T, parsed: Parsed, ct: Ct) -> Verdict {
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

/// The pod a flow's packets go to, if it is on this node and still behind the same device.
#[inline(always)]
pub(crate) fn next_hop<'a, T: Tables>(t: &'a T, ct: &Ct) -> Option<&'a EndpointValue> {
    t.endpoint(ct.hop()).filter(|e| ct.hop() != 0 && e.ifindex != 0 && e.generation == ct.hop_generation())
}
