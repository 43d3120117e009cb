//! To a Service and back, on every road, both families, TCP and UDP.

use netlb_common::Reason;
use netlb_common::conntrack::state;

use super::cast::{BACKEND, CLIENT, Cast, PORT, Road, STRANGER, THIRD};
use crate::case::{Case, case, from_pod, to_pod};
use crate::packet::{ACK, Ext, FIN, PSH, RST, SYN};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        for road in Road::ALL {
            cases.extend([tcp(c, road), udp(c, road), no_udp_sum(c, road), headers(c, road), own_direction(c, road)]);
        }
        cases.extend([remote_backend(c), two_protocols(c), same_port(c), padded(c)]);
        cases.extend([unproven_source(c), unknown_device(c), device_gone(c), too_big(c), answer_too_big(c)]);
        cases.extend([ttl_ends(c), gso(c), gso_too_big(c)]);
    }
    cases
}

fn tcp(c: Cast, road: Road) -> Case {
    let name = format!("A TCP connection from SYN to the last FIN ({road:?}, {})", c.family());
    case(name, c.world(road))
        .send(c.there(road, c.syn().tcp_options(&[2, 4, 5, 0xb4, 4, 2, 1, 1])).opens())
        .state(state::SYN_SENT)
        .send(c.there(road, c.syn()))
        .send_all(c.back(road, c.tcp_answer(SYN | ACK, b""), |s| s))
        .state(state::SYN_RECV)
        .send(c.there(road, c.tcp(ACK, b"")).promotes())
        .state(state::ESTABLISHED)
        .send(c.there(road, c.tcp(ACK | PSH, b"GET / HTTP/1.1\r\n\r\n")))
        .send_all(c.back(road, c.tcp_answer(ACK | PSH, b"HTTP/1.1 200 OK\r\n\r\nhello"), |s| s))
        .send_all(c.back(road, c.tcp_answer(FIN | ACK, b""), |s| s))
        .state(state::FIN_BACKEND)
        .send(c.there(road, c.tcp(ACK, b"half-closed")))
        .state(state::FIN_BACKEND)
        .send(c.there(road, c.tcp(FIN | ACK, b"")))
        .state(state::TIME_WAIT)
        .send_all(c.back(road, c.tcp_answer(ACK, b""), |s| s))
        .state(state::TIME_WAIT)
}

fn udp(c: Cast, road: Road) -> Case {
    case(format!("UDP asks and is answered ({road:?}, {})", c.family()), c.world(road))
        .send(c.there(road, c.query()).opens())
        .state(state::UDP_NEW)
        .send(c.there(road, c.query()))
        .send_all(c.back(road, c.udp_answer(), |s| s.promotes()))
        .state(state::UDP_STREAM)
        .send(c.there(road, c.query().payload(b"and who are you?")))
        .send_all(c.back(road, c.udp_answer().payload(b""), |s| s))
}

fn no_udp_sum(c: Cast, road: Road) -> Case {
    case(format!("A UDP checksum of zero stays zero ({road:?}, {})", c.family()), c.world(road))
        .send(c.there(road, c.query().no_sum()).opens())
        .send_all(c.back(road, c.udp_answer().no_sum(), |s| s.promotes()))
}

fn headers(c: Cast, road: Road) -> Case {
    let case =
        case(format!("Options and extension headers are carried along ({road:?}, {})", c.family()), c.world(road));
    if c.v6 {
        let with = |frame: crate::packet::Frame| {
            frame
                .flow_label(0x0ab_cdef)
                .ext(Ext::HopByHop(0))
                .ext(Ext::Routing(2))
                .ext(Ext::Destination(1))
                .ext(Ext::Auth(1))
        };
        case.send(c.there(road, with(c.syn())).opens())
            .send_all(c.back(road, with(c.tcp_answer(SYN | ACK, b"").tcp_options(&[1; 40])), |s| s))
            .send(c.there(road, with(c.tcp(ACK, b"data"))).promotes())
            .send(c.there(road, with(c.query())).opens())
            .send(c.there(road, c.query().ext(Ext::Destination(10))))
    } else {
        let with = |frame: crate::packet::Frame| frame.options(&[1; 40]).tos_id(0xb8, 9);
        case.send(c.there(road, with(c.syn()).tcp_options(&[1; 40])).opens())
            .send_all(c.back(road, with(c.tcp_answer(SYN | ACK, b"")), |s| s))
            .send(c.there(road, with(c.tcp(ACK, b"data"))).promotes())
            .send(c.there(road, c.query().options(&[0x94, 4, 0, 0])).opens())
    }
}

