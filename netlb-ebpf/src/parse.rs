//! From frame to tuple. Every length is checked here once; who comes after may trust it.
//!
//! What is not IPv4 or IPv6 in an untagged Ethernet II frame is not ours and passes: a tagged frame is left to the device that takes the tag off.
//! IPv4 options are stepped over, of IPv6 extension headers up to six. A later fragment has no ports; [`fragment`](crate::fragment) finds them.

use netlb_common::conntrack::CtKey;
use netlb_common::fragment::FragmentKey;
use netlb_common::{Addr, Reason, proto};
use network_types::eth::EtherType;

use crate::packet::{ETH_LEN, Eth, Extension, Icmp, Ipv4, Ipv6, Packet, Sctp, Tcp, Udp, Word};
use crate::tables::Tables;

/// Bytes that hold Ethernet, an IPv6 header and a TCP header: pulled before anything is read.
pub const PULL: u32 = 74;

/// Extension headers stepped over (RFC 8200 recommends each at most once).
const MAX_EXTENSIONS: usize = 6;

/// Bits of the TCP flag byte (RFC 9293).
mod tcp {
    pub(super) const FIN: u8 = 1;
    pub(super) const SYN: u8 = 2;
    pub(super) const RST: u8 = 4;
    pub(super) const ACK: u8 = 16;
}

/// Chunk types (RFC 9260 section 3.2).
mod sctp {
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN: u8 = 7;
    pub(super) const SHUTDOWN_ACK: u8 = 8;
}

/// What parsing found, in one word (it crosses function boundaries in a register).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Parsed(u64);

mod bits {
    pub(super) const L4_OFFSET: u64 = 0; // 8 bits
    pub(super) const PROTO: u64 = 8; // 8 bits
    pub(super) const TCP_FLAGS: u64 = 16; // 8 bits
    pub(super) const REASON: u64 = 24; // 8 bits
    pub(super) const L4_HEADER: u64 = 32; // 8 bits: bytes of the L4 header
    pub(super) const V6: u64 = 1 << 40;
    pub(super) const NOT_OURS: u64 = 1 << 41;
    pub(super) const LATER_FRAGMENT: u64 = 1 << 42;
    pub(super) const HAS_PORTS: u64 = 1 << 43;
    pub(super) const ICMP_ERROR: u64 = 1 << 44;
    pub(super) const FIRST_FRAGMENT: u64 = 1 << 45;
    pub(super) const L4_LEN: u64 = 48; // 16 bits: bytes from the L4 header on, as the IP header has them
}

impl Parsed {
    /// As a plain word, for a function of the object's own.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Back from [`word`](Self::word).
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Parsed(word)
    }

    #[inline(always)]
    fn reason(reason: Reason) -> Self {
        Parsed((reason.0 as u64) << bits::REASON)
    }

    /// Not a packet netlb has an opinion on.
    #[inline(always)]
    pub fn not_ours(self) -> bool {
        self.0 & bits::NOT_OURS != 0
    }

    /// Why the packet cannot be believed.
    #[inline(always)]
    pub fn fault(self) -> Option<Reason> {
        match (self.0 >> bits::REASON) as u8 {
            0 => None,
            n => Some(Reason(n)),
        }
    }

    #[inline(always)]
    pub fn v6(self) -> bool {
        self.0 & bits::V6 != 0
    }

    /// A fragment other than the first.
    #[inline(always)]
    pub fn later_fragment(self) -> bool {
        self.0 & bits::LATER_FRAGMENT != 0
    }

    /// A fragment, the first or a later one.
    #[inline(always)]
    pub fn fragment(self) -> bool {
        self.0 & (bits::FIRST_FRAGMENT | bits::LATER_FRAGMENT) != 0
    }

    /// The same, its ports known now.
    #[inline(always)]
    pub(crate) fn with_ports(self) -> Self {
        Parsed(self.0 | bits::HAS_PORTS)
    }

    /// Bytes from the L4 header on, as the IP header has them.
    #[inline(always)]
    pub fn l4_len(self) -> u32 {
        (self.0 >> bits::L4_LEN) as u32
    }

    /// Flows of this protocol begin and end by what their packets say: TCP, SCTP.
    #[inline(always)]
    pub fn connects(self) -> bool {
        self.proto() == proto::TCP || self.proto() == proto::SCTP
    }

    /// TCP, UDP or SCTP with its ports in the tuple.
    #[inline(always)]
    pub fn has_ports(self) -> bool {
        self.0 & bits::HAS_PORTS != 0
    }

    /// An ICMP or ICMPv6 error, which quotes a packet.
    #[inline(always)]
    pub fn icmp_error(self) -> bool {
        self.0 & bits::ICMP_ERROR != 0
    }

    /// Offset of the L4 header from the start of the frame.
    #[inline(always)]
    pub fn l4(self) -> usize {
        (self.0 >> bits::L4_OFFSET) as usize & 0xff
    }

    /// Bytes of the L4 header.
    #[inline(always)]
    pub fn l4_header(self) -> usize {
        (self.0 >> bits::L4_HEADER) as usize & 0xff
    }

    #[inline(always)]
    pub fn proto(self) -> u8 {
        (self.0 >> bits::PROTO) as u8
    }

    /// The flag byte of TCP; for SCTP what its first chunk means in these terms.
    #[inline(always)]
    pub fn tcp_flags(self) -> u8 {
        (self.0 >> bits::TCP_FLAGS) as u8
    }

    /// Offset of the L4 checksum field.
    #[inline(always)]
    pub fn l4_csum(self) -> usize {
        self.l4() + if self.proto() == proto::TCP { 16 } else { 6 }
    }
}

