//! The route of a packet that the stack delivers to a pod (egress on the host side of its veth): puts the VIP back on answers to this pod's own
//! flows. What a redirect delivered does not pass here.

use core::mem::MaybeUninit;

use netlb_common::Reason;
use netlb_common::conntrack::CtKey;

use crate::conntrack::{self, Found};
use crate::packet::Packet;
use crate::parse::parse;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::{icmp, nat};

#[inline(always)]
pub fn to_pod<P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    let mut key = MaybeUninit::<CtKey>::uninit();
    let parsed = parse(p, t, &mut key);
    if parsed.not_ours() || parsed.fault().is_some() {
        return Verdict::PASS;
    }
    // SAFETY: `parse` wrote the key: the packet is ours and without fault.
    let key = unsafe { key.assume_init_ref() };
    if parsed.icmp_error() {
        return icmp::to_pod(p, t, parsed);
    }
    if !parsed.has_ports() {
        return Verdict::PASS;
    }
    let now = t.now();
    // The client's own direction leaves through `from_pod` only: here it would be a packet that came in by another way.
    let Found::Flow(ct) = conntrack::find_to_pod(t, key, parsed, now) else { return Verdict::PASS };
    ct.touch(now, p.len());
    if nat::rewrite(p, parsed, &ct, false) { Verdict::PASS } else { Verdict::drop(Reason::REWRITE_FAILED) }
}
