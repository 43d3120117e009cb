//! Clients outside the cluster: every kind of frontend, backends here and on other nodes, traffic policies, source ranges, and what a router owes its
//! neighbours.

use std::net::IpAddr;

use netlb_common::backend::state::{ACTIVE, REMOVED};
use netlb_common::conntrack::{CtKey, CtValue, flags, state, timeout_s};
use netlb_common::{Addr, Port, Reason, frontend};

use super::cast::{BACKEND, CLIENT, Cast, Door, PORT, Road, THIRD};
use super::lifecycle::port_for;
use crate::case::{Case, Send, case, from_outside, from_pod, to_outside, to_pod};
use crate::need::Need;
use crate::packet::{ACK, Ext, FIN, Frame, MOVED, PSH, RST, SYN, TCP, ToIp, eth};
use crate::world::{HZ, UPLINK, World};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        for door in Door::ALL {
            cases.extend([here(c, door), here_udp(c, door), elsewhere(c, door), elsewhere_udp(c, door)]);
            cases.extend([no_endpoints(c, door), mid_stream(c, door)]);
        }
        for door in Door::EXTERNAL {
            cases.extend([local_policy(c, door), none_here(c, door), none_anywhere(c, door)]);
        }
        cases.extend([internal_policy(c), internal_policy_none_here(c), redirect_road(c), host_backend(c)]);
        cases.extend([source_ranges(c), undefined_ports(c), another_address(c), vip_on_the_node(c), pings(c)]);
        cases.extend([ttl_ends(c), ttl_ends_here(c), gso(c), headers(c)]);
        for way in [Narrow::Uplink, Narrow::Route] {
            cases.extend([request_too_big(c, way), answer_too_big(c, way)]);
        }
        cases.extend([nowhere(c), no_address(c), own_address(c), two_doors(c), exhausted(c), port_again(c)]);
        cases.extend([
            errors_routed(c),
            errors_here(c),
            last_hop_of_an_error(c),
            reselected(c),
            reselected_elsewhere(c),
        ]);
    }
    cases.push(may_be_fragmented());
    cases
}

/// A request to a backend of this node, the visitor's address kept.
fn there(c: Cast, request: Frame) -> Send {
    from_outside(request.clone()).passes_as(c.for_backend(request, c.of(&BACKEND)))
}

/// BACKEND's answer to the visitor.
fn answer(c: Cast, flags: u8, payload: &[u8]) -> Frame {
    eth().ip(c.of(&BACKEND), c.visitor()).tcp(8080, PORT, flags).seq(5000, 1001).payload(payload)
}

/// BACKEND's answer on its way out.
fn back(c: Cast, door: Door, answer: Frame) -> Send {
    to_outside(answer.clone()).passes_as(c.by_door(answer, door))
}

/// A request to a backend of another node, from the node.
fn onward(c: Cast, request: Frame) -> Send {
    from_outside(request.clone()).routes_as(c.forwarded(request, c.remote()))
}

/// The remote backend's answer, to the node.
fn remote_answer(c: Cast, flags: u8, payload: &[u8]) -> Frame {
    eth().ip(c.remote(), c.node_ip()).tcp(8080, MOVED, flags).seq(5000, 1001).payload(payload)
}

/// A remote backend's answer on its way to the visitor.
fn homeward(c: Cast, door: Door, answer: Frame) -> Send {
    let out = c.by_door(answer.clone(), door).dst(c.visitor()).dport(PORT).hop();
    from_outside(answer).routes_as(out)
}

fn here(c: Cast, door: Door) -> Case {
    let name =
        format!("From outside over TCP to a backend of this node, from SYN to the last FIN ({door:?}, {})", c.family());
    case(name, c.doors(Road::Stack, &[c.of(&BACKEND)]))
        .send(there(c, c.visit_syn(door)).opens())
        .state(state::SYN_SENT)
        .send(there(c, c.visit_syn(door)))
        // The pod's device has no business with either direction.
        .send(to_pod(c.for_backend(c.visit_syn(door), c.of(&BACKEND)).hop().macs(BACKEND.mac, BACKEND.host_mac)))
        .send(from_pod(&BACKEND, answer(c, SYN | ACK, b"").macs(BACKEND.host_mac, BACKEND.mac)))
        .state(state::SYN_SENT)
        .send(back(c, door, answer(c, SYN | ACK, b"")))
        .state(state::SYN_RECV)
        .send(there(c, c.visit_tcp(door, ACK, b"")).promotes())
        .state(state::ESTABLISHED)
        .send(there(c, c.visit_tcp(door, ACK | PSH, b"GET / HTTP/1.1\r\n\r\n")))
        .send(back(c, door, answer(c, ACK | PSH, b"HTTP/1.1 200 OK\r\n\r\nhello")))
        .send(back(c, door, answer(c, FIN | ACK, b"")))
        .state(state::FIN_BACKEND)
        .send(there(c, c.visit_tcp(door, ACK, b"half-closed")))
        .send(there(c, c.visit_tcp(door, FIN | ACK, b"")))
        .state(state::TIME_WAIT)
}

