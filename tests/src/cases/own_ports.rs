//! The node's own sockets, and masqueraded flows to the same backend from the same port of the node: whoever comes second gets another port.

use std::net::{IpAddr, SocketAddr};

use netlb_common::{Reason, proto};

use super::cast::{CLIENT, Cast, PORT, Road};
use crate::case::{Case, Send, case, from_outside, from_pod, to_outside};
use crate::packet::{ACK, FIN, Frame, RST, SCTP, SYN, TCP, UDP, eth};
use crate::world::{NodeSocket, World};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        cases.extend([TCP, UDP, SCTP].map(|proto| second(c, proto)));
        cases.extend([TCP, UDP].map(|proto| first(c, proto)));
        cases.extend([beside_a_pod(c), twice(c), after_its_end(c), in_the_middle(c), none_left(c)]);
    }
    cases
}

const BACKEND_PORT: u16 = 8080;
const NODE_PORT: u16 = 30_080;

/// The node's port that both want, and the one that is left.
const WANTED: u16 = 2_000;
const LEFT: u16 = 2_001;

// Chunk types (RFC 9260 section 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// A NodePort with a backend elsewhere; what is masqueraded gets `WANTED`.
fn world(c: Cast, proto: u8) -> World {
    let frontend = format!("{}/{}", c.at(c.vip(), 80), proto::name(proto));
    let world = c.node(Road::Stack).service(&frontend, &[&c.at(c.remote(), BACKEND_PORT)]);
    world.node_port(&frontend, NODE_PORT).one_snat_port(WANTED)
}

/// From now on what is masqueraded gets `LEFT`.
fn move_on(world: &mut World) {
    world.config.snat_first = LEFT.into();
}

/// The first packet of a flow, or the answer to it.
fn frame(proto: u8, from: (IpAddr, u16), to: (IpAddr, u16), answer: bool) -> Frame {
    let frame = eth().ip(from.0, to.0);
    match proto {
        TCP => frame.tcp(from.1, to.1, if answer { SYN | ACK } else { SYN }),
        UDP => frame.udp(from.1, to.1).payload(b"datagram"),
        _ => frame.sctp(from.1, to.1, if answer { INIT_ACK } else { INIT }).payload(b"parameters!!"),
    }
}

/// The visitor's first packet to the NodePort, forwarded from `WANTED`.
fn visit(c: Cast, proto: u8) -> Send {
    let asked = frame(proto, (c.visitor(), PORT), (c.node_ip(), NODE_PORT), false);
    from_outside(asked.clone())
        .routes_as(asked.src(c.node_ip()).sport(WANTED).dst(c.remote()).dport(BACKEND_PORT).hop())
}

/// The backend's answer to the visitor.
fn visitor_answered(c: Cast, proto: u8) -> Send {
    let answer = backend_answers(c, proto, WANTED);
    from_outside(answer.clone()).routes_as(answer.src(c.node_ip()).sport(NODE_PORT).dst(c.visitor()).dport(PORT).hop())
}

/// The backend's answer to a port of the node.
fn backend_answers(c: Cast, proto: u8, port: u16) -> Frame {
    frame(proto, (c.remote(), BACKEND_PORT), (c.node_ip(), port), true)
}

/// The first packet of the node's own socket on a port.
fn own(c: Cast, proto: u8, port: u16) -> Frame {
    frame(proto, (c.node_ip(), port), (c.remote(), BACKEND_PORT), false)
}

/// It leaves from another port.
fn moved(packet: Frame) -> Send {
    to_outside(packet.clone()).passes_as(packet.sport(LEFT))
}

/// It opens a flow of its own, from another port.
fn moves(packet: Frame) -> Send {
    moved(packet).counts(&[Reason::PORT_MOVED]).entries(2, 0)
}

/// What comes to the other port is for the socket.
fn comes_home(answer: Frame, port: u16) -> Send {
    from_outside(answer.clone()).passes_as(answer.dport(port))
}

fn second(c: Cast, proto: u8) -> Case {
    let own = own(c, proto, WANTED);
    let answer = backend_answers(c, proto, LEFT);
    let name = format!(
        "A socket of the node on a masqueraded flow's port leaves from another, {} ({})",
        proto::name(proto),
        c.family()
    );
    let case = case(name, world(c, proto))
        .send(visit(c, proto).opens_masqueraded())
        .change(move_on)
        .send(moves(own.clone()))
        .send(moved(own.clone()));
    if proto == UDP {
        // The first answer tells that both ends have spoken.
        case.send(comes_home(answer.clone(), WANTED).promotes())
            .send(comes_home(answer, WANTED))
            .send(visitor_answered(c, proto).promotes())
            .send(moved(own))
    } else {
        case.send(comes_home(answer, WANTED)).send(visitor_answered(c, proto))
    }
}