/// Parses the frame; the tuple is written to `key` whenever the result is neither a fault nor not ours.
#[inline(always)]
pub fn parse<P: Packet, T: Tables>(p: &mut P, t: &T, key: &mut CtKey) -> Parsed {
    if !p.pull(PULL) {
        return Parsed::reason(Reason::MALFORMED);
    }
    let frame = p.len() as usize;
    let Some(eth) = p.at::<Eth>(0) else { return Parsed(bits::NOT_OURS) };
    let ether_type = eth.ether_type;
    if ether_type == EtherType::Ipv4 as u16 {
        let Some(ip) = p.at::<Ipv4>(ETH_LEN) else { return Parsed::reason(Reason::MALFORMED) };
        let header = ip.header_len();
        let total = u16::from_be(ip.len) as usize;
        if ip.version_ihl >> 4 != 4 || header < 20 || total < header || total + ETH_LEN > frame {
            return Parsed::reason(Reason::MALFORMED);
        }
        let frag = u16::from_be(ip.frag) & 0x3fff;
        let (src, dst, next) = (ip.src(), ip.dst(), ip.proto);
        let mut found = 0;
        if frag != 0 {
            found = if frag & 0x1fff != 0 { bits::LATER_FRAGMENT } else { bits::FIRST_FRAGMENT };
            note(t, src, dst, ip.id as u64 | (next as u64) << 32);
        }
        l4(p, key, src, dst, next, ETH_LEN + header, total - header, found)
    } else if ether_type == EtherType::Ipv6 as u16 {
        let Some(ip) = p.at::<Ipv6>(ETH_LEN) else { return Parsed::reason(Reason::MALFORMED) };
        let total = u16::from_be(ip.len) as usize;
        if ip.first as u8 >> 4 != 6 || total + ETH_LEN + 40 > frame {
            return Parsed::reason(Reason::MALFORMED);
        }
        let (src, dst) = (ip.src(), ip.dst());
        if src.is_v4() || dst.is_v4() {
            return Parsed::reason(Reason::MAPPED_ADDRESS);
        }
        let mut next = ip.next;
        let mut at = ETH_LEN + 40;
        let mut found = bits::V6;
        if is_extension(next) {
            let end = extensions(p, next);
            if end == 0 {
                return Parsed::reason(Reason::MALFORMED);
            }
            let end = t.forget_range(end);
            next = end as u8;
            at = (end >> 16) as usize & 0xff;
            if end >> 8 & 3 != 0 {
                found |= if end >> 8 & 1 != 0 { bits::LATER_FRAGMENT } else { bits::FIRST_FRAGMENT };
                note(t, src, dst, end >> 32);
            }
        }
        let used = at.wrapping_sub(ETH_LEN + 40);
        if used > total {
            return Parsed::reason(Reason::MALFORMED);
        }
        l4(p, key, src, dst, next, at, total - used, found)
    } else {
        Parsed(bits::NOT_OURS)
    }
}

/// Hop-by-hop, routing, fragment, AH, destination options.
#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 60)
}

/// Remembers what the packet's fragments have in common.
#[inline(always)]
fn note<T: Tables>(t: &T, src: Addr, dst: Addr, tail: u64) {
    if let Some(scratch) = t.scratch() {
        // SAFETY: this CPU's own record; no reference to the field is held.
        let fragment: &mut FragmentKey = unsafe { &mut (*scratch.as_ptr()).fragment };
        (fragment.src.hi, fragment.src.lo) = (src.hi, src.lo);
        (fragment.dst.hi, fragment.dst.lo) = (dst.hi, dst.lo);
        fragment.tail = tail;
    }
}