fn here_udp(c: Cast, door: Door) -> Case {
    let answer = eth().ip(c.of(&BACKEND), c.visitor()).udp(5353, PORT).payload(b"me!");
    let name = format!("From outside over UDP to a backend of this node ({door:?}, {})", c.family());
    case(name, c.doors(Road::Stack, &[c.of(&BACKEND)]))
        .send(there(c, c.visit_query(door)).opens())
        .send(there(c, c.visit_query(door)))
        .send(back(c, door, answer.clone()).promotes())
        .state(state::UDP_STREAM)
        .send(there(c, c.visit_query(door).no_sum()))
        .send(back(c, door, answer.no_sum()))
}

fn elsewhere(c: Cast, door: Door) -> Case {
    let name = format!(
        "From outside over TCP to a backend elsewhere: forwarded, both ways, from SYN to the last FIN ({door:?}, {})",
        c.family()
    );
    case(name, c.doors(Road::Stack, &[c.remote()]))
        .send(onward(c, c.visit_syn(door)).opens_masqueraded())
        .state(state::SYN_SENT)
        // A retransmission keeps the port.
        .send(onward(c, c.visit_syn(door)))
        .send(homeward(c, door, remote_answer(c, SYN | ACK, b"")))
        .state(state::SYN_RECV)
        .send(onward(c, c.visit_tcp(door, ACK, b"")).promotes())
        .state(state::ESTABLISHED)
        .send(onward(c, c.visit_tcp(door, ACK | PSH, b"GET / HTTP/1.1\r\n\r\n")))
        .send(homeward(c, door, remote_answer(c, ACK | PSH, b"HTTP/1.1 200 OK\r\n\r\nhello")))
        .send(onward(c, c.visit_tcp(door, FIN | ACK, b"")))
        .state(state::FIN_CLIENT)
        .send(homeward(c, door, remote_answer(c, ACK, b"half-closed")))
        .send(homeward(c, door, remote_answer(c, FIN | ACK, b"")))
        .state(state::TIME_WAIT)
        .send(onward(c, c.visit_tcp(door, ACK, b"")))
}

fn elsewhere_udp(c: Cast, door: Door) -> Case {
    let answer = eth().ip(c.remote(), c.node_ip()).udp(5353, MOVED).payload(b"me!");
    let name = format!("From outside over UDP to a backend elsewhere ({door:?}, {})", c.family());
    case(name, c.doors(Road::Stack, &[c.remote()]))
        .send(onward(c, c.visit_query(door)).opens_masqueraded())
        .send(onward(c, c.visit_query(door)))
        .send(homeward(c, door, answer.clone()).promotes())
        .send(onward(c, c.visit_query(door).payload(b"and who are you?")))
        .send(homeward(c, door, answer.payload(b"")))
}

fn redirect_road(c: Cast) -> Case {
    let name = format!("Clients outside take the stack road whatever pods take ({})", c.family());
    case(name, c.doors(Road::Redirect, &[c.of(&BACKEND)]))
        .send(there(c, c.visit_syn(Door::NodePort)).opens())
        .send(from_pod(&BACKEND, answer(c, SYN | ACK, b"").macs(BACKEND.host_mac, BACKEND.mac)))
        .send(back(c, Door::NodePort, answer(c, SYN | ACK, b"")))
}

fn host_backend(c: Cast) -> Case {
    // A pod with hostNetwork: the stack delivers to the node itself.
    let own = c.node_ip();
    let world = c.doors(Road::Stack, &[own]).on_host(&c.web(), &c.at(own, 8080));
    let answer = answer(c, SYN | ACK, b"").src(own);
    let (syn, door) = (c.visit_syn(Door::LoadBalancer), Door::LoadBalancer);
    case(format!("A backend in the node's own network keeps the client's address ({})", c.family()), world)
        .send(from_outside(syn.clone()).passes_as(c.for_backend(syn, own)).opens())
        .send(back(c, door, answer))
        .send(
            from_outside(c.visit_tcp(door, ACK, b""))
                .passes_as(c.for_backend(c.visit_tcp(door, ACK, b""), own))
                .promotes(),
        )
}

fn no_endpoints(c: Cast, door: Door) -> Case {
    let (syn, query) = (c.visit_syn(door), c.visit_query(door));
    let name = format!("A Service without endpoints refuses clients outside at once ({door:?}, {})", c.family());
    case(name, c.doors(Road::Stack, &[]))
        .send(from_outside(syn.clone()).reflects(c.reset(&syn, 0, 1001, RST | ACK)).counts(&[Reason::NO_ENDPOINTS]))
        .send(
            from_outside(query.clone())
                .reflects(c.unreachable(&query, c.header(), true))
                .counts(&[Reason::NO_ENDPOINTS]),
        )
}

