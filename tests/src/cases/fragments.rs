//! Fragments: later ones follow their first, whatever its flow's way.

use std::net::IpAddr;

use netlb_common::Reason;

use super::cast::{BACKEND, CLIENT, Cast, Door, PORT, Road, THIRD};
use super::lifecycle::port_for;
use crate::case::{Case, Send, case, from_outside, from_pod, to_outside, to_pod};
use crate::packet::{Frame, MOVED, UDP, eth};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        for road in Road::ALL {
            cases.push(between_pods(c, road));
        }
        cases.extend([forwarded(c), from_outside_here(c), masqueraded(c), hairpin(c)]);
        cases.extend([out_of_order(c), expires(c), interleaved(c), refused(c), not_ours(c), ping(c)]);
    }
    cases
}

/// Bytes of a datagram before its last fragment: a UDP header and payload.
const FIRST: usize = 64;

/// The first fragment of a datagram whose flow is `flow`'s.
fn first(flow: &Frame, id: u16) -> Frame {
    flow.clone().payload(&[b'1'; FIRST - 8]).udp_len(FIRST as u16 + 100).fragment_of(id, 0, true)
}

/// Its last one: no UDP header.
fn last(flow: &Frame, id: u16) -> Frame {
    flow.clone().raw(UDP).payload(&[b'2'; 100]).fragment_of(id, FIRST as u16 / 8, false)
}

fn followed(send: Send) -> Send {
    send.counts(&[Reason::FRAGMENT_FOLLOWED])
}

/// CLIENT's datagram to the VIP.
fn query(c: Cast) -> Frame {
    c.request().udp(PORT, 53)
}

/// A query's datagram of two fragments on its way to BACKEND.
fn there(c: Cast, road: Road, id: u16) -> [Send; 2] {
    let (head, tail) = (first(&query(c), id), last(&query(c), id));
    let out = c.translated(query(c));
    [
        road.send(from_pod(&CLIENT, head), &BACKEND, first(&out, id)),
        followed(road.send(from_pod(&CLIENT, tail), &BACKEND, last(&out, id))),
    ]
}

fn between_pods(c: Cast, road: Road) -> Case {
    let [head, tail] = there(c, road, 7);
    let answer = c.from(&BACKEND).dst(c.of(&CLIENT)).udp(5353, PORT);
    let seen = answer.clone().src(c.vip()).sport(53);
    let case = case(format!("A datagram in fragments, there and back ({road:?}, {})", c.family()), c.world(road))
        .send(head.opens())
        .send(tail);
    let case = match road {
        Road::Redirect => case
            .send(road.send(from_pod(&BACKEND, first(&answer, 8)), &CLIENT, first(&seen, 8)).promotes())
            .send(followed(road.send(from_pod(&BACKEND, last(&answer, 8)), &CLIENT, last(&seen, 8)))),
        Road::Stack | Road::Bridged => {
            let (there, out) = (c.delivered(road, answer.clone()), c.delivered(road, seen));
            case.send(from_pod(&BACKEND, first(&answer, 8)))
                .send(to_pod(first(&there, 8)).passes_as(first(&out, 8)).promotes())
                .send(from_pod(&BACKEND, last(&answer, 8)))
                .send(followed(to_pod(last(&there, 8)).passes_as(last(&out, 8))))
        }
    };
    case.send_all(there(c, road, 9))
}

