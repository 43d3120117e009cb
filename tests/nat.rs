//! A flow there and back, whatever its addresses, ports and payload: the client sees the VIP and its own port, the backend the client, both the
//! payload that was sent.

use netlb_tests::case::{Hook, Outcome};
use netlb_tests::host::HostTables;
use netlb_tests::packet::{ACK, Dissected, Frame, SYN, dissect, eth, show, verify};
use netlb_tests::world::{Pod, World};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};

const CLIENT: Pod = Pod {
    id: 1,
    ifindex: 12,
    mac: [2, 0, 0, 0, 1, 2],
    host_mac: [2, 0, 0, 0, 0xff, 2],
    v4: "10.0.1.2",
    v6: "fd00:10:1::2",
};
const BACKEND: Pod = Pod {
    id: 2,
    ifindex: 13,
    mac: [2, 0, 0, 0, 1, 3],
    host_mac: [2, 0, 0, 0, 0xff, 3],
    v4: "10.0.1.3",
    v6: "fd00:10:1::3",
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Road {
    Stack,
    Bridged,
    Redirect,
}

#[derive(Clone, Debug)]
struct Flow {
    v6: bool,
    tcp: bool,
    road: Road,
    /// The VIP's last 16 bits.
    vip: u16,
    /// The client is its own backend.
    hairpin: bool,
    sport: u16,
    vport: u16,
    bport: u16,
    ttl: u8,
    options: usize,
    no_sum: bool,
    there: Vec<u8>,
    back: Vec<u8>,
}

fn flow() -> impl Strategy<Value = Flow> {
    let shape =
        (any::<bool>(), any::<bool>(), prop_oneof![Just(Road::Stack), Just(Road::Bridged), Just(Road::Redirect)]);
    let ports = (1..=u16::MAX, 1..=u16::MAX, 1..=u16::MAX);
    let payload = || prop::collection::vec(any::<u8>(), 0..600);
    // TTLs that outlive one hop: what ends here has cases of its own.
    let rest = (any::<u16>(), prop::bool::weighted(0.2), 2..=255u8, 0..=10usize, any::<bool>(), payload(), payload());
    (shape, ports, rest).prop_map(
        |((v6, tcp, road), (sport, vport, bport), (vip, hairpin, ttl, options, no_sum, there, back))| Flow {
            v6,
            tcp,
            road,
            vip,
            hairpin,
            sport,
            vport,
            bport,
            ttl,
            options,
            no_sum,
            there,
            back,
        },
    )
}

impl Flow {
    fn backend(&self) -> &'static Pod {
        if self.hairpin { &CLIENT } else { &BACKEND }
    }

    fn vip(&self) -> IpAddr {
        let [a, b] = self.vip.to_be_bytes();
        if self.v6 { IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, self.vip]) } else { IpAddr::from([10, 96, a, b]) }
    }

    fn world(&self) -> World {
        let world = World::new().pod(&CLIENT).pod(&BACKEND);
        let world = match self.road {
            Road::Stack => world,
            Road::Bridged => world.bridge(7),
            Road::Redirect => world.redirect(),
        };
        let frontend = format!("{}/{}", SocketAddr::new(self.vip(), self.vport), if self.tcp { "TCP" } else { "UDP" });
        world.service(&frontend, &[&SocketAddr::new(self.backend().ip(self.v6), self.bport).to_string()])
    }

    fn frame(&self, from: &Pod, to: IpAddr, sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Frame {
        let frame = eth().macs(from.host_mac, from.mac).ip(from.ip(self.v6), to).ttl(self.ttl);
        let frame = if self.v6 { frame } else { frame.options(&vec![1; self.options * 4]) };
        let frame = match (self.tcp, self.no_sum) {
            (true, _) => frame.tcp(sport, dport, flags).tcp_options(&vec![1; self.options * 4]),
            (false, false) => frame.udp(sport, dport),
            // Over IPv6 a checksum is not optional.
            (false, true) if self.v6 => frame.udp(sport, dport),
            (false, true) => frame.udp(sport, dport).no_sum(),
        };
        frame.payload(payload)
    }
}

/// What a receiver makes of a frame: (source, its port, destination, its port, TTL, payload).
fn read(frame: &[u8]) -> (IpAddr, u16, IpAddr, u16, u8, Vec<u8>) {
    let Ok(Dissected { ip: Some(ip), .. }) = dissect(frame) else { panic!("not an IP packet:\n{}", show(frame)) };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let header = if ip.proto == 6 { usize::from(frame[ip.l4 + 12] >> 4) * 4 } else { 8 };
    (ip.src, port(ip.l4), ip.dst, port(ip.l4 + 2), ip.ttl, frame[ip.l4 + header..ip.end].to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flow_there_and_back(flow in flow()) {
        let mut host = HostTables::new(flow.world());
        let (client, backend) = (CLIENT.ip(flow.v6), flow.backend().ip(flow.v6));
        let redirected = flow.hairpin || flow.road == Road::Redirect;
        let ttl = if redirected { flow.ttl - 1 } else { flow.ttl };

        // There.
        let request = flow.frame(&CLIENT, flow.vip(), flow.sport, flow.vport, SYN, &flow.there).bytes();
        prop_assert_eq!(verify(&request), Ok(()));
        let (decision, arrived) = host.run(Hook::FromPod(CLIENT.ifindex), &request, 0);
        prop_assert_eq!(verify(&arrived), Ok(()), "{}", show(&arrived));
        let seen_by_backend = if flow.hairpin { flow.vip() } else { client };
        prop_assert_eq!(read(&arrived), (seen_by_backend, flow.sport, backend, flow.bport, ttl, flow.there.clone()));
        let wanted = match flow.road {
            _ if flow.hairpin => Outcome::Reflect,
            Road::Redirect => Outcome::Deliver(BACKEND.ifindex),
            Road::Stack | Road::Bridged => Outcome::Pass,
        };
        prop_assert_eq!(Outcome::from(decision), wanted);
        // Nothing but addresses, ports, TTL, MACs and checksums changed.
        prop_assert_eq!(arrived.len(), request.len());

        // Back: the backend answers whom it saw.
        let answer = flow.frame(flow.backend(), seen_by_backend, flow.bport, flow.sport, SYN | ACK, &flow.back).bytes();
        let (decision, mut returned) = host.run(Hook::FromPod(flow.backend().ifindex), &answer, 0);
        if redirected {
            let wanted = if flow.hairpin { Outcome::Reflect } else { Outcome::Deliver(CLIENT.ifindex) };
            prop_assert_eq!(Outcome::from(decision), wanted);
        } else {
            // A source that is a VIP would be a martian to the stack.
            prop_assert_eq!((Outcome::from(decision), &returned), (Outcome::Pass, &answer));
            let (decision, translated) = host.run(Hook::ToPod, &answer, 0);
            prop_assert_eq!(Outcome::from(decision), Outcome::Pass);
            returned = translated;
        }
        prop_assert_eq!(verify(&returned), Ok(()), "{}", show(&returned));
        prop_assert_eq!(read(&returned), (flow.vip(), flow.vport, client, flow.sport, ttl, flow.back.clone()));
    }
}
