//! Who plays in the cases: three pods of this node, two Services, somebody far away; and the roads between them.

use std::net::IpAddr;

use crate::case::{Send, from_pod, to_pod};
use crate::packet::{Frame, MOVED, SYN, ToIp, eth};
use crate::world::{NODE_V4, NODE_V6, Pod, World};

pub(super) const CLIENT: Pod = Pod {
    id: 1,
    ifindex: 12,
    mac: [2, 0, 0, 0, 1, 2],
    host_mac: [2, 0, 0, 0, 0xff, 2],
    v4: "10.0.1.2",
    v6: "fd00:10:1::2",
};
pub(super) const BACKEND: Pod = Pod {
    id: 2,
    ifindex: 13,
    mac: [2, 0, 0, 0, 1, 3],
    host_mac: [2, 0, 0, 0, 0xff, 3],
    v4: "10.0.1.3",
    v6: "fd00:10:1::3",
};
pub(super) const THIRD: Pod = Pod {
    id: 3,
    ifindex: 14,
    mac: [2, 0, 0, 0, 1, 4],
    host_mac: [2, 0, 0, 0, 0xff, 4],
    v4: "10.0.1.4",
    v6: "fd00:10:1::4",
};

/// The device of no pod.
pub(super) const STRANGER: Pod = Pod { id: 0, ifindex: 99, ..CLIENT };

/// The client's port.
pub(super) const PORT: u16 = 40_000;

/// How packets of a flow between two pods of this node travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Road {
    /// The stack routes them.
    Stack,
    /// The stack bridges them: the pods' devices are ports of one bridge.
    Bridged,
    /// netlb delivers them.
    Redirect,
}

impl Road {
    pub(super) const ALL: [Road; 3] = [Road::Stack, Road::Bridged, Road::Redirect];

    /// Sends a packet on this road: `out` is what it is after translation.
    pub(super) fn send(self, send: Send, to: &Pod, out: Frame) -> Send {
        match self {
            Road::Stack => send.passes_as(out),
            Road::Bridged => send.passes_as(out.dst_mac(to.mac)),
            Road::Redirect => send.delivers_to(to, out.hop().macs(to.mac, to.host_mac)),
        }
    }
}

/// Where the Service of [`Cast::doors`] is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Door {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

impl Door {
    pub(super) const ALL: [Door; 4] = [Door::ClusterIp, Door::NodePort, Door::LoadBalancer, Door::ExternalIp];

    /// Those that are meant for clients outside.
    pub(super) const EXTERNAL: [Door; 3] = [Door::NodePort, Door::LoadBalancer, Door::ExternalIp];

    /// The port there of a Service port.
    pub(super) fn port(self, port: u16) -> u16 {
        if self == Door::NodePort { 30_000 + port } else { port }
    }
}

/// The addresses of one family.
#[derive(Clone, Copy)]
pub(super) struct Cast {
    pub(super) v6: bool,
}

impl Cast {
    pub(super) const BOTH: [Cast; 2] = [Cast { v6: false }, Cast { v6: true }];