fn own_direction(c: Cast, road: Road) -> Case {
    // What the stack delivers to the backend is translated already, and no answer: to_pod has no business with it.
    let request = c.translated(c.tcp(ACK, b"data")).macs(BACKEND.mac, BACKEND.host_mac);
    let straight = c.from(&CLIENT).dst(c.of(&BACKEND)).tcp(PORT, 8080, ACK);
    case(
        format!("The client's own packets pass the backend's device untouched ({road:?}, {})", c.family()),
        c.world(road),
    )
    .send_all(c.handshake(road))
    .send(to_pod(request))
    .send(from_pod(&CLIENT, straight))
    // A packet to the VIP that came in by another way is nothing to_pod may count as the client's.
    .send(to_pod(c.tcp(RST, b"")))
    .state(state::ESTABLISHED)
}

fn remote_backend(c: Cast) -> Case {
    let backend = c.at(c.remote(), 8080);
    let world = c.node(Road::Redirect).service(&c.web(), &[&backend]);
    let out = |f: crate::packet::Frame| f.dst(c.remote()).dport(8080);
    let answer = c.from(&CLIENT).back().src(c.remote()).tcp(8080, PORT, SYN | ACK).seq(7, 1001);
    case(format!("A backend on another node is reached through the stack ({})", c.family()), world)
        .send(from_pod(&CLIENT, c.syn()).passes_as(out(c.syn())).opens())
        .send(to_pod(answer.clone()).passes_as(answer.src(c.vip()).sport(80)))
        .send(from_pod(&CLIENT, c.tcp(ACK, b"")).passes_as(out(c.tcp(ACK, b""))).promotes())
}

fn two_protocols(c: Cast) -> Case {
    // Port 80 over TCP goes to one pod, over UDP to another.
    let udp = c.at(c.vip(), 80) + "/UDP";
    let world = c.world(Road::Stack).service(&udp, &[&c.at(c.of(&THIRD), 9000)]);
    let query = c.request().udp(PORT, 80);
    case(format!("One port on two protocols is two frontends ({})", c.family()), world)
        .send(c.there(Road::Stack, c.syn()).opens())
        .send(from_pod(&CLIENT, query.clone()).passes_as(query.dst(c.of(&THIRD)).dport(9000)).opens())
}

fn same_port(c: Cast) -> Case {
    // Nothing but the address changes: no port difference in the checksum.
    let world = c.node(Road::Redirect).service(&c.web(), &[&c.at(c.of(&BACKEND), 80)]);
    let out = c.syn().dst(c.of(&BACKEND));
    let answer = c.from(&BACKEND).dst(c.of(&CLIENT)).tcp(80, PORT, SYN | ACK);
    case(format!("A backend with the Service's own port ({})", c.family()), world)
        .send(Road::Redirect.send(from_pod(&CLIENT, c.syn()), &BACKEND, out).opens())
        .send(Road::Redirect.send(from_pod(&BACKEND, answer.clone()), &CLIENT, answer.src(c.vip())))
}

fn padded(c: Cast) -> Case {
    case(format!("Ethernet padding behind a short packet is no part of it ({})", c.family()), c.world(Road::Redirect))
        .send(c.there(Road::Redirect, c.query().payload(b"").padding(18)).opens())
}

fn unproven_source(c: Cast) -> Case {
    // THIRD sends with CLIENT's address: the answers would go to CLIENT by redirect, past its ingress. The stack decides.
    let name = format!("A source address that is another pod's opens no redirect road ({})", c.family());
    case(name, c.world(Road::Redirect)).send(from_pod(&THIRD, c.syn()).passes_as(c.translated(c.syn())).opens())
}

fn unknown_device(c: Cast) -> Case {
    case(format!("From a device of no known pod, the stack road is taken ({})", c.family()), c.world(Road::Redirect))
        .send(from_pod(&STRANGER, c.syn()).passes_as(c.translated(c.syn())).opens())
        .send(from_pod(&BACKEND, c.tcp_answer(SYN | ACK, b"")))
}

