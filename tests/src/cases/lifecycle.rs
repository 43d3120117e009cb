//! Flows over time: reuse, backends that leave, expiry, a full table.

use netlb_common::backend::state::{DRAINING, REMOVED};
use netlb_common::conntrack::state;
use netlb_common::{Reason, hash};

use super::cast::{BACKEND, CLIENT, Cast, PORT, Road, THIRD};
use crate::case::{Case, Send, case, from_pod, to_pod};
use crate::packet::{ACK, FIN, Frame, RST, SYN};
use crate::world::World;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        cases.extend([reuse_after_fin(c), reuse_after_rst(c), forged_rst(c), syn_on_a_live_flow(c), half_open(c)]);
        for road in [Road::Stack, Road::Redirect] {
            cases.extend([udp_backend_removed(c, road), tcp_backend_removed(c, road), draining(c, road)]);
        }
        cases.extend([udp_without_a_backend_left(c), unanswered_syn_moves(c), stale(c), one_way(c)]);
        cases.extend([
            late_answer(c),
            late_reset(c),
            udp_expires(c),
            tcp_expires(c),
            closed_expires(c),
            syn_expires(c),
            full(c),
        ]);
    }
    cases
}

/// The VIP's two ports on two pods; all of today's flows go to BACKEND, as its Service's only active one, until `also` adds THIRD.
fn two(c: Cast, road: Road) -> World {
    let mut world = c
        .node(road)
        .service(&c.web(), &[&c.at(c.of(&BACKEND), 8080), &c.at(c.of(&THIRD), 8080)])
        .service(&c.dns(), &[&c.at(c.of(&BACKEND), 5353), &c.at(c.of(&THIRD), 5353)]);
    world.set_state(&c.web(), &c.at(c.of(&THIRD), 8080), REMOVED);
    world.set_state(&c.dns(), &c.at(c.of(&THIRD), 5353), REMOVED);
    world
}

/// BACKEND goes to a state, THIRD takes its place.
fn replaced(c: Cast, to: u8) -> impl Fn(&mut World) {
    move |w| {
        for (frontend, port) in [(c.web(), 8080), (c.dns(), 5353)] {
            w.set_state(&frontend, &c.at(c.of(&THIRD), port), netlb_common::backend::state::ACTIVE);
            w.set_state(&frontend, &c.at(c.of(&BACKEND), port), to);
        }
    }
}

/// A request on its way to THIRD.
fn to_third(c: Cast, road: Road, request: Frame) -> Send {
    let out = c.translated(request.clone()).dst(c.of(&THIRD));
    road.send(from_pod(&CLIENT, request), &THIRD, out)
}

fn reuse_after_fin(c: Cast) -> Case {
    let road = Road::Redirect;
    case(format!("A SYN on a closed connection's ports opens a new one ({})", c.family()), two(c, road))
        .send_all(c.handshake(road))
        .send(c.there(road, c.tcp(FIN | ACK, b"")))
        .send_all(c.back(road, c.tcp_answer(FIN | ACK, b""), |s| s))
        .state(state::TIME_WAIT)
        .change(replaced(c, REMOVED))
        .send(to_third(c, road, c.syn().seq(90_000, 0)).counts(&[Reason::REOPENED]).opens().entries(0, -2))
        .state(state::SYN_SENT)
}

fn reuse_after_rst(c: Cast) -> Case {
    let road = Road::Stack;
    case(format!("A SYN after a RST opens a new connection ({})", c.family()), c.world(road))
        .send_all(c.handshake(road))
        .send_all(c.back(road, c.tcp_answer(RST, b""), |s| s))
        .state(state::CLOSE)
        .send(c.there(road, c.syn()).counts(&[Reason::REOPENED]).opens().entries(0, -2))
        .send_all(c.back(road, c.tcp_answer(SYN | ACK, b""), |s| s))
        .send(c.there(road, c.tcp(ACK, b"")).promotes())
}

