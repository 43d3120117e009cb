//! A pod that reaches itself through its own Service.

use netlb_common::Reason;
use netlb_common::conntrack::state;

use super::cast::{BACKEND, CLIENT, Cast, PORT, Road};
use crate::case::{Case, Send, case, from_pod};
use crate::packet::{ACK, FIN, Frame, RST, SYN};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        for road in Road::ALL {
            cases.extend([tcp(c, road), udp(c, road)]);
        }
        cases.extend([ttl_ends(c), several(c), icmp(c)]);
    }
    cases
}

/// The Service's only backend is the client itself.
fn world(c: Cast, road: Road) -> crate::world::World {
    let own = c.of(&CLIENT);
    c.node(road).service(&c.web(), &[&c.at(own, 8080)]).service(&c.dns(), &[&c.at(own, 5353)])
}

/// A request: from VIP to the pod, one hop on, back out of the device it came from.
fn there(c: Cast, frame: Frame, port: u16) -> Send {
    let out = frame.clone().src(c.vip()).dst(c.of(&CLIENT)).dport(port).hop().swap_macs();
    from_pod(&CLIENT, frame).reflects(out)
}

/// The pod's answer to the VIP.
fn back(c: Cast, frame: Frame, port: u16) -> Send {
    let out = frame.clone().src(c.vip()).dst(c.of(&CLIENT)).sport(port).hop().swap_macs();
    from_pod(&CLIENT, frame).reflects(out)
}

fn answer(c: Cast, flags: u8, payload: &[u8]) -> Frame {
    c.request().tcp(8080, PORT, flags).seq(5000, 1001).payload(payload)
}

fn tcp(c: Cast, road: Road) -> Case {
    case(format!("A pod reaches itself over TCP ({road:?}, {})", c.family()), world(c, road))
        .send(there(c, c.syn(), 8080).opens().counts(&[Reason::HAIRPIN]))
        .send(back(c, answer(c, SYN | ACK, b""), 80))
        .send(there(c, c.tcp(ACK, b""), 8080).promotes())
        .send(there(c, c.tcp(ACK, b"hello, me"), 8080))
        .send(back(c, answer(c, ACK, b"hello, me too"), 80))
        .send(there(c, c.tcp(FIN | ACK, b""), 8080))
        .send(back(c, answer(c, FIN | ACK, b""), 80))
        .state(state::TIME_WAIT)
}

fn udp(c: Cast, road: Road) -> Case {
    case(format!("A pod reaches itself over UDP ({road:?}, {})", c.family()), world(c, road))
        .send(there(c, c.query(), 5353).opens().counts(&[Reason::HAIRPIN]))
        .send(back(c, c.request().udp(5353, PORT).payload(b"me"), 53).promotes())
        .send(there(c, c.query(), 5353))
        .send(there(c, c.query().no_sum(), 5353))
}

fn ttl_ends(c: Cast) -> Case {
    let syn = c.syn().ttl(1);
    case(format!("A hairpin packet whose TTL ends goes to the stack as it is ({})", c.family()), world(c, Road::Stack))
        .send(from_pod(&CLIENT, syn).opens().counts(&[Reason::HAIRPIN, Reason::TO_STACK]))
        .send(there(c, c.syn().ttl(2), 8080))
}

fn several(c: Cast) -> Case {
    // Two pods behind the Service, the client one of them: only its own flows to itself are hairpins.
    let world = c.node(Road::Redirect).service(&c.web(), &[&c.at(c.of(&CLIENT), 8080), &c.at(c.of(&BACKEND), 8080)]);
    let port = |n| super::lifecycle::port_for(&c.syn(), crate::packet::TCP, n, 2, 40_000);
    case(format!("A backend that is its own client sometimes reaches another ({})", c.family()), world)
        .send(there(c, c.syn().sport(port(0)), 8080).opens().counts(&[Reason::HAIRPIN]))
        .send(c.there(Road::Redirect, c.syn().sport(port(1))).opens())
}

fn icmp(c: Cast) -> Case {
    // Nobody listens: the pod answers its own datagram, as it arrived, with port unreachable, to the VIP.
    let query = c.query();
    let arrived = query.clone().src(c.vip()).dst(c.of(&CLIENT)).dport(5353).hop();
    let (kind, code) = if c.v6 { (1, 4) } else { (3, 3) };
    let error = c.request().icmp(kind, code).quote(&arrived, 200);
    // What the sender knows: it sent from itself to the VIP.
    let out =
        c.request().src(c.vip()).dst(c.of(&CLIENT)).swap_macs().hop().icmp(kind, code).quote(&query.clone().hop(), 200);
    case(format!("An ICMP error of a pod to itself names what it sent ({})", c.family()), world(c, Road::Stack))
        .send(there(c, query, 5353).opens().counts(&[Reason::HAIRPIN]))
        .send(from_pod(&CLIENT, error).reflects(out).counts(&[Reason::ICMP_TRANSLATED]))
        // Not a hairpin: a reset from nowhere.
        .send(from_pod(&CLIENT, c.tcp(RST, b"")).drops(Reason::STRAY_RST))
}
