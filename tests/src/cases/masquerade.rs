//! Clients whose address the backend may not see: where it is replaced, where it comes back, and who is spared.

use std::net::IpAddr;

use netlb_common::config::pods;
use netlb_common::conntrack::state;
use netlb_common::{Addr, Reason, endpoint, uplink};

use super::cast::{BACKEND, CLIENT, Cast, Door, PORT, Road, STRANGER};
use crate::case::{Case, Send, case, from_outside, from_pod, to_outside, to_pod};
use crate::packet::{ACK, FIN, Frame, MOVED, SYN, eth};
use crate::world::{Pod, UPLINK, World};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for c in Cast::BOTH {
        for door in Door::EXTERNAL {
            cases.extend([
                elsewhere(c, door),
                local(c, door, Road::Stack),
                local(c, door, Road::Redirect),
                hairpin(c, door),
            ]);
            cases.extend([spared(c, door), from_outside_local(c, door), kept(c, door)]);
        }
        cases.extend([elsewhere_udp(c), all(c), not_all(c), cidrs(c), cidrs_at_the_uplink(c), devices(c)]);
        cases.extend([devices_at_the_uplink(c), nobody(c), errors(c), no_address(c), two_clients(c)]);
    }
    cases
}

/// CLIENT's request to a door.
fn ask(c: Cast, door: Door, flags: u8, payload: &[u8]) -> Frame {
    c.from(&CLIENT).dst(c.door(door)).tcp(PORT, door.port(80), flags).seq(1001, 5001).payload(payload)
}

/// A frame with the node as source, on a port of its own.
fn hidden(c: Cast, frame: Frame) -> Frame {
    frame.src(c.node_ip()).sport(MOVED)
}

/// A request of CLIENT's on its way over the stack: translated at its device, masqueraded where it leaves.
fn out(c: Cast, request: Frame, backend: IpAddr, leaves: impl Fn(Frame) -> Send) -> [Send; 2] {
    let inner = c.for_backend(request.clone(), backend);
    [from_pod(&CLIENT, request).passes_as(inner.clone()), leaves(inner.clone()).passes_as(hidden(c, inner))]
}

/// A backend's answer to the node, as TCP.
fn answer(c: Cast, backend: IpAddr, flags: u8, payload: &[u8]) -> Frame {
    eth().ip(backend, c.node_ip()).tcp(8080, MOVED, flags).seq(5000, 1001).payload(payload)
}

/// An answer on its way over the stack to CLIENT: the node's address goes where it comes in, the door's address comes where it leaves.
fn home(c: Cast, door: Door, answer: Frame, comes: impl Fn(Frame) -> Send) -> [Send; 2] {
    let inner = answer.clone().dst(c.of(&CLIENT)).dport(PORT);
    [comes(answer).passes_as(inner.clone()), to_pod(inner.clone()).passes_as(c.by_door(inner, door))]
}

fn elsewhere(c: Cast, door: Door) -> Case {
    let there = |flags: u8, payload: &[u8]| out(c, ask(c, door, flags, payload), c.remote(), to_outside);
    let back = |flags: u8, payload: &[u8]| home(c, door, answer(c, c.remote(), flags, payload), from_outside);
    let [dnat, snat] = there(SYN, b"");
    let [dnat_ack, snat_ack] = there(ACK, b"");
    let name = format!("A pod reaches a backend elsewhere by {door:?} as the node, over TCP ({})", c.family());
    case(name, c.doors(Road::Stack, &[c.remote()]))
        .send(dnat.opens())
        .send(snat.masquerades())
        .state(state::SYN_SENT)
        // A retransmission keeps the port.
        .send_all(there(SYN, b""))
        .send_all(back(SYN | ACK, b""))
        .state(state::SYN_RECV)
        .send(dnat_ack.promotes())
        .send(snat_ack.promotes())
        .state(state::ESTABLISHED)
        .send_all(there(ACK, b"data"))
        .send_all(back(ACK, b"more data"))
        .send_all(there(FIN | ACK, b""))
        .state(state::FIN_CLIENT)
        .send_all(back(ACK, b"half-closed"))
        .send_all(back(FIN | ACK, b""))
        .state(state::TIME_WAIT)
}

fn elsewhere_udp(c: Cast) -> Case {
    let door = Door::NodePort;
    let query = c.from(&CLIENT).dst(c.door(door)).udp(PORT, door.port(53)).payload(b"who?");
    let there = || out(c, query.clone(), c.remote(), to_outside);
    let answer = eth().ip(c.remote(), c.node_ip()).udp(5353, MOVED).payload(b"me!");
    let [dnat, snat] = there();
    let [comes, leaves] = home(c, door, answer.clone(), from_outside);
    case(
        format!("A pod reaches a backend elsewhere as the node, over UDP ({})", c.family()),
        c.doors(Road::Stack, &[c.remote()]),
    )
    .send(dnat.opens())
    .send(snat.masquerades())
    .send(comes.promotes())
    .send(leaves.promotes())
    .send_all(there())
    .send_all(home(c, door, answer.no_sum(), from_outside))
}

