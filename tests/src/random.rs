//! Random worlds and packets, the same for the same seed. Most are plausible: requests from pods and from outside, packets at the next hook on their
//! way, answers to what came out earlier, ICMP errors that quote it; the rest is cut, flipped or noise.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use netlb_common::backend::state::{ACTIVE, DRAINING, REMOVED};
use netlb_common::config::{flags, pods};
use netlb_common::{endpoint, frontend, uplink};

use crate::case::Hook;
use crate::packet::{ACK, Ext, FIN, Frame, PSH, RST, SCTP, SYN, TCP, ToIp, UDP, dissect, eth, reseal};
use crate::world::{NODE_V4, NODE_V6, Pod, UPLINK, World};

/// splitmix64 (Steele, Lea, Flood 2014).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`; `n` is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.word() % n as u64) as usize
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.word() as u8).collect()
    }
}

const PODS: [Pod; 4] = [
    Pod {
        id: 1,
        ifindex: 12,
        mac: [2, 0, 0, 0, 1, 2],
        host_mac: [2, 0, 0, 0, 0xff, 2],
        v4: "10.0.1.2",
        v6: "fd00:10:1::2",
    },
    Pod {
        id: 2,
        ifindex: 13,
        mac: [2, 0, 0, 0, 1, 3],
        host_mac: [2, 0, 0, 0, 0xff, 3],
        v4: "10.0.1.3",
        v6: "fd00:10:1::3",
    },
    Pod {
        id: 3,
        ifindex: 14,
        mac: [2, 0, 0, 0, 1, 4],
        host_mac: [2, 0, 0, 0, 0xff, 4],
        v4: "10.0.1.4",
        v6: "fd00:10:1::4",
    },
    Pod {
        id: 4,
        ifindex: 15,
        mac: [2, 0, 0, 0, 1, 5],
        host_mac: [2, 0, 0, 0, 0xff, 5],
        v4: "10.0.1.5",
        v6: "fd00:10:1::5",
    },
];

/// VIPs by family; the last of each is in the Service CIDR and unowned.
const VIPS: [[&str; 4]; 2] = [
    ["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.99"],
    ["fd00:10:96::1", "fd00:10:96::2", "fd00:10:96::3", "fd00:10:96::99"],
];
/// Backends elsewhere by family: on an ordinary way, on a narrow one, on none.
const REMOTE: [[&str; 3]; 2] = [["10.0.2.9", "10.8.0.9", "10.9.0.9"], ["fd00:10:2::9", "fd00:8::9", "fd00:9::9"]];
/// Clients outside, the second on a narrow way.
const VISITORS: [[&str; 2]; 2] = [["198.51.100.7", "10.8.0.77"], ["2001:db8:7::7", "fd00:8::77"]];
const NODE: [&str; 2] = [NODE_V4, NODE_V6];
const BALANCER: [&str; 2] = ["203.0.113.10", "2001:db8:10::10"];
const ROUTER: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Ports of frontends.
const PORTS: [(u16, &str); 4] = [(80, "TCP"), (53, "UDP"), (53, "TCP"), (36, "SCTP")];
/// Of clients whose packets slip past their veths: flows of their own, or half of another's would be left over.
const SLIPPING: [u16; 2] = [41_000, 41_001];
/// Few, so that tuples come again.
const CLIENT_PORTS: [u16; 5] = [40_000, 40_001, 1_024, 80, 65_000];

/// One packet to send.
pub struct Sent {
    pub hook: Hook,
    pub frame: Vec<u8>,
}

/// Makes packets for one world after another.
pub struct Source {
    rng: Rng,
    /// Frames that went in or came out of late.
    history: Vec<Vec<u8>>,
    /// Later fragments of what was sent.
    parts: VecDeque<Sent>,
    backend_port: u16,
    /// Address, port and protocol of every frontend of the world.
    frontends: Vec<(IpAddr, u16, u8)>,
}

const HISTORY: usize = 48;

impl Source {
    pub fn new(seed: u64) -> Self {
        Source {
            rng: Rng::new(seed),
            history: Vec::new(),
            parts: VecDeque::new(),
            backend_port: 0,
            frontends: Vec::new(),
        }
    }

