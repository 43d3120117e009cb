//! Frames: building them for the generator, and judging the ones that come out. Checksums are summed from scratch here, apart from netlb's own code.

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};
use netlb_bench_ebpf::{FLOW_MASK, FRAME, FRAME_WORDS, Order, SHUFFLE};

/// A hardware address, in wire order.
pub(crate) type Mac = [u8; 6];

pub(crate) const TTL: u8 = 64;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const ACK: u8 = 0x10;

const ETH: usize = 14;

/// What rides on IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L4 {
    Udp,
    /// With these flags.
    Tcp(u8),
}

impl L4 {
    pub(crate) fn proto(self) -> u8 {
        match self {
            L4::Udp => 17,
            L4::Tcp(_) => 6,
        }
    }

    fn checksum_offset(self) -> usize {
        match self {
            L4::Udp => 6,
            L4::Tcp(_) => 16,
        }
    }
}

/// Addresses and ports (host order) of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
}

impl Tuple {
    /// The tuple of the answer.
    pub(crate) fn reversed(self) -> Self {
        Tuple { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }
}

/// Which packets of a generator differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vary {
    /// None.
    Fixed,
    /// Source (or, in an answer, destination) goes through `flows` flows, a power of two, in order.
    Sweep { flows: u32 },
    /// The same flows in an order that no cache can guess.
    Shuffle { flows: u32 },
    /// Flow after flow, none twice in a run of [`FLOW_MASK`] packets.
    Count,
}

/// A frame of [`FRAME`] bytes with correct checksums; the payload is zeros.
pub(crate) fn build(to: Mac, from: Mac, tuple: Tuple, l4: L4) -> Result<[u8; FRAME]> {
    let mut frame = Vec::with_capacity(FRAME);
    frame.extend(to);
    frame.extend(from);
    match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend(u16::try_from(FRAME - ETH)?.to_be_bytes());
            frame.extend([0, 0, 0x40, 0, TTL, l4.proto(), 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(u16::try_from(FRAME - ETH - 40)?.to_be_bytes());
            frame.extend([l4.proto(), TTL]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        _ => bail!("a frame from {} to {} mixes address families", tuple.src, tuple.dst),
    }
    frame.extend(tuple.sport.to_be_bytes());
    frame.extend(tuple.dport.to_be_bytes());
    match l4 {
        L4::Udp => frame.extend(u16::try_from(FRAME - l4_offset(tuple.src))?.to_be_bytes()),
        // Sequence and acknowledgement number, offset, flags, window.
        L4::Tcp(flags) => frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff]),
    }
    frame.resize(FRAME, 0);
    let Ok(mut frame) = <[u8; FRAME]>::try_from(frame) else { bail!("headers longer than a frame") };
    finish(&mut frame, tuple.src.is_ipv4(), l4);
    Ok(frame)
}

/// What the generator needs to make the frames of `first` and its variations. `back`: the destination varies.
pub(crate) fn order(first: &[u8; FRAME], l4: L4, vary: Vary, back: bool, target: u32, device: u32) -> Order {
    let v4 = is_v4(first);
    let mut frame = *first;
    let (factor, mask) = match vary {
        Vary::Fixed => (0, 0),
        Vary::Sweep { flows } => (1, flows - 1),
        Vary::Shuffle { flows } => (SHUFFLE, flows - 1),
        Vary::Count => (1, FLOW_MASK),
    };
    let (mut l4_sum, mut ip_sum) = (0, 0);
    if vary != Vary::Fixed {
        let at = l4_start(v4);
        let port = at + if back { 2 } else { 0 };
        clear(&mut frame, port);
        clear(&mut frame, at + l4.checksum_offset());
        l4_sum = pseudo(&frame, v4, l4) + sum(&frame[at..]);
        if v4 {
            clear(&mut frame, 24);
            ip_sum = sum(&frame[ETH..at]);
        }
    }
    let mut words = [0; FRAME_WORDS];
    bytemuck::bytes_of_mut(&mut words).copy_from_slice(&frame);
    let vary = u32::from(vary != Vary::Fixed);
    Order { words, made: 0, state: 0, factor, vary, mask, target, l4_sum, ip_sum, device, sample: 0, pad: 0 }
}

/// What must be true of a packet that arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) tuple: Tuple,
    /// The end that varies: its port, and its address's last byte, are not looked at.
    pub(crate) varies: Option<End>,
    /// Routers passed.
    pub(crate) hops: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// Checks addresses, ports, TTL and both checksums of a received frame.
///
/// # Errors
/// Says what is wrong.
pub(crate) fn judge(frame: &[u8; FRAME], expected: Expected) -> Result<()> {
    let v4 = expected.tuple.src.is_ipv4();
    ensure!(is_v4(frame) == v4, "the frame that arrived is of another address family");
    let at = l4_start(v4);
    let (address, length, ttl) = if v4 { (26, 4, frame[22]) } else { (22, 16, frame[21]) };
    let l4 = if frame[if v4 { 23 } else { 20 }] == 6 { L4::Tcp(0) } else { L4::Udp };
    let ends = [
        (End::Source, expected.tuple.src, expected.tuple.sport, address, at),
        (End::Destination, expected.tuple.dst, expected.tuple.dport, address + length, at + 2),
    ];
    for (end, ip, port, address, place) in ends {
        let varies = expected.varies == Some(end);
        let compared = if varies { length - 1 } else { length };
        let want = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let got = &frame[address..address + length];
        ensure!(got[..compared] == want[..compared], "{end:?} address is {got:?} where {ip} was expected");
        let got = u16::from_be_bytes([frame[place], frame[place + 1]]);
        ensure!(varies || got == port, "{end:?} port is {got} where {port} was expected");
    }
    ensure!(ttl == TTL - expected.hops, "TTL is {ttl} where {} was expected", TTL - expected.hops);
    ensure!(!v4 || fold(sum(&frame[ETH..at])) == 0xffff, "the IPv4 header checksum is wrong");
    ensure!(fold(pseudo(frame, v4, l4) + sum(&frame[at..])) == 0xffff, "the L4 checksum is wrong");
    Ok(())
}