fn forwarded(c: Cast) -> Case {
    let door = Door::NodePort;
    let query = c.visit_query(door);
    let out = c.forwarded(query.clone(), c.remote());
    let answer = eth().ip(c.remote(), c.node_ip()).udp(5353, MOVED);
    let seen = c.by_door(answer.clone(), door).dst(c.visitor()).dport(PORT).hop();
    case(
        format!("A datagram in fragments from outside to a backend elsewhere, and back ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .send(from_outside(first(&query, 7)).routes_as(first(&out, 7)).opens_masqueraded())
    .send(followed(from_outside(last(&query, 7)).routes_as(last(&out, 7))))
    .send(from_outside(first(&answer, 7)).routes_as(first(&seen, 7)).promotes())
    .send(followed(from_outside(last(&answer, 7)).routes_as(last(&seen, 7))))
}

fn from_outside_here(c: Cast) -> Case {
    let door = Door::LoadBalancer;
    let query = c.visit_query(door);
    let out = c.for_backend(query.clone(), c.of(&BACKEND));
    let answer = eth().ip(c.of(&BACKEND), c.visitor()).udp(5353, PORT);
    let seen = c.by_door(answer.clone(), door);
    case(
        format!("A datagram in fragments from outside to a backend here, and back ({})", c.family()),
        c.doors(Road::Stack, &[c.of(&BACKEND)]),
    )
    .send(from_outside(first(&query, 7)).passes_as(first(&out, 7)).opens())
    .send(followed(from_outside(last(&query, 7)).passes_as(last(&out, 7))))
    .send(to_outside(first(&answer, 7)).passes_as(first(&seen, 7)).promotes())
    .send(followed(to_outside(last(&answer, 7)).passes_as(last(&seen, 7))))
}

fn masqueraded(c: Cast) -> Case {
    let door = Door::NodePort;
    let query = c.from(&CLIENT).dst(c.door(door)).udp(PORT, door.port(53));
    let inner = c.for_backend(query.clone(), c.remote());
    let out = inner.clone().src(c.node_ip()).sport(MOVED);
    case(format!("A datagram in fragments is masqueraded whole ({})", c.family()), c.doors(Road::Stack, &[c.remote()]))
        .send(from_pod(&CLIENT, first(&query, 7)).passes_as(first(&inner, 7)).opens())
        .send(to_outside(first(&inner, 7)).passes_as(first(&out, 7)).masquerades())
        .send(followed(from_pod(&CLIENT, last(&query, 7)).passes_as(last(&inner, 7))))
        .send(followed(to_outside(last(&inner, 7)).passes_as(last(&out, 7))))
}

fn hairpin(c: Cast) -> Case {
    let own = c.of(&CLIENT);
    let out = c.for_backend(query(c), own).src(c.vip()).hop().swap_macs();
    case(format!("A pod reaches itself with a datagram in fragments ({})", c.family()), c.doors(Road::Stack, &[own]))
        .send(from_pod(&CLIENT, first(&query(c), 7)).reflects(first(&out, 7)).opens().counts(&[Reason::HAIRPIN]))
        .send(followed(from_pod(&CLIENT, last(&query(c), 7)).reflects(last(&out, 7))))
}

fn out_of_order(c: Cast) -> Case {
    let road = Road::Redirect;
    let [head, tail] = there(c, road, 7);
    let visit = last(&c.visit_query(Door::NodePort), 7);
    case(
        format!("A later fragment before its first is dropped, and counted ({})", c.family()),
        c.doors(road, &[c.of(&BACKEND)]),
    )
    .send(from_pod(&CLIENT, last(&query(c), 7)).drops(Reason::FRAGMENT))
    .send(head.opens())
    // Of another datagram.
    .send(from_pod(&CLIENT, last(&query(c), 8)).drops(Reason::FRAGMENT))
    .send(tail)
    .send(from_outside(last(&c.visit_query(Door::ClusterIp), 7)).drops(Reason::FRAGMENT))
    // A node's address alone does not say whose it is: the stack looks.
    .send(from_outside(visit))
}

fn expires(c: Cast) -> Case {
    // The flow itself lives on: it is answered.
    let road = Road::Stack;
    let [head, _] = there(c, road, 7);
    let [again, tail] = there(c, road, 7);
    case(format!("A first fragment is remembered for thirty seconds ({})", c.family()), c.world(road))
        .send(head.opens())
        .send_all(c.back(road, c.udp_answer(), |s| s.promotes()))
        .wait(31)
        .send(from_pod(&CLIENT, last(&query(c), 7)).drops(Reason::FRAGMENT))
        .send(again)
        .wait(29)
        .send(tail)
}

fn interleaved(c: Cast) -> Case {
    // Two flows of one client, to two backends.
    let backends: [IpAddr; 2] = [c.of(&BACKEND), c.of(&THIRD)];
    let flow = |n: u32| query(c).sport(port_for(&query(c), UDP, n, 2, PORT));
    let (one, two) = (flow(0), flow(1));
    let to = |f: &Frame, n: usize| c.for_backend(f.clone(), backends[n]);
    case(
        format!("Datagrams whose fragments arrive mixed go each to its own backend ({})", c.family()),
        c.doors(Road::Stack, &backends),
    )
    .send(from_pod(&CLIENT, first(&one, 7)).passes_as(first(&to(&one, 0), 7)).opens())
    .send(from_pod(&CLIENT, first(&two, 8)).passes_as(first(&to(&two, 1), 8)).opens())
    .send(followed(from_pod(&CLIENT, last(&two, 8)).passes_as(last(&to(&two, 1), 8))))
    .send(followed(from_pod(&CLIENT, last(&one, 7)).passes_as(last(&to(&one, 0), 7))))
}

fn refused(c: Cast) -> Case {
    let head = first(&query(c), 7);
    let header = c.header() + if c.v6 { 8 } else { 0 };
    let answer = c.unreachable(&head, header, true);
    case(
        format!("Of a refused datagram the first fragment is answered, and no other ({})", c.family()),
        c.doors(Road::Stack, &[]),
    )
    .send(from_pod(&CLIENT, head).reflects(answer).counts(&[Reason::NO_ENDPOINTS]))
    .send(from_pod(&CLIENT, last(&query(c), 7)).drops(Reason::FRAGMENT))
}

fn not_ours(c: Cast) -> Case {
    let flow = c.from(&CLIENT).dst(c.of(&THIRD)).udp(PORT, 9);
    let far = c.from(&CLIENT).udp(PORT, 53);
    case(
        format!("Fragments that are no Service's pass, in any order ({})", c.family()),
        c.doors(Road::Redirect, &[c.of(&BACKEND)]),
    )
    .send(from_pod(&CLIENT, last(&flow, 7)))
    .send(from_pod(&CLIENT, first(&flow, 7)))
    .send(from_pod(&CLIENT, last(&flow, 7)))
    .send(to_pod(last(&flow, 9)))
    .send(from_pod(&CLIENT, first(&far, 7)))
    .send(to_outside(first(&far, 7)))
    .send(to_outside(last(&far, 7)))
    .send(from_outside(last(&far, 9)))
}

fn ping(c: Cast) -> Case {
    let ping = c.request().icmp(if c.v6 { 128 } else { 8 }, 0).rest(0x0001_0001).payload(&[b'p'; 56]);
    let proto = if c.v6 { crate::packet::ICMPV6 } else { crate::packet::ICMP };
    let head = ping.clone().fragment_of(7, 0, true);
    let header = c.header() + if c.v6 { 8 } else { 0 };
    let answer = c.unreachable(&head, header, false);
    case(format!("A ping to a VIP in fragments is refused once ({})", c.family()), c.world(Road::Stack))
        .send(from_pod(&CLIENT, head).reflects(answer).counts(&[Reason::UNDEFINED_PORT]))
        .send(from_pod(&CLIENT, ping.raw(proto).fragment_of(7, 8, false)).drops(Reason::FRAGMENT))
}
