//! Refusals: the packet is turned into its own answer and goes back, so that connect() fails at once.
//!
//! TCP is answered by RST (RFC 9293 3.10.7.1), everything else by "port unreachable" (RFC 792, RFC 4443 3.1), from the address the sender asked
//! for. The frame may be one whose checksum the sender left to its device; see [`Packet::set_l4`] and [`settle`].

use netlb_common::{Addr, Reason, checksum, proto};

use crate::nat;
use crate::packet::{ETH_LEN, Half, Icmp, Ipv4, Ipv6, Packet, Tcp, Udp, Word};
use crate::parse::Parsed;
use crate::tables::Tables;
use crate::verdict::Verdict;

/// IPv4's "don't fragment".
const DONT_FRAGMENT: u16 = 0x4000;

/// TTL of what netlb itself sends (RFC 1700).
const TTL: u8 = 64;

/// Bytes of the refused packet that are quoted behind its network header: its ports, and what a UDP receiver checks; of TCP the whole header: a
/// frame whose checksum is left to the device cannot be cut before that field.
const QUOTED_L4: u32 = 8;
const QUOTED_TCP: u32 = 20;

/// Words quoted at most: an IPv6 header and 20 bytes of TCP, or extension headers up to 20 bytes and 8 of another protocol; or IPv4 options likewise.
const QUOTED_WORDS: usize = 17;

const ICMP_LEN: u32 = 8;

#[inline(always)]
pub fn refuse<P: Packet, T: Tables>(p: &mut P, t: &T, parsed: Parsed, reason: Reason, mtu: u16) -> Verdict {
    // Kind and code in ICMP and in ICMPv6, and the word behind the checksum, where ICMP has the MTU in its second half (RFC 1191 section 4).
    let (v4, v6) = match reason {
        Reason::FRAGMENTATION_NEEDED => ((3, 4), (2, 0)),
        Reason::TTL_EXCEEDED => ((11, 0), (3, 0)),
        _ => ((3, 3), (1, 4)),
    };
    let rest = if reason != Reason::FRAGMENTATION_NEEDED {
        0
    } else if parsed.v6() {
        (mtu as u32).to_be()
    } else {
        (mtu.to_be() as u32) << 16
    };
    let refused = reason != Reason::FRAGMENTATION_NEEDED && reason != Reason::TTL_EXCEEDED;
    let done = match (refused && parsed.proto() == proto::TCP, parsed.v6()) {
        (true, _) => reset(p, parsed),
        (false, false) => error4(p, parsed, v4, rest),
        (false, true) => error6(p, parsed, v6, rest),
    };
    if done.is_some() && nat::swap_macs(p) {
        t.count(reason);
        Verdict::REFLECT
    } else {
        Verdict::drop(reason)
    }
}

/// A packet larger than the next device takes: the sender is told the MTU, unless the packet may be fragmented or must not be answered (RFC 1122
/// section 3.2.2); then it is dropped.
#[inline(always)]
pub fn too_big<P: Packet>(p: &P, parsed: Parsed, mtu: u32) -> Verdict {
    let fragments = match p.at::<Ipv4>(ETH_LEN) {
        _ if parsed.v6() => false,
        Some(ip) => u16::from_be(ip.frag) & DONT_FRAGMENT == 0,
        None => true,
    };
    if fragments || parsed.later_fragment() {
        return Verdict::drop(Reason::TOO_BIG);
    }
    // A kernel that does not say how much fits: what every link of the family takes (RFC 791 section 3.2, RFC 8200 section 5).
    let least = if parsed.v6() { 1280 } else { 576 };
    Verdict::too_big(if mtu == 0 { least } else { mtu })
}

