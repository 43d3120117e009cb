//! The way of a packet from hook to hook: in by a device or out of a socket, through the stack, out by a device.

use std::net::{IpAddr, SocketAddr};

use netlb_common::conntrack::CtKey;
use netlb_common::{Addr, Port, Reason, proto, reason};
use netlb_ebpf::enter::{Device, enter};
use netlb_ebpf::leave::leave;
use netlb_ebpf::nat;
use netlb_ebpf::packet::Hop;
use netlb_ebpf::parse::parse;
use netlb_ebpf::socket::{self, Answer, Destination};
use netlb_ebpf::verdict::Decision;

use super::event::Event;
use super::frame::{ACK, Frame, RST, SYN, Shape};
use super::network::{Lost, Network, Way};
use super::overlay::Overlay;

/// Where netlb looks at packets and sockets, and the host's stack between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    FromPod,
    ToPod,
    FromOutside,
    ToOutside,
    /// connect() or sendto().
    Socket,
    Stack,
}

impl Hook {
    /// The program's name, or what stands in its place.
    pub fn name(self) -> &'static str {
        match self {
            Hook::FromPod => "from_pod",
            Hook::ToPod => "to_pod",
            Hook::FromOutside => "from_outside",
            Hook::ToOutside => "to_outside",
            Hook::Socket => "connect",
            Hook::Stack => "stack",
        }
    }
}

/// Where a packet begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Behind the veth with this interface index on the node's side.
    Pod(u32),
    /// Beyond an uplink.
    Outside(u32),
    /// In the node's own network namespace.
    Node,
}

/// A packet's headers, as people name them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Headers {
    pub proto: u8,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// Of TCP; of SCTP what its first chunk means in these terms.
    pub flags: u8,
    pub ttl: u8,
    /// Bytes of the IP packet.
    pub len: usize,
}

/// One hook, and what happened there.
#[derive(Clone, PartialEq, Debug)]
pub struct Stage {
    pub hook: Hook,
    /// Interface index; 0: none (a socket).
    pub ifindex: u32,
    pub events: Vec<Event>,
    pub outcome: Outcome,
    /// The packet as it leaves this stage.
    pub after: Headers,
}

/// What became of the packet at one hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// On to the stack, or out of the device; a socket call goes on.
    Passed,
    /// Past the stack into the pod behind this device.
    Delivered {
        ifindex: u32,
    },
    /// Past the stack out of this device.
    Forwarded {
        ifindex: u32,
        gateway: Option<IpAddr>,
    },
    /// Back into the pod it came from: the pod is its own backend.
    Hairpin,
    /// Answered with TCP RST or an ICMP error; a socket call fails with ECONNREFUSED.
    Refused(Reason),
    /// Gone; a socket call fails with EHOSTUNREACH.
    Dropped(Reason),
    /// By the stack: out of a device, to the node itself, along a bridge, or nowhere.
    Routed(Way),
    Bridged {
        ifindex: u32,
    },
    Lost(Lost),
    /// By the stack: larger than the next device takes.
    TooBig {
        mtu: u32,
    },
    /// By the stack: its TTL ends here.
    Expired,
}

/// Where a packet ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// With the pod behind this device.
    Pod(u32),
    /// With the node itself.
    Node,
    /// On the wire behind this device.
    Away {
        ifindex: u32,
        gateway: Option<IpAddr>,
    },
    Refused(Reason),
    Dropped(Reason),
    /// In the host's stack, which has no way for it.
    Stuck,
}

/// A packet's whole way.
#[derive(Clone, PartialEq, Debug)]
pub struct Journey {
    pub before: Headers,
    pub stages: Vec<Stage>,
    pub end: End,
    /// As it arrives.
    pub after: Headers,
}

/// Traces packets one after the other over the same tables.
pub struct Traveller<'a> {
    pub overlay: &'a Overlay<'a>,
    pub network: &'a dyn Network,
}

/// A socket call of one program.
struct Call {
    to: SocketAddr,
    proto: u8,
    netns: u64,
}

impl Destination for Call {
    fn addr(&self) -> Addr {
        Addr::from_ip(self.to.ip())
    }

    fn port(&self) -> Port {
        Port::new(self.to.port())
    }

    fn proto(&self) -> u8 {
        self.proto
    }

    fn set(&mut self, addr: Addr, port: Port) {
        self.to = SocketAddr::new(addr.to_ip(), port.get());
    }

    fn cookie(&self) -> u64 {
        // No socket's: nothing is remembered for it.
        0
    }

    fn netns(&self) -> u64 {
        self.netns
    }
}

