//! Packets for tests: a layered builder, its inverse for people ([`show`]) and a check from scratch ([`verify`]).
//!
//! ```
//! use netlb_tests::packet::{SYN, eth, verify};
//! let syn = eth().ip("10.0.1.2", "10.96.0.10").tcp(40000, 80, SYN).payload(b"hello");
//! assert_eq!(verify(&syn.bytes()), Ok(()));
//! ```
//! Nothing here uses netlb's own parsing or checksum code: a defect there cannot hide behind itself.

mod bytes;
mod dissect;
mod reseal;
mod show;
mod verify;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use dissect::{Dissected, dissect};
pub use reseal::reseal;
pub use show::show;
pub use verify::verify;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

/// Six bytes as they stand in a frame.
pub type Mac = [u8; 6];

/// A port that is only known once a packet has come out: the source port the datapath moved a flow to. [`Frame::resolve`] puts it in.
pub const MOVED: u16 = 65_535;

/// What names an IP address: text or a value.
pub trait ToIp {
    fn to_ip(self) -> IpAddr;
}

impl ToIp for &str {
    fn to_ip(self) -> IpAddr {
        self.parse().unwrap_or_else(|_| panic!("{self:?} is not an IP address: fix the test"))
    }
}

impl ToIp for IpAddr {
    fn to_ip(self) -> IpAddr {
        self
    }
}

/// An IPv6 extension header. Sizes are in units of 8 bytes beyond the first 8 (AH: of 4 beyond the first 12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ext {
    HopByHop(u8),
    Routing(u8),
    Destination(u8),
    Auth(u8),
    /// `offset` in units of 8 bytes.
    Fragment {
        offset: u16,
        more: bool,
        id: u32,
    },
}

#[derive(Clone, Debug)]
enum Net {
    None,
    V4 { src: Ipv4Addr, dst: Ipv4Addr, tos: u8, id: u16, fragment: u16, ttl: u8, options: Vec<u8>, len: Option<u16> },
    V6 { src: Ipv6Addr, dst: Ipv6Addr, first: u32, hops: u8, ext: Vec<Ext>, len: Option<u16> },
}

#[derive(Clone, Debug)]
enum L4 {
    Raw(u8),
    Tcp { sport: u16, dport: u16, seq: u32, ack: u32, flags: u8, window: u16, options: Vec<u8> },
    Udp { sport: u16, dport: u16, sum: bool, len: Option<u16> },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Sctp { sport: u16, dport: u16, chunk: u8, sum: bool },
}

#[derive(Clone, Debug)]
enum Payload {
    Bytes(Vec<u8>),
    /// The first bytes of another frame's IP packet; `settled`: its TCP or UDP checksum as netlb writes it into refusals.
    Quote {
        frame: Box<Frame>,
        len: usize,
        settled: bool,
    },
}

/// A frame under construction. Every setter takes and gives the frame; [`bytes`](Frame::bytes) makes lengths and checksums right.
#[derive(Clone, Debug)]
pub struct Frame {
    dst_mac: Mac,
    src_mac: Mac,
    ether_type: Option<u16>,
    net: Net,
    l4: L4,
    payload: Payload,
    padding: usize,
    pokes: Vec<(usize, Vec<u8>)>,
    cut: Option<usize>,
}

/// An Ethernet frame with nothing in it.
pub fn eth() -> Frame {
    Frame {
        dst_mac: [2, 0, 0, 0, 0, 0xfe],
        src_mac: [2, 0, 0, 0, 0, 1],
        ether_type: None,
        net: Net::None,
        l4: L4::Raw(255),
        payload: Payload::Bytes(Vec::new()),
        padding: 0,
        pokes: Vec::new(),
        cut: None,
    }
}

const NO_IP: &str = "the frame has no IP header yet: call ip() first";
const NO_V4: &str = "the frame has no IPv4 header";
const NO_V6: &str = "the frame has no IPv6 header";
const NO_PORTS: &str = "the frame has neither TCP, UDP nor SCTP: call tcp(), udp() or sctp() first";
const NO_TCP: &str = "the frame has no TCP header";

impl Frame {
    pub fn macs(mut self, dst: Mac, src: Mac) -> Self {
        (self.dst_mac, self.src_mac) = (dst, src);
        self
    }