fn mid_stream(c: Cast, door: Door) -> Case {
    let (data, reset) = (c.visit_tcp(door, ACK | PSH, b"data"), c.visit_tcp(door, RST, b""));
    let world = c.doors(Road::Stack, &[c.remote()]);
    let case = if door == Door::NodePort {
        let name = format!(
            "A TCP segment of no known flow to a NodePort is the host's: its sockets have such ports too ({})",
            c.family()
        );
        case(name, world).send(from_outside(data)).send(from_outside(reset))
    } else {
        let name =
            format!("From outside, a TCP segment of no known flow is reset, a RST dropped ({door:?}, {})", c.family());
        case(name, world)
            .send(from_outside(data.clone()).reflects(c.reset(&data, 5001, 0, RST)).counts(&[Reason::NO_FLOW]))
            .send(from_outside(reset).drops(Reason::STRAY_RST))
    };
    // What comes for the node itself, and no flow of ours awaits, is the stack's.
    case.send(from_outside(remote_answer(c, ACK, b"").dport(1_500))).send(to_outside(answer(c, ACK, b"")))
}

/// A request of CLIENT's that its flow's hash sends to the first of two backends.
fn first_of_two(c: Cast, door: Door) -> Frame {
    let syn = c.from(&CLIENT).dst(c.door(door)).tcp(PORT, door.port(80), SYN);
    let port = port_for(&syn, TCP, 0, 2, PORT);
    syn.sport(port)
}

fn local_policy(c: Cast, door: Door) -> Case {
    let world = c.doors(Road::Stack, &[c.remote(), c.of(&BACKEND)]).external_local(&c.web());
    let pods = first_of_two(c, door);
    let out = c.for_backend(pods.clone(), c.remote());
    let name = format!(
        "externalTrafficPolicy Local: clients outside get this node's endpoints, pods get all, and keep their address ({door:?}, {})",
        c.family()
    );
    case(name, world)
        .send_all((0..6).map(|i| there(c, c.visit_syn(door).sport(50_000 + i)).opens()))
        .send(from_pod(&CLIENT, pods).passes_as(out.clone()).opens())
        .send(to_outside(out))
}

fn none_here(c: Cast, door: Door) -> Case {
    let world = c.doors(Road::Stack, &[c.remote()]).external_local(&c.web()).external_local(&c.dns());
    let syn = c.from(&CLIENT).dst(c.door(door)).tcp(PORT, door.port(80), SYN);
    let out = c.for_backend(syn.clone(), c.remote());
    let name = format!(
        "externalTrafficPolicy Local without endpoints here: clients outside hear nothing, pods reach the others ({door:?}, {})",
        c.family()
    );
    case(name, world)
        .send(from_outside(c.visit_syn(door)).drops(Reason::NO_LOCAL_EXTERNAL))
        .send(from_outside(c.visit_query(door)).drops(Reason::NO_LOCAL_EXTERNAL))
        .send(from_pod(&CLIENT, syn).passes_as(out).opens())
}

fn none_anywhere(c: Cast, door: Door) -> Case {
    let world = c.doors(Road::Stack, &[]).external_local(&c.web()).external_local(&c.dns());
    let (syn, query) = (c.visit_syn(door), c.visit_query(door));
    let name = format!("externalTrafficPolicy Local without endpoints anywhere: refused ({door:?}, {})", c.family());
    case(name, world)
        .send(from_outside(syn.clone()).reflects(c.reset(&syn, 0, 1001, RST | ACK)).counts(&[Reason::NO_ENDPOINTS]))
        .send(
            from_outside(query.clone())
                .reflects(c.unreachable(&query, c.header(), true))
                .counts(&[Reason::NO_ENDPOINTS]),
        )
}

fn internal_policy(c: Cast) -> Case {
    let world = c.doors(Road::Stack, &[c.remote(), c.of(&BACKEND)]).internal_local(&c.web());
    let to = |i: u16| c.syn().sport(50_000 + i);
    let port = port_for(&c.visit_syn(Door::NodePort), TCP, 0, 2, PORT);
    let name = format!(
        "internalTrafficPolicy Local binds the cluster IP, for whoever asks, and nothing else ({})",
        c.family()
    );
    case(name, world)
        .send_all((0..6).map(|i| from_pod(&CLIENT, to(i)).passes_as(c.translated(to(i))).opens()))
        .send_all((0..6).map(|i| there(c, c.visit_syn(Door::ClusterIp).sport(50_000 + i)).opens()))
        .send(onward(c, c.visit_syn(Door::NodePort).sport(port)).opens_masqueraded())
}

