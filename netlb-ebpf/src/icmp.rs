//! ICMP errors of translated flows: the packet they quote is given the tuple its sender knows, so that path MTU discovery, and errors of any
//! other kind, work through a VIP.
//!
//! An error quotes a packet with tuple `q` and goes to that packet's sender. `q` reversed is the tuple of a packet the other way; its conntrack
//! entry says how that one is translated, `r -> u`. So the sender knows its packet as `u` reversed. The outer addresses follow where they are
//! those of `r`; a router on the way keeps its own.

use netlb_common::conntrack::{CtKey, flags};
use netlb_common::{Reason, checksum, proto};

use crate::conntrack::{self, lookup};
use crate::packet::{ETH_LEN, Half, Hop, Ipv4, Ipv6, L4, Packet, Word};
use crate::parse::Parsed;
use crate::tables::{Ct, Tables};
use crate::verdict::Verdict;
use crate::{enter, nat};

/// Bytes that hold the outer headers, ICMP, and the quoted headers up to a TCP checksum.
const PULL: u32 = 14 + 60 + 8 + 60 + 18;

/// Where the quote stands and whose flow it is of.
struct Quote {
    ct: Ct,
    /// Offset of the quoted L4 header.
    l4: usize,
    proto: u8,
    /// The reversed tuple of the quoted packet.
    reversed: CtKey,
}

/// An error that comes in: translated, and sent on the road of the flow it is about. [`Verdict::SKIP`]: not about a flow that is translated here.
#[inline(always)]
pub fn enter<P: Packet, T: Tables>(p: &mut P, t: &T, parsed: Parsed) -> Verdict {
    let Some(quote) = find(p, t, parsed) else { return Verdict::SKIP };
    let ct = quote.ct;
    if !conntrack::enters(&ct) {
        return Verdict::SKIP;
    }
    let redirect = ct.is(flags::REDIRECT);
    let routed = ct.is(flags::ROUTED);
    let hop = redirect || routed || ct.is(flags::HAIRPIN);
    if hop && nat::ttl(p, parsed) <= 1 {
        if routed {
            return Verdict::drop(Reason::TTL_EXCEEDED);
        }
        t.count(Reason::TO_STACK);
        return Verdict::PASS;
    }
    let size = nat::wire_len(p, parsed);
    let mut verdict = Verdict::PASS;
    if routed {
        match p.route(ct.src(), ct.dst(), parsed.proto(), size) {
            Hop::To(ifindex) => verdict = Verdict::route(ifindex),
            Hop::Local => {}
            Hop::TooBig(_) => return Verdict::drop(Reason::TOO_BIG),
            Hop::Unresolved => return Verdict::PASS,
            Hop::Nowhere => return Verdict::drop(Reason::NO_ROUTE),
        }
    }
    let to = enter::next_hop(t, &ct).filter(|e| !redirect || size <= e.mtu);
    if redirect && to.is_none() {
        t.count(Reason::TO_STACK);
        // As for any answer: `leave` translates it.
        if ct.is(flags::REPLY) {
            return Verdict::PASS;
        }
    }
    if translate(p, parsed, &quote).is_none() {
        return Verdict::drop(Reason::REWRITE_FAILED);
    }
    t.count(Reason::ICMP_TRANSLATED);
    let done = match to {
        _ if routed => verdict == Verdict::PASS || nat::hop(p, parsed),
        _ if ct.is(flags::HAIRPIN) => {
            verdict = Verdict::REFLECT;
            nat::hop(p, parsed) && nat::swap_macs(p)
        }
        Some(to) if redirect => {
            verdict = Verdict::deliver(to.ifindex);
            t.count(Reason::REDIRECTED);
            nat::hop(p, parsed) && nat::set_macs(p, to)
        }
        Some(to) if ct.is(flags::BRIDGED) => nat::set_destination_mac(p, to),
        _ => true,
    };
    if done { verdict } else { Verdict::drop(Reason::REWRITE_FAILED) }
}

/// An error that the stack sends out. [`Verdict::SKIP`]: about no flow that is known.
#[inline(always)]
pub fn leave<P: Packet, T: Tables>(p: &mut P, t: &T, parsed: Parsed) -> Verdict {
    let Some(quote) = find(p, t, parsed) else { return Verdict::SKIP };
    if !conntrack::leaves(p, &quote.ct) || quote.ct.is(flags::ROUTED) {
        return Verdict::PASS;
    }
    if translate(p, parsed, &quote).is_none() {
        return Verdict::drop(Reason::REWRITE_FAILED);
    }
    t.count(Reason::ICMP_TRANSLATED);
    Verdict::PASS
}

