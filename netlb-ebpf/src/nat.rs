//! Rewriting: the tuple, TTL and MACs of a packet, with its checksums repaired by difference.

use netlb_common::checksum;
use netlb_common::endpoint::EndpointValue;
use netlb_common::proto;

use crate::packet::{ETH_LEN, Eth, Ipv4, Ipv6, L4, Packet, Sctp, Word};
use crate::parse::Parsed;
use crate::tables::Ct;

/// Gives the packet the entry's tuple. With `hop`, TTL or hop limit goes down by one: a redirect is a router hop. False: the kernel refused, the
/// packet may be half written.
#[inline(always)]
pub fn rewrite<P: Packet>(p: &mut P, parsed: Parsed, ct: &Ct, hop: bool) -> bool {
    if !parsed.later_fragment() && !rewrite_l4(p, parsed, ct) {
        return false;
    }
    let (src, dst) = (ct.src(), ct.dst());
    if parsed.v6() {
        let Some(ip) = p.at_mut::<Ipv6>(ETH_LEN) else { return false };
        ip.src_hi = src.hi;
        ip.src_lo = src.lo;
        ip.dst_hi = dst.hi;
        ip.dst_lo = dst.lo;
        if hop {
            ip.hops = ip.hops.wrapping_sub(1);
        }
    } else {
        let Some(ip) = p.at_mut::<Ipv4>(ETH_LEN) else { return false };
        let mut delta = ct.delta_addr();
        ip.src = src.v4_word();
        ip.dst = dst.v4_word();
        if hop {
            let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
            ip.ttl = ip.ttl.wrapping_sub(1);
            let new = u16::from_ne_bytes([ip.ttl, ip.proto]);
            delta = checksum::add(delta, checksum::delta(old as u32, new as u32));
        }
        ip.csum = checksum::apply(ip.csum, delta);
    }
    true
}

/// Gives the packet the entry's ports, and its L4 checksum what addresses and ports changed.
#[inline(always)]
fn rewrite_l4<P: Packet>(p: &mut P, parsed: Parsed, ct: &Ct) -> bool {
    if parsed.proto() == proto::SCTP {
        return rewrite_sctp(p, parsed, ct.ports());
    }
    let l4 = L4 { zero_is_none: parsed.proto() == proto::UDP, v6: parsed.v6() };
    if !p.fix_l4(parsed.l4_csum(), ct.delta_addr(), ct.delta_port(), l4) {
        return false;
    }
    let Some(ports) = p.at_mut::<Word>(parsed.l4()) else { return false };
    ports.value = ct.ports();
    true
}

/// SCTP's checksum covers no addresses, and all of the packet (RFC 9260 section 6.8): a fragment whose ports change cannot be repaired. A field of
/// zero stays: the device fills it in.
#[inline(always)]
fn rewrite_sctp<P: Packet>(p: &mut P, parsed: Parsed, ports: u32) -> bool {
    let Some(sctp) = p.at_mut::<Sctp>(parsed.l4()) else { return false };
    let changed = sctp.ports ^ ports;
    if changed == 0 {
        return true;
    }
    if parsed.fragment() {
        return false;
    }
    sctp.ports = ports;
    if sctp.csum != 0 {
        sctp.csum ^= P::sctp_ports(changed, parsed.l4_len());
    }
    true
}

/// TTL or hop limit as the packet has it; 0 if it cannot be read.
#[inline(always)]
pub fn ttl<P: Packet>(p: &P, parsed: Parsed) -> u8 {
    if parsed.v6() {
        p.at::<Ipv6>(ETH_LEN).map_or(0, |ip| ip.hops)
    } else {
        p.at::<Ipv4>(ETH_LEN).map_or(0, |ip| ip.ttl)
    }
}

/// Takes one from TTL or hop limit.
#[inline(always)]
pub fn hop<P: Packet>(p: &mut P, parsed: Parsed) -> bool {
    if parsed.v6() {
        let Some(ip) = p.at_mut::<Ipv6>(ETH_LEN) else { return false };
        ip.hops = ip.hops.wrapping_sub(1);
    } else {
        let Some(ip) = p.at_mut::<Ipv4>(ETH_LEN) else { return false };
        let old = u16::from_ne_bytes([ip.ttl, ip.proto]);
        ip.ttl = ip.ttl.wrapping_sub(1);
        let new = u16::from_ne_bytes([ip.ttl, ip.proto]);
        ip.csum = checksum::apply(ip.csum, checksum::delta(old as u32, new as u32));
    }
    true
}

/// Bytes of the largest IP packet this frame becomes on a wire.
#[inline(always)]
pub fn wire_len<P: Packet>(p: &P, parsed: Parsed) -> u32 {
    let headers = (parsed.l4() + parsed.l4_header() - ETH_LEN) as u32;
    match p.gso_size() {
        0 => p.len().wrapping_sub(ETH_LEN as u32),
        payload => headers.wrapping_add(payload),
    }
}

/// Addresses the frame to an endpoint, as its gateway would.
#[inline(always)]
pub fn set_macs<P: Packet>(p: &mut P, to: &EndpointValue) -> bool {
    let [mac0, mac1, mac2] = to.eth;
    let Some(eth) = p.at_mut::<Eth>(0) else { return false };
    eth.mac0 = mac0;
    eth.mac1 = mac1;
    eth.mac2 = mac2;
    true
}

/// Addresses the frame to an endpoint on the same bridge: its MAC as destination, the source stays the sender's.
#[inline(always)]
pub fn set_destination_mac<P: Packet>(p: &mut P, to: &EndpointValue) -> bool {
    let [mac0, mac1, _] = to.eth;
    let Some(eth) = p.at_mut::<Eth>(0) else { return false };
    eth.mac0 = mac0;
    eth.mac1 = mac1 & 0xffff | eth.mac1 & 0xffff_0000;
    true
}

/// Sends the frame back where it came from.
#[inline(always)]
pub fn swap_macs<P: Packet>(p: &mut P) -> bool {
    let Some(eth) = p.at_mut::<Eth>(0) else { return false };
    let (mac0, mac1, mac2) = (eth.mac0, eth.mac1, eth.mac2);
    eth.mac0 = mac1 >> 16 | mac2 << 16;
    eth.mac1 = mac2 >> 16 | mac0 << 16;
    eth.mac2 = mac0 >> 16 | mac1 << 16;
    true
}
