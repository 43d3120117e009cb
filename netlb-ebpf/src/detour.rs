//! The rare ways, out of line: what happens to a packet without a flow, to an ICMP error, to what is refused.
//!
//! A hook may make each of them a function of its own in the object: the kernel's verifier then walks it once, whatever was known of the packet before.
//! Therefore they take words only, and find the packet's tuple in the scratch ([`Scratch::key`](crate::tables::Scratch)).

use netlb_common::Reason;

use crate::enter::Device;
use crate::packet::Packet;
use crate::parse::Parsed;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::{conntrack, enter, icmp, leave, refuse};

pub trait Detour: Packet + Sized {
    /// See [`enter::unknown`].
    #[inline(always)]
    fn unknown_entering<T: Tables>(&mut self, t: &T, parsed: Parsed, device: Device) -> Verdict {
        enter::unknown(self, t, parsed, device)
    }

    /// See [`leave::unknown`].
    #[inline(always)]
    fn unknown_leaving<T: Tables>(&mut self, t: &T, parsed: Parsed, device: Device) -> Verdict {
        leave::unknown(self, t, parsed, device)
    }

    /// See [`icmp::enter`].
    #[inline(always)]
    fn error_entering<T: Tables>(&mut self, t: &T, parsed: Parsed) -> Verdict {
        icmp::enter(self, t, parsed)
    }

    /// See [`icmp::leave`].
    #[inline(always)]
    fn error_leaving<T: Tables>(&mut self, t: &T, parsed: Parsed) -> Verdict {
        icmp::leave(self, t, parsed)
    }

    /// See [`conntrack::has_socket`].
    #[inline(always)]
    fn has_awaiting_socket<T: Tables>(&mut self, t: &T) -> bool {
        conntrack::has_socket(self, t)
    }

    /// See [`refuse::refuse`].
    #[inline(always)]
    fn refuse<T: Tables>(&mut self, t: &T, parsed: Parsed, reason: Reason, mtu: u16) -> Verdict {
        refuse::refuse(self, t, parsed, reason, mtu)
    }
}