#[inline(always)]
fn find<P: Packet, T: Tables>(p: &mut P, t: &T, parsed: Parsed) -> Option<Quote> {
    if !p.pull(PULL) {
        return None;
    }
    let inner = parsed.l4() + 8;
    let (src, dst, proto, l4) = if parsed.v6() {
        let ip = p.at::<Ipv6>(inner)?;
        (ip.src(), ip.dst(), ip.next, inner + 40)
    } else {
        let ip = p.at::<Ipv4>(inner)?;
        let header = ip.header_len();
        if header < 20 || u16::from_be(ip.frag) & 0x1fff != 0 {
            return None;
        }
        (ip.src(), ip.dst(), ip.proto, inner + header)
    };
    if proto != proto::TCP && proto != proto::UDP && proto != proto::SCTP {
        return None;
    }
    let ports = p.at::<Word>(l4)?.value;
    let reversed = CtKey::from_words(dst, src, ports.rotate_left(16), proto);
    let (ct, _) = lookup(t, &reversed, t.now())?;
    Some(Quote { ct, l4, proto, reversed })
}

/// Rewrites quote and outer addresses.
#[inline(always)]
fn translate<P: Packet>(p: &mut P, parsed: Parsed, quote: &Quote) -> Option<()> {
    let ct = &quote.ct;
    let (src, dst) = (ct.src(), ct.dst());
    let inner = parsed.l4() + 8;
    // The quote changes by the entry's deltas: a tuple and its reverse have one sum.
    let mut content = checksum::add(ct.delta_addr(), ct.delta_port());
    if !parsed.v6() {
        let ip = p.at_mut::<Ipv4>(inner)?;
        let old = ip.csum;
        ip.csum = checksum::apply(old, ct.delta_addr());
        content = checksum::add(content, checksum::delta(old as u32, ip.csum as u32));
        ip.src = dst.v4_word();
        ip.dst = src.v4_word();
    } else {
        let ip = p.at_mut::<Ipv6>(inner)?;
        ip.src_hi = dst.hi;
        ip.src_lo = dst.lo;
        ip.dst_hi = src.hi;
        ip.dst_lo = src.lo;
    }
    p.at_mut::<Word>(quote.l4)?.value = ct.ports().rotate_left(16);
    // The quoted checksum, where the quote reaches that far and there is one. SCTP's covers the whole packet, of which a quote is a part: nobody
    // can check it.
    let field = quote.l4 + if quote.proto == proto::TCP { 16 } else { 6 };
    if quote.proto != proto::SCTP
        && let Some(half) = p.at_mut::<Half>(field)
        && (quote.proto == proto::TCP || half.value != 0)
    {
        let old = half.value;
        half.value = checksum::apply(old, checksum::add(ct.delta_addr(), ct.delta_port()));
        content = checksum::add(content, checksum::delta(old as u32, half.value as u32));
    }

    // A masqueraded flow's errors come from the node, as its packets do: another source would not find its way back, or not pass.
    let hide = !ct.is(flags::REPLY) && ct.is(flags::SNAT | flags::ROUTED);
    let mut pseudo = 0;
    if parsed.v6() {
        let ip = p.at_mut::<Ipv6>(ETH_LEN)?;
        let before = ip.src().sum() + ip.dst().sum();
        if ip.src() == quote.reversed.src || hide {
            ip.src_hi = src.hi;
            ip.src_lo = src.lo;
        }
        if ip.dst() == quote.reversed.dst {
            ip.dst_hi = dst.hi;
            ip.dst_lo = dst.lo;
        }
        pseudo = checksum::delta(before, ip.src().sum() + ip.dst().sum());
    } else {
        let ip = p.at_mut::<Ipv4>(ETH_LEN)?;
        let before = ip.src().sum() + ip.dst().sum();
        if ip.src() == quote.reversed.src || hide {
            ip.src = src.v4_word();
        }
        if ip.dst() == quote.reversed.dst {
            ip.dst = dst.v4_word();
        }
        ip.csum = checksum::apply(ip.csum, checksum::delta(before, ip.src().sum() + ip.dst().sum()));
    }
    p.fix_l4(parsed.l4() + 2, pseudo, content, L4 { zero_is_none: false, v6: parsed.v6() }).then_some(())
}