fn internal_policy_none_here(c: Cast) -> Case {
    let world = c.doors(Road::Stack, &[c.remote()]).internal_local(&c.web()).internal_local(&c.dns());
    let name = format!("internalTrafficPolicy Local without endpoints here is silent ({})", c.family());
    case(name, world)
        .send(from_pod(&CLIENT, c.syn()).drops(Reason::NO_LOCAL_INTERNAL))
        .send(from_pod(&CLIENT, c.query()).drops(Reason::NO_LOCAL_INTERNAL))
        .send(from_outside(c.visit_syn(Door::ClusterIp)).drops(Reason::NO_LOCAL_INTERNAL))
        .send(onward(c, c.visit_syn(Door::NodePort)).opens_masqueraded())
}

fn source_ranges(c: Cast) -> Case {
    let range = if c.v6 { ("2001:db8:7::", 48) } else { ("198.51.100.0", 24) };
    let stranger: IpAddr = if c.v6 { "2001:db8:8::7".to_ip() } else { "198.51.101.7".to_ip() };
    let balancer = c.at(c.door(Door::LoadBalancer), 80);
    let world = c
        .node(Road::Stack)
        .service(&c.web(), &[&c.at(c.of(&BACKEND), 8080)])
        .load_balancer(&c.web(), &balancer, &[range])
        .node_port(&c.web(), 30_080);
    let pods = c.from(&CLIENT).dst(c.door(Door::LoadBalancer)).tcp(PORT + 1, 80, SYN);
    let port = c.visit_syn(Door::NodePort).src(stranger);
    case(
        format!(
            "loadBalancerSourceRanges bind load balancer addresses, for pods too, and nothing else ({})",
            c.family()
        ),
        world,
    )
    .send(there(c, c.visit_syn(Door::LoadBalancer)).opens())
    .send(from_outside(c.visit_syn(Door::LoadBalancer).src(stranger)).drops(Reason::SOURCE_RANGE))
    .send(from_pod(&CLIENT, pods.clone()).drops(Reason::SOURCE_RANGE))
    .send(there(c, port).opens())
    .send(from_pod(&CLIENT, c.syn()).passes_as(c.translated(c.syn())).opens())
    .change(move |w| {
        let flag = frontend::flags::SOURCE_RANGES;
        w.frontend(&(balancer.clone() + "/TCP")).flags &= !flag;
    })
    .send(from_pod(&CLIENT, pods.clone()).passes_as(c.translated(pods)).opens())
}

fn undefined_ports(c: Cast) -> Case {
    let name = format!(
        "Ports of node and load balancer addresses that no Service has are the host's, those of a cluster IP refused ({})",
        c.family()
    );
    let syn = c.visit_syn(Door::ClusterIp).dport(81);
    let mut case = case(name, c.doors(Road::Stack, &[c.of(&BACKEND)]));
    for door in Door::EXTERNAL {
        let syn = c.visit_syn(door).dport(22);
        let pods = c.from(&CLIENT).dst(c.door(door)).tcp(PORT, 22, SYN);
        case = case
            .send(from_outside(syn.clone()))
            .send(from_outside(syn.flags(ACK)))
            .send(from_outside(c.visit(door).udp(PORT, door.port(80))))
            .send(from_outside(c.visit(door).raw(47).payload(&[1; 16])))
            .send(from_pod(&CLIENT, pods));
    }
    case.send(from_outside(syn.clone()).reflects(c.reset(&syn, 0, 1001, RST | ACK)).counts(&[Reason::UNDEFINED_PORT]))
        .send(from_outside(c.visit_syn(Door::ClusterIp).dst(c.unallocated())).drops(Reason::UNALLOCATED))
        // A NodePort is no port of the cluster IP, and the other way round.
        .send(from_outside(c.visit_syn(Door::NodePort).dport(80)))
}

fn another_address(c: Cast) -> Case {
    // Addresses that --nodeport-addresses leaves out.
    let other: IpAddr = if c.v6 { "2001:db8:2::99".to_ip() } else { "192.0.2.99".to_ip() };
    let syn = c.visit_syn(Door::NodePort).dst(other);
    let world = c.doors(Road::Stack, &[c.of(&BACKEND)]);
    case(
        format!("A NodePort is served at the addresses that serve NodePorts, as they come and go ({})", c.family()),
        world,
    )
    .send(from_outside(syn.clone()))
    .change(move |w| *w = w.clone().node_address(other))
    .send(from_outside(syn.clone()).passes_as(c.for_backend(syn.clone(), c.of(&BACKEND))).opens())
    .change(|w| w.frontends.retain(|key, f| !key.is_address() || f.flags & frontend::flags::NODE == 0))
    .send(from_outside(syn.sport(PORT + 1)))
    .send(from_outside(c.visit_syn(Door::NodePort)))
}