fn local(c: Cast, door: Door, road: Road) -> Case {
    let inside = c.of(&BACKEND);
    let there = |flags: u8| out(c, ask(c, door, flags, b""), inside, to_pod);
    let back = |flags: u8| home(c, door, answer(c, inside, flags, b""), |f| from_pod(&BACKEND, f));
    let [dnat, snat] = there(SYN);
    let [dnat_ack, snat_ack] = there(ACK);
    let name = format!(
        "With kube-proxy's masquerade a backend here sees the node too, by the stack: {road:?} road open, {door:?} ({})",
        c.family()
    );
    case(name, c.doors(road, &[inside]).masquerade_local())
        .send(dnat.opens())
        .send(snat.masquerades())
        .send_all(back(SYN | ACK))
        .send(dnat_ack.promotes())
        .send(snat_ack.promotes())
        .send_all(back(FIN | ACK))
        .send_all(there(FIN | ACK))
        .state(state::TIME_WAIT)
}

fn spared(c: Cast, door: Door) -> Case {
    let request = ask(c, door, SYN, b"");
    let inner = c.for_backend(request.clone(), c.of(&BACKEND));
    let name = format!("By default a backend here sees the pod that asked, {door:?} ({})", c.family());
    case(name, c.doors(Road::Stack, &[c.of(&BACKEND)]))
        .send(from_pod(&CLIENT, request).passes_as(inner.clone()).opens())
        .send(to_pod(inner.hop().macs(BACKEND.mac, BACKEND.host_mac)))
}

fn from_outside_local(c: Cast, door: Door) -> Case {
    let inside = c.of(&BACKEND);
    let syn = c.visit_syn(door);
    let inner = c.for_backend(syn.clone(), inside);
    let answered = answer(c, inside, SYN | ACK, b"");
    let seen = answered.clone().dst(c.visitor()).dport(PORT);
    let name = format!(
        "With kube-proxy's masquerade a client outside is the node to a backend here, {door:?} ({})",
        c.family()
    );
    case(name, c.doors(Road::Stack, &[inside]).masquerade_local())
        .send(from_outside(syn).passes_as(inner.clone()).opens())
        .send(to_pod(inner.clone()).passes_as(hidden(c, inner)).masquerades())
        .send(from_pod(&BACKEND, answered).passes_as(seen.clone()))
        .send(to_outside(seen.clone()).passes_as(c.by_door(seen, door)))
        .state(state::SYN_RECV)
}

fn kept(c: Cast, door: Door) -> Case {
    let inside = c.of(&BACKEND);
    let (syn, pods) = (c.visit_syn(door), ask(c, door, SYN, b""));
    let (inner, inner_pods) = (c.for_backend(syn.clone(), inside), c.for_backend(pods.clone(), inside));
    let name = format!(
        "externalTrafficPolicy Local keeps every client's address, also with kube-proxy's masquerade, {door:?} ({})",
        c.family()
    );
    case(name, c.doors(Road::Stack, &[inside]).external_local(&c.web()).masquerade_local())
        .send(from_outside(syn).passes_as(inner.clone()).opens())
        .send(to_pod(inner))
        .send(from_pod(&CLIENT, pods).passes_as(inner_pods.clone()).opens())
        .send(to_pod(inner_pods))
}

fn hairpin(c: Cast, door: Door) -> Case {
    let own = c.of(&CLIENT);
    let there = |flags: u8| {
        let request = ask(c, door, flags, b"");
        let seen = c.for_backend(request.clone(), own).src(c.door(door)).hop().swap_macs();
        from_pod(&CLIENT, request).reflects(seen)
    };
    let answer = c.from(&CLIENT).dst(c.door(door)).tcp(8080, PORT, SYN | ACK);
    let seen = c.by_door(answer.clone(), door).dst(own).hop().swap_macs();
    let name = format!("A pod reaches itself by {door:?} ({})", c.family());
    case(name, c.doors(Road::Stack, &[own]).masquerade_local())
        .send(there(SYN).opens().counts(&[Reason::HAIRPIN]))
        .send(from_pod(&CLIENT, answer).reflects(seen))
        .send(there(ACK).promotes())
}

/// CLIENT's SYN to a cluster IP with this backend elsewhere, and whether the node stands in for it.
fn to_cluster_ip(c: Cast, from: &Pod, syn: Frame, masqueraded: bool) -> [Send; 2] {
    let inner = c.for_backend(syn.clone(), c.remote());
    let leaves = to_outside(inner.clone());
    [
        from_pod(from, syn).passes_as(inner.clone()).opens(),
        if masqueraded { leaves.passes_as(hidden(c, inner)).masquerades() } else { leaves },
    ]
}