/// Steps over extension headers: the next header in bits 0..8, "later fragment" in bit 8, "first fragment" in bit 9, the offset in 16..24, a fragment's
/// identification in 32..64; 0 if a header is cut short.
#[inline(always)]
fn extensions<P: Packet>(p: &P, first: u8) -> u64 {
    let mut next = first;
    let mut at = ETH_LEN + 40;
    let mut fragment = 0;
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(next) || fragment & 1 << 8 != 0 {
            break;
        }
        let Some(header) = p.at::<Extension>(at & 0xff) else { return 0 };
        let len = match next {
            44 => {
                let Some(id) = p.at::<Word>((at & 0xff) + 4) else { return 0 };
                let data = u16::from_be(header.data);
                // Neither offset nor more: a whole datagram (RFC 6946).
                fragment = match data {
                    data if data & 0xfff8 != 0 => 1 << 8,
                    data if data & 1 != 0 => 2 << 8,
                    _ => 0,
                } | (id.value as u64) << 32;
                8
            }
            // AH counts in words of 4, two not counted (RFC 4302).
            51 => (header.len as usize + 2) * 4,
            _ => (header.len as usize + 1) * 8,
        };
        // Offsets stay within one byte. What hides behind a longer chain has no ports for us: to a VIP it is refused, else it passes.
        if at + len > 0xff - 20 {
            break;
        }
        next = header.next;
        at += len;
    }
    next as u64 | fragment | (at as u64) << 16
}

/// The L4 part: `at` its offset, `len` the bytes the IP header says there are.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "always inlined: a struct would go through memory")]
fn l4<P: Packet>(
    p: &mut P,
    key: &mut CtKey,
    src: Addr,
    dst: Addr,
    next: u8,
    at: usize,
    len: usize,
    start: u64,
) -> Parsed {
    let at = at & 0xff;
    let mut found =
        start | (at as u64) << bits::L4_OFFSET | (next as u64) << bits::PROTO | (len as u64) << bits::L4_LEN;
    let mut ports = 0;
    if start & bits::LATER_FRAGMENT != 0 {
        // No L4 header here.
    } else if next == proto::TCP {
        if at + 20 > PULL as usize && !p.pull(at as u32 + 20) {
            return Parsed::reason(Reason::MALFORMED);
        }
        let Some(tcp) = p.at::<Tcp>(at) else { return Parsed::reason(Reason::MALFORMED) };
        let header = (tcp.offset >> 4) as usize * 4;
        if header < 20 || header > len {
            return Parsed::reason(Reason::MALFORMED);
        }
        ports = tcp.ports;
        found |= bits::HAS_PORTS | (tcp.flags as u64) << bits::TCP_FLAGS | (header as u64) << bits::L4_HEADER;
    } else if next == proto::UDP {
        let Some(udp) = p.at::<Udp>(at) else { return Parsed::reason(Reason::MALFORMED) };
        let said = u16::from_be(udp.len) as usize;
        // A first fragment carries less than the datagram's length; a length of 0 is a jumbogram's (RFC 2675), which no Service carries.
        if len < 8 || said < 8 {
            return Parsed::reason(Reason::MALFORMED);
        }
        ports = udp.ports;
        found |= bits::HAS_PORTS | 8 << bits::L4_HEADER;
    } else if next == proto::SCTP {
        let Some(sctp) = p.at::<Sctp>(at) else { return Parsed::reason(Reason::MALFORMED) };
        if len < 16 {
            return Parsed::reason(Reason::MALFORMED);
        }
        ports = sctp.ports;
        let flags = match sctp.chunk {
            sctp::INIT => tcp::SYN,
            sctp::INIT_ACK => tcp::SYN | tcp::ACK,
            sctp::ABORT => tcp::RST,
            sctp::SHUTDOWN | sctp::SHUTDOWN_ACK => tcp::FIN,
            _ => tcp::ACK,
        };
        found |= bits::HAS_PORTS | (flags as u64) << bits::TCP_FLAGS | 12 << bits::L4_HEADER;
    } else if next == if start & bits::V6 == 0 { proto::ICMP } else { proto::ICMPV6 } {
        let Some(icmp) = p.at::<Icmp>(at) else { return Parsed::reason(Reason::MALFORMED) };
        // Errors: destination unreachable, source quench, time exceeded, parameter problem; ICMPv6 types 1 to 4.
        let error =
            if start & bits::V6 == 0 { matches!(icmp.kind, 3 | 4 | 11 | 12) } else { matches!(icmp.kind, 1..=4) };
        if error {
            found |= bits::ICMP_ERROR;
        }
        found |= 8 << bits::L4_HEADER;
    }
    key.set(src, dst, ports, next);
    Parsed(found)
}
