//! SCTP: TCP's table of states with INIT, ABORT and SHUTDOWN as SYN, RST and FIN, and a checksum over all of the packet.

use netlb_common::Reason;
use netlb_common::conntrack::state;

use super::cast::{BACKEND, CLIENT, Cast, Door, PORT, Road};
use crate::case::{Case, Send, case, from_outside, from_pod, to_pod};
use crate::packet::{Frame, MOVED, SCTP, eth};
use crate::world::World;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        for road in Road::ALL {
            cases.extend([association(c, road), abort(c, road)]);
        }
        cases.extend([forwarded(c), no_sum(c), lengths(c), refused(c), no_flow(c), in_fragments(c), same_port(c)]);
    }
    cases
}

// Chunk types (RFC 9260 section 3.2).
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

fn service(c: Cast) -> String {
    c.at(c.vip(), 80) + "/SCTP"
}

fn world(c: Cast, road: Road) -> World {
    c.node(road).service(&service(c), &[&c.at(c.of(&BACKEND), 8080)])
}

/// CLIENT's packet to the VIP.
fn ask(c: Cast, chunk: u8) -> Frame {
    c.request().sctp(PORT, 80, chunk).payload(b"parameters!!")
}

/// BACKEND's packet to CLIENT.
fn answer(c: Cast, chunk: u8) -> Frame {
    c.from(&BACKEND).dst(c.of(&CLIENT)).sctp(8080, PORT, chunk).payload(b"parameters")
}

fn there(c: Cast, road: Road, chunk: u8) -> Send {
    c.there(road, ask(c, chunk))
}

fn back(c: Cast, road: Road, chunk: u8) -> Vec<Send> {
    c.back(road, answer(c, chunk), |s| s)
}

fn association(c: Cast, road: Road) -> Case {
    case(format!("An SCTP association from INIT to SHUTDOWN COMPLETE ({road:?}, {})", c.family()), world(c, road))
        .send(there(c, road, INIT).opens())
        .state(state::SYN_SENT)
        .send_all(back(c, road, INIT_ACK))
        .state(state::SYN_RECV)
        .send(there(c, road, COOKIE_ECHO).promotes())
        .state(state::ESTABLISHED)
        .send_all(back(c, road, COOKIE_ACK))
        .send(there(c, road, DATA))
        .send_all(back(c, road, DATA))
        .send(there(c, road, SHUTDOWN))
        .state(state::FIN_CLIENT)
        .send_all(back(c, road, SHUTDOWN_ACK))
        .state(state::TIME_WAIT)
        .send(there(c, road, SHUTDOWN_COMPLETE))
        .state(state::TIME_WAIT)
        .send(there(c, road, INIT).counts(&[Reason::REOPENED]).opens().entries(0, -2))
}

fn abort(c: Cast, road: Road) -> Case {
    case(format!("ABORT ends an SCTP association ({road:?}, {})", c.family()), world(c, road))
        .send(there(c, road, INIT).opens())
        .send_all(back(c, road, ABORT))
        .state(state::CLOSE)
        .send(there(c, road, INIT).counts(&[Reason::REOPENED]).opens().entries(-2, 0))
        .state(state::SYN_SENT)
}

fn forwarded(c: Cast) -> Case {
    let world = c.node(Road::Stack).service(&service(c), &[&c.at(c.remote(), 8080)]).node_port(&service(c), 30_080);
    let door = Door::NodePort;
    let request = |chunk: u8| c.visit(door).sctp(PORT, 30_080, chunk).payload(b"parameters");
    let on = |chunk: u8| from_outside(request(chunk)).routes_as(c.forwarded(request(chunk), c.remote()));
    let answer = eth().ip(c.remote(), c.node_ip()).sctp(8080, MOVED, INIT_ACK).payload(b"cookie");
    let seen = c.by_door(answer.clone(), door).dst(c.visitor()).dport(PORT).hop();
    case(format!("SCTP from outside by a NodePort to a backend elsewhere ({})", c.family()), world)
        .send(on(INIT).opens_masqueraded())
        .send(from_outside(answer).routes_as(seen))
        .send(on(COOKIE_ECHO).promotes())
        .send(on(DATA))
}