fn all(c: Cast) -> Case {
    let world = c.doors(Road::Stack, &[c.remote()]).masquerade_all();
    case(format!("Masquerade of everything hides pods from backends of a cluster IP ({})", c.family()), world)
        .send_all(to_cluster_ip(c, &CLIENT, c.syn(), true))
}

fn not_all(c: Cast) -> Case {
    let world = c.doors(Road::Stack, &[c.remote()]).masquerade_local();
    case(format!("A pod at a cluster IP keeps its address ({})", c.family()), world).send_all(to_cluster_ip(
        c,
        &CLIENT,
        c.syn(),
        false,
    ))
}

fn cidrs(c: Cast) -> Case {
    let (net, len) = if c.v6 { ("fd00:10:1::", 64) } else { ("10.0.1.0", 24) };
    let foreign = c.from(&STRANGER).src(c.outside()).dst(c.vip()).tcp(PORT + 1, 80, SYN);
    let world = c.doors(Road::Stack, &[c.remote()]).pod_cidr(net, len);
    let name = format!(
        "With a pod CIDR, who has an address of it is a pod, whoever else comes from a veth is none ({})",
        c.family()
    );
    case(name, world)
        .send_all(to_cluster_ip(c, &CLIENT, c.syn(), false))
        .send_all(to_cluster_ip(c, &STRANGER, foreign, true))
}

/// A pod of another node as client, by the uplink.
fn neighbour(c: Cast, door: Door) -> Frame {
    c.visit_syn(door).src(c.remote())
}

fn cidrs_at_the_uplink(c: Cast) -> Case {
    let (net, len) = if c.v6 { ("fd00:10::", 24) } else { ("10.0.0.0", 16) };
    let pods = neighbour(c, Door::ClusterIp);
    let world = c.doors(Road::Stack, &[c.narrow()]).external_local(&c.web()).pod_cidr(net, len);
    let name = format!("With a pod CIDR, another node's pod is inside at the uplink too ({})", c.family());
    let inner = c.for_backend(pods.clone(), c.narrow());
    let local = neighbour(c, Door::NodePort).sport(PORT + 1);
    case(name, world)
        .send(from_outside(pods).passes_as(inner.clone()).opens())
        .send(to_outside(inner))
        // Its list of a NodePort with externalTrafficPolicy Local is the cluster's.
        .send(from_outside(local.clone()).passes_as(c.for_backend(local, c.narrow())).opens())
        .send(from_outside(c.visit_syn(Door::NodePort)).drops(Reason::NO_LOCAL_EXTERNAL))
        .send(
            from_outside(c.visit_syn(Door::ClusterIp))
                .routes_as(c.forwarded(c.visit_syn(Door::ClusterIp), c.narrow()))
                .opens_masqueraded(),
        )
}

fn devices(c: Cast) -> Case {
    let mut world = c.doors(Road::Stack, &[c.remote()]).pods(pods::DEVICES).external_local(&c.dns());
    world.endpoint(&BACKEND).flags |= endpoint::flags::POD_SOURCE;
    let marked = c.from(&BACKEND).dst(c.vip()).tcp(PORT, 80, SYN);
    let query = |pod: &Pod| c.from(pod).dst(c.node_ip()).udp(PORT, 30_053);
    let name = format!("With marked devices, who comes from one is a pod, and nobody else ({})", c.family());
    case(name, world)
        .send_all(to_cluster_ip(c, &BACKEND, marked, false))
        .send_all(to_cluster_ip(c, &CLIENT, c.syn(), true))
        .send(from_pod(&BACKEND, query(&BACKEND)).passes_as(c.for_backend(query(&BACKEND), c.remote())).opens())
        .send(from_pod(&CLIENT, query(&CLIENT)).drops(Reason::NO_LOCAL_EXTERNAL))
}

fn devices_at_the_uplink(c: Cast) -> Case {
    let mut world = c.doors(Road::Stack, &[c.remote()]).pods(pods::DEVICES);
    world.uplinks.get_mut(&UPLINK).expect("every world has one").flags |= uplink::flags::POD_SOURCE;
    let syn = c.visit_syn(Door::ClusterIp);
    let inner = c.for_backend(syn.clone(), c.remote());
    case(format!("With a marked uplink, who comes by it is a pod ({})", c.family()), world)
        .send(from_outside(syn).passes_as(inner.clone()).opens())
        .send(to_outside(inner))
}