/// Turns a TCP segment into the RST that answers it. Network headers stay, with their options.
#[inline(never)]
fn reset<P: Packet>(p: &mut P, parsed: Parsed) -> Option<()> {
    let at = parsed.l4();
    let old = *p.at::<Tcp>(at)?;
    let header = at - ETH_LEN;
    let payload = if parsed.v6() {
        u16::from_be(p.at::<Ipv6>(ETH_LEN)?.len) as usize + 40
    } else {
        u16::from_be(p.at::<Ipv4>(ETH_LEN)?.len) as usize
    }
    .checked_sub(header + parsed.l4_header())?;
    if !p.trim((at + 20) as u32) {
        return None;
    }

    let mut new = Tcp {
        ports: old.ports.rotate_left(16),
        seq: 0,
        ack: 0,
        offset: 5 << 4,
        flags: 4,
        window: 0,
        csum: 0xffff,
        urgent: 0,
    };
    if old.flags & 16 != 0 {
        new.seq = old.ack;
    } else {
        // SYN and FIN take a sequence number each.
        let taken = payload as u32 + (old.flags >> 1 & 1) as u32 + (old.flags & 1) as u32;
        new.ack = u32::from_be(old.seq).wrapping_add(taken).to_be();
        new.flags |= 16;
    }
    *p.at_mut::<Tcp>(at)? = new;
    let addresses = if parsed.v6() {
        let ip = p.at_mut::<Ipv6>(ETH_LEN)?;
        let sum = ip.src().sum() + ip.dst().sum();
        (ip.src_hi, ip.src_lo, ip.dst_hi, ip.dst_lo) = (ip.dst_hi, ip.dst_lo, ip.src_hi, ip.src_lo);
        ip.len = ((header + 20 - 40) as u16).to_be();
        ip.hops = TTL;
        sum
    } else {
        let ip = p.at_mut::<Ipv4>(ETH_LEN)?;
        let sum = ip.src().sum() + ip.dst().sum();
        let before = ip.len as u32 + u16::from_ne_bytes([ip.ttl, ip.proto]) as u32;
        (ip.src, ip.dst) = (ip.dst, ip.src);
        ip.len = ((header + 20) as u16).to_be();
        ip.ttl = TTL;
        let after = ip.len as u32 + u16::from_ne_bytes([ip.ttl, ip.proto]) as u32;
        ip.csum = checksum::apply(ip.csum, checksum::delta(before, after));
        sum
    };
    let pseudo = checksum::fold(addresses + 20u16.to_be() as u32 + (proto::TCP as u16).to_be() as u32);
    let content = checksum::fold(
        checksum::sum32(new.ports)
            + checksum::sum32(new.seq)
            + checksum::sum32(new.ack)
            + u16::from_ne_bytes([new.offset, new.flags]) as u32,
    );
    p.set_l4(at + 16, pseudo, content).then_some(())
}

/// Wraps the packet's start into an ICMP error.
#[inline(never)]
fn error4<P: Packet>(p: &mut P, parsed: Parsed, (kind, code): (u8, u8), rest: u32) -> Option<()> {
    let quoted = quote(p, parsed)?;
    if !p.insert_after_eth(20 + ICMP_LEN) {
        return None;
    }
    let inner = *p.at::<Ipv4>(ETH_LEN + 20 + ICMP_LEN as usize)?;
    let total = (20 + ICMP_LEN + quoted) as u16;
    let words = 0x45u8 as u32 + total.to_be() as u32 + u16::from_ne_bytes([TTL, proto::ICMP]) as u32;
    let addresses = checksum::sum32(inner.src) + checksum::sum32(inner.dst);
    *p.at_mut::<Ipv4>(ETH_LEN)? = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        len: total.to_be(),
        id: 0,
        frag: 0,
        ttl: TTL,
        proto: proto::ICMP,
        csum: !checksum::fold(words + addresses),
        src: inner.dst,
        dst: inner.src,
    };
    let at = ETH_LEN + 20;
    *p.at_mut::<Icmp>(at)? = Icmp { kind, code, csum: 0, rest };
    let sum = sum(p, at, ICMP_LEN + quoted)?;
    p.at_mut::<Icmp>(at)?.csum = !checksum::fold(sum);
    Some(())
}

