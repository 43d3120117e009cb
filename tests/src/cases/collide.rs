//! Two flows whose answers would look the same: one of them gets another source port.

use netlb_common::config::flags as config;
use netlb_common::conntrack::{CtKey, CtValue, flags, state, timeout_s};
use netlb_common::{Addr, Port, Reason};

use super::cast::{BACKEND, CLIENT, Cast, PORT, Road};
use crate::case::{Case, Send, case, from_pod, to_pod};
use crate::packet::{ACK, MOVED, RST, SYN, TCP};
use crate::world::{HZ, World};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        for road in Road::ALL {
            cases.extend([two_vips(c, road), quoted(c, road), past_the_service(c, road)]);
        }
        cases.extend([connects_past_the_service(c), after_the_first_ended(c), exhausted(c)]);
    }
    cases
}

/// Two VIPs, port 80 of both on BACKEND's 8080.
fn world(c: Cast, road: Road) -> World {
    let backend = c.at(c.of(&BACKEND), 8080);
    c.world(road).service(&(c.at(c.vip2(), 80) + "/TCP"), &[&backend])
}

fn two_vips(c: Cast, road: Road) -> Case {
    let second = c.syn().dst(c.vip2());
    let second_ack = c.tcp(ACK, b"").dst(c.vip2());
    let moved = |f: crate::packet::Frame| c.translated(f).sport(MOVED);
    let answer = c.tcp_answer(SYN | ACK, b"two").dport(MOVED);
    let name = format!(
        "Two VIPs, one backend, one client port: answers come back to the right flow ({road:?}, {})",
        c.family()
    );
    let mut case = case(name, world(c, road)).send(c.there(road, c.syn()).opens()).send(
        road.send(from_pod(&CLIENT, second.clone()), &BACKEND, moved(second)).opens().counts(&[Reason::PORT_MOVED]),
    );
    // Answers of the moved flow first, then those of the other.
    let seen = |f: crate::packet::Frame| f.src(c.vip2()).sport(80).dport(PORT);
    case = match road {
        Road::Redirect => case.send(road.send(from_pod(&BACKEND, answer.clone()), &CLIENT, seen(answer))),
        Road::Stack | Road::Bridged => {
            let there = c.delivered(road, answer.clone());
            case.send(from_pod(&BACKEND, answer)).send(to_pod(there.clone()).passes_as(seen(there)))
        }
    };
    case.send_all(c.back(road, c.tcp_answer(SYN | ACK, b"one"), |s| s))
        .send(road.send(from_pod(&CLIENT, second_ack.clone()), &BACKEND, moved(second_ack)).promotes())
        .send(c.there(road, c.tcp(ACK, b"")).promotes())
}

fn quoted(c: Cast, road: Road) -> Case {
    // A router behind the client's pod complains about the moved flow's packet: the client must recognise it.
    let second = c.syn().dst(c.vip2());
    let moved = c.translated(second.clone()).sport(MOVED);
    let (kind, code) = if c.v6 { (3, 0) } else { (11, 0) };
    let error = |quote: &crate::packet::Frame| {
        c.from(&CLIENT)
            .back()
            .src(c.outside())
            .dst(c.of(&CLIENT))
            .macs(CLIENT.mac, CLIENT.host_mac)
            .icmp(kind, code)
            .quote(quote, 28 + 40)
    };
    let name =
        format!("An ICMP error about a flow with a moved port names the client's own port ({road:?}, {})", c.family());
    case(name, world(c, road))
        .send(c.there(road, c.syn()).opens())
        .send(
            road.send(from_pod(&CLIENT, second.clone()), &BACKEND, moved.clone()).opens().counts(&[Reason::PORT_MOVED]),
        )
        .send(to_pod(error(&moved)).passes_as(error(&second)).counts(&[Reason::ICMP_TRANSLATED]))
}

fn past_the_service(c: Cast, road: Road) -> Case {
    // As when connect() translates a socket, and did not translate the one before it on the same port.
    let mut world = c.world(road);
    world.config.flags |= config::SOCKET_ALL;
    let name =
        format!("A datagram past a Service ends the flow that awaits answers on its port ({road:?}, {})", c.family());
    case(name, world)
        .send(c.there(road, c.query()).opens())
        .send_all(c.back(road, c.udp_answer(), Send::promotes))
        .send(from_pod(&CLIENT, c.translated(c.query())).counts(&[Reason::REOPENED]).entries(0, -2))
        .send(from_pod(&BACKEND, c.udp_answer()))
        .send(to_pod(c.delivered(road, c.udp_answer())))
        .send(from_pod(&CLIENT, c.translated(c.query())))
}

fn connects_past_the_service(c: Cast) -> Case {
    let road = Road::Redirect;
    let name =
        format!("A SYN past a Service ends a connection of its port that is over, and no other ({})", c.family());
    let another = c.translated(c.syn()).src(c.outside());
    case(name, c.world(road))
        .send_all(c.handshake(road))
        .send(from_pod(&CLIENT, c.translated(c.syn())))
        .send(c.there(road, c.tcp(RST, b"")))
        // Only the pod itself can use its port.
        .send(from_pod(&BACKEND, c.translated(c.syn())))
        .send(from_pod(&CLIENT, another))
        .send(from_pod(&CLIENT, c.translated(c.syn())).counts(&[Reason::REOPENED]).entries(0, -2))
        .send(from_pod(&BACKEND, c.tcp_answer(SYN | ACK, b"")))
}

fn after_the_first_ended(c: Cast) -> Case {
    let road = Road::Stack;
    let second = c.syn().dst(c.vip2());
    case(format!("A flow that is over holds no port ({})", c.family()), world(c, road))
        .send(c.there(road, c.syn()).opens())
        .wait(121)
        // Its answers' tuple goes to the new flow; what is left of the old one is one entry, expired.
        .send(
            road.send(from_pod(&CLIENT, second.clone()), &BACKEND, c.translated(second))
                .counts(&[Reason::NEW_FLOW])
                .entries(1, 0),
        )
}

fn exhausted(c: Cast) -> Case {
    // Every port that answers could come back to is awaited by another flow.
    let mut world = world(c, Road::Stack);
    let (client, backend) = (Addr::from_ip(c.of(&CLIENT)), Addr::from_ip(c.of(&BACKEND)));
    let other = Addr::from_ip(c.outside());
    for port in (32_768..=60_999).chain([PORT]) {
        let port = Port::new(port);
        let there = CtKey::new(client, other, port, Port::new(80), TCP);
        let back = CtKey::new(backend, client, Port::new(8080), port, TCP);
        let value = |to: &CtKey, flags: u16, delta: u16| CtValue {
            src: to.dst,
            dst: to.src,
            ports: to.ports().rotate_left(16),
            flags,
            delta_addr: delta,
            delta_port: delta,
            state: state::SYN_SENT,
            timeout: timeout_s(state::SYN_SENT) * HZ,
            ..bytemuck::Zeroable::zeroed()
        };
        world.flows.insert(there, value(&back, 0, 0));
        world.flows.insert(back, value(&there, flags::REPLY, 0xffff));
    }
    case(format!("A flow whose answers no port is free for is dropped, and said to be ({})", c.family()), world)
        .send(from_pod(&CLIENT, c.syn()).drops(Reason::PORTS_EXHAUSTED))
}
