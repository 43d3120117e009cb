//! ICMP errors about translated flows: whoever sent the quoted packet must recognise it.

use netlb_common::Reason;

use super::cast::{BACKEND, CLIENT, Cast, PORT, Road, THIRD};
use crate::case::{Case, Send, case, from_pod, to_pod};
use crate::packet::{ACK, Ext, Frame, eth};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        for road in Road::ALL {
            cases.extend([
                from_a_router(c, road),
                from_the_backend(c, road),
                from_the_client(c, road),
                every_quote(c, road),
            ]);
        }
        cases.extend([not_ours(c), ttl_of_an_error(c), error_too_big(c), unknown_flow(c), echo(c)]);
    }
    cases.push(odd_quotes());
    cases
}

/// Fragmentation needed, packet too big: (type, code).
fn too_big(c: Cast) -> (u8, u8) {
    if c.v6 { (2, 0) } else { (3, 4) }
}

fn port_unreachable(c: Cast) -> (u8, u8) {
    if c.v6 { (1, 4) } else { (3, 3) }
}

/// An error on the way to CLIENT's device.
fn to_client(c: Cast, src: std::net::IpAddr, (kind, code): (u8, u8), quote: &Frame, len: usize) -> Frame {
    let frame = eth().macs(CLIENT.mac, CLIENT.host_mac).ip(src, c.of(&CLIENT)).ttl(61);
    frame.icmp(kind, code).rest(1400).quote(quote, len)
}

fn from_a_router(c: Cast, road: Road) -> Case {
    // Path MTU discovery on the stack road: the router knows the backend, the client only knows the VIP.
    let sent = c.tcp(ACK, &[b'x'; 1300]);
    let seen = c.translated(sent.clone()).hop();
    let error = |quote: &Frame| to_client(c, c.outside(), too_big(c), quote, 600);
    let name = format!(
        "A router's \"too big\" about a packet to the backend names the VIP to the client ({road:?}, {})",
        c.family()
    );
    case(name, c.world(road))
        .send_all(c.handshake(road))
        .send(to_pod(error(&seen)).passes_as(error(&sent.hop())).counts(&[Reason::ICMP_TRANSLATED]))
}

fn from_the_backend(c: Cast, road: Road) -> Case {
    let query = c.query();
    let (kind, code) = port_unreachable(c);
    let arrived = match road {
        Road::Redirect => c.translated(query.clone()).hop(),
        Road::Stack | Road::Bridged => c.translated(query.clone()),
    };
    let known = match road {
        Road::Redirect => query.clone().hop(),
        Road::Stack | Road::Bridged => query.clone(),
    };
    let leaves = c.from(&BACKEND).dst(c.of(&CLIENT)).icmp(kind, code).quote(&arrived, 576);
    let case =
        case(format!("A backend's \"port unreachable\" comes from the VIP ({road:?}, {})", c.family()), c.world(road))
            .send(c.there(road, query).opens());
    let put_back = |f: Frame| f.src(c.vip()).quote(&known, 576);
    match road {
        Road::Redirect => {
            let out = put_back(leaves.clone());
            case.send(road.send(from_pod(&BACKEND, leaves), &CLIENT, out).counts(&[Reason::ICMP_TRANSLATED]))
        }
        Road::Stack | Road::Bridged => {
            let there = c.delivered(road, leaves.clone());
            case.send(from_pod(&BACKEND, leaves))
                .send(to_pod(there.clone()).passes_as(put_back(there)).counts(&[Reason::ICMP_TRANSLATED]))
        }
    }
}

fn from_the_client(c: Cast, road: Road) -> Case {
    // The client complains, to the VIP, about an answer: the backend must hear it.
    let answer = c.tcp_answer(ACK, b"answer");
    let seen = answer.clone().src(c.vip()).sport(80);
    let (kind, code) = port_unreachable(c);
    let leaves = c.request().icmp(kind, code).quote(&seen, 576);
    let out = c.request().dst(c.of(&BACKEND)).icmp(kind, code).quote(&answer, 576);
    case(format!("A client's error about an answer reaches the backend ({road:?}, {})", c.family()), c.world(road))
        .send_all(c.handshake(road))
        .send(road.send(from_pod(&CLIENT, leaves), &BACKEND, out).counts(&[Reason::ICMP_TRANSLATED]))
}

fn every_quote(c: Cast, road: Road) -> Case {
    // From eight bytes of L4, all that RFC 792 grants, up to the whole packet; odd lengths too.
    let header = if c.v6 { 40 } else { 20 };
    let tcp = c.tcp(ACK, b"payload of a segment");
    let udp = c.query().payload(b"payload of a datagram");
    let silent = c.query().sport(PORT).no_sum().payload(b"no sum");
    let error = |quote: &Frame, len: usize| to_client(c, c.outside(), port_unreachable(c), quote, len);
    let mut case = case(format!("A quote of any length is translated ({road:?}, {})", c.family()), c.world(road))
        .send_all(c.handshake(road))
        .send(c.there(road, udp.clone()).opens());
    for sent in [tcp, udp, silent] {
        for len in (header + 8..=header + 41).chain([1000]) {
            // Half of a checksum cannot be repaired.
            if len == header + 17 {
                continue;
            }
            let seen = c.translated(sent.clone());
            case = case.send(to_pod(error(&seen, len)).passes_as(error(&sent, len)).counts(&[Reason::ICMP_TRANSLATED]));
        }
    }
    case
}