fn device_gone(c: Cast) -> Case {
    let answer = c.tcp_answer(ACK, b"data");
    let there = c.delivered(Road::Stack, answer.clone());
    let seen = there.clone().src(c.vip()).sport(80);
    let name =
        format!("A flow whose next hop became another device goes through the stack, both ways ({})", c.family());
    case(name, c.world(Road::Redirect))
        .send_all(c.handshake(Road::Redirect))
        .change(|w| {
            w.endpoint(&BACKEND).generation += 1;
            w.endpoint(&CLIENT).generation += 1;
        })
        .send(
            from_pod(&CLIENT, c.tcp(ACK, b"data"))
                .passes_as(c.translated(c.tcp(ACK, b"data")))
                .counts(&[Reason::TO_STACK]),
        )
        .send(from_pod(&BACKEND, answer).counts(&[Reason::TO_STACK]))
        .send(to_pod(there).passes_as(seen))
}

fn too_big(c: Cast) -> Case {
    let header = if c.v6 { 60 } else { 40 };
    let fits = c.tcp(ACK, &vec![b'x'; 1000 - header]);
    let over = c.tcp(ACK, &vec![b'x'; 1001 - header]);
    let name = format!("What does not fit the backend's device goes to the stack, which says so ({})", c.family());
    case(name, c.world(Road::Redirect))
        .change(|w| w.endpoint(&BACKEND).mtu = 1000)
        .send_all(c.handshake(Road::Redirect))
        .send(c.there(Road::Redirect, fits))
        .send(from_pod(&CLIENT, over.clone()).passes_as(c.translated(over)).counts(&[Reason::TO_STACK]))
}

fn answer_too_big(c: Cast) -> Case {
    let over = c.tcp_answer(ACK, &[b'x'; 1000]);
    let there = c.delivered(Road::Stack, over.clone());
    let name = format!(
        "An answer that does not fit goes to the stack with the backend's source, and is translated at the client ({})",
        c.family()
    );
    case(name, c.world(Road::Redirect))
        .change(|w| w.endpoint(&CLIENT).mtu = 1000)
        .send_all(c.handshake(Road::Redirect))
        .send(from_pod(&BACKEND, over).counts(&[Reason::TO_STACK]))
        .send(to_pod(there.clone()).passes_as(there.src(c.vip()).sport(80)))
}

fn ttl_ends(c: Cast) -> Case {
    // The stack answers "time exceeded", quoting what the pod sent: so the packet must still be that.
    let answer = c.tcp_answer(ACK, b"data").ttl(1);
    let name = format!("A packet whose TTL ends here goes to the stack as it is ({})", c.family());
    case(name, c.world(Road::Redirect))
        .send(from_pod(&CLIENT, c.syn().ttl(1)).opens().counts(&[Reason::TO_STACK]))
        .send(c.there(Road::Redirect, c.syn().ttl(2)))
        .send(c.there(Road::Redirect, c.syn().ttl(255)))
        .send_all(c.back(Road::Redirect, c.tcp_answer(SYN | ACK, b""), |s| s))
        .send(c.there(Road::Redirect, c.tcp(ACK, b"")).promotes())
        .send(from_pod(&BACKEND, answer).counts(&[Reason::TO_STACK]))
        .send(from_pod(&CLIENT, c.tcp(ACK, b"x").ttl(1)).counts(&[Reason::TO_STACK]))
}

fn gso(c: Cast) -> Case {
    let big = c.tcp(ACK, &[b'x'; 3000]);
    case(format!("A GSO frame whose segments fit is delivered whole ({})", c.family()), c.world(Road::Redirect))
        .send_all(c.handshake(Road::Redirect))
        .send(c.there(Road::Redirect, big).gso(1400))
}

fn gso_too_big(c: Cast) -> Case {
    let big = c.tcp(ACK, &[b'x'; 3000]);
    case(
        format!("A GSO frame whose segments do not fit goes to the stack whole ({})", c.family()),
        c.world(Road::Redirect),
    )
    .change(|w| w.endpoint(&BACKEND).mtu = 1300)
    .send_all(c.handshake(Road::Redirect))
    .send(from_pod(&CLIENT, big.clone()).gso(1400).passes_as(c.translated(big)).counts(&[Reason::TO_STACK]))
}