fn forged_rst(c: Cast) -> Case {
    let road = Road::Redirect;
    case(format!("A RST that the ends do not believe ends nothing ({})", c.family()), c.world(road))
        .send_all(c.handshake(road))
        .send(c.there(road, c.tcp(RST, b"")))
        .state(state::CLOSE)
        .send(c.there(road, c.tcp(ACK, b"still here")))
        .state(state::ESTABLISHED)
        .wait(3600)
        .send_all(c.back(road, c.tcp_answer(ACK, b"so am I"), |s| s))
}

fn syn_on_a_live_flow(c: Cast) -> Case {
    // A client that lost its memory: the backend answers with a challenge ACK, the client with RST, then a SYN opens anew.
    let road = Road::Redirect;
    case(format!("A SYN on a live connection goes to its backend, which has its say ({})", c.family()), two(c, road))
        .send_all(c.handshake(road))
        .change(replaced(c, DRAINING))
        .send(c.there(road, c.syn().seq(77, 0)))
        .state(state::ESTABLISHED)
        .send_all(c.back(road, c.tcp_answer(ACK, b""), |s| s))
        .send(c.there(road, c.tcp(RST, b"")))
        .send(to_third(c, road, c.syn().seq(77, 0)).counts(&[Reason::REOPENED]).opens().entries(0, -2))
}

fn half_open(c: Cast) -> Case {
    let road = Road::Stack;
    case(format!("An unanswered SYN stays in CT_NEW, however often it is sent ({})", c.family()), c.world(road))
        .send(c.there(road, c.syn()).opens())
        .wait(1)
        .send(c.there(road, c.syn()))
        .wait(2)
        .send(c.there(road, c.syn()))
        .state(state::SYN_SENT)
        .send_all(c.back(road, c.tcp_answer(RST | ACK, b""), |s| s))
        .state(state::CLOSE)
}

fn udp_backend_removed(c: Cast, road: Road) -> Case {
    let name = format!("A UDP flow leaves a removed backend with the change ({road:?}, {})", c.family());
    case(name, two(c, road))
        .send(c.there(road, c.query()).opens())
        .send_all(c.back(road, c.udp_answer(), |s| s.promotes()))
        .send(c.there(road, c.query()))
        .change(replaced(c, REMOVED))
        .send(to_third(c, road, c.query()).counts(&[Reason::RESELECTED]).opens().entries(0, -2))
        .send(to_third(c, road, c.query()))
}

fn tcp_backend_removed(c: Cast, road: Road) -> Case {
    let name = format!("A TCP connection to a removed backend may end by itself ({road:?}, {})", c.family());
    case(name, two(c, road))
        .send_all(c.handshake(road))
        .change(replaced(c, REMOVED))
        .send(c.there(road, c.tcp(ACK, b"data")))
        .send_all(c.back(road, c.tcp_answer(ACK, b"answer"), |s| s))
        .send(c.there(road, c.tcp(FIN | ACK, b"")))
        .send_all(c.back(road, c.tcp_answer(FIN | ACK, b""), |s| s))
        .state(state::TIME_WAIT)
}

fn draining(c: Cast, road: Road) -> Case {
    let other = c.syn().sport(PORT + 1);
    let name = format!("A terminating backend keeps its flows and gets no new ones ({road:?}, {})", c.family());
    case(name, two(c, road))
        .send_all(c.handshake(road))
        .send(c.there(road, c.query()).opens())
        .change(replaced(c, DRAINING))
        .send(c.there(road, c.tcp(ACK, b"data")))
        .send(c.there(road, c.query()))
        .send_all(c.back(road, c.udp_answer(), |s| s.promotes()))
        .send(to_third(c, road, other).opens())
        .send(to_third(c, road, c.query().sport(PORT + 1)).opens())
}

fn udp_without_a_backend_left(c: Cast) -> Case {
    let road = Road::Redirect;
    let header = if c.v6 { 40 } else { 20 };
    let backend = c.at(c.of(&BACKEND), 5353);
    let name = format!("UDP stops with the removal also when the Service has no endpoint left ({})", c.family());
    case(name, c.world(road))
        .send(c.there(road, c.query()).opens())
        .send_all(c.back(road, c.udp_answer(), |s| s.promotes()))
        .change(move |w| w.set_state(&c.dns(), &backend, REMOVED))
        .send(
            from_pod(&CLIENT, c.query())
                .reflects(c.unreachable(&c.query(), header, true))
                .counts(&[Reason::RESELECTED, Reason::NO_ENDPOINTS])
                .entries(0, -2),
        )
        .send(
            from_pod(&CLIENT, c.query())
                .reflects(c.unreachable(&c.query(), header, true))
                .counts(&[Reason::NO_ENDPOINTS]),
        )
}

