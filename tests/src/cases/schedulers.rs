//! Who gets the next flow, other than by chance.

use netlb_common::frontend::scheduler::{LEAST_CONNECTIONS, ROUND_ROBIN, SOURCE_HASH};
use netlb_common::{Addr, hash};

use super::affinity::SECONDS;
use super::cast::{BACKEND, CLIENT, Cast, Door, PORT, Road, THIRD};
use super::lifecycle::port_for;
use crate::case::{Case, Send, case, from_outside, from_pod, to_pod};
use crate::packet::{ACK, FIN, Frame, MOVED, RST, SYN, TCP, eth};
use crate::world::{Pod, World};

pub(super) fn cases() -> Vec<Case> {
    Cast::BOTH
        .into_iter()
        .flat_map(|c| [turns(c), turns_by_every_door(c), source(c), least(c), least_aborted(c), lists(c)])
        .collect()
}

/// Two backends, BACKEND and THIRD, in this order.
fn world(c: Cast, scheduler: u32) -> World {
    c.doors(Road::Stack, &[c.of(&BACKEND), c.of(&THIRD)]).scheduler(&c.web(), scheduler)
}

/// CLIENT's segment to the VIP, on its way to a pod.
fn to(c: Cast, request: Frame, pod: &Pod) -> Send {
    let out = c.for_backend(request.clone(), c.of(pod));
    from_pod(&CLIENT, request).passes_as(out)
}

/// A pod's answer to CLIENT.
fn answer(c: Cast, pod: &Pod, port: u16, flags: u8) -> Send {
    let answer = c.from(pod).dst(c.of(&CLIENT)).tcp(8080, port, flags);
    to_pod(answer.clone()).passes_as(c.by_door(answer, Door::ClusterIp))
}

fn turns(c: Cast) -> Case {
    let flow = |i: u16| c.syn().sport(PORT + i);
    let order = [&BACKEND, &THIRD, &BACKEND, &THIRD, &BACKEND];
    case(format!("Round robin takes the backends in turn, whoever asks ({})", c.family()), world(c, ROUND_ROBIN))
        .send_all((0..).zip(order).map(|(i, pod)| to(c, flow(i), pod).opens()))
        // A flow keeps its backend.
        .send(to(c, flow(0), &BACKEND))
        .send(to(c, flow(5), &THIRD).opens())
}

fn turns_by_every_door(c: Cast) -> Case {
    let name = format!("Round robin counts the flows of all of a Service port's doors together ({})", c.family());
    let order = Door::ALL.into_iter().zip([&BACKEND, &THIRD, &BACKEND, &THIRD]);
    case(name, world(c, ROUND_ROBIN)).send_all(order.map(|(door, pod)| {
        let port = PORT + door as u16;
        let syn = c.visit_syn(door).sport(port);
        from_outside(syn.clone()).passes_as(c.for_backend(syn, c.of(pod))).opens()
    }))
}

fn source(c: Cast) -> Case {
    // Worlds have the seed 1.
    let of = |addr: Addr| hash::scale((hash::words(1, addr.hi, addr.lo) >> 32) as u32, 2);
    let pod = if of(Addr::from_ip(c.of(&CLIENT))) == 0 { &BACKEND } else { &THIRD };
    let others = if pod == &BACKEND { &THIRD } else { &BACKEND };
    // A client that the hash sends the other way.
    let stranger = (2..=254)
        .map(|i: u8| {
            if c.v6 {
                [0x2001, 0xdb8, 7, 0, 0, 0, 0, i.into()].into()
            } else {
                std::net::IpAddr::from([198, 51, 100, i])
            }
        })
        .find(|ip| (of(Addr::from_ip(*ip)) == 0) != (pod == &BACKEND))
        .expect("a hash has every value");
    let visit = |i: u16| c.visit_syn(Door::NodePort).src(stranger).sport(PORT + i);
    let name = format!("Source hash sends a client to one backend, whatever its port and the door ({})", c.family());
    case(name, world(c, SOURCE_HASH))
        .send_all((0..8).map(|i| to(c, c.syn().sport(PORT + i), pod).opens()))
        .send_all((0..8).map(|i| from_outside(visit(i)).passes_as(c.for_backend(visit(i), c.of(others))).opens()))
        .send(to(c, c.syn().dst(c.door(Door::LoadBalancer)).sport(PORT + 20), pod).opens())
}