    /// Sets the destination MAC alone.
    pub fn dst_mac(mut self, dst: Mac) -> Self {
        self.dst_mac = dst;
        self
    }

    pub fn swap_macs(mut self) -> Self {
        (self.dst_mac, self.src_mac) = (self.src_mac, self.dst_mac);
        self
    }

    /// Another EtherType than the content has.
    pub fn ether_type(mut self, value: u16) -> Self {
        self.ether_type = Some(value);
        self
    }

    /// An IPv4 or IPv6 header, by the family of the addresses.
    pub fn ip(mut self, src: impl ToIp, dst: impl ToIp) -> Self {
        self.net = match (src.to_ip(), dst.to_ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                Net::V4 { src, dst, tos: 0, id: 0x4242, fragment: 0x4000, ttl: 64, options: Vec::new(), len: None }
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                Net::V6 { src, dst, first: 0x6000_0000, hops: 64, ext: Vec::new(), len: None }
            }
            (src, dst) => panic!("{src} and {dst} are of two families: fix the test"),
        };
        self
    }

    /// IPv4, as [`ip`](Self::ip).
    pub fn ip4(self, src: impl ToIp, dst: impl ToIp) -> Self {
        let frame = self.ip(src, dst);
        assert!(matches!(frame.net, Net::V4 { .. }), "{NO_V4}");
        frame
    }

    /// IPv6, as [`ip`](Self::ip).
    pub fn ip6(self, src: impl ToIp, dst: impl ToIp) -> Self {
        let frame = self.ip(src, dst);
        assert!(matches!(frame.net, Net::V6 { .. }), "{NO_V6}");
        frame
    }

    pub fn is_v6(&self) -> bool {
        matches!(self.net, Net::V6 { .. })
    }

    pub fn src_ip(&self) -> IpAddr {
        match &self.net {
            Net::V4 { src, .. } => IpAddr::V4(*src),
            Net::V6 { src, .. } => IpAddr::V6(*src),
            Net::None => panic!("{NO_IP}"),
        }
    }

    pub fn dst_ip(&self) -> IpAddr {
        match &self.net {
            Net::V4 { dst, .. } => IpAddr::V4(*dst),
            Net::V6 { dst, .. } => IpAddr::V6(*dst),
            Net::None => panic!("{NO_IP}"),
        }
    }

    pub fn src(mut self, addr: impl ToIp) -> Self {
        match (&mut self.net, addr.to_ip()) {
            (Net::V4 { src, .. }, IpAddr::V4(new)) => *src = new,
            (Net::V6 { src, .. }, IpAddr::V6(new)) => *src = new,
            (Net::None | Net::V4 { .. } | Net::V6 { .. }, _) => panic!("{NO_IP}"),
        }
        self
    }

    pub fn dst(mut self, addr: impl ToIp) -> Self {
        match (&mut self.net, addr.to_ip()) {
            (Net::V4 { dst, .. }, IpAddr::V4(new)) => *dst = new,
            (Net::V6 { dst, .. }, IpAddr::V6(new)) => *dst = new,
            (Net::None | Net::V4 { .. } | Net::V6 { .. }, _) => panic!("{NO_IP}"),
        }
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, value: u8) -> Self {
        match &mut self.net {
            Net::V4 { ttl, .. } => *ttl = value,
            Net::V6 { hops, .. } => *hops = value,
            Net::None => panic!("{NO_IP}"),
        }
        self
    }

    /// One router hop: TTL or hop limit less one.
    pub fn hop(self) -> Self {
        let now = match &self.net {
            Net::V4 { ttl, .. } => *ttl,
            Net::V6 { hops, .. } => *hops,
            Net::None => panic!("{NO_IP}"),
        };
        self.ttl(now - 1)
    }

    /// IPv4 type of service and identification.
    pub fn tos_id(mut self, new_tos: u8, new_id: u16) -> Self {
        let Net::V4 { tos, id, .. } = &mut self.net else { panic!("{NO_V4}") };
        (*tos, *id) = (new_tos, new_id);
        self
    }

    /// IPv4's "don't fragment", which is set otherwise.
    pub fn dont_fragment(mut self, set: bool) -> Self {
        let Net::V4 { fragment, .. } = &mut self.net else { panic!("{NO_V4}") };
        *fragment = if set { 0x4000 } else { 0 };
        self
    }

    /// IPv4 options; a multiple of 4 bytes, 40 at most.
    pub fn options(mut self, bytes: &[u8]) -> Self {
        assert!(bytes.len().is_multiple_of(4) && bytes.len() <= 40, "IPv4 options are 0 to 40 bytes in fours");
        let Net::V4 { options, .. } = &mut self.net else { panic!("{NO_V4}") };
        *options = bytes.to_vec();
        self
    }

    /// Makes it a fragment; `offset` in units of 8 bytes. In IPv6 a fragment header is appended.
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        self.fragment_of(0x0304, offset, more)
    }

    /// As [`fragment`](Self::fragment), of the datagram with this identification.
    pub fn fragment_of(mut self, id: u16, offset: u16, more: bool) -> Self {
        match &mut self.net {
            Net::V4 { fragment, id: own, .. } => {
                (*fragment, *own) = (offset & 0x1fff | if more { 0x2000 } else { 0 }, id);
            }
            Net::V6 { ext, .. } => ext.push(Ext::Fragment { offset, more, id: 0x0102_0000 | u32::from(id) }),
            Net::None => panic!("{NO_IP}"),
        }
        self
    }

    /// Appends an IPv6 extension header.
    pub fn ext(mut self, header: Ext) -> Self {
        let Net::V6 { ext, .. } = &mut self.net else { panic!("{NO_V6}") };
        ext.push(header);
        self
    }

    /// Replaces version, traffic class and flow label (IPv6's first word).
    pub fn flow_label(mut self, word: u32) -> Self {
        let Net::V6 { first, .. } = &mut self.net else { panic!("{NO_V6}") };
        *first = 0x6000_0000 | word & 0x0fff_ffff;
        self
    }

    /// A lie in the IP header's length field (total length, or IPv6 payload length). The IPv4 header sum covers it.
    pub fn ip_len(mut self, value: u16) -> Self {
        match &mut self.net {
            Net::V4 { len, .. } | Net::V6 { len, .. } => *len = Some(value),
            Net::None => panic!("{NO_IP}"),
        }
        self
    }

    pub fn tcp(mut self, sport: u16, dport: u16, flags: u8) -> Self {
        self.l4 = L4::Tcp { sport, dport, seq: 1000, ack: 0, flags, window: 0xfaf0, options: Vec::new() };
        self
    }

    pub fn udp(mut self, sport: u16, dport: u16) -> Self {
        self.l4 = L4::Udp { sport, dport, sum: true, len: None };
        self
    }

    /// ICMP or ICMPv6, by the family of the IP header.
    pub fn icmp(mut self, kind: u8, code: u8) -> Self {
        self.l4 = L4::Icmp { kind, code, rest: [0; 4] };
        self
    }

    /// SCTP with one chunk of this type (RFC 9260 section 3.2), whose content is the payload.
    pub fn sctp(mut self, sport: u16, dport: u16, chunk: u8) -> Self {
        self.l4 = L4::Sctp { sport, dport, chunk, sum: true };
        self
    }

    /// Any other protocol; its bytes are the payload.
    pub fn raw(mut self, proto: u8) -> Self {
        self.l4 = L4::Raw(proto);
        self
    }

    /// UDP without a checksum; SCTP whose checksum is left to the device.
    pub fn no_sum(mut self) -> Self {
        let (L4::Udp { sum, .. } | L4::Sctp { sum, .. }) = &mut self.l4 else { panic!("{NO_PORTS}") };
        *sum = false;
        self
    }

    /// A UDP length field of its own: a lie, or that of the whole datagram in a first fragment.
    pub fn udp_len(mut self, value: u16) -> Self {
        let L4::Udp { len, .. } = &mut self.l4 else { panic!("{NO_PORTS}") };
        *len = Some(value);
        self
    }

    pub fn seq(mut self, new_seq: u32, new_ack: u32) -> Self {
        let L4::Tcp { seq, ack, .. } = &mut self.l4 else { panic!("{NO_TCP}") };
        (*seq, *ack) = (new_seq, new_ack);
        self
    }

    pub fn window(mut self, value: u16) -> Self {
        let L4::Tcp { window, .. } = &mut self.l4 else { panic!("{NO_TCP}") };
        *window = value;
        self
    }

    pub fn flags(mut self, value: u8) -> Self {
        let L4::Tcp { flags, .. } = &mut self.l4 else { panic!("{NO_TCP}") };
        *flags = value;
        self
    }

    /// TCP options; a multiple of 4 bytes, 40 at most.
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        assert!(bytes.len().is_multiple_of(4) && bytes.len() <= 40, "TCP options are 0 to 40 bytes in fours");
        let L4::Tcp { options, .. } = &mut self.l4 else { panic!("{NO_TCP}") };
        *options = bytes.to_vec();
        self
    }

    /// The second word of an ICMP header (MTU, identifier and sequence, pointer).
    pub fn rest(mut self, value: u32) -> Self {
        let L4::Icmp { rest, .. } = &mut self.l4 else { panic!("the frame has no ICMP header") };
        *rest = value.to_be_bytes();
        self
    }

    pub fn ports(&self) -> (u16, u16) {
        match &self.l4 {
            L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport, .. } | L4::Sctp { sport, dport, .. } => {
                (*sport, *dport)
            }
            L4::Raw(_) | L4::Icmp { .. } => panic!("{NO_PORTS}"),
        }
    }

    /// Source and destination port, if there are any.
    fn ports_mut(&mut self) -> Option<(&mut u16, &mut u16)> {
        match &mut self.l4 {
            L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport, .. } | L4::Sctp { sport, dport, .. } => {
                Some((sport, dport))
            }
            L4::Raw(_) | L4::Icmp { .. } => None,
        }
    }

    pub fn sport(mut self, port: u16) -> Self {
        *self.ports_mut().expect(NO_PORTS).0 = port;
        self
    }

    pub fn dport(mut self, port: u16) -> Self {
        *self.ports_mut().expect(NO_PORTS).1 = port;
        self
    }

    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = Payload::Bytes(bytes.to_vec());
        self
    }

    /// The start of another frame's IP packet, `len` bytes at most, as the payload of an ICMP error.
    pub fn quote(mut self, frame: &Frame, len: usize) -> Self {
        self.payload = Payload::Quote { frame: Box::new(frame.clone()), len, settled: false };
        self
    }

    /// As [`quote`](Self::quote), with a quoted TCP or UDP checksum `c` for which `2c` and the sum of the other words of the quoted header give
    /// minus zero: a device that still fills in the quoted checksum then writes what stands there already.
    pub fn quote_settled(mut self, frame: &Frame, len: usize) -> Self {
        self.payload = Payload::Quote { frame: Box::new(frame.clone()), len, settled: true };
        self
    }

    /// Bytes behind the IP packet, as Ethernet pads short frames.
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// Overwrites finished bytes; no checksum follows.
    pub fn poke(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.pokes.push((offset, bytes.to_vec()));
        self
    }

    /// Cuts the finished frame.
    pub fn cut(mut self, len: usize) -> Self {
        self.cut = Some(len);
        self
    }

    /// The same headers the other way: MACs, addresses and ports swapped.
    pub fn back(mut self) -> Self {
        match &mut self.net {
            Net::V4 { src, dst, .. } => std::mem::swap(src, dst),
            Net::V6 { src, dst, .. } => std::mem::swap(src, dst),
            Net::None => {}
        }
        if let Some((sport, dport)) = self.ports_mut() {
            std::mem::swap(sport, dport);
        }
        self.swap_macs()
    }

    /// Puts a port in place of each [`MOVED`], in quoted packets too.
    pub fn resolve(mut self, port: u16) -> Self {
        if let Some((sport, dport)) = self.ports_mut() {
            for field in [sport, dport] {
                if *field == MOVED {
                    *field = port;
                }
            }
        }
        if let Payload::Quote { frame, .. } = &mut self.payload {
            **frame = frame.clone().resolve(port);
        }
        self
    }

    /// Waits for a moved port to be put in.
    pub fn is_unresolved(&self) -> bool {
        let own = match &self.l4 {
            L4::Tcp { .. } | L4::Udp { .. } | L4::Sctp { .. } => {
                let (sport, dport) = self.ports();
                sport == MOVED || dport == MOVED
            }
            L4::Raw(_) | L4::Icmp { .. } => false,
        };
        own || matches!(&self.payload, Payload::Quote { frame, .. } if frame.is_unresolved())
    }
}

#[cfg(test)]
mod tests;
