//! What leaves by an uplink and is still addressed to a Service: it slipped past a veth without programs.

use netlb_common::Reason;
use netlb_common::conntrack::state;

use super::cast::{BACKEND, CLIENT, Cast, Door, PORT, Road};
use crate::case::{Case, Send, case, from_outside, from_pod, to_outside};
use crate::packet::{ACK, FIN, Frame, MOVED, RST, SYN, eth};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        for door in AWAY {
            cases.push(elsewhere(c, door));
        }
        cases.extend([here(c), udp(c), from_the_node(c), dropped(c), no_endpoints(c), local_policy(c), not_ours(c)]);
    }
    cases
}

/// Doors whose packets may leave the node: its own addresses are not among them.
const AWAY: [Door; 3] = [Door::ClusterIp, Door::LoadBalancer, Door::ExternalIp];

/// CLIENT's segment to a door.
fn ask(c: Cast, door: Door, flags: u8) -> Frame {
    c.from(&CLIENT).dst(c.door(door)).tcp(PORT, door.port(80), flags).seq(1001, 5001)
}

/// A request that slipped, to a backend.
fn caught(c: Cast, request: Frame, backend: std::net::IpAddr) -> Send {
    to_outside(request.clone()).routes_as(c.forwarded(request, backend))
}

/// An answer as its client gets it.
fn seen(c: Cast, door: Door, answer: Frame) -> Frame {
    c.by_door(answer, door).dst(c.of(&CLIENT)).dport(PORT).hop()
}

fn elsewhere(c: Cast, door: Door) -> Case {
    let answer = |flags: u8| eth().ip(c.remote(), c.node_ip()).tcp(8080, MOVED, flags).seq(5000, 1001);
    let back = |flags: u8| from_outside(answer(flags)).routes_as(seen(c, door, answer(flags)));
    let name = format!(
        "A packet to a Service that leaves the node as it is gets a backend at the uplink ({door:?}, {})",
        c.family()
    );
    case(name, c.doors(Road::Stack, &[c.remote()]))
        .send(caught(c, ask(c, door, SYN), c.remote()).opens_masqueraded().counts(&[Reason::SLIPPED]))
        .send(caught(c, ask(c, door, SYN), c.remote()))
        .send(back(SYN | ACK))
        .send(caught(c, ask(c, door, ACK), c.remote()).promotes())
        // The pod's veth has its programs now: the flow goes on there, from the same port.
        .send(from_pod(&CLIENT, ask(c, door, ACK)).routes_as(c.forwarded(ask(c, door, ACK), c.remote())))
        .send(back(FIN | ACK))
        .send(caught(c, ask(c, door, FIN | ACK), c.remote()))
        .state(state::TIME_WAIT)
}

fn here(c: Cast) -> Case {
    // A backend of this node: the answer comes from its veth, to the node's address.
    let door = Door::ClusterIp;
    let answer = eth().macs(BACKEND.host_mac, BACKEND.mac).ip(c.of(&BACKEND), c.node_ip()).tcp(8080, MOVED, SYN | ACK);
    let name = format!("A packet that slipped may be for a backend of this node ({})", c.family());
    case(name, c.doors(Road::Stack, &[c.of(&BACKEND)]))
        .send(caught(c, ask(c, door, SYN), c.of(&BACKEND)).opens_masqueraded().counts(&[Reason::SLIPPED]))
        .send(from_pod(&BACKEND, answer.clone()).routes_as(seen(c, door, answer)))
}

fn udp(c: Cast) -> Case {
    let door = Door::LoadBalancer;
    let query = c.from(&CLIENT).dst(c.door(door)).udp(PORT, door.port(53)).payload(b"who?");
    let answer = eth().ip(c.remote(), c.node_ip()).udp(5353, MOVED).payload(b"me!");
    case(format!("A datagram that slipped is answered ({})", c.family()), c.doors(Road::Stack, &[c.remote()]))
        .send(caught(c, query.clone(), c.remote()).opens_masqueraded().counts(&[Reason::SLIPPED]))
        .send(from_outside(answer.clone()).routes_as(seen(c, door, answer)).promotes())
        .send(caught(c, query, c.remote()))
}

fn from_the_node(c: Cast) -> Case {
    // A process of the node that no socket hook saw: its answers are the stack's to deliver.
    let door = Door::ClusterIp;
    let syn = ask(c, door, SYN).src(c.node_ip());
    let answer = eth().ip(c.remote(), c.node_ip()).tcp(8080, MOVED, SYN | ACK);
    let out = c.by_door(answer.clone(), door).dport(PORT);
    let name = format!("A packet of the node's own that slipped is answered to the node ({})", c.family());
    case(name, c.doors(Road::Stack, &[c.remote()]))
        .send(caught(c, syn, c.remote()).opens_masqueraded().counts(&[Reason::SLIPPED]))
        .send(from_outside(answer).passes_as(out))
}

fn dropped(c: Cast) -> Case {
    let door = Door::ClusterIp;
    let ping = c.request().icmp(if c.v6 { 128 } else { 8 }, 0);
    let name = format!("What no backend can take does not leave the node ({})", c.family());
    case(name, c.doors(Road::Stack, &[c.nowhere()]))
        .send(to_outside(ask(c, door, SYN).dst(c.unallocated())).drops(Reason::UNALLOCATED))
        .send(to_outside(ask(c, door, SYN).dport(81)).drops(Reason::UNDEFINED_PORT))
        .send(to_outside(ping).drops(Reason::UNDEFINED_PORT))
        .send(to_outside(ask(c, door, ACK)).drops(Reason::NO_FLOW))
        .send(to_outside(ask(c, door, RST)).drops(Reason::STRAY_RST))
        .send(to_outside(ask(c, door, SYN)).drops(Reason::NO_ROUTE))
        .send(to_outside(c.query().fragment(3, false)).drops(Reason::UNDEFINED_PORT))
}

fn no_endpoints(c: Cast) -> Case {
    let name = format!("To a Service without endpoints nothing leaves the node ({})", c.family());
    case(name, c.doors(Road::Stack, &[]))
        .send_all(AWAY.map(|door| to_outside(ask(c, door, SYN)).drops(Reason::NO_ENDPOINTS)))
}

fn local_policy(c: Cast) -> Case {
    // Who slipped is inside: the list is the cluster's.
    let world = c.doors(Road::Stack, &[c.remote()]).external_local(&c.web()).internal_local(&c.web());
    case(format!("Policies hold for what slipped ({})", c.family()), world)
        .send(to_outside(ask(c, Door::ClusterIp, SYN)).drops(Reason::NO_LOCAL_INTERNAL))
        .send(caught(c, ask(c, Door::LoadBalancer, SYN), c.remote()).opens_masqueraded().counts(&[Reason::SLIPPED]))
}

fn not_ours(c: Cast) -> Case {
    let door = Door::NodePort;
    let far = c.from(&CLIENT).tcp(PORT, 80, SYN);
    let name = format!("What leaves for elsewhere is nobody's business ({})", c.family());
    case(name, c.doors(Road::Stack, &[c.remote()]))
        .send(to_outside(far.clone()))
        .send(to_outside(far.fragment(0, true)))
        .send(to_outside(ask(c, door, SYN).dport(22)))
        .send(to_outside(c.from(&CLIENT).icmp(if c.v6 { 128 } else { 8 }, 0)))
        .send(to_outside(eth().payload(b"arp")))
}
