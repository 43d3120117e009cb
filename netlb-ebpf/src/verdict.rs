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
    /// To be answered by [`crate::refuse`], which the route calls: a hook never sees it.
    Refuse(Reason),
    /// A flow was opened: its records are in the scratch, and the route forwards the packet by them. A hook never sees it.
    Open,
    /// Nothing to say about the packet: the route goes on with it. A hook never sees it.
    Skip,
    /// Back to the pod it came from, MACs already swapped.
    Reflect,
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

impl Verdict {
    pub const PASS: Verdict = Verdict(PASS);
    pub const REFLECT: Verdict = Verdict(REFLECT);
    pub const OPEN: Verdict = Verdict(OPEN);
    pub const SKIP: Verdict = Verdict(SKIP);

    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Verdict(DROP | (reason.0 as u64) << 32)
    }

    #[inline(always)]
    pub const fn refuse(reason: Reason) -> Self {
        Verdict(REFUSE | (reason.0 as u64) << 32)
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
            REFUSE => Decision::Refuse(Reason(word as u8)),
            _ => Decision::Drop(Reason(word as u8)),
        }
    }
}