fn unanswered_syn_moves(c: Cast) -> Case {
    let road = Road::Redirect;
    case(format!("A SYN that a removed backend never answered tries the next one ({})", c.family()), two(c, road))
        .send(c.there(road, c.syn()).opens())
        .change(replaced(c, REMOVED))
        .send(to_third(c, road, c.syn()).counts(&[Reason::RESELECTED]).opens().entries(-2, 0))
}

fn stale(c: Cast) -> Case {
    let road = Road::Redirect;
    let (web, dns) = (c.at(c.of(&BACKEND), 8080), c.at(c.of(&BACKEND), 5353));
    let (web3, dns3) = (c.at(c.of(&THIRD), 8080), c.at(c.of(&THIRD), 5353));
    let name = format!("A flow whose backend id means another backend never reaches that one ({})", c.family());
    case(name, c.world(road))
        .send_all(c.handshake(road))
        .send(c.there(road, c.query()).opens())
        .change(move |w| {
            w.reuse_id(&c.web(), &web, &web3);
            w.reuse_id(&c.dns(), &dns, &dns3);
        })
        .send(from_pod(&CLIENT, c.tcp(ACK, b"for BACKEND")).drops(Reason::STALE_BACKEND))
        .send(to_third(c, road, c.query()).counts(&[Reason::RESELECTED]).opens().entries(-2, 0))
        .send(to_third(c, road, c.syn()).counts(&[Reason::RESELECTED]).opens().entries(0, -2))
}

fn one_way(c: Cast) -> Case {
    // A UDP receiver that says something once in an hour: each of its datagrams must still come from the VIP.
    let road = Road::Stack;
    let mut case =
        case(format!("A flow that speaks in one direction only stays alive in both ({})", c.family()), c.world(road))
            .send(c.there(road, c.query()).opens())
            .send_all(c.back(road, c.udp_answer(), |s| s.promotes()));
    for _ in 0..40 {
        case = case.wait(90).send(c.there(road, c.query()));
    }
    case = case.send_all(c.back(road, c.udp_answer(), |s| s));
    for _ in 0..40 {
        case = case.wait(90).send_all(c.back(road, c.udp_answer(), |s| s));
    }
    case.send(c.there(road, c.query()))
}

fn late_answer(c: Cast) -> Case {
    // The client's tuple serves a new flow by now: the old backend's entry must not live by that one, nor speak for the VIP.
    let road = Road::Stack;
    let late = c.delivered(road, c.udp_answer());
    let name =
        format!("A late answer of an expired flow's backend is not taken for one of its successor's ({})", c.family());
    case(name, two(c, road))
        .send(c.there(road, c.query()).opens())
        .send_all(c.back(road, c.udp_answer(), |s| s.promotes()))
        .wait(121)
        .change(replaced(c, DRAINING))
        .send(to_third(c, road, c.query()).opens().entries(0, -1))
        .send(to_pod(late))
}

fn late_reset(c: Cast) -> Case {
    let road = Road::Redirect;
    let late = c.tcp_answer(RST, b"");
    let answer = c.tcp_answer(SYN | ACK, b"").src(c.of(&THIRD)).macs(THIRD.host_mac, THIRD.mac);
    let seen = answer.clone().src(c.vip()).sport(80);
    let name = format!("A late RST of an expired connection's backend does not end its successor ({})", c.family());
    case(name, two(c, road))
        .send(c.there(road, c.syn()).opens())
        .wait(121)
        .change(replaced(c, DRAINING))
        .send(to_third(c, road, c.syn()).opens().entries(-1, 0))
        .send(from_pod(&BACKEND, late))
        .send(road.send(from_pod(&THIRD, answer), &CLIENT, seen))
        .send(to_third(c, road, c.tcp(ACK, b"")).promotes())
}