    /// A new world; what was learnt of the last one is forgotten.
    pub fn world(&mut self) -> World {
        self.history.clear();
        self.parts.clear();
        self.frontends.clear();
        self.backend_port = 8_000;
        let rng = &mut self.rng;
        let mut world = PODS.iter().fold(World::new(), |world, pod| world.pod(pod));
        world.config.seed = rng.word() as u32;
        world = match rng.below(3) {
            0 => world.redirect(),
            1 => world.bridge(7),
            _ => world,
        };
        if rng.chance(20) {
            let pod = &PODS[rng.below(PODS.len())];
            world.endpoint(pod).mtu = 600;
        }
        for v6 in [0, 1] {
            for vip in &VIPS[v6][..3] {
                for (port, proto) in PORTS {
                    if self.rng.chance(70) {
                        world = self.service(world, v6, vip, port, proto);
                    }
                }
            }
        }
        self.policy(world)
    }

    /// Who is a pod, and who is masqueraded.
    fn policy(&mut self, mut world: World) -> World {
        let rng = &mut self.rng;
        for flag in [flags::MASQUERADE_LOCAL, flags::MASQUERADE_ALL] {
            if rng.chance(25) {
                world.config.flags |= flag;
            }
        }
        match rng.below(6) {
            0 => world.pod_cidr("10.0.1.0", 24).pod_cidr("fd00:10:1::", 64),
            1 => {
                world.endpoint(&PODS[0]).flags |= endpoint::flags::POD_SOURCE;
                if rng.chance(50) {
                    world.uplinks.get_mut(&UPLINK).expect("every world has one").flags |= uplink::flags::POD_SOURCE;
                }
                world.pods(pods::DEVICES)
            }
            2 => world.pods(pods::NONE),
            _ => world,
        }
    }

    fn service(&mut self, world: World, v6: usize, vip: &str, port: u16, proto: &str) -> World {
        let frontend = format!("{}/{proto}", SocketAddr::new(vip.to_ip(), port));
        let number = match proto {
            "TCP" => TCP,
            "UDP" => UDP,
            _ => SCTP,
        };
        self.frontends.push((vip.to_ip(), port, number));
        // Some share their backends' ports: answers would be mistaken for each other's.
        if self.rng.chance(85) {
            self.backend_port += 1;
        }
        let mut backends = Vec::new();
        for pod in &PODS {
            if self.rng.chance(40) {
                backends.push(std::net::SocketAddr::new(pod.ip(v6 == 1), self.backend_port).to_string());
            }
        }
        for (ip, percent) in REMOTE[v6].into_iter().zip([40, 15, 3]) {
            if self.rng.chance(percent) {
                backends.push(SocketAddr::new(ip.to_ip(), self.backend_port).to_string());
            }
        }
        let mut world = world.service(&frontend, &backends.iter().map(String::as_str).collect::<Vec<_>>());
        if self.rng.chance(25) {
            world = world.sticky(&frontend, 100);
        }
        if self.rng.chance(40) {
            world = world.scheduler(&frontend, self.rng.below(4) as u32);
        }
        if self.rng.chance(60) {
            world = self.doors(world, v6, &frontend, number);
        }
        if self.rng.chance(10) { world.internal_local(&frontend) } else { world }
    }

    /// Ways to a Service port from outside.
    fn doors(&mut self, mut world: World, v6: usize, frontend: &str, proto: u8) -> World {
        let port = 30_000 + self.frontends.len() as u16;
        world = world.node_port(frontend, port);
        self.frontends.push((NODE[v6].to_ip(), port, proto));
        if self.rng.chance(50) {
            let ranges = [[("198.51.100.0", 24)], [("2001:db8:7::", 48)]];
            let at = SocketAddr::new(BALANCER[v6].to_ip(), port);
            let ranges = if self.rng.chance(30) { &ranges[v6][..] } else { &[] };
            world = world.load_balancer(frontend, &at.to_string(), ranges);
            self.frontends.push((at.ip(), port, proto));
        }
        if self.rng.chance(25) { world.external_local(frontend) } else { world }
    }

    /// Perhaps another world: a backend that comes, goes or becomes another, a device replaced, a road opened or closed.
    pub fn change(&mut self, world: &World) -> Option<World> {
        let mut new = world.clone();
        let ids: Vec<u32> = world.backends.keys().copied().collect();
        let rng = &mut self.rng;
        match rng.below(7) {
            0 | 1 if !ids.is_empty() => new.set_state_of(rng.pick(&ids), rng.pick(&[ACTIVE, DRAINING, REMOVED])),
            2 if !ids.is_empty() => {
                self.backend_port += 1;
                let backend = new.backends.get_mut(&rng.pick(&ids)).expect("an id of this world");
                backend.port = netlb_common::Port::new(self.backend_port);
                backend.generation += 1;
            }
            3 => new.endpoint(&PODS[rng.below(PODS.len())]).generation += 1,
            4 => new.config.flags ^= flags::REDIRECT,
            5 if self.rng.chance(30) => {
                new.frontends.retain(|key, f| !key.is_address() || f.flags & frontend::flags::VIP != 0);
            }
            _ => return None,
        }
        Some(new)
    }