fn nobody(c: Cast) -> Case {
    // Without a detector nobody is a pod, but only external frontends masquerade.
    let world = c.doors(Road::Stack, &[c.remote()]).pods(pods::NONE).external_local(&c.dns());
    let (port, query) = (ask(c, Door::NodePort, SYN, b"").sport(PORT + 1), c.from(&CLIENT).dst(c.node_ip()));
    let visit = c.visit_syn(Door::ClusterIp);
    let [dnat, snat] = out(c, port, c.remote(), to_outside);
    case(format!("Without a detector, pods are clients outside ({})", c.family()), world)
        .send_all(to_cluster_ip(c, &CLIENT, c.syn(), false))
        .send(from_outside(visit.clone()).passes_as(c.for_backend(visit, c.remote())).opens())
        .send(dnat.opens())
        .send(snat.masquerades())
        .send(from_pod(&CLIENT, query.udp(PORT, 30_053)).drops(Reason::NO_LOCAL_EXTERNAL))
}

fn errors(c: Cast) -> Case {
    let door = Door::NodePort;
    let (router, own) = (c.outside(), c.of(&CLIENT));
    let (kind, code) = if c.v6 { (2, 0) } else { (3, 4) };
    let error = |src: IpAddr, dst: IpAddr, quote: &Frame| {
        eth().ip(src, dst).ttl(61).icmp(kind, code).rest(1_400).quote(quote, 120)
    };
    let request = ask(c, door, SYN, &[b'x'; 60]);
    let inner = c.for_backend(request.clone(), c.remote());
    let seen = hidden(c, inner.clone());
    let answer = answer(c, c.remote(), ACK, &[b'y'; 60]);
    let answer_inner = answer.clone().dst(own).dport(PORT);
    let got = c.by_door(answer_inner.clone(), door);
    let told = |send: Send| send.counts(&[Reason::ICMP_TRANSLATED]);
    let [dnat, snat] = out(c, request.clone(), c.remote(), to_outside);
    let name = format!("ICMP errors about masqueraded packets reach who sent them, in his own words ({})", c.family());
    case(name, c.doors(Road::Stack, &[c.remote()]))
        .send(dnat.opens())
        .send(snat.masquerades())
        // A router on the way to the backend, then the backend itself.
        .send(told(from_outside(error(router, c.node_ip(), &seen)).passes_as(error(router, own, &inner))))
        .send(told(to_pod(error(router, own, &inner)).passes_as(error(router, own, &request))))
        .send(told(from_outside(error(c.remote(), c.node_ip(), &seen)).passes_as(error(c.remote(), own, &inner))))
        .send(told(to_pod(error(c.remote(), own, &inner)).passes_as(error(c.door(door), own, &request))))
        // The client about an answer.
        .send(told(from_pod(&CLIENT, error(own, c.door(door), &got)).passes_as(error(own, c.remote(), &answer_inner))))
        .send(told(to_outside(error(own, c.remote(), &answer_inner)).passes_as(error(
            c.node_ip(),
            c.remote(),
            &answer,
        ))))
        // The node's stack about the answer, on the way to the client's device.
        .send(told(to_outside(error(router, c.remote(), &answer_inner)).passes_as(error(
            c.node_ip(),
            c.remote(),
            &answer,
        ))))
}

fn no_address(c: Cast) -> Case {
    let request = ask(c, Door::LoadBalancer, SYN, b"");
    let inner = c.for_backend(request.clone(), c.remote());
    let addressless = |w: &mut World| {
        (w.config.node4, w.config.node6) = (Addr::UNSPECIFIED, Addr::UNSPECIFIED);
        let uplink = w.uplinks.get_mut(&UPLINK).expect("every world has one");
        (uplink.addr4, uplink.addr6) = (Addr::UNSPECIFIED, Addr::UNSPECIFIED);
    };
    let name = format!("What a node without an address cannot masquerade does not leave it ({})", c.family());
    case(name, c.doors(Road::Stack, &[c.remote()]))
        .change(addressless)
        .send(from_pod(&CLIENT, request).passes_as(inner.clone()).opens())
        .send(to_outside(inner).drops(Reason::NO_ADDRESS))
}

fn two_clients(c: Cast) -> Case {
    // Both ask from one port, and the node has one port left for them.
    let first = ask(c, Door::NodePort, SYN, b"");
    let second = first.clone().src(c.of(&BACKEND)).macs(BACKEND.host_mac, BACKEND.mac);
    let inner = c.for_backend(second.clone(), c.remote());
    let [dnat, snat] = out(c, first, c.remote(), to_outside);
    let name =
        format!("Without a free port of the node's a masqueraded packet is dropped where it leaves ({})", c.family());
    case(name, c.doors(Road::Stack, &[c.remote()]).one_snat_port(2_000))
        .send(dnat.opens())
        .send(snat.masquerades())
        .send(from_pod(&BACKEND, second).passes_as(inner.clone()).opens())
        .send(to_outside(inner).drops(Reason::PORTS_EXHAUSTED))
}