    pub(super) fn family(self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }

    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        if self.v6 { v6.to_ip() } else { v4.to_ip() }
    }

    pub(super) fn of(self, pod: &Pod) -> IpAddr {
        pod.ip(self.v6)
    }

    pub(super) fn vip(self) -> IpAddr {
        self.pick("10.96.0.10", "fd00:10:96::10")
    }

    /// A second Service's address.
    pub(super) fn vip2(self) -> IpAddr {
        self.pick("10.96.0.20", "fd00:10:96::20")
    }

    /// In the Service CIDR, and nobody's.
    pub(super) fn unallocated(self) -> IpAddr {
        self.pick("10.96.0.99", "fd00:10:96::99")
    }

    /// A pod of another node.
    pub(super) fn remote(self) -> IpAddr {
        self.pick("10.0.2.9", "fd00:10:2::9")
    }

    /// Neither a pod nor a Service.
    pub(super) fn outside(self) -> IpAddr {
        self.pick("192.0.2.1", "2001:db8::1")
    }

    /// A client outside the cluster, behind the uplink.
    pub(super) fn visitor(self) -> IpAddr {
        self.pick("198.51.100.7", "2001:db8:7::7")
    }

    /// A pod of another node, by the uplink that is narrower than the other.
    pub(super) fn narrow(self) -> IpAddr {
        self.pick("10.7.0.9", "fd00:7::9")
    }

    /// One by a route that says that it is narrow.
    pub(super) fn narrow_route(self) -> IpAddr {
        self.pick("10.8.0.9", "fd00:8::9")
    }

    /// A pod of another node to which no way is known.
    pub(super) fn nowhere(self) -> IpAddr {
        self.pick("10.9.0.9", "fd00:9::9")
    }

    /// The node.
    pub(super) fn node_ip(self) -> IpAddr {
        self.pick(NODE_V4, NODE_V6)
    }

    /// The address of a door.
    pub(super) fn door(self, door: Door) -> IpAddr {
        match door {
            Door::ClusterIp => self.vip(),
            Door::NodePort => self.node_ip(),
            Door::LoadBalancer => self.pick("203.0.113.10", "2001:db8:10::10"),
            Door::ExternalIp => self.pick("203.0.113.20", "2001:db8:10::20"),
        }
    }

    /// `address:port` as [`World::service`] wants it.
    pub(super) fn at(self, ip: IpAddr, port: u16) -> String {
        std::net::SocketAddr::new(ip, port).to_string()
    }

    /// The frontend of the web Service: TCP.
    pub(super) fn web(self) -> String {
        self.at(self.vip(), 80) + "/TCP"
    }

    /// The frontend of the same Service's UDP port.
    pub(super) fn dns(self) -> String {
        self.at(self.vip(), 53) + "/UDP"
    }

    /// Three pods, one road; no Services yet.
    pub(super) fn node(self, road: Road) -> World {
        let world = World::new().pod(&CLIENT).pod(&BACKEND).pod(&THIRD);
        match road {
            Road::Stack => world,
            Road::Bridged => world.bridge(7),
            Road::Redirect => world.redirect(),
        }
    }

    /// [`node`](Self::node), with the VIP's ports 80/TCP and 53/UDP on BACKEND's 8080 and 5353.
    pub(super) fn world(self, road: Road) -> World {
        let backend = self.of(&BACKEND);
        self.node(road)
            .service(&self.web(), &[&self.at(backend, 8080)])
            .service(&self.dns(), &[&self.at(backend, 5353)])
    }

    /// [`node`](Self::node), with the VIP's ports 80/TCP and 53/UDP on ports 8080 and 5353 of these backends, and every [`Door`] to them.
    pub(super) fn doors(self, road: Road, backends: &[IpAddr]) -> World {
        let at = |port: u16| backends.iter().map(|ip| self.at(*ip, port)).collect::<Vec<_>>();
        let mut world = self.node(road);
        for (frontend, port, behind) in [(self.web(), 80, at(8080)), (self.dns(), 53, at(5353))] {
            let behind: Vec<&str> = behind.iter().map(String::as_str).collect();
            world = world
                .service(&frontend, &behind)
                .node_port(&frontend, Door::NodePort.port(port))
                .load_balancer(&frontend, &self.at(self.door(Door::LoadBalancer), port), &[])
                .external(&frontend, &self.at(self.door(Door::ExternalIp), port));
        }
        world
    }

    /// A frame from the visitor to a door.
    pub(super) fn visit(self, door: Door) -> Frame {
        eth().ip(self.visitor(), self.door(door))
    }

    /// The visitor's SYN.
    pub(super) fn visit_syn(self, door: Door) -> Frame {
        self.visit(door).tcp(PORT, door.port(80), SYN)
    }

    pub(super) fn visit_tcp(self, door: Door, flags: u8, payload: &[u8]) -> Frame {
        self.visit_syn(door).flags(flags).seq(1001, 5001).payload(payload)
    }

    pub(super) fn visit_query(self, door: Door) -> Frame {
        self.visit(door).udp(PORT, door.port(53)).payload(b"who?")
    }

    /// What a request to any door is for a backend.
    pub(super) fn for_backend(self, request: Frame, backend: IpAddr) -> Frame {
        let port = backend_port(request.ports().1);
        request.dst(backend).dport(port)
    }

    /// A request as it is forwarded to a backend elsewhere: from the node, from a port of its own.
    pub(super) fn forwarded(self, request: Frame, backend: IpAddr) -> Frame {
        self.for_backend(request, backend).src(self.node_ip()).sport(MOVED).hop()
    }

    /// An answer as whoever asked at a door gets it.
    pub(super) fn by_door(self, answer: Frame, door: Door) -> Frame {
        let port = door.port(vip_port(answer.ports().0));
        answer.src(self.door(door)).sport(port)
    }

    /// A frame from CLIENT's pod to the VIP.
    pub(super) fn request(self) -> Frame {
        self.from(&CLIENT).dst(self.vip())
    }

    /// A frame from a pod to the world outside.
    pub(super) fn from(self, pod: &Pod) -> Frame {
        eth().macs(pod.host_mac, pod.mac).ip(self.of(pod), self.outside())
    }

    pub(super) fn syn(self) -> Frame {
        self.request().tcp(PORT, 80, SYN)
    }

    pub(super) fn tcp(self, flags: u8, payload: &[u8]) -> Frame {
        self.request().tcp(PORT, 80, flags).seq(1001, 5001).payload(payload)
    }

    pub(super) fn query(self) -> Frame {
        self.request().udp(PORT, 53).payload(b"who?")
    }

    /// What a request to the VIP is for BACKEND.
    pub(super) fn translated(self, request: Frame) -> Frame {
        let port = backend_port(request.ports().1);
        request.dst(self.of(&BACKEND)).dport(port)
    }

    /// A request of CLIENT's on its way to BACKEND.
    pub(super) fn there(self, road: Road, request: Frame) -> Send {
        road.send(from_pod(&CLIENT, request.clone()), &BACKEND, self.translated(request))
    }

    /// BACKEND's TCP answer, as it leaves the pod.
    pub(super) fn tcp_answer(self, flags: u8, payload: &[u8]) -> Frame {
        self.from(&BACKEND).dst(self.of(&CLIENT)).tcp(8080, PORT, flags).seq(5000, 1001).payload(payload)
    }

    pub(super) fn udp_answer(self) -> Frame {
        self.from(&BACKEND).dst(self.of(&CLIENT)).udp(5353, PORT).payload(b"me!")
    }

    /// An answer of BACKEND's on its way to CLIENT: one hook on the redirect road, two otherwise. `expect` adds to what the translating hook does.
    pub(super) fn back(self, road: Road, answer: Frame, expect: impl Fn(Send) -> Send) -> Vec<Send> {
        let port = vip_port(answer.ports().0);
        let seen = |frame: Frame| frame.src(self.vip()).sport(port);
        match road {
            Road::Redirect => {
                vec![expect(road.send(from_pod(&BACKEND, answer.clone()), &CLIENT, seen(answer)))]
            }
            Road::Stack | Road::Bridged => {
                let there = self.delivered(road, answer.clone());
                vec![from_pod(&BACKEND, answer), expect(to_pod(there.clone()).passes_as(seen(there)))]
            }
        }
    }

    /// A frame of BACKEND's as the stack brings it to CLIENT's device.
    pub(super) fn delivered(self, road: Road, frame: Frame) -> Frame {
        match road {
            Road::Bridged => frame.dst_mac(CLIENT.mac),
            Road::Stack | Road::Redirect => frame.hop().macs(CLIENT.mac, CLIENT.host_mac),
        }
    }

    /// A TCP connection up to the client's first ACK.
    pub(super) fn handshake(self, road: Road) -> Vec<Send> {
        use crate::packet::ACK;
        let mut sends = vec![self.there(road, self.syn()).opens()];
        sends.extend(self.back(road, self.tcp_answer(SYN | ACK, b""), |s| s));
        sends.push(self.there(road, self.tcp(ACK, b"")).promotes());
        sends
    }

    /// What a pod gets for a TCP segment that is refused: a RST from where it sent it.
    pub(super) fn reset(self, refused: &Frame, seq: u32, ack: u32, flags: u8) -> Frame {
        refused.clone().back().ttl(64).flags(flags).seq(seq, ack).window(0).tcp_options(&[]).payload(b"").padding(0)
    }

    /// What a pod gets for anything else that is refused: port unreachable, quoting the network header and eight bytes. `header`: bytes of the
    /// refused packet's network headers.
    pub(super) fn unreachable(self, refused: &Frame, header: usize, udp: bool) -> Frame {
        let (kind, code) = if self.v6 { (1, 4) } else { (3, 3) };
        let answer = self.error_about(refused, kind, code);
        let quoted = header + 8;
        if udp { answer.quote_settled(refused, quoted) } else { answer.quote(refused, quoted) }
    }

    /// Bytes of a network header without options.
    pub(super) fn header(self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    /// An ICMP error of the node's own about a frame, without its quote.
    pub(super) fn error_about(self, frame: &Frame, kind: u8, code: u8) -> Frame {
        let answer = frame.clone().swap_macs().padding(0).ip(frame.dst_ip(), frame.src_ip());
        let answer = if self.v6 { answer } else { answer.dont_fragment(false).tos_id(0, 0) };
        answer.icmp(kind, code)
    }
}

/// The port behind a Service port.
fn backend_port(port: u16) -> u16 {
    match port {
        80 | 30_080 => 8080,
        53 | 30_053 => 5353,
        other => panic!("the cast's Service has no port {other}"),
    }
}

fn vip_port(port: u16) -> u16 {
    match port {
        8080 => 80,
        5353 => 53,
        other => panic!("the cast's backend has no port {other}"),
    }
}