/// Fills in both checksums.
fn finish(frame: &mut [u8; FRAME], v4: bool, l4: L4) {
    let at = l4_start(v4);
    if v4 {
        clear(frame, 24);
        let csum = !fold(sum(&frame[ETH..at]));
        frame[24..26].copy_from_slice(&csum.to_ne_bytes());
    }
    let field = at + l4.checksum_offset();
    clear(frame, field);
    let csum = match !fold(pseudo(frame, v4, l4) + sum(&frame[at..])) {
        0 if l4 == L4::Udp => 0xffff,
        csum => csum,
    };
    frame[field..field + 2].copy_from_slice(&csum.to_ne_bytes());
}

fn is_v4(frame: &[u8; FRAME]) -> bool {
    frame[12..14] == [8, 0]
}

fn l4_start(v4: bool) -> usize {
    if v4 { 34 } else { 54 }
}

fn l4_offset(ip: IpAddr) -> usize {
    l4_start(ip.is_ipv4())
}

fn clear(frame: &mut [u8; FRAME], at: usize) {
    frame[at..at + 2].fill(0);
}

/// Sum of the pseudo header, unfolded.
fn pseudo(frame: &[u8; FRAME], v4: bool, l4: L4) -> u32 {
    let at = l4_start(v4);
    let addresses = if v4 { 26..34 } else { 22..54 };
    let length = u16::try_from(FRAME - at).unwrap_or(u16::MAX);
    sum(&frame[addresses]) + u32::from(length.to_be()) + u32::from(u16::from(l4.proto()).to_be())
}

/// One's complement sum of native-order words, unfolded.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|w| u32::from(u16::from_ne_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(v4: bool) -> Tuple {
        let ip = |v4_text: &str, v6_text: &str| if v4 { v4_text } else { v6_text }.parse().unwrap();
        Tuple { src: ip("10.244.1.64", "fd00::40"), dst: ip("10.96.0.10", "fd00:10::a"), sport: 0x8001, dport: 80 }
    }

    #[test]
    fn a_built_frame_is_what_it_says() {
        for v4 in [true, false] {
            for l4 in [L4::Udp, L4::Tcp(SYN)] {
                let frame = build([2; 6], [4; 6], tuple(v4), l4).unwrap();
                judge(&frame, Expected { tuple: tuple(v4), varies: None, hops: 0 }).unwrap();
            }
        }
    }

    #[test]
    fn a_wrong_frame_is_caught() {
        let good = build([2; 6], [4; 6], tuple(true), L4::Udp).unwrap();
        let expected = Expected { tuple: tuple(true), varies: None, hops: 0 };
        let broken = |at: usize| {
            let mut frame = good;
            frame[at] ^= 1;
            judge(&frame, expected).unwrap_err().to_string()
        };
        assert!(broken(29).starts_with("Source address"));
        assert!(broken(37).starts_with("Destination port"));
        assert_eq!(broken(22), "TTL is 65 where 64 was expected");
        assert_eq!(broken(25), "the IPv4 header checksum is wrong");
        assert_eq!(broken(41), "the L4 checksum is wrong");
        assert_eq!(broken(70), "the L4 checksum is wrong");
    }

    /// The generator's arithmetic, done on the host, for the first, a middle and the last flow.
    #[test]
    fn an_order_describes_every_flow() {
        for (v4, l4, back) in [(true, L4::Udp, false), (true, L4::Tcp(SYN), false), (false, L4::Udp, true)] {
            let forward = tuple(v4);
            let first = build([2; 6], [4; 6], if back { forward.reversed() } else { forward }, l4).unwrap();
            let order = order(&first, l4, Vary::Count, back, 0, 0);
            for flow in [0, 77_777, FLOW_MASK] {
                let mut frame = [0; FRAME];
                frame.copy_from_slice(bytemuck::bytes_of(&order.words));
                let port = (netlb_bench_ebpf::PORT_BASE | (flow as u16 & 0x3fff)).to_be_bytes();
                let host = (flow >> netlb_bench_ebpf::PORT_BITS) as u8;
                let at = l4_start(v4);
                let (port_at, host_at) = match (v4, back) {
                    (true, false) => (at, 29),
                    (true, true) => (at + 2, 33),
                    (false, false) => (at, 37),
                    (false, true) => (at + 2, 53),
                };
                frame[port_at..port_at + 2].copy_from_slice(&port);
                frame[host_at] += host;
                let varied = u32::from(u16::from_ne_bytes(port)) + (u32::from(host) << 8);
                let csum = !fold(order.l4_sum + varied);
                let field = at + l4.checksum_offset();
                frame[field..field + 2].copy_from_slice(&csum.to_ne_bytes());
                if v4 {
                    let csum = !fold(order.ip_sum + (u32::from(host) << 8));
                    frame[24..26].copy_from_slice(&csum.to_ne_bytes());
                }
                let tuple = if back { forward.reversed() } else { forward };
                let varies = Some(if back { End::Destination } else { End::Source });
                judge(&frame, Expected { tuple, varies, hops: 0 }).unwrap();
            }
        }
    }
}