/// What happens next to a packet.
enum Next {
    End(End),
    /// Into the stack, by this device if it came in by one.
    Stack(Option<u32>),
}

impl Traveller<'_> {
    /// Asks the socket hooks about a call of a program in a network namespace; its destination may become another.
    pub fn call(&self, to: &mut SocketAddr, proto: u8, netns: u64) -> Stage {
        let before = *to;
        let mut call = Call { to: before, proto, netns };
        let answer = socket::outgoing(&mut call, self.overlay, false);
        let events = self.overlay.take_events();
        let counted = counted(&events, |_| true).unwrap_or(Reason::NO_SCRATCH);
        let outcome = match answer {
            Answer::Allow => Outcome::Passed,
            Answer::Refused => Outcome::Refused(counted),
            Answer::Unreachable => Outcome::Dropped(counted),
        };
        *to = call.to;
        let from = SocketAddr::new(unspecified(to.ip()), 0);
        let after = Headers { proto, src: from, dst: *to, flags: SYN, ttl: 0, len: 0 };
        Stage { hook: Hook::Socket, ifindex: 0, events, outcome, after }
    }

    /// Sends a packet on its way.
    pub fn send(&self, start: Start, shape: Shape) -> Journey {
        let mut bytes = Shape { macs: self.macs(start, shape.dst.ip()), ..shape }.bytes();
        let before = self.headers(&bytes);
        let mut stages = Vec::new();
        let mut next = match start {
            Start::Pod(ifindex) => self.enter(Hook::FromPod, ifindex, &mut bytes, &mut stages),
            Start::Outside(ifindex) => self.enter(Hook::FromOutside, ifindex, &mut bytes, &mut stages),
            Start::Node => Next::Stack(None),
        };
        if let Next::Stack(from) = next {
            next = Next::End(self.stack(from, &mut bytes, &mut stages));
        }
        let end = match next {
            Next::End(end) => end,
            Next::Stack(_) => End::Stuck,
        };
        Journey { before, stages, end, after: self.headers(&bytes) }
    }

    /// The packet that answers one that arrived; `None`: nothing does.
    pub fn answer(&self, journey: &Journey) -> Option<(Start, Shape)> {
        let got = &journey.after;
        if got.proto == proto::ICMP || got.proto == proto::ICMPV6 || got.flags & RST != 0 {
            return None;
        }
        let start = match journey.end {
            End::Pod(ifindex) => Start::Pod(ifindex),
            End::Node => Start::Node,
            End::Away { ifindex, .. } if self.overlay.tables().uplinks.contains_key(&ifindex) => {
                Start::Outside(ifindex)
            }
            End::Away { .. } | End::Refused(_) | End::Dropped(_) | End::Stuck => return None,
        };
        let flags = if got.flags & SYN != 0 && got.flags & ACK == 0 { SYN | ACK } else { ACK };
        Some((start, Shape { src: got.dst, dst: got.src, proto: got.proto, flags, size: 0, macs: Default::default() }))
    }

    /// Destination and source MAC of a packet that begins there.
    fn macs(&self, start: Start, dst: IpAddr) -> [[u8; 6]; 2] {
        let mac = |ifindex: u32| self.network.link(ifindex).map_or([0; 6], |link| link.mac);
        match start {
            Start::Node => Default::default(),
            // Who sent it last on the wire is not known, and nobody looks.
            Start::Outside(ifindex) => [mac(ifindex), [0; 6]],
            Start::Pod(ifindex) => {
                let tables = self.overlay.tables();
                let endpoint = |id: &u32| tables.endpoints.get(id);
                let Some(own) = tables.endpoint_by_ifindex.get(&ifindex).and_then(endpoint) else {
                    return [mac(ifindex), [0; 6]];
                };
                let to = tables.endpoint_by_addr.get(&Addr::from_ip(dst)).and_then(endpoint);
                let to = match to.filter(|to| own.bridge != 0 && to.bridge == own.bridge) {
                    Some(neighbour) => pod_mac(&neighbour.eth),
                    None if own.bridge != 0 => mac(own.bridge),
                    None => mac(ifindex),
                };
                [to, pod_mac(&own.eth)]
            }
        }
    }

    fn headers(&self, bytes: &[u8]) -> Headers {
        let mut key = CtKey::from_words(Addr::UNSPECIFIED, Addr::UNSPECIFIED, 0, 0);
        let mut frame = Frame { bytes: bytes.to_vec(), gso: 0, sent_here: false, route: |_, _, _, _| Hop::Nowhere };
        let parsed = parse(&mut frame, self.overlay, &mut key);
        Headers {
            proto: parsed.proto(),
            src: SocketAddr::new(key.src.to_ip(), key.sport().get()),
            dst: SocketAddr::new(key.dst.to_ip(), key.dport().get()),
            flags: parsed.tcp_flags(),
            ttl: nat::ttl(&frame, parsed),
            len: nat::wire_len(&frame, parsed) as usize,
        }
    }

    /// Runs a hook's program over the frame, which came in by a device or was sent by the node. With its decision goes the way that was found last.
    fn run(&self, hook: Hook, ifindex: u32, from: Option<u32>, bytes: &mut Vec<u8>) -> (Decision, Option<Way>) {
        let mut found = None;
        let route = |src, dst, _, len| {
            let (hop, way) = self.network.hop(ifindex, src, dst, len);
            self.overlay.note(Event::Route { src, dst, hop });
            found = way;
            hop
        };
        let mut frame = Frame { bytes: std::mem::take(bytes), gso: 0, sent_here: from.is_none(), route };
        let verdict = match hook {
            Hook::ToPod => leave(&mut frame, self.overlay, Device::pod(ifindex)),
            Hook::ToOutside => leave(&mut frame, self.overlay, Device::uplink(ifindex)),
            Hook::FromOutside => enter(&mut frame, self.overlay, Device::uplink(ifindex)),
            Hook::FromPod | Hook::Socket | Hook::Stack => enter(&mut frame, self.overlay, Device::pod(ifindex)),
        };
        *bytes = frame.bytes;
        (verdict.decide(), found)
    }

    fn stage(&self, hook: Hook, ifindex: u32, outcome: Outcome, bytes: &[u8]) -> Stage {
        let events = self.overlay.take_events();
        Stage { hook, ifindex, events, outcome, after: self.headers(bytes) }
    }

    fn enter(&self, hook: Hook, ifindex: u32, bytes: &mut Vec<u8>, stages: &mut Vec<Stage>) -> Next {
        let (decision, way) = self.run(hook, ifindex, Some(ifindex), bytes);
        let mut stage = self.stage(hook, ifindex, Outcome::Passed, bytes);
        let refusal = counted(&stage.events, |kind| kind == reason::Kind::Refuse);
        let (outcome, next) = match decision {
            Decision::Pass => (Outcome::Passed, Next::Stack(Some(ifindex))),
            Decision::Deliver(ifindex) => (Outcome::Delivered { ifindex }, Next::End(End::Pod(ifindex))),
            Decision::Route(ifindex) => {
                let gateway = way.and_then(|way| way.gateway);
                (Outcome::Forwarded { ifindex, gateway }, Next::End(End::Away { ifindex, gateway }))
            }
            Decision::Reflect => match refusal {
                Some(reason) => (Outcome::Refused(reason), Next::End(End::Refused(reason))),
                None => (Outcome::Hairpin, Next::End(End::Pod(ifindex))),
            },
            Decision::Drop(reason) => (Outcome::Dropped(reason), Next::End(End::Dropped(reason))),
            // The routes resolve these themselves.
            Decision::Refuse(reason, _) => (Outcome::Dropped(reason), Next::End(End::Dropped(reason))),
            Decision::Open | Decision::Skip => {
                (Outcome::Dropped(Reason::NO_SCRATCH), Next::End(End::Dropped(Reason::NO_SCRATCH)))
            }
        };
        stage.outcome = outcome;
        stages.push(stage);
        next
    }

    /// Through the stack and out of a device.
    fn stack(&self, from: Option<u32>, bytes: &mut Vec<u8>, stages: &mut Vec<Stage>) -> End {
        let seen = self.headers(bytes);
        let (src, dst) = (seen.src.ip(), seen.dst.ip());
        let mut decide = |ifindex: u32, outcome: Outcome, bytes: &[u8]| {
            stages.push(self.stage(Hook::Stack, ifindex, outcome, bytes));
        };
        let device = from.unwrap_or(0);
        if let Some(port) = from.and_then(|from| self.bridged(from, dst, bytes)) {
            decide(device, Outcome::Bridged { ifindex: port }, bytes);
            return self.leave(Hook::ToPod, port, None, from, bytes, stages);
        }
        let found = match from {
            Some(from) => self.network.input(self.bridge_of(from).unwrap_or(from), src, dst),
            None => self.network.output(Some(src), dst),
        };
        let way = match found {
            Ok(way) => way,
            Err(lost) => {
                decide(device, Outcome::Lost(lost), bytes);
                return End::Stuck;
            }
        };
        if way.local {
            decide(device, Outcome::Routed(way), bytes);
            return End::Node;
        }
        if from.is_some() {
            if seen.ttl <= 1 {
                decide(device, Outcome::Expired, bytes);
                return End::Stuck;
            }
            self.hop(bytes);
        }
        if way.mtu != 0 && seen.len > way.mtu as usize {
            decide(device, Outcome::TooBig { mtu: way.mtu }, bytes);
            return End::Stuck;
        }
        decide(device, Outcome::Routed(way), bytes);
        let tables = self.overlay.tables();
        if tables.endpoint_by_ifindex.contains_key(&way.ifindex) {
            return self.leave(Hook::ToPod, way.ifindex, None, from, bytes, stages);
        }
        let behind = tables.endpoint_by_addr.get(&Addr::from_ip(dst)).and_then(|id| tables.endpoints.get(id));
        if let Some(pod) = behind.filter(|pod| pod.bridge != 0 && pod.bridge == way.ifindex) {
            return self.leave(Hook::ToPod, pod.ifindex, None, from, bytes, stages);
        }
        if tables.uplinks.contains_key(&way.ifindex) {
            return self.leave(Hook::ToOutside, way.ifindex, way.gateway, from, bytes, stages);
        }
        End::Away { ifindex: way.ifindex, gateway: way.gateway }
    }

    fn leave(
        &self,
        hook: Hook,
        ifindex: u32,
        gateway: Option<IpAddr>,
        from: Option<u32>,
        bytes: &mut Vec<u8>,
        stages: &mut Vec<Stage>,
    ) -> End {
        let (decision, way) = self.run(hook, ifindex, from, bytes);
        let (outcome, end) = match decision {
            Decision::Pass if hook == Hook::ToPod => (Outcome::Passed, End::Pod(ifindex)),
            Decision::Pass => (Outcome::Passed, End::Away { ifindex, gateway }),
            Decision::Route(ifindex) => {
                let gateway = way.and_then(|way| way.gateway);
                (Outcome::Forwarded { ifindex, gateway }, End::Away { ifindex, gateway })
            }
            Decision::Deliver(ifindex) => (Outcome::Delivered { ifindex }, End::Pod(ifindex)),
            Decision::Drop(reason) | Decision::Refuse(reason, _) => (Outcome::Dropped(reason), End::Dropped(reason)),
            Decision::Reflect | Decision::Open | Decision::Skip => {
                (Outcome::Dropped(Reason::NO_SCRATCH), End::Dropped(Reason::NO_SCRATCH))
            }
        };
        stages.push(self.stage(hook, ifindex, outcome, bytes));
        end
    }

    /// The bridge that a pod's device is a port of.
    fn bridge_of(&self, ifindex: u32) -> Option<u32> {
        let tables = self.overlay.tables();
        let own = tables.endpoints.get(tables.endpoint_by_ifindex.get(&ifindex)?)?;
        (own.bridge != 0).then_some(own.bridge)
    }

    /// The port of the same bridge to which the frame is addressed: the stack does not route it.
    fn bridged(&self, from: u32, dst: IpAddr, bytes: &[u8]) -> Option<u32> {
        let bridge = self.bridge_of(from)?;
        let tables = self.overlay.tables();
        let to = tables.endpoints.get(tables.endpoint_by_addr.get(&Addr::from_ip(dst))?)?;
        (to.bridge == bridge && bytes.get(..6)? == pod_mac(&to.eth)).then_some(to.ifindex)
    }

    /// Takes one from TTL or hop limit, as a router does.
    fn hop(&self, bytes: &mut Vec<u8>) {
        let mut key = CtKey::from_words(Addr::UNSPECIFIED, Addr::UNSPECIFIED, 0, 0);
        let mut frame =
            Frame { bytes: std::mem::take(bytes), gso: 0, sent_here: false, route: |_, _, _, _| Hop::Nowhere };
        let parsed = parse(&mut frame, self.overlay, &mut key);
        let _ = nat::hop(&mut frame, parsed);
        *bytes = frame.bytes;
    }
}

/// The first reason of a kind that was counted.
fn counted(events: &[Event], wanted: impl Fn(reason::Kind) -> bool) -> Option<Reason> {
    events.iter().find_map(|event| {
        let Event::Counted(reason) = event else { return None };
        Reason::ALL.iter().find(|(known, _, kind, _)| known == reason && wanted(*kind)).map(|_| *reason)
    })
}

fn pod_mac(eth: &[u32; 3]) -> [u8; 6] {
    let bytes: [u8; 12] = bytemuck::cast(*eth);
    [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]
}

/// The unspecified address of the same family.
pub fn unspecified(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) }
}
