//! What no backend takes: refused at once, or dropped.

use netlb_common::Reason;

use super::cast::{BACKEND, CLIENT, Cast, PORT, Road};
use crate::case::{Case, case, from_pod};
use crate::packet::{ACK, Ext, FIN, PSH, RST, SYN};

pub(super) fn cases() -> Vec<Case> {
    Cast::BOTH
        .into_iter()
        .flat_map(|c| [no_endpoints(c), undefined_port(c), unallocated(c), ping(c), mid_stream(c), with_headers(c)])
        .collect()
}

fn net(c: Cast) -> usize {
    if c.v6 { 40 } else { 20 }
}

/// The Service stands, without a backend.
fn empty(c: Cast) -> crate::world::World {
    c.node(Road::Redirect).service(&c.web(), &[]).service(&c.dns(), &[])
}

fn no_endpoints(c: Cast) -> Case {
    let syn = c.syn().seq(4_294_967_295, 0).tcp_options(&[1; 12]);
    let fast_open = c.syn().payload(b"early");
    case(format!("A Service without endpoints refuses at once ({})", c.family()), empty(c))
        .send(from_pod(&CLIENT, syn.clone()).reflects(c.reset(&syn, 0, 0, RST | ACK)).counts(&[Reason::NO_ENDPOINTS]))
        .send(
            from_pod(&CLIENT, fast_open.clone())
                .reflects(c.reset(&fast_open, 0, 1006, RST | ACK))
                .counts(&[Reason::NO_ENDPOINTS]),
        )
        .send(
            from_pod(&CLIENT, c.query())
                .reflects(c.unreachable(&c.query(), net(c), true))
                .counts(&[Reason::NO_ENDPOINTS]),
        )
        .send(
            from_pod(&CLIENT, c.query().no_sum().payload(&[7; 1200]))
                .reflects(c.unreachable(&c.query().no_sum().payload(&[7; 1200]), net(c), true))
                .counts(&[Reason::NO_ENDPOINTS]),
        )
        // Padding is no payload: the acknowledged number counts the packet, not the frame.
        .send(
            from_pod(&CLIENT, c.syn().padding(6))
                .reflects(c.reset(&c.syn(), 0, 1001, RST | ACK))
                .counts(&[Reason::NO_ENDPOINTS]),
        )
        .change(move |w| *w = c.world(Road::Redirect))
        .send(c.there(Road::Redirect, c.syn()).opens())
}

fn undefined_port(c: Cast) -> Case {
    let syn = c.request().tcp(PORT, 81, SYN);
    let ack = c.request().tcp(PORT, 81, ACK | PSH).seq(9, 77).payload(b"data");
    let query = c.request().udp(PORT, 80).payload(b"x");
    let sctp = c.request().raw(132).payload(&[1; 16]);
    case(
        format!("A port, or protocol, that a live VIP does not serve is refused ({})", c.family()),
        c.world(Road::Redirect),
    )
    .send(from_pod(&CLIENT, syn.clone()).reflects(c.reset(&syn, 0, 1001, RST | ACK)).counts(&[Reason::UNDEFINED_PORT]))
    .send(from_pod(&CLIENT, ack.clone()).reflects(c.reset(&ack, 77, 0, RST)).counts(&[Reason::UNDEFINED_PORT]))
    .send(
        from_pod(&CLIENT, query.clone())
            .reflects(c.unreachable(&query, net(c), true))
            .counts(&[Reason::UNDEFINED_PORT]),
    )
    .send(
        from_pod(&CLIENT, sctp.clone()).reflects(c.unreachable(&sctp, net(c), false)).counts(&[Reason::UNDEFINED_PORT]),
    )
    // A RST is never answered (RFC 9293 3.10.7.1).
    .send(from_pod(&CLIENT, c.request().tcp(PORT, 81, RST)).drops(Reason::STRAY_RST))
}