fn not_ours(c: Cast) -> Case {
    // Errors about flows between pods, and about packets as the pod itself sent them (the stack's "time exceeded").
    let straight = c.from(&CLIENT).dst(c.of(&BACKEND)).tcp(PORT, 9, ACK);
    let errors = [
        to_client(c, c.outside(), too_big(c), &straight, 100),
        to_client(c, c.of(&BACKEND), port_unreachable(c), &straight, 100),
        to_client(c, c.outside(), if c.v6 { (3, 0) } else { (11, 0) }, &c.tcp(ACK, b"ttl 1"), 100),
        to_client(c, c.outside(), too_big(c), &c.request().icmp(if c.v6 { 128 } else { 8 }, 0), 100),
    ];
    let leaving =
        c.from(&BACKEND).dst(c.of(&CLIENT)).icmp(port_unreachable(c).0, port_unreachable(c).1).quote(&straight, 100);
    case(format!("Errors that are not about a translated packet pass ({})", c.family()), c.world(Road::Redirect))
        .send_all(c.handshake(Road::Redirect))
        .send_all(errors.map(to_pod))
        .send(from_pod(&BACKEND, leaving))
}

/// The backend's error about a query, on the redirect road, and what the client gets.
fn redirected(c: Cast, ttl: u8, len: usize) -> (Frame, Frame) {
    let query = c.query().payload(&[b'q'; 900]);
    let (kind, code) = port_unreachable(c);
    let leaves =
        c.from(&BACKEND).dst(c.of(&CLIENT)).ttl(ttl).icmp(kind, code).quote(&c.translated(query.clone()).hop(), len);
    (leaves.clone(), leaves.src(c.vip()).quote(&query.hop(), len))
}

fn ttl_of_an_error(c: Cast) -> Case {
    // A redirect is a router hop for errors too; what ends here is dropped in silence: no error about an error.
    let (last, _) = redirected(c, 1, 100);
    let (good, out) = redirected(c, 2, 100);
    let (there, seen) = (c.delivered(Road::Bridged, last.clone()), c.delivered(Road::Bridged, redirected(c, 1, 100).1));
    case(format!("An error on the redirect road counts as a router hop ({})", c.family()), c.world(Road::Redirect))
        .send(c.there(Road::Redirect, c.query()).opens())
        .send(Road::Redirect.send(from_pod(&BACKEND, good), &CLIENT, out).counts(&[Reason::ICMP_TRANSLATED]))
        .send(from_pod(&BACKEND, last).counts(&[Reason::TO_STACK]))
        .send(to_pod(there).passes_as(seen).counts(&[Reason::ICMP_TRANSLATED]))
}

fn error_too_big(c: Cast) -> Case {
    let (leaves, _) = redirected(c, 64, 900);
    let name = format!("An error that does not fit the client's device goes to the stack as it is ({})", c.family());
    case(name, c.world(Road::Redirect))
        .change(|w| w.endpoint(&CLIENT).mtu = 800)
        .send(c.there(Road::Redirect, c.query()).opens())
        .send(from_pod(&BACKEND, leaves).counts(&[Reason::TO_STACK]))
}

fn unknown_flow(c: Cast) -> Case {
    let (kind, code) = port_unreachable(c);
    let error = c.request().icmp(kind, code).quote(&c.tcp_answer(ACK, b"").src(c.vip()).sport(80), 100);
    case(format!("An error to a VIP about no known flow gets no answer ({})", c.family()), c.world(Road::Redirect))
        .send(from_pod(&CLIENT, error).drops(Reason::UNDEFINED_PORT))
}

fn echo(c: Cast) -> Case {
    let (ask, tell) = if c.v6 { (128, 129) } else { (8, 0) };
    let sends: [Send; 3] = [
        from_pod(&CLIENT, c.from(&CLIENT).dst(c.of(&THIRD)).icmp(ask, 0).payload(b"ping")),
        from_pod(&THIRD, c.from(&THIRD).dst(c.of(&CLIENT)).icmp(tell, 0).payload(b"ping")),
        to_pod(c.from(&THIRD).dst(c.of(&CLIENT)).icmp(tell, 0).payload(b"ping")),
    ];
    case(format!("Pods ping each other as ever ({})", c.family()), c.world(Road::Redirect)).send_all(sends)
}

fn odd_quotes() -> Case {
    let c = Cast { v6: false };
    let seen = c.translated(c.tcp(ACK, b"data"));
    let optioned = |f: Frame| f.options(&[1; 12]);
    let error = |quote: &Frame, len: usize| to_client(c, c.outside(), (3, 4), quote, len);
    let v6 = Cast { v6: true };
    let v6_quote = v6.translated(v6.tcp(ACK, b"data")).ext(Ext::Destination(0));
    case("Quotes that end before the ports, of later fragments, or of another family pass", c.world(Road::Stack))
        .send_all(c.handshake(Road::Stack))
        .send(
            to_pod(error(&optioned(seen.clone()), 200))
                .passes_as(error(&optioned(c.tcp(ACK, b"data")), 200))
                .counts(&[Reason::ICMP_TRANSLATED]),
        )
        .send_all((0..24).map(|len| to_pod(error(&seen, len))))
        .send(to_pod(error(&seen.clone().fragment(3, false), 100)))
        .send(to_pod(error(&v6_quote, 100)))
}
