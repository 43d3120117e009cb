//! What is not for a Service passes untouched; what cannot be believed is dropped.

use netlb_common::Reason;

use super::cast::{BACKEND, CLIENT, Cast, PORT, Road};
use crate::case::{Case, case, from_pod, to_pod};
use crate::packet::{ACK, Ext, Frame, RST, SYN, eth};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![not_ip()];
    for c in Cast::BOTH {
        cases.push(other_traffic(c));
        cases.push(cut_short(c, "TCP", c.syn().tcp_options(&[1; 8]).payload(b"hello"), 28));
        cases.push(cut_short(c, "UDP", c.query(), 8));
        cases.push(cut_short(c, "ICMP", c.request().icmp(8, 0).payload(b"ping"), 8));
        cases.push(to_pod_believes_nobody(c));
        cases.push(long_segments(c));
    }
    cases.push(contradictions4());
    cases.push(contradictions6());
    cases.push(mapped());
    cases
}

fn not_ip() -> Case {
    let frame = || eth().macs(CLIENT.host_mac, CLIENT.mac);
    let vlan = Cast { v6: false }.syn().ether_type(0x8100);
    let frames = [
        frame().payload(&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 1, 2, 10, 0, 1, 2, 0, 0, 0, 0, 0, 0, 10, 96, 0, 10]),
        frame().ether_type(0x88cc).payload(b"LLDP"),
        frame().ether_type(0x8847).payload(&[0; 40]),
        frame().payload(b""),
        vlan,
    ];
    let sends = frames.into_iter().flat_map(|f| [from_pod(&CLIENT, f.clone()), to_pod(f)]);
    case(
        "What is not IP passes, ARP for a VIP and VLAN-tagged frames among it",
        Cast { v6: false }.world(Road::Redirect),
    )
    .send_all(sends)
}

fn other_traffic(c: Cast) -> Case {
    let frames = [
        c.from(&CLIENT).dst(c.of(&BACKEND)).tcp(PORT, 8080, SYN),
        c.from(&CLIENT).dst(c.of(&BACKEND)).tcp(PORT, 80, ACK).payload(b"data"),
        c.from(&CLIENT).dst(c.of(&BACKEND)).tcp(PORT, 80, RST),
        c.from(&CLIENT).dst(c.of(&BACKEND)).udp(PORT, 53).payload(b"query"),
        c.from(&CLIENT).dst(c.of(&BACKEND)).icmp(if c.v6 { 128 } else { 8 }, 0).payload(b"ping"),
        c.from(&CLIENT).tcp(PORT, 80, SYN),
        c.from(&CLIENT).udp(PORT, 53),
        c.from(&CLIENT).udp(PORT, 53).fragment(10, true).payload(&[0; 16]),
        c.from(&CLIENT).raw(132).payload(&[0; 24]),
        c.from(&CLIENT).raw(47).payload(&[0; 24]),
        c.from(&CLIENT).raw(4).payload(b""),
    ];
    let sends = frames.into_iter().flat_map(|f| [from_pod(&CLIENT, f.clone()), to_pod(f)]);
    case(format!("Traffic that is for no Service passes and is not tracked ({})", c.family()), c.world(Road::Redirect))
        .send_all(sends)
}

/// Every length from the bare Ethernet header on; `l4`: bytes of the L4 header.
fn cut_short(c: Cast, proto: &str, whole: Frame, l4: usize) -> Case {
    let bytes = whole.bytes().len();
    let ip = if c.v6 { 40 } else { 20 };
    // First the frame ends before the IP packet does, then the IP packet ends before the L4 header does.
    let frames = (14..bytes).map(|len| whole.clone().cut(len));
    let packets = (0..l4).map(|len| whole.clone().ip_len(if c.v6 { len } else { ip + len } as u16).cut(14 + ip + len));
    let sends = frames.chain(packets).map(|f| from_pod(&CLIENT, f).drops(Reason::MALFORMED));
    case(format!("A {proto} packet cut short at any length is dropped ({})", c.family()), c.world(Road::Redirect))
        .send_all(sends)
}