fn unallocated(c: Cast) -> Case {
    let name = format!("An address of the Service CIDR that no Service owns gets no answer ({})", c.family());
    let to = |f: crate::packet::Frame| f.dst(c.unallocated());
    case(name, c.world(Road::Redirect))
        .send(from_pod(&CLIENT, to(c.syn())).drops(Reason::UNALLOCATED))
        .send(from_pod(&CLIENT, to(c.query())).drops(Reason::UNALLOCATED))
        .send(from_pod(&CLIENT, to(c.request().icmp(if c.v6 { 128 } else { 8 }, 0))).drops(Reason::UNALLOCATED))
        .send(from_pod(&CLIENT, to(c.request().raw(132).payload(&[1; 16]))).drops(Reason::UNALLOCATED))
        // The Service is deleted: so is its address.
        .change(|w| w.frontends.clear())
        .send(from_pod(&CLIENT, c.syn()).drops(Reason::UNALLOCATED))
        // Just outside the CIDR.
        .send(from_pod(&CLIENT, c.syn().dst(c.outside())))
}

fn ping(c: Cast) -> Case {
    let ping = c.request().icmp(if c.v6 { 128 } else { 8 }, 0).rest(0x0001_0001).payload(b"abcdefgh");
    case(format!("A ping to a VIP is refused, as kube-proxy does ({})", c.family()), c.world(Road::Stack)).send(
        from_pod(&CLIENT, ping.clone()).reflects(c.unreachable(&ping, net(c), false)).counts(&[Reason::UNDEFINED_PORT]),
    )
}

fn mid_stream(c: Cast) -> Case {
    let data = c.tcp(ACK | PSH, b"data");
    let fin = c.tcp(FIN | ACK, b"");
    let bare_fin = c.tcp(FIN, b"xyz");
    let name =
        format!("A TCP segment of no known flow is reset, a RST is dropped, neither leaves a trace ({})", c.family());
    case(name, c.world(Road::Redirect))
        .send(from_pod(&CLIENT, data.clone()).reflects(c.reset(&data, 5001, 0, RST)).counts(&[Reason::NO_FLOW]))
        .send(from_pod(&CLIENT, fin.clone()).reflects(c.reset(&fin, 5001, 0, RST)).counts(&[Reason::NO_FLOW]))
        .send(
            from_pod(&CLIENT, bare_fin.clone())
                .reflects(c.reset(&bare_fin, 0, 1001 + 3 + 1, RST | ACK))
                .counts(&[Reason::NO_FLOW]),
        )
        .send(
            from_pod(&CLIENT, c.tcp(SYN | ACK, b""))
                .reflects(c.reset(&c.tcp(SYN | ACK, b""), 5001, 0, RST))
                .counts(&[Reason::NO_FLOW]),
        )
        .send(from_pod(&CLIENT, c.tcp(RST, b"")).drops(Reason::STRAY_RST))
        .send(from_pod(&CLIENT, c.tcp(RST | ACK, b"")).drops(Reason::STRAY_RST))
        // Answers of no known flow are nobody's business.
        .send(from_pod(&BACKEND, c.tcp_answer(SYN | ACK, b"")))
}

fn with_headers(c: Cast) -> Case {
    let dress = |f: crate::packet::Frame| {
        if c.v6 { f.ext(Ext::HopByHop(0)).ext(Ext::Destination(0)) } else { f.options(&[1; 8]).tos_id(0x10, 77) }
    };
    let (syn, query) = (dress(c.syn()), dress(c.query()));
    let header = if c.v6 { 56 } else { 28 };
    let long = |f: crate::packet::Frame| {
        if c.v6 { f.ext(Ext::HopByHop(1)).ext(Ext::Destination(4)) } else { f.options(&[1; 40]) }
    };
    let case = case(format!("Refusals of packets with options or extension headers ({})", c.family()), empty(c))
        .send(
            from_pod(&CLIENT, syn.clone()).reflects(c.reset(&syn, 0, 1001, RST | ACK)).counts(&[Reason::NO_ENDPOINTS]),
        )
        .send(
            from_pod(&CLIENT, query.clone())
                .reflects(c.unreachable(&query, header, true))
                .counts(&[Reason::NO_ENDPOINTS]),
        )
        .send(
            from_pod(&CLIENT, long(c.syn()))
                .reflects(c.reset(&long(c.syn()), 0, 1001, RST | ACK))
                .counts(&[Reason::NO_ENDPOINTS]),
        );
    if c.v6 {
        // More headers than a refusal quotes.
        case.send(from_pod(&CLIENT, long(c.query())).drops(Reason::NO_ENDPOINTS))
    } else {
        let answer = c.unreachable(&long(c.query()), 60, true);
        case.send(from_pod(&CLIENT, long(c.query())).reflects(answer).counts(&[Reason::NO_ENDPOINTS]))
    }
}