fn udp_expires(c: Cast) -> Case {
    let road = Road::Stack;
    let answer = c.delivered(road, c.udp_answer());
    case(format!("An idle UDP flow is over after 120 s, an unanswered one after 30 ({})", c.family()), two(c, road))
        .send(c.there(road, c.query()).opens())
        .wait(29)
        .send(c.there(road, c.query()))
        .wait(31)
        .send(to_pod(answer.clone()))
        .send(c.there(road, c.query()).counts(&[Reason::NEW_FLOW]))
        .send_all(c.back(road, c.udp_answer(), |s| s.promotes()))
        .wait(119)
        .send(c.there(road, c.query()))
        .wait(122)
        .change(replaced(c, DRAINING))
        .send(to_pod(answer))
        // THIRD's answers are another tuple: the old flow's entry for BACKEND's is left to the sweep.
        .send(to_third(c, road, c.query()).opens().entries(0, -1))
}

fn tcp_expires(c: Cast) -> Case {
    let road = Road::Stack;
    let data = c.tcp(ACK, b"data");
    case(format!("An idle TCP connection lives for a day ({})", c.family()), c.world(road))
        .send_all(c.handshake(road))
        .wait(86_390)
        .send(c.there(road, data.clone()))
        .wait(86_410)
        .send(from_pod(&CLIENT, data.clone()).reflects(c.reset(&data, 5001, 0, RST)).counts(&[Reason::NO_FLOW]))
        .send(c.there(road, c.syn()).opens().entries(0, -2))
}

fn closed_expires(c: Cast) -> Case {
    let road = Road::Stack;
    let late = c.tcp_answer(ACK, b"");
    case(format!("A closed connection is remembered for 30 s, for late segments ({})", c.family()), c.world(road))
        .send_all(c.handshake(road))
        .send(c.there(road, c.tcp(FIN | ACK, b"")))
        .send_all(c.back(road, c.tcp_answer(FIN | ACK, b""), |s| s))
        .wait(29)
        .send_all(c.back(road, late.clone(), |s| s))
        .wait(31)
        .send(to_pod(c.delivered(road, late)))
}

fn syn_expires(c: Cast) -> Case {
    let road = Road::Stack;
    case(format!("A SYN is remembered for 120 s ({})", c.family()), c.world(road))
        .send(c.there(road, c.syn()).opens())
        .wait(121)
        .send(to_pod(c.delivered(road, c.tcp_answer(SYN | ACK, b""))))
        .send(c.there(road, c.syn()).counts(&[Reason::NEW_FLOW]))
}

fn full(c: Cast) -> Case {
    let road = Road::Stack;
    let other = |f: Frame| f.sport(PORT + 1);
    let other_back = |f: Frame| f.dport(PORT + 1);
    let mut world = c.world(road);
    world.ct_capacity = Some(3);
    case(format!("A full CT costs a flow its protection, not its life ({})", c.family()), world)
        .send_all(c.handshake(road))
        .send(c.there(road, other(c.syn())).opens())
        .send_all(c.back(road, other_back(c.tcp_answer(SYN | ACK, b"")), |s| s))
        .send(c.there(road, other(c.tcp(ACK, b""))).counts(&[Reason::ESTABLISHED_FULL]))
        .state(state::ESTABLISHED)
        .send(c.there(road, other(c.tcp(ACK, b"data"))))
        .send_all(c.back(road, other_back(c.tcp_answer(ACK, b"data")), |s| s))
}

/// A source port with which the flow hash sends `frame` to the `wanted`th of `count` backends, from `from` on.
pub(super) fn port_for(frame: &Frame, proto: u8, wanted: u32, count: u32, from: u16) -> u16 {
    let addr = netlb_common::Addr::from_ip;
    let port = netlb_common::Port::new;
    let key = |sport: u16| {
        let dport = frame.ports().1;
        netlb_common::conntrack::CtKey::new(addr(frame.src_ip()), addr(frame.dst_ip()), port(sport), port(dport), proto)
    };
    // Worlds have the seed 1.
    (from..).find(|sport| hash::scale(hash::flow(1, &key(*sport)), count) == wanted).expect("a hash has every value")
}