fn no_sum(c: Cast) -> Case {
    let road = Road::Redirect;
    let name = format!("An SCTP checksum left to the device stays zero ({})", c.family());
    case(name, world(c, road)).send(c.there(road, ask(c, INIT).no_sum()).opens()).send_all(c.back(
        road,
        answer(c, INIT_ACK).no_sum(),
        |s| s,
    ))
}

fn lengths(c: Cast) -> Case {
    // The sum changes by a number that depends on how much follows the ports.
    let road = Road::Stack;
    let mut case = case(format!("SCTP packets of any length keep a right checksum ({})", c.family()), world(c, road))
        .send(there(c, road, INIT).opens());
    for len in [0, 1, 2, 3, 4, 15, 16, 17, 100, 255, 256, 1_000, 1_400] {
        case = case.send(c.there(road, ask(c, DATA).payload(&vec![b'x'; len])));
    }
    // Padding behind the packet is no part of it.
    case.send(c.there(road, ask(c, DATA).payload(b"").padding(6)))
}

fn refused(c: Cast) -> Case {
    let world = c.node(Road::Stack).service(&service(c), &[]);
    let undefined = ask(c, INIT).dport(81);
    case(format!("SCTP is refused by ICMP ({})", c.family()), world)
        .send(
            from_pod(&CLIENT, ask(c, INIT))
                .reflects(c.unreachable(&ask(c, INIT), c.header(), false))
                .counts(&[Reason::NO_ENDPOINTS]),
        )
        .send(
            from_pod(&CLIENT, undefined.clone())
                .reflects(c.unreachable(&undefined, c.header(), false))
                .counts(&[Reason::UNDEFINED_PORT]),
        )
}

fn no_flow(c: Cast) -> Case {
    let data = ask(c, DATA);
    case(format!("SCTP of no known association is refused, its ABORT dropped ({})", c.family()), world(c, Road::Stack))
        .send(
            from_pod(&CLIENT, data.clone())
                .reflects(c.unreachable(&data, c.header(), false))
                .counts(&[Reason::NO_FLOW]),
        )
        .send(from_pod(&CLIENT, ask(c, ABORT)).drops(Reason::STRAY_RST))
        .send(to_pod(answer(c, DATA)))
}

/// The two fragments of a packet.
fn parts(frame: Frame) -> [Frame; 2] {
    let head = frame.clone().payload(&[b'1'; 48]).fragment(0, true);
    [head, frame.raw(SCTP).payload(&[b'2'; 40]).fragment(8, false)]
}

fn in_fragments(c: Cast) -> Case {
    // The checksum of the whole cannot be repaired by who sees a part.
    let road = Road::Stack;
    let [head, _] = parts(ask(c, DATA));
    case(format!("An SCTP packet in fragments whose ports would change is dropped ({})", c.family()), world(c, road))
        .send(there(c, road, INIT).opens())
        .send(from_pod(&CLIENT, head).drops(Reason::REWRITE_FAILED))
}

fn same_port(c: Cast) -> Case {
    let road = Road::Stack;
    let world = c.node(road).service(&service(c), &[&c.at(c.of(&BACKEND), 80)]);
    let out = |f: Frame| f.dst(c.of(&BACKEND));
    let [head, tail] = parts(ask(c, DATA));
    case(format!("An SCTP packet in fragments whose ports stay is carried on ({})", c.family()), world)
        .send(from_pod(&CLIENT, ask(c, INIT)).passes_as(out(ask(c, INIT))).opens())
        .send(from_pod(&CLIENT, head.clone()).passes_as(out(head)))
        .send(from_pod(&CLIENT, tail.clone()).passes_as(out(tail)).counts(&[Reason::FRAGMENT_FOLLOWED]))
}
