//! What becomes of a packet. Only a hook file turns it into a number of its program type.

use netlb_common::Reason;

/// One word, so that it crosses function boundaries in a register. Made by the constructors, read by [`Verdict::decide`].
#[must_use = "a verdict that nobody looks at is a lost packet"]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verdict(u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Goes on: to the next program, then the stack.
    Pass,
    /// Dropped; counted under the reason.
    Drop(Reason),
    /// To be answered by [`crate::refuse`], which the route calls: a hook never sees it. With it goes the MTU for "too big".
    Refuse(Reason, u16),
    /// A flow was opened: its records are in the scratch, and the route forwards the packet by them. A hook never sees it.
    Open,
    /// Nothing to say about the packet: the route goes on with it. A hook never sees it.
    Skip,
    /// Back to the pod it came from, MACs already swapped.
    Reflect,
    /// Out of this device (interface index), by the way that the last [`Packet::route`](crate::packet::Packet::route) found.
    Route(u32),
    /// Into the network namespace behind this device (interface index of the host side of a veth), MACs already set.
    Deliver(u32),
}

const PASS: u64 = 0;
const DROP: u64 = 1;
const REFLECT: u64 = 2;
const DELIVER: u64 = 3;
const REFUSE: u64 = 4;
const OPEN: u64 = 5;
const SKIP: u64 = 6;
const ROUTE: u64 = 7;

impl Verdict {
    pub const PASS: Verdict = Verdict(PASS);
    pub const REFLECT: Verdict = Verdict(REFLECT);
    pub const OPEN: Verdict = Verdict(OPEN);
    pub const SKIP: Verdict = Verdict(SKIP);

    /// As a plain word, for a function of the object's own.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Back from [`word`](Self::word).
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Verdict(word)
    }

    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Verdict(DROP | (reason.0 as u64) << 32)
    }

    #[inline(always)]
    pub const fn refuse(reason: Reason) -> Self {
        Verdict(REFUSE | (reason.0 as u64) << 32)
    }

    /// Too big for the next device, which takes `mtu` bytes.
    #[inline(always)]
    pub const fn too_big(mtu: u32) -> Self {
        Verdict(REFUSE | (Reason::FRAGMENTATION_NEEDED.0 as u64) << 32 | (mtu as u16 as u64) << 48)
    }

    #[inline(always)]
    pub const fn route(ifindex: u32) -> Self {
        Verdict(ROUTE | (ifindex as u64) << 32)
    }

    #[inline(always)]
    pub const fn deliver(ifindex: u32) -> Self {
        Verdict(DELIVER | (ifindex as u64) << 32)
    }

    #[inline(always)]
    pub const fn decide(self) -> Decision {
        let word = (self.0 >> 32) as u32;
        match self.0 as u8 as u64 {
            PASS => Decision::Pass,
            REFLECT => Decision::Reflect,
            DELIVER => Decision::Deliver(word),
            OPEN => Decision::Open,
            SKIP => Decision::Skip,
            ROUTE => Decision::Route(word),
            REFUSE => Decision::Refuse(Reason(word as u8), (word >> 16) as u16),
            _ => Decision::Drop(Reason(word as u8)),
        }
    }
}