/// Wraps the packet's start into an ICMPv6 error.
#[inline(never)]
fn error6<P: Packet>(p: &mut P, parsed: Parsed, (kind, code): (u8, u8), rest: u32) -> Option<()> {
    let quoted = quote(p, parsed)?;
    if !p.insert_after_eth(40 + ICMP_LEN) {
        return None;
    }
    let inner = *p.at::<Ipv6>(ETH_LEN + 40 + ICMP_LEN as usize)?;
    let payload = ((ICMP_LEN + quoted) as u16).to_be();
    *p.at_mut::<Ipv6>(ETH_LEN)? = Ipv6 {
        first: 0x60,
        len: payload,
        next: proto::ICMPV6,
        hops: TTL,
        src_hi: inner.dst_hi,
        src_lo: inner.dst_lo,
        dst_hi: inner.src_hi,
        dst_lo: inner.src_lo,
    };
    let at = ETH_LEN + 40;
    *p.at_mut::<Icmp>(at)? = Icmp { kind, code, csum: 0, rest };
    let pseudo = Addr::v6(inner.src_hi, inner.src_lo).sum()
        + Addr::v6(inner.dst_hi, inner.dst_lo).sum()
        + payload as u32
        + (proto::ICMPV6 as u16).to_be() as u32;
    let sum = sum(p, at, ICMP_LEN + quoted)?;
    p.at_mut::<Icmp>(at)?.csum = !checksum::fold(checksum::fold(sum) as u32 + pseudo);
    Some(())
}

/// Cuts the frame to what is quoted, and returns the quote's length: the network headers and 8 bytes.
#[inline(always)]
fn quote<P: Packet>(p: &mut P, parsed: Parsed) -> Option<u32> {
    let tcp = parsed.proto() == proto::TCP;
    let quoted = (parsed.l4() - ETH_LEN) as u32 + if tcp { QUOTED_TCP } else { QUOTED_L4 };
    if quoted as usize > QUOTED_WORDS * 4 || p.len() < quoted + ETH_LEN as u32 || !p.trim(quoted + ETH_LEN as u32) {
        return None;
    }
    if tcp {
        settle_tcp(p, parsed.l4())?;
    } else if parsed.proto() == proto::UDP && !parsed.later_fragment() {
        settle(p, parsed.l4())?;
    }
    Some(quoted)
}

/// The quoted datagram may still be marked "checksum left to the device". Its device would then overwrite the quoted field with
/// `~(S + field)`, S being the sum of the other quoted words, and break the ICMP checksum over it. So the field is set to the value that this
/// leaves alone: `2 * field = ~S` in one's complement, where halving is a rotation by one bit. Receivers do not look at it.
#[inline(always)]
fn settle<P: Packet>(p: &mut P, at: usize) -> Option<()> {
    let udp = p.at_mut::<Udp>(at)?;
    udp.csum = (!checksum::fold(checksum::sum32(udp.ports) + udp.len as u32)).rotate_right(1);
    Some(())
}

/// The same for a quoted TCP header.
#[inline(always)]
fn settle_tcp<P: Packet>(p: &mut P, at: usize) -> Option<()> {
    let tcp = p.at_mut::<Tcp>(at)?;
    let words = checksum::sum32(tcp.ports) + checksum::sum32(tcp.seq) + checksum::sum32(tcp.ack);
    let rest = u16::from_ne_bytes([tcp.offset, tcp.flags]) as u32 + tcp.window as u32 + tcp.urgent as u32;
    tcp.csum = (!checksum::fold(words + rest)).rotate_right(1);
    Some(())
}

/// Sum of `len` bytes at `at`, both even.
#[inline(always)]
fn sum<P: Packet>(p: &P, at: usize, len: u32) -> Option<u32> {
    let mut sum = 0;
    for i in 0..QUOTED_WORDS + 2 {
        let done = i as u32 * 4;
        if done + 4 > len {
            if done + 2 <= len {
                sum += p.at::<Half>(at + i * 4)?.value as u32;
            }
            break;
        }
        sum += checksum::sum32(p.at::<Word>(at + i * 4)?.value);
    }
    Some(sum)
}
