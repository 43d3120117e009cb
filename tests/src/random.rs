//! Random worlds and packets, the same for the same seed. Most are plausible: requests, answers to what came out earlier, ICMP errors that quote
//! it; the rest is cut, flipped or noise.

use std::net::IpAddr;

use netlb_common::backend::state::{ACTIVE, DRAINING, REMOVED};
use netlb_common::config::flags;

use crate::case::Hook;
use crate::packet::{ACK, Ext, FIN, Frame, PSH, RST, SYN, TCP, ToIp, UDP, dissect, eth, reseal};
use crate::world::{Pod, World};

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
const REMOTE: [&str; 2] = ["10.0.2.9", "fd00:10:2::9"];
const ROUTER: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Ports of frontends: TCP and UDP each.
const PORTS: [u16; 2] = [80, 53];
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
    backend_port: u16,
    /// Address, port and protocol of every frontend of the world.
    frontends: Vec<(IpAddr, u16, u8)>,
}

const HISTORY: usize = 48;

impl Source {
    pub fn new(seed: u64) -> Self {
        Source { rng: Rng::new(seed), history: Vec::new(), backend_port: 0, frontends: Vec::new() }
    }

    /// A new world; what was learnt of the last one is forgotten. No two frontends share a backend's address and port: a moved source port
    /// depends on the clock, which the runners do not share.
    pub fn world(&mut self) -> World {
        self.history.clear();
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
                for (port, proto) in [(PORTS[0], "TCP"), (PORTS[1], "UDP"), (PORTS[1], "TCP")] {
                    if self.rng.chance(80) {
                        world = self.service(world, v6, vip, port, proto);
                    }
                }
            }
        }
        world
    }

    fn service(&mut self, world: World, v6: usize, vip: &str, port: u16, proto: &str) -> World {
        let frontend = format!("{}/{proto}", std::net::SocketAddr::new(vip.to_ip(), port));
        self.frontends.push((vip.to_ip(), port, if proto == "TCP" { TCP } else { UDP }));
        self.backend_port += 1;
        let mut backends = Vec::new();
        for pod in &PODS {
            if self.rng.chance(40) {
                backends.push(std::net::SocketAddr::new(pod.ip(v6 == 1), self.backend_port).to_string());
            }
        }
        if self.rng.chance(20) {
            backends.push(std::net::SocketAddr::new(REMOTE[v6].to_ip(), self.backend_port).to_string());
        }
        let world = world.service(&frontend, &backends.iter().map(String::as_str).collect::<Vec<_>>());
        if self.rng.chance(25) { world.sticky(&frontend, 100) } else { world }
    }

    /// Perhaps another world: a backend that comes, goes or becomes another, a device replaced, a road opened or closed.
    pub fn change(&mut self, world: &World) -> Option<World> {
        let mut new = world.clone();
        let ids: Vec<u32> = world.backends.keys().copied().collect();
        let rng = &mut self.rng;
        match rng.below(6) {
            0 | 1 if !ids.is_empty() => new.set_state_of(rng.pick(&ids), rng.pick(&[ACTIVE, DRAINING, REMOVED])),
            2 if !ids.is_empty() => {
                self.backend_port += 1;
                let backend = new.backends.get_mut(&rng.pick(&ids)).expect("an id of this world");
                backend.port = netlb_common::Port::new(self.backend_port);
                backend.generation += 1;
            }
            3 => new.endpoint(&PODS[rng.below(PODS.len())]).generation += 1,
            4 => new.config.flags ^= flags::REDIRECT,
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
        let mut sent = match self.rng.below(100) {
            0..30 => self.request(),
            30..50 => self.again(),
            50..76 => self.answer(),
            76..88 => self.error(),
            88..94 => self.straight(),
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
        let frame = eth().macs(client.host_mac, client.mac);
        let frame = if self.rng.chance(15) || self.frontends.is_empty() {
            self.l4(frame.ip(client.ip(v6 == 1), vip), None)
        } else {
            let (vip, port, proto) = self.rng.pick(&self.frontends);
            self.l4(frame.ip(client.ip(vip.is_ipv6()), vip), Some((port, proto)))
        };
        let arrived = if self.rng.chance(95) { client.ifindex } else { self.rng.pick(&[12, 13, 99]) };
        Sent { hook: Hook::FromPod(arrived), frame: frame.bytes() }
    }

    fn straight(&mut self) -> Sent {
        let (from, to) = (self.pod(), self.pod());
        let v6 = self.rng.chance(50);
        let frame = eth().macs(from.host_mac, from.mac).ip(from.ip(v6), to.ip(v6));
        let frame = self.l4(frame, None).bytes();
        Sent { hook: if self.rng.chance(50) { Hook::ToPod } else { Hook::FromPod(from.ifindex) }, frame }
    }

    /// Network options and an L4 header: for this port and protocol, or of some kind.
    fn l4(&mut self, frame: Frame, to: Option<(u16, u8)>) -> Frame {
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
        let sport = rng.pick(&CLIENT_PORTS);
        let dport = to.map_or_else(|| rng.pick(&[80, 53, 81]), |(port, _)| port);
        let len = if rng.chance(10) { rng.below(1_400) } else { rng.below(60) };
        let payload = rng.bytes(len);
        let kind = match to {
            Some((_, TCP)) => 0,
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
            92..97 => frame.icmp(if rng.chance(50) { 8 } else { 128 }, 0).rest(rng.word() as u32),
            _ => frame.raw(rng.pick(&[132, 47, 4, 50])),
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
        if ip.l4 + 20 <= frame.len() && (ip.proto == TCP || ip.proto == UDP) && ip.fragment.0 == 0 {
            frame.swap(ip.l4, ip.l4 + 2);
            frame.swap(ip.l4 + 1, ip.l4 + 3);
            if ip.proto == TCP {
                frame[ip.l4 + 13] = self.rng.pick(&[SYN | ACK, SYN | ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST]);
            }
        }
        reseal(&mut frame);
        self.at_its_hook(frame, 45)
    }

    /// Sends a frame from the pod whose source address it has, or (`to_pod` times in a hundred) towards a pod.
    fn at_its_hook(&mut self, frame: Vec<u8>, to_pod: usize) -> Sent {
        let src = dissect(&frame).ok().and_then(|d| d.ip).map(|ip| ip.src);
        let pod = PODS.iter().find(|pod| Some(pod.ip(false)) == src || Some(pod.ip(true)) == src);
        let hook = match pod {
            Some(pod) if !self.rng.chance(to_pod) => Hook::FromPod(pod.ifindex),
            _ => Hook::ToPod,
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
        Sent { hook: self.rng.pick(&[Hook::ToPod, Hook::FromPod(12), Hook::FromPod(99)]), frame }
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
