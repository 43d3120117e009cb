//! Session affinity: one client, one backend, for as long as it comes back in time.

use netlb_common::backend::state::{DRAINING, REMOVED};

use super::cast::{BACKEND, CLIENT, Cast, Road, THIRD};
use super::lifecycle::port_for;
use crate::case::{Case, Send, case, from_pod};
use crate::packet::{Frame, TCP};
use crate::world::{Pod, World};

pub(super) fn cases() -> Vec<Case> {
    Cast::BOTH.into_iter().flat_map(|c| [keeps(c), refreshed(c), leaves(c), each_client(c), none(c)]).collect()
}

pub(super) const SECONDS: u32 = 600;

/// Two backends, BACKEND and THIRD, in this order.
fn world(c: Cast) -> World {
    c.node(Road::Redirect).service(&c.web(), &[&c.at(c.of(&BACKEND), 8080), &c.at(c.of(&THIRD), 8080)])
}

/// A SYN that, without affinity, would go to the `wanted`th backend.
fn syn(c: Cast, wanted: u32, from: u16) -> Frame {
    let port = port_for(&c.syn(), TCP, wanted, 2, from);
    c.syn().sport(port)
}

fn opens(c: Cast, frame: Frame, to: &Pod) -> Send {
    let out = c.translated(frame.clone()).dst(c.of(to));
    Road::Redirect.send(from_pod(&CLIENT, frame), to, out).opens()
}

fn none(c: Cast) -> Case {
    case(format!("Without affinity the flow hash chooses ({})", c.family()), world(c))
        .send(opens(c, syn(c, 0, 1000), &BACKEND))
        .send(opens(c, syn(c, 1, 2000), &THIRD))
        .send(opens(c, syn(c, 0, 3000), &BACKEND))
}

fn keeps(c: Cast) -> Case {
    case(
        format!("A client's flows stay with its first backend until the timeout ({})", c.family()),
        world(c).sticky(&c.web(), SECONDS),
    )
    .send(opens(c, syn(c, 1, 1000), &THIRD))
    .send(opens(c, syn(c, 0, 2000), &THIRD))
    .wait(SECONDS - 5)
    .send(opens(c, syn(c, 0, 3000), &THIRD))
    .wait(SECONDS + 5)
    .send(opens(c, syn(c, 0, 4000), &BACKEND))
    .send(opens(c, syn(c, 1, 5000), &BACKEND))
}

fn refreshed(c: Cast) -> Case {
    let mut case =
        case(format!("Each new flow begins the timeout anew ({})", c.family()), world(c).sticky(&c.web(), SECONDS))
            .send(opens(c, syn(c, 1, 1000), &THIRD));
    for i in 0..5 {
        case = case.wait(SECONDS * 2 / 3).send(opens(c, syn(c, 0, 2000 + i * 100), &THIRD));
    }
    case
}

fn leaves(c: Cast) -> Case {
    let third = c.at(c.of(&THIRD), 8080);
    let back = third.clone();
    let name = format!("A session does not hold a client at a backend that takes no new flows ({})", c.family());
    case(name, world(c).sticky(&c.web(), SECONDS))
        .send(opens(c, syn(c, 1, 1000), &THIRD))
        .change(move |w| w.set_state(&c.web(), &third, DRAINING))
        .send(opens(c, syn(c, 1, 2000), &BACKEND))
        .change(move |w| w.set_state(&c.web(), &back, netlb_common::backend::state::ACTIVE))
        .send(opens(c, syn(c, 1, 3000), &BACKEND))
        .change(move |w| w.set_state(&c.web(), &c.at(c.of(&BACKEND), 8080), REMOVED))
        .send(opens(c, syn(c, 0, 4000), &THIRD))
}

fn each_client(c: Cast) -> Case {
    // BACKEND's own flows to THIRD, CLIENT's to BACKEND: two sessions of one Service.
    let from_backend = c.from(&BACKEND).dst(c.vip()).tcp(1, 80, crate::packet::SYN);
    let port = port_for(&from_backend, TCP, 1, 2, 1000);
    let theirs = from_backend.sport(port);
    let out = c.translated(theirs.clone()).dst(c.of(&THIRD));
    case(format!("Each client has its own session ({})", c.family()), world(c).sticky(&c.web(), SECONDS))
        .send(opens(c, syn(c, 0, 1000), &BACKEND))
        .send(Road::Redirect.send(from_pod(&BACKEND, theirs), &THIRD, out).opens())
        .send(opens(c, syn(c, 1, 2000), &BACKEND))
}