/// A SYN that, of two backends with as many flows, would go to the `wanted`th.
fn prefers(c: Cast, wanted: u32, from: u16) -> Frame {
    let port = port_for(&c.syn(), TCP, wanted, 2, from);
    c.syn().sport(port)
}

fn least(c: Cast) -> Case {
    let (a, b, d) = (prefers(c, 0, 1_000), prefers(c, 0, 2_000), prefers(c, 1, 3_000));
    let (e, f, g) = (prefers(c, 1, 4_000), prefers(c, 1, 5_000), prefers(c, 1, 6_000));
    let port = a.ports().0;
    let name = format!(
        "Least connections prefers the backend with fewer open flows, and forgets closed ones ({})",
        c.family()
    );
    case(name, world(c, LEAST_CONNECTIONS))
        .send(to(c, a.clone(), &BACKEND).opens())
        .send(to(c, b, &THIRD).opens())
        .send(to(c, d, &THIRD).opens())
        .send(to(c, e, &BACKEND).opens())
        // Two each. The first one ends.
        .send(answer(c, &BACKEND, port, SYN | ACK))
        .send(to(c, a.clone().flags(ACK), &BACKEND).promotes())
        .send(to(c, a.clone().flags(FIN | ACK), &BACKEND))
        // Half open is open: the scales are even, and the hash decides.
        .send(to(c, f, &THIRD).opens())
        .send(answer(c, &BACKEND, port, FIN | ACK))
        .send(to(c, a.flags(ACK), &BACKEND))
        .send(to(c, g, &BACKEND).opens())
        .send(to(c, prefers(c, 1, 7_000), &BACKEND).opens())
}

fn least_aborted(c: Cast) -> Case {
    let a = prefers(c, 0, 1_000);
    let again = a.clone();
    let name = format!("Least connections counts a flow that was reset as over, until it goes on ({})", c.family());
    case(name, world(c, LEAST_CONNECTIONS))
        .send(to(c, a.clone(), &BACKEND).opens())
        .send(answer(c, &BACKEND, a.ports().0, RST | ACK))
        .send(to(c, prefers(c, 0, 2_000), &BACKEND).opens())
        // The reset was forged: the flow speaks on.
        .send(to(c, again.flags(ACK), &BACKEND).promotes())
        .send(to(c, prefers(c, 0, 3_000), &THIRD).opens())
        .send(to(c, prefers(c, 0, 4_000), &THIRD).opens())
        .send(to(c, prefers(c, 1, 5_000), &THIRD).opens())
}

fn lists(c: Cast) -> Case {
    // One session for all doors of a Service port, but not at a backend that the door does not lead to.
    let world = c.doors(Road::Stack, &[c.remote(), c.of(&BACKEND)]).external_local(&c.web()).sticky(&c.web(), SECONDS);
    let elsewhere = c.visit_syn(Door::ClusterIp);
    let elsewhere = elsewhere.clone().sport(port_for(&elsewhere, TCP, 0, 2, 1_000));
    let local = c.visit_syn(Door::NodePort).sport(2_000);
    let kept = c.visit_syn(Door::ClusterIp);
    let kept = kept.clone().sport(port_for(&kept, TCP, 0, 2, 3_000));
    let here = |f: Frame| from_outside(f.clone()).passes_as(c.for_backend(f, c.of(&BACKEND))).opens();
    let answer = eth().ip(c.remote(), c.node_ip()).tcp(8080, MOVED, SYN | ACK);
    let seen = c.by_door(answer.clone(), Door::ClusterIp).dst(c.visitor()).dport(elsewhere.ports().0).hop();
    let name = format!(
        "A session leads to no backend that is not in the client's list, and moves to one that is ({})",
        c.family()
    );
    case(name, world)
        .send(from_outside(elsewhere.clone()).routes_as(c.forwarded(elsewhere, c.remote())).opens_masqueraded())
        .send(here(local))
        .send(here(kept))
        .send(from_outside(answer).routes_as(seen))
}