fn vip_on_the_node(c: Cast) -> Case {
    // A Service whose cluster IP is also an address of the node.
    let world = c.doors(Road::Stack, &[c.of(&BACKEND)]).node_address(c.vip());
    let port = c.visit_syn(Door::NodePort).dst(c.vip());
    let undefined = port.clone().dport(30_081);
    case(format!("A cluster IP that is a node address serves NodePorts, and refuses the rest ({})", c.family()), world)
        .send(there(c, port).opens())
        .send(
            from_outside(undefined.clone())
                .reflects(c.reset(&undefined, 0, 1001, RST | ACK))
                .counts(&[Reason::UNDEFINED_PORT]),
        )
}

fn pings(c: Cast) -> Case {
    let ping = |door: Door| c.visit(door).icmp(if c.v6 { 128 } else { 8 }, 0).rest(0x0001_0001).payload(b"abcdefgh");
    let refused = c.unreachable(&ping(Door::ClusterIp), c.header(), false);
    case(
        format!("Pings from outside: the host answers for its addresses, a cluster IP refuses ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .send_all(Door::EXTERNAL.map(|door| from_outside(ping(door))))
    .send(from_outside(ping(Door::ClusterIp)).reflects(refused).counts(&[Reason::UNDEFINED_PORT]))
}

/// "Time exceeded" about a frame.
fn time_exceeded(c: Cast, about: &Frame, tcp: bool) -> Frame {
    let (kind, code) = if c.v6 { (3, 0) } else { (11, 0) };
    c.error_about(about, kind, code).quote_settled(about, c.header() + if tcp { 20 } else { 8 })
}

fn ttl_ends(c: Cast) -> Case {
    let (syn, query) = (c.visit_syn(Door::NodePort).ttl(1), c.visit_query(Door::NodePort).ttl(1));
    let answer = remote_answer(c, SYN | ACK, b"").ttl(1);
    case(
        format!("A forwarded packet whose TTL ends is answered, as by any router ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .send(onward(c, c.visit_syn(Door::NodePort)).opens_masqueraded())
    .send(from_outside(syn.clone()).reflects(time_exceeded(c, &syn, true)).counts(&[Reason::TTL_EXCEEDED]))
    .send(from_outside(answer.clone()).reflects(time_exceeded(c, &answer, true)).counts(&[Reason::TTL_EXCEEDED]))
    .send(
        from_outside(query.clone())
            .reflects(time_exceeded(c, &query, false))
            .opens_masqueraded()
            .counts(&[Reason::TTL_EXCEEDED]),
    )
}

fn ttl_ends_here(c: Cast) -> Case {
    // The stack finds out, and its answer quotes the translated packet.
    let syn = c.visit_syn(Door::NodePort).ttl(1);
    let (kind, code) = if c.v6 { (3, 0) } else { (11, 0) };
    let error = |quote: &Frame| eth().ip(c.node_ip(), c.visitor()).icmp(kind, code).quote(quote, 200);
    let inner = c.for_backend(syn.clone(), c.of(&BACKEND));
    case(
        format!(
            "A packet for a backend here whose TTL ends is the stack's, and its answer names what was sent ({})",
            c.family()
        ),
        c.doors(Road::Stack, &[c.of(&BACKEND)]),
    )
    .send(there(c, syn.clone()).opens())
    .send(to_outside(error(&inner)).passes_as(error(&syn)).counts(&[Reason::ICMP_TRANSLATED]))
}

/// "Too big" about a frame: 1300 bytes fit.
fn too_big(c: Cast, about: &Frame, quoted: usize) -> Frame {
    let (kind, code) = if c.v6 { (2, 0) } else { (3, 4) };
    c.error_about(about, kind, code).rest(1_300).quote_settled(about, c.header() + quoted)
}

/// What makes a way narrow.
#[derive(Clone, Copy, Debug)]
enum Narrow {
    Uplink,
    Route,
}

impl Narrow {
    /// Somebody that way.
    fn end(self, c: Cast) -> IpAddr {
        match self {
            Narrow::Uplink => c.narrow(),
            Narrow::Route => c.narrow_route(),
        }
    }

    fn needs(self) -> &'static [Need] {
        match self {
            Narrow::Uplink => &[],
            Narrow::Route => &[Need::RouteMtu],
        }
    }
}

fn request_too_big(c: Cast, way: Narrow) -> Case {
    let door = Door::NodePort;
    let backend = way.end(c);
    let on = |f: Frame| from_outside(f.clone()).routes_as(c.forwarded(f, backend));
    let room = 1_300 - c.header() - 20;
    let fits = c.visit_tcp(door, ACK, &vec![b'x'; room]);
    let over = c.visit_tcp(door, ACK, &vec![b'x'; room + 1]);
    case(
        format!("A request that does not fit the way onward is answered with the way's MTU ({way:?}, {})", c.family()),
        c.doors(Road::Stack, &[backend]),
    )
    .needs(way.needs())
    .send(on(c.visit_syn(door)).opens_masqueraded())
    .send(on(fits))
    .send(from_outside(over.clone()).reflects(too_big(c, &over, 20)).counts(&[Reason::FRAGMENTATION_NEEDED]))
    .send(on(c.visit_tcp(door, ACK, b"less")))
}

fn answer_too_big(c: Cast, way: Narrow) -> Case {
    let door = Door::LoadBalancer;
    let visitor = way.end(c);
    let query = c.visit_query(door).src(visitor);
    let answer = |len: usize| eth().ip(c.remote(), c.node_ip()).udp(5353, MOVED).payload(&vec![b'y'; len]);
    let room = 1_300 - c.header() - 8;
    let home = |f: Frame| from_outside(f.clone()).routes_as(c.by_door(f, door).dst(visitor).dport(PORT).hop());
    let family = c.family();
    case(
        format!(
            "An answer that does not fit the way to the client is answered with that way's MTU ({way:?}, {family})"
        ),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .needs(way.needs())
    .send(onward(c, query).opens_masqueraded())
    .send(home(answer(room)).promotes())
    .send(
        from_outside(answer(room + 1))
            .reflects(too_big(c, &answer(room + 1), 8))
            .counts(&[Reason::FRAGMENTATION_NEEDED]),
    )
}

fn may_be_fragmented() -> Case {
    let c = Cast { v6: false };
    let door = Door::NodePort;
    let syn = c.visit_syn(door);
    case(
        "What does not fit and may be fragmented is dropped: this node fragments nothing",
        c.doors(Road::Stack, &[c.narrow()]),
    )
    .send(from_outside(syn.clone()).routes_as(c.forwarded(syn, c.narrow())).opens_masqueraded())
    .send(from_outside(c.visit_tcp(door, ACK, &[b'x'; 1_400]).dont_fragment(false)).drops(Reason::TOO_BIG))
}

fn gso(c: Cast) -> Case {
    let big = c.visit_tcp(Door::NodePort, ACK, &[b'x'; 3_000]);
    case(
        format!("A frame of segments that fit is forwarded whole ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .send(onward(c, c.visit_syn(Door::NodePort)).opens_masqueraded())
    .send(onward(c, big).gso(1_400))
}

fn headers(c: Cast) -> Case {
    let with = |f: Frame| {
        if c.v6 {
            f.flow_label(0x0ab_cdef).ext(Ext::HopByHop(0)).ext(Ext::Destination(1))
        } else {
            f.options(&[1; 40]).tos_id(0xb8, 9)
        }
    };
    let door = Door::ExternalIp;
    case(
        format!("Options and extension headers are carried along to a backend elsewhere ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .send(onward(c, with(c.visit_syn(door)).tcp_options(&[1; 40])).opens_masqueraded())
    .send(homeward(c, door, with(remote_answer(c, SYN | ACK, b""))))
    .send(onward(c, with(c.visit_tcp(door, ACK, b"data"))).promotes())
}

fn nowhere(c: Cast) -> Case {
    case(
        format!("A backend to which there is no way costs no entry ({})", c.family()),
        c.doors(Road::Stack, &[c.nowhere()]),
    )
    .send(from_outside(c.visit_syn(Door::NodePort)).drops(Reason::NO_ROUTE))
    .send(from_outside(c.visit_query(Door::ClusterIp)).drops(Reason::NO_ROUTE))
}

fn no_address(c: Cast) -> Case {
    // A node without an address of this family: only the load balancer leads here.
    let addressless = |w: &mut World| {
        (w.config.node4, w.config.node6) = (Addr::UNSPECIFIED, Addr::UNSPECIFIED);
        let uplink = w.uplinks.get_mut(&UPLINK).expect("every world has one");
        (uplink.addr4, uplink.addr6) = (Addr::UNSPECIFIED, Addr::UNSPECIFIED);
    };
    case(
        format!("A node without an address of the family cannot forward ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .change(addressless)
    .send(from_outside(c.visit_syn(Door::LoadBalancer)).drops(Reason::NO_ADDRESS))
}

fn own_address(c: Cast) -> Case {
    // The uplink has another address than the node's primary one.
    let other: IpAddr = if c.v6 { "2001:db8:2::77".to_ip() } else { "192.0.2.77".to_ip() };
    let syn = c.visit_syn(Door::LoadBalancer);
    let answer = remote_answer(c, SYN | ACK, b"");
    let out = c.by_door(answer.clone(), Door::LoadBalancer).dst(c.visitor()).dport(PORT).hop();
    case(
        format!("Masqueraded packets have the address of the device they leave by ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .change(move |w| {
        let uplink = w.uplinks.get_mut(&UPLINK).expect("every world has one");
        *(if c.v6 { &mut uplink.addr6 } else { &mut uplink.addr4 }) = Addr::from_ip(other);
    })
    .send(from_outside(syn.clone()).routes_as(c.forwarded(syn, c.remote()).src(other)).opens_masqueraded())
    .send(from_outside(answer.dst(other)).routes_as(out))
}

fn two_doors(c: Cast) -> Case {
    // One client port at two doors, one backend: the answers would look the same.
    let first = c.visit_syn(Door::NodePort);
    let second = c.visit_syn(Door::LoadBalancer);
    let moved = answer(c, SYN | ACK, b"two").dport(MOVED);
    let seen = c.by_door(moved.clone(), Door::LoadBalancer).dport(PORT);
    case(
        format!("One client port at two doors of one backend: answers come back by the right door ({})", c.family()),
        c.doors(Road::Stack, &[c.of(&BACKEND)]),
    )
    .send(there(c, first).opens())
    .send(
        from_outside(second.clone())
            .passes_as(c.for_backend(second, c.of(&BACKEND)).sport(MOVED))
            .opens()
            .counts(&[Reason::PORT_MOVED]),
    )
    .send(to_outside(moved).passes_as(seen))
    .send(back(c, Door::NodePort, answer(c, SYN | ACK, b"one")))
}

/// Somebody else's flow from the node's `port` to the remote backend.
fn taken(c: Cast, port: u16, world: &mut World) {
    let (visitor, node) = (Addr::from_ip(c.outside()), Addr::from_ip(c.node_ip()));
    let port = Port::new(port);
    let there = CtKey::new(visitor, Addr::from_ip(c.door(Door::NodePort)), port, Port::new(30_080), TCP);
    let back = CtKey::new(Addr::from_ip(c.remote()), node, Port::new(8080), port, TCP);
    let value = |to: &CtKey, flags: u16, delta: u16| CtValue {
        src: to.dst,
        dst: to.src,
        ports: to.ports().rotate_left(16),
        flags: flags::ROUTED | flags,
        delta_addr: delta,
        delta_port: delta,
        state: state::SYN_SENT,
        timeout: timeout_s(state::SYN_SENT) * HZ,
        ..bytemuck::Zeroable::zeroed()
    };
    world.flows.insert(there, value(&back, 0, 0));
    world.flows.insert(back, value(&there, flags::REPLY, 0xffff));
}

fn exhausted(c: Cast) -> Case {
    let mut world = c.doors(Road::Stack, &[c.remote()]);
    (world.config.snat_first, world.config.snat_count) = (2_000, 4);
    (2_000..2_004).for_each(|port| taken(c, port, &mut world));
    case(format!("Without a free port of the node's a flow is dropped, and said to be; another backend has ports of its own ({})", c.family()), world)
        .send(from_outside(c.visit_syn(Door::NodePort)).drops(Reason::PORTS_EXHAUSTED))
        .send(onward(c, c.visit_query(Door::NodePort)).opens_masqueraded())
}

fn port_again(c: Cast) -> Case {
    let first = c.visit_syn(Door::NodePort);
    let second = first.clone().sport(PORT + 1);
    case(
        format!("The node's port of a flow that is over is free again ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]).one_snat_port(2_000),
    )
    .send(onward(c, first).opens_masqueraded())
    .send(from_outside(second.clone()).drops(Reason::PORTS_EXHAUSTED))
    .wait(121)
    // What is left of the first flow is one entry, expired.
    .send(onward(c, second).counts(&[Reason::NEW_FLOW, Reason::MASQUERADED]).entries(1, 0))
}

/// ICMP errors between the visitor's side and the remote backend's, and what becomes of them.
fn errors_routed(c: Cast) -> Case {
    let door = Door::NodePort;
    let (router, node) = (c.outside(), c.node_ip());
    let (kind, code) = if c.v6 { (2, 0) } else { (3, 4) };
    let error = |src: IpAddr, dst: IpAddr, quote: &Frame| {
        eth().ip(src, dst).ttl(61).icmp(kind, code).rest(1_400).quote(quote, 120)
    };
    let request = c.visit_tcp(door, ACK, &[b'x'; 1_300]);
    let seen = c.forwarded(request.clone(), c.remote());
    let answer = remote_answer(c, ACK, &[b'y'; 1_300]);
    let got = c.by_door(answer.clone(), door).dst(c.visitor()).dport(PORT).hop();
    let (request, answer) = (request.hop(), answer.hop());
    let send = |src: IpAddr, dst: IpAddr, quote: &Frame, out: Frame| {
        from_outside(error(src, dst, quote)).forwards_as(out.hop()).counts(&[Reason::ICMP_TRANSLATED])
    };
    case(
        format!("ICMP errors about forwarded packets reach who sent them, in his own words ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .send(onward(c, c.visit_syn(door)).opens_masqueraded())
    // A router beyond this node, and the backend itself, about the visitor's packet.
    .send(send(router, node, &seen, error(router, c.visitor(), &request)))
    .send(send(c.remote(), node, &seen, error(c.door(door), c.visitor(), &request)))
    // The visitor, and a router before it, about the backend's: the node's clients have the node's address.
    .send(send(c.visitor(), c.door(door), &got, error(node, c.remote(), &answer)))
    .send(send(router, c.door(door), &got, error(node, c.remote(), &answer)))
}

fn last_hop_of_an_error(c: Cast) -> Case {
    let door = Door::NodePort;
    let seen = c.forwarded(c.visit_syn(door), c.remote());
    let (kind, code) = if c.v6 { (2, 0) } else { (3, 4) };
    let error = eth().ip(c.outside(), c.node_ip()).ttl(1).icmp(kind, code).quote(&seen, 100);
    case(
        format!("A forwarded error whose TTL ends is dropped: no error about an error ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .send(onward(c, c.visit_syn(door)).opens_masqueraded())
    .send(from_outside(error).drops(Reason::TTL_EXCEEDED))
}

fn errors_here(c: Cast) -> Case {
    let door = Door::LoadBalancer;
    let (router, visitor, inside) = (c.outside(), c.visitor(), c.of(&BACKEND));
    let (kind, code) = if c.v6 { (2, 0) } else { (3, 4) };
    let error =
        |src: IpAddr, dst: IpAddr, quote: &Frame| eth().ip(src, dst).icmp(kind, code).rest(1_400).quote(quote, 120);
    let request = c.visit_tcp(door, ACK, b"request");
    let seen = c.for_backend(request.clone(), inside);
    let answer = answer(c, ACK, &[b'y'; 1_300]);
    let got = c.by_door(answer.clone(), door);
    let own = error(inside, visitor, &seen);
    case(
        format!("ICMP errors between outside and a backend here reach who sent the packet ({})", c.family()),
        c.doors(Road::Stack, &[inside]),
    )
    .send(there(c, c.visit_syn(door)).opens())
    // Path MTU discovery: a router on the way out, about the answer.
    .send(
        from_outside(error(router, c.door(door), &got))
            .passes_as(error(router, inside, &answer))
            .counts(&[Reason::ICMP_TRANSLATED]),
    )
    .send(
        from_outside(error(visitor, c.door(door), &got))
            .passes_as(error(visitor, inside, &answer))
            .counts(&[Reason::ICMP_TRANSLATED]),
    )
    // The backend about the request: as it is at the pod's device, translated at the uplink.
    .send(from_pod(&BACKEND, own.clone().macs(BACKEND.host_mac, BACKEND.mac)))
    .send(to_outside(own).passes_as(error(c.door(door), visitor, &request)).counts(&[Reason::ICMP_TRANSLATED]))
    // About something else.
    .send(from_outside(error(router, c.node_ip(), &got.clone().sport(9))))
    .send(to_outside(error(c.node_ip(), visitor, &seen.dport(9))))
}

fn reselected(c: Cast) -> Case {
    let door = Door::NodePort;
    let world = c.doors(Road::Stack, &[c.of(&BACKEND), c.of(&THIRD)]);
    let query = c.visit_query(door);
    let port = port_for(&query, crate::packet::UDP, 0, 2, PORT);
    let query = query.sport(port);
    case(format!("A UDP flow from outside leaves a removed backend with the change ({})", c.family()), world)
        .send(there(c, query.clone()).opens())
        .change(move |w| w.set_state(&c.dns(), &c.at(c.of(&BACKEND), 5353), REMOVED))
        .send(
            from_outside(query.clone())
                .passes_as(c.for_backend(query, c.of(&THIRD)))
                .opens()
                .counts(&[Reason::RESELECTED])
                .entries(-2, 0),
        )
}

fn reselected_elsewhere(c: Cast) -> Case {
    let door = Door::NodePort;
    let mut world = c.doors(Road::Stack, &[c.remote(), c.of(&BACKEND)]);
    world.set_state(&c.dns(), &c.at(c.of(&BACKEND), 5353), REMOVED);
    let query = c.visit_query(door);
    case(format!("A forwarded UDP flow whose backend goes is answered from this node ({})", c.family()), world)
        .send(onward(c, query.clone()).opens_masqueraded())
        .change(move |w| {
            w.set_state(&c.dns(), &c.at(c.of(&BACKEND), 5353), ACTIVE);
            w.set_state(&c.dns(), &c.at(c.remote(), 5353), REMOVED);
        })
        .send(there(c, query).opens().counts(&[Reason::RESELECTED]).entries(-2, 0))
        // The former backend's late answer is nobody's.
        .send(from_outside(eth().ip(c.remote(), c.node_ip()).udp(5353, MOVED).payload(b"late")))
}