fn to_pod_believes_nobody(c: Cast) -> Case {
    let whole = c.syn();
    let sends = (14..whole.bytes().len()).map(|len| to_pod(whole.clone().cut(len)));
    case(format!("What is malformed on its way to a pod is left to the pod ({})", c.family()), c.world(Road::Stack))
        .send_all(sends)
}

fn long_segments(c: Cast) -> Case {
    let sends = [0, 1, 7, 536, 1379].map(|n| c.from(&CLIENT).tcp(PORT, 9, ACK).payload(&vec![b'x'; n]));
    case(format!("Payload of any length passes ({})", c.family()), c.world(Road::Stack))
        .send_all(sends.map(|f| from_pod(&CLIENT, f)))
}

fn contradictions4() -> Case {
    let c = Cast { v6: false };
    let bad = [
        ("version 5", c.syn().poke(14, &[0x55])),
        ("version 6", c.syn().poke(14, &[0x65])),
        ("header of 16 bytes", c.syn().poke(14, &[0x44])),
        ("header longer than the packet", c.syn().poke(14, &[0x4f])),
        ("total length below the header", c.syn().ip_len(19)),
        ("total length 0", c.syn().ip_len(0)),
        ("total length past the frame", c.syn().ip_len(41)),
        ("TCP header of 16 bytes", c.syn().poke(46, &[0x40])),
        ("TCP header of 0 bytes", c.syn().poke(46, &[0x00])),
        ("TCP header longer than the packet", c.syn().poke(46, &[0x60])),
        ("UDP length 7", c.query().udp_len(7)),
        ("UDP length 0", c.query().udp_len(0)),
    ];
    let sends = bad.map(|(_, f)| from_pod(&CLIENT, f).drops(Reason::MALFORMED));
    case("An IPv4 packet that contradicts itself is dropped", c.world(Road::Redirect)).send_all(sends)
}

fn contradictions6() -> Case {
    let c = Cast { v6: true };
    let bad = [
        ("version 4", c.syn().poke(14, &[0x40])),
        ("payload length past the frame", c.syn().ip_len(21)),
        ("payload length 0", c.syn().ip_len(0)),
        ("TCP header of 16 bytes", c.syn().poke(66, &[0x40])),
        ("TCP header longer than the packet", c.syn().poke(66, &[0x60])),
        ("UDP length 7", c.query().udp_len(7)),
        ("an extension header that says it goes past the packet", c.syn().ext(Ext::HopByHop(0)).poke(55, &[9])),
        ("an extension header cut short", c.syn().ext(Ext::HopByHop(0)).ip_len(3).cut(57)),
        (
            "a second extension header cut short",
            c.syn().ext(Ext::HopByHop(0)).ext(Ext::Destination(0)).ip_len(9).cut(63),
        ),
    ];
    let sends = bad.map(|(_, f)| from_pod(&CLIENT, f).drops(Reason::MALFORMED));
    case("An IPv6 packet that contradicts itself is dropped", c.world(Road::Redirect)).send_all(sends)
}

fn mapped() -> Case {
    let c = Cast { v6: true };
    let frame = |src: &str, dst: &str| eth().macs(CLIENT.host_mac, CLIENT.mac).ip(src, dst).tcp(PORT, 80, SYN);
    case("An IPv6 packet with a v4-mapped address is dropped: it would alias an IPv4 Service", c.world(Road::Redirect))
        .send(from_pod(&CLIENT, frame("fd00:10:1::2", "::ffff:10.96.0.10")).drops(Reason::MAPPED_ADDRESS))
        .send(from_pod(&CLIENT, frame("::ffff:10.0.1.2", "fd00:10:96::10")).drops(Reason::MAPPED_ADDRESS))
        .send(to_pod(frame("::ffff:10.0.1.2", "fd00:10:1::2")))
        // Not mapped: the compatible form, and neighbours of the mapped block.
        .send(from_pod(&CLIENT, frame("fd00:10:1::2", "::10.96.0.10")))
        .send(from_pod(&CLIENT, frame("fd00:10:1::2", "::1:ffff:10.96.0.10")))
}
