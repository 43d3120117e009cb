//! Who plays in the cases: three pods of this node, two Services, somebody far away; and the roads between them.

use std::net::IpAddr;

use crate::case::{Send, from_pod, to_pod};
use crate::packet::{Frame, SYN, ToIp, eth};
use crate::world::{Pod, World};

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
        let answer = eth().macs(CLIENT.mac, CLIENT.host_mac).ip(refused.dst_ip(), refused.src_ip());
        let answer = if self.v6 { answer.icmp(1, 4) } else { answer.dont_fragment(false).tos_id(0, 0).icmp(3, 3) };
        let quoted = header + 8;
        if udp { answer.quote_settled(refused, quoted) } else { answer.quote(refused, quoted) }
    }
}

/// The port behind a Service port.
fn backend_port(port: u16) -> u16 {
    match port {
        80 => 8080,
        53 => 5353,
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