    /// Jiffies to let pass, perhaps; never a whole number of seconds, so that no sum of them meets a timeout exactly.
    pub fn wait(&mut self) -> Option<u32> {
        const SECONDS: [u32; 6] = [1, 7, 23, 47, 131, 4_001];
        self.rng.chance(40).then(|| self.rng.pick(&SECONDS) * crate::world::HZ + 37)
    }

    /// Remembers a frame for answers and quotes.
    pub fn learn(&mut self, frame: &[u8]) {
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push(frame.to_vec());
    }

    pub fn packet(&mut self) -> Sent {
        if self.rng.chance(60)
            && let Some(part) = self.parts.pop_front()
        {
            return part;
        }
        let mut sent = match self.rng.below(100) {
            0..26 => self.request(),
            26..40 => self.onward(),
            40..54 => self.again(),
            54..79 => self.answer(),
            79..90 => self.error(),
            90..95 => self.straight(),
            _ => self.noise(),
        };
        if self.rng.chance(12) {
            self.spoil(&mut sent.frame);
        }
        // A test run takes no frame shorter than its Ethernet header.
        sent.frame.resize(sent.frame.len().max(14), 0);
        sent
    }

    fn pod(&mut self) -> &'static Pod {
        &PODS[self.rng.below(PODS.len())]
    }

    fn request(&mut self) -> Sent {
        let client = self.pod();
        let v6 = self.rng.below(2);
        let vip = if self.rng.chance(4) { VIPS[v6][3] } else { VIPS[v6][self.rng.below(3)] };
        let (to, port) = if self.rng.chance(15) || self.frontends.is_empty() {
            (vip.to_ip(), None)
        } else {
            let (ip, port, proto) = self.rng.pick(&self.frontends);
            (ip, Some((port, proto)))
        };
        let frame = eth().macs(client.host_mac, client.mac);
        let (hook, from) = match self.rng.below(100) {
            0..35 => (Hook::FromOutside, VISITORS[usize::from(to.is_ipv6())][self.rng.below(2)].to_ip()),
            35..40 => (Hook::ToOutside, client.ip(to.is_ipv6())),
            40..97 => (Hook::FromPod(client.ifindex), client.ip(to.is_ipv6())),
            _ => (Hook::FromPod(self.rng.pick(&[12, 13, 99])), client.ip(to.is_ipv6())),
        };
        let frame = frame.ip(from, to);
        let sport = self.rng.pick(if hook == Hook::ToOutside { &SLIPPING[..] } else { &CLIENT_PORTS });
        if self.rng.chance(8) {
            return self.in_parts(hook, frame, sport, port.map_or(53, |(port, _)| port));
        }
        let frame = self.l4(frame, sport, port);
        Sent { hook, frame: frame.bytes() }
    }

    /// The first fragment of a datagram; the others come later.
    fn in_parts(&mut self, hook: Hook, frame: Frame, sport: u16, port: u16) -> Sent {
        let id = self.rng.word() as u16;
        let part = |offset: u16, more: bool| {
            let payload = [b'p'; 64];
            frame.clone().raw(UDP).payload(&payload).fragment_of(id, offset, more).bytes()
        };
        self.parts.push_back(Sent { hook, frame: part(8, true) });
        self.parts.push_back(Sent { hook, frame: part(16, false) });
        let first = frame.clone().udp(sport, port).payload(&[b'p'; 56]).udp_len(192).fragment_of(id, 0, true);
        Sent { hook, frame: first.bytes() }
    }

    /// What came out of a hook, as the next one sees it.
    fn onward(&mut self) -> Sent {
        let Some(frame) = self.remembered() else { return self.request() };
        self.at_its_hook(frame, 100)
    }

    fn straight(&mut self) -> Sent {
        let (from, to) = (self.pod(), self.pod());
        let v6 = self.rng.chance(50);
        let frame = eth().macs(from.host_mac, from.mac).ip(from.ip(v6), to.ip(v6));
        let sport = self.rng.pick(&CLIENT_PORTS);
        let frame = self.l4(frame, sport, None).bytes();
        Sent { hook: if self.rng.chance(50) { Hook::ToPod } else { Hook::FromPod(from.ifindex) }, frame }
    }

    /// Network options and an L4 header: for this port and protocol, or of some kind.
    fn l4(&mut self, frame: Frame, sport: u16, to: Option<(u16, u8)>) -> Frame {
        let rng = &mut self.rng;
        let mut frame = frame.ttl(rng.pick(&[1, 2, 63, 64, 64, 64, 255]));
        if rng.chance(15) {
            frame = if frame.is_v6() {
                let exts = [Ext::HopByHop(0), Ext::Destination(1), Ext::Routing(2), Ext::Auth(1), Ext::Destination(20)];
                (0..rng.below(4)).fold(frame, |frame, _| frame.ext(exts[rng.below(exts.len())].clone()))
            } else {
                let options = rng.below(11) * 4;
                frame.options(&vec![1; options])
            };
        }
        if rng.chance(4) {
            let (offset, more) = (rng.below(2) as u16 * 3, rng.chance(50));
            frame = frame.fragment(offset, more);
        }
        let dport = to.map_or_else(|| rng.pick(&[80, 53, 81]), |(port, _)| port);
        let len = match rng.below(100) {
            0..10 => rng.below(1_400),
            // More than a narrow way takes.
            10..14 => 1_330 + rng.below(60),
            _ => rng.below(60),
        };
        let payload = rng.bytes(len);
        let kind = match to {
            Some((_, TCP)) => 0,
            Some((_, SCTP)) => 99,
            Some(_) => 60,
            None => rng.below(100),
        };
        let frame = match kind {
            0..55 => {
                let flags = rng.pick(&[SYN, SYN, SYN, SYN, SYN, SYN, ACK, ACK | PSH, FIN | ACK, RST, SYN | ACK, 0]);
                let frame = frame.tcp(sport, dport, flags).seq(rng.word() as u32, rng.word() as u32);
                if rng.chance(20) { frame.tcp_options(&vec![1; rng.below(11) * 4]) } else { frame }
            }
            55..92 => {
                let frame = frame.udp(sport, dport);
                if rng.chance(20) { frame.no_sum() } else { frame }
            }
            92..96 => frame.icmp(if rng.chance(50) { 8 } else { 128 }, 0).rest(rng.word() as u32),
            96..98 => frame.raw(rng.pick(&[47, 4, 50])),
            _ => {
                let frame = frame.sctp(sport, dport, rng.pick(&[1, 1, 1, 1, 0, 10, 7, 6]));
                if rng.chance(20) { frame.no_sum() } else { frame }
            }
        };
        let frame = frame.payload(&payload);
        if len < 4 && rng.chance(30) { frame.padding(rng.below(18)) } else { frame }
    }

    /// Something that was seen, once more, perhaps as a later segment of its connection.
    fn again(&mut self) -> Sent {
        let Some(mut frame) = self.remembered() else { return self.request() };
        let Ok(Some(ip)) = dissect(&frame).map(|d| d.ip) else { return self.request() };
        if ip.proto == TCP && ip.l4 + 20 <= frame.len() && self.rng.chance(80) {
            frame[ip.l4 + 13] = self.rng.pick(&[SYN, ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST]);
            reseal(&mut frame);
        }
        self.at_its_hook(frame, 10)
    }

    /// An answer to something that was seen.
    fn answer(&mut self) -> Sent {
        let Some(mut frame) = self.remembered() else { return self.request() };
        let Ok(Some(ip)) = dissect(&frame).map(|d| d.ip) else { return self.request() };
        let (at, size) = if ip.src.is_ipv4() { (26, 4) } else { (22, 16) };
        for i in at..at + size {
            frame.swap(i, i + size);
        }
        frame[if size == 4 { 22 } else { 21 }] = self.rng.pick(&[1, 2, 64, 64, 64]);
        if ip.l4 + 16 <= frame.len() && [TCP, UDP, SCTP].contains(&ip.proto) && ip.fragment.0 == 0 {
            frame.swap(ip.l4, ip.l4 + 2);
            frame.swap(ip.l4 + 1, ip.l4 + 3);
            if ip.proto == SCTP {
                frame[ip.l4 + 12] = self.rng.pick(&[2, 2, 2, 11, 0, 7, 8, 6]);
            }
            if ip.proto == TCP && ip.l4 + 20 <= frame.len() {
                frame[ip.l4 + 13] = self.rng.pick(&[SYN | ACK, SYN | ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST]);
            }
        }
        reseal(&mut frame);
        self.at_its_hook(frame, 45)
    }

    /// Sends a frame from the pod whose source address it has, or by the uplink if it is no pod's; or (`out` times in a hundred) where it would
    /// leave the stack.
    fn at_its_hook(&mut self, frame: Vec<u8>, out: usize) -> Sent {
        let ip = dissect(&frame).ok().and_then(|d| d.ip);
        let sport = ip.as_ref().and_then(|ip| frame.get(ip.l4..ip.l4 + 2)).map(|b| u16::from_be_bytes([b[0], b[1]]));
        let to_service = self.frontends.iter().any(|(addr, ..)| ip.as_ref().is_some_and(|ip| ip.dst == *addr));
        let pod = |ip: Option<IpAddr>| PODS.iter().find(|pod| Some(pod.ip(false)) == ip || Some(pod.ip(true)) == ip);
        let (from, to) = (pod(ip.as_ref().map(|ip| ip.src)), pod(ip.as_ref().map(|ip| ip.dst)));
        let hook = match (from, to) {
            _ if to_service && sport.is_some_and(|port| SLIPPING.contains(&port)) => Hook::ToOutside,
            _ if !to_service && self.rng.chance(out) => {
                if to.is_some() {
                    Hook::ToPod
                } else {
                    Hook::ToOutside
                }
            }
            (Some(pod), _) => Hook::FromPod(pod.ifindex),
            (None, _) => Hook::FromOutside,
        };
        Sent { hook, frame }
    }

    /// An ICMP error that quotes something that was seen, from a router or one of its ends.
    fn error(&mut self) -> Sent {
        let Some(quoted) = self.remembered() else { return self.request() };
        let Ok(Some(ip)) = dissect(&quoted).map(|d| d.ip) else { return self.request() };
        let v6 = usize::from(ip.src.is_ipv6());
        let from = if self.rng.chance(40) { ROUTER[v6].to_ip() } else { ip.dst };
        let (kind, code) = if v6 == 1 {
            self.rng.pick(&[(1, 4), (2, 0), (3, 0)])
        } else {
            self.rng.pick(&[(3, 4), (3, 3), (11, 0), (12, 0)])
        };
        let packet = &quoted[14..];
        let len = if self.rng.chance(50) { packet.len() } else { self.rng.below(packet.len() + 1) };
        let frame = eth().ip(from, ip.src).ttl(self.rng.pick(&[1, 2, 64])).icmp(kind, code).rest(1_400);
        self.at_its_hook(frame.payload(&packet[..len]).bytes(), 50)
    }

    fn noise(&mut self) -> Sent {
        let len = self.rng.below(160);
        let mut frame = eth().payload(&self.rng.bytes(len)).bytes();
        let ether_type: u16 = self.rng.pick(&[0x0800, 0x0800, 0x86dd, 0x86dd, 0x0806, 0x8100]);
        frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
        if len > 0 {
            frame[14] = self.rng.pick(&[0x45, 0x46, 0x60, 0x60, 0x4f, 0x55]);
        }
        let hooks = [Hook::ToPod, Hook::FromPod(12), Hook::FromPod(99), Hook::FromOutside, Hook::ToOutside];
        Sent { hook: self.rng.pick(&hooks), frame }
    }

    /// Cuts the frame, or flips some of its bytes, with or without making the checksums right again.
    fn spoil(&mut self, frame: &mut Vec<u8>) {
        if self.rng.chance(40) {
            let len = self.rng.below(frame.len() + 1);
            frame.truncate(len);
            return;
        }
        for _ in 0..=self.rng.below(4) {
            // Headers rather than payload.
            let at = self.rng.below(frame.len().min(90));
            frame[at] ^= 1 << self.rng.below(8);
        }
        if self.rng.chance(50) {
            reseal(frame);
        }
    }

    fn remembered(&mut self) -> Option<Vec<u8>> {
        if self.history.is_empty() {
            return None;
        }
        // The latest are the most alive.
        let back = self.rng.below(self.history.len()).min(self.rng.below(self.history.len()));
        self.history.get(self.history.len() - 1 - back).cloned()
    }
}