fn first(c: Cast, proto: u8) -> Case {
    let at = |ip: IpAddr, port: u16| SocketAddr::new(ip, port);
    let socket = NodeSocket { proto, local: at(c.node_ip(), WANTED), peer: at(c.remote(), BACKEND_PORT) };
    // One on the same port to somebody else is nobody's concern.
    let other = NodeSocket { local: at(c.node_ip(), LEFT), peer: at(c.outside(), BACKEND_PORT), ..socket };
    let asked = frame(proto, (c.visitor(), PORT), (c.node_ip(), NODE_PORT), false);
    let forwarded = asked.clone().src(c.node_ip()).sport(LEFT).dst(c.remote()).dport(BACKEND_PORT).hop();
    let name = format!(
        "A port from which the node has a socket to the backend is not chosen for a masqueraded flow, {} ({})",
        proto::name(proto),
        c.family()
    );
    case(name, world(c, proto))
        .change(move |world| world.sockets.extend([socket, other]))
        .send(from_outside(asked.clone()).drops(Reason::PORTS_EXHAUSTED))
        .change(move_on)
        .send(from_outside(asked).routes_as(forwarded).opens_masqueraded())
}

fn beside_a_pod(c: Cast) -> Case {
    let asked = c.from(&CLIENT).dst(c.node_ip()).tcp(PORT, NODE_PORT, SYN);
    let inner = asked.clone().dst(c.remote()).dport(BACKEND_PORT);
    let own = own(c, TCP, WANTED);
    let pods = backend_answers(c, TCP, WANTED);
    let name =
        format!("A socket of the node on the port of a pod's masqueraded flow leaves from another ({})", c.family());
    case(name, world(c, TCP))
        .send(from_pod(&CLIENT, asked).passes_as(inner.clone()).opens())
        .send(to_outside(inner.clone()).passes_as(inner.src(c.node_ip()).sport(WANTED)).masquerades())
        .change(move_on)
        .send(moves(own))
        .send(comes_home(backend_answers(c, TCP, LEFT), WANTED))
        .send(from_outside(pods.clone()).passes_as(pods.dst(c.of(&CLIENT)).dport(PORT)))
}

fn twice(c: Cast) -> Case {
    let name = format!(
        "A socket of the node on a port that another of its sockets was moved to is moved too ({})",
        c.family()
    );
    let third = LEFT + 1;
    let own_third = own(c, TCP, LEFT);
    case(name, world(c, TCP))
        .send(visit(c, TCP).opens_masqueraded())
        .change(move_on)
        .send(moves(own(c, TCP, WANTED)))
        .change(move |world| world.config.snat_first = third.into())
        .send(
            to_outside(own_third.clone()).passes_as(own_third.sport(third)).counts(&[Reason::PORT_MOVED]).entries(2, 0),
        )
        .send(comes_home(backend_answers(c, TCP, third), LEFT))
        .send(comes_home(backend_answers(c, TCP, LEFT), WANTED))
}

fn after_its_end(c: Cast) -> Case {
    let reset = frame(TCP, (c.visitor(), PORT), (c.node_ip(), NODE_PORT), false).flags(RST);
    let gone = reset.clone().src(c.node_ip()).sport(WANTED).dst(c.remote()).dport(BACKEND_PORT).hop();
    let own = own(c, TCP, WANTED);
    let name = format!(
        "A masqueraded flow that has ended keeps its port from the node's sockets as long as its entries stand ({})",
        c.family()
    );
    case(name, world(c, TCP))
        .send(visit(c, TCP).opens_masqueraded())
        .send(from_outside(reset).routes_as(gone))
        .change(move_on)
        .send(moves(own.clone()))
        .wait(121)
        // Nobody has the port any more, not even the socket's own flow.
        .send(to_outside(own))
}

fn in_the_middle(c: Cast) -> Case {
    // It would be another connection to the backend.
    let later = |flags: u8| own(c, TCP, WANTED).flags(flags);
    let name =
        format!("A connection of the node's that is older than the masqueraded flow keeps its port ({})", c.family());
    case(name, world(c, TCP))
        .send(visit(c, TCP).opens_masqueraded())
        .change(move_on)
        .send_all([ACK, FIN | ACK, RST, SYN | ACK].map(|flags| to_outside(later(flags))))
        // To another port of the backend there is no collision.
        .send(to_outside(own(c, TCP, WANTED).dport(BACKEND_PORT + 1)))
}

fn none_left(c: Cast) -> Case {
    let name = format!(
        "A socket of the node whose port a masqueraded flow has is told so where no other is free ({})",
        c.family()
    );
    case(name, world(c, TCP))
        .send(visit(c, TCP).opens_masqueraded())
        .send(to_outside(own(c, TCP, WANTED)).drops(Reason::PORTS_EXHAUSTED))
}
