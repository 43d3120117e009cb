//! Connection tracking: records, and the state table.
//!
//! A flow has two entries, one a direction, each found by the packet's own tuple. An entry carries all that is needed to rewrite and forward: an
//! established packet costs one hash look-up (and array reads for generations).
//!
//! Two maps hold entries. `CT_NEW` (LRU) takes every new flow; `CT` (plain hash) takes a flow once both ends have spoken. A flood of new flows
//! therefore evicts only other unanswered ones, and a full `CT` costs a flow its protection, not its life. An entry is expired as soon as
//! `now - seen > timeout`, whoever is alive to delete it: look-ups treat it as absent, and the agent's sweep only frees the memory early.
//!
//! The state table follows RFC 9293 as far as a middlebox without sequence numbers can; timeouts are nf_conntrack's with kube-proxy's settings, save
//! `TIME_WAIT` (30 s: the port may be reused as soon as a SYN says so, see [`REOPEN`]).

use crate::addr::{Addr, Port};
use crate::pod::record;

record! {
    /// Key of `CT` and `CT_NEW`: the tuple of a packet as it arrives.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct CtKey [40] {
        pub src: Addr,
        pub dst: Addr,
        /// Source port in bits 0..16, destination port in 16..32 (wire order, as the first word of a TCP or UDP header), protocol in 32..40.
        pub tail: u64,
    }
}

impl CtKey {
    #[inline(always)]
    pub const fn new(src: Addr, dst: Addr, sport: Port, dport: Port, proto: u8) -> Self {
        Self::from_words(src, dst, pack_ports(sport, dport), proto)
    }

    #[inline(always)]
    pub const fn from_words(src: Addr, dst: Addr, ports: u32, proto: u8) -> Self {
        CtKey { src, dst, tail: ports as u64 | (proto as u64) << 32 }
    }

    /// Writes all of it, word by word: as a whole, rustc would copy it byte by byte in the kernel program.
    #[inline(always)]
    pub fn set(&mut self, src: Addr, dst: Addr, ports: u32, proto: u8) {
        (self.src.hi, self.src.lo) = (src.hi, src.lo);
        (self.dst.hi, self.dst.lo) = (dst.hi, dst.lo);
        self.tail = ports as u64 | (proto as u64) << 32;
    }

    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        self.tail as u32
    }

    pub const fn sport(&self) -> Port {
        Port(self.tail as u16)
    }

    pub const fn dport(&self) -> Port {
        Port((self.tail >> 16) as u16)
    }

    #[inline(always)]
    pub const fn proto(&self) -> u8 {
        (self.tail >> 32) as u8
    }

    /// The tuple of an answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self::from_words(self.dst, self.src, self.ports().rotate_left(16), self.proto())
    }
}

/// Two ports as the first word of a TCP or UDP header.
#[inline(always)]
pub const fn pack_ports(sport: Port, dport: Port) -> u32 {
    sport.0 as u32 | (dport.0 as u32) << 16
}

record! {
    /// Value of `CT` and `CT_NEW`.
    pub struct CtValue [96] {
        /// The tuple after translation. Equal to the key's where nothing changes (a tracked flow without a Service).
        pub src: Addr,
        pub dst: Addr,
        /// As in [`CtKey::tail`], bits 0..32.
        pub ports: u32,
        /// What translation adds to the L4 sum by addresses, and by ports (see [`crate::checksum`]).
        pub delta_addr: u16,
        pub delta_port: u16,
        /// See [`flags`].
        pub flags: u16,
        /// One of [`state`]; the same in both directions.
        pub state: u8,
        pub pad: u8,
        /// Jiffies (low 32 bits) when a packet of this direction was last seen, refreshed at most every [`REFRESH`].
        pub seen: u32,
        /// Jiffies after `seen` at which the entry is expired.
        pub timeout: u32,
        pub backend: u32,
        pub backend_generation: u32,
        /// Endpoint (local pod) the translated packet goes to; 0: not on this node.
        pub hop: u32,
        pub hop_generation: u32,
        /// Policy stamps: generation of the policy id that allowed the flow at its source and destination (reserved; 0).
        pub policy_src: u32,
        pub policy_dst: u32,
        /// Id of the Service port; 0: none.
        pub service: u32,
        /// Packets and bytes (whole frames) of this direction. Plain adds: two CPUs on one flow may lose a few.
        pub packets: u64,
        pub bytes: u64,
    }
}

/// A stamp is rewritten only when older than this many jiffies: established packets do not dirty the line.
pub const REFRESH: u32 = 128;

/// Jiffies from `seen` to `now`. Another CPU may have stamped an entry just after this one read its clock: a stamp from the near future is as
/// good as now, not four billion jiffies old.
#[inline(always)]
pub const fn age(now: u32, seen: u32) -> u32 {
    let age = now.wrapping_sub(seen);
    if age > u32::MAX - 0xffff { 0 } else { age }
}

/// Bits of [`CtValue::flags`].
pub mod flags {
    /// From the backend to the client.
    pub const REPLY: u16 = 1;
    /// The flow takes the redirect road; both directions agree.
    pub const REDIRECT: u16 = 1 << 1;
    /// Stack road between two ports of one bridge: the hop's MAC is set, so the frame is bridged as its answer will be.
    pub const BRIDGED: u16 = 1 << 2;
    /// Client and backend are one pod. Always redirected: its source is the VIP, which the stack must not see.
    pub const HAIRPIN: u16 = 1 << 3;
    /// The client's source port was moved, because the answer's tuple was taken.
    pub const PORT_MOVED: u16 = 1 << 4;
    /// The client's address is to be masqueraded, at the hook where the translated packet leaves the stack: [`SNAT`] entries are made there.
    pub const MASQUERADE: u16 = 1 << 5;
    /// Masquerades a flow whose frontend was translated before the stack. Forward at the hook where it leaves (`to_pod`, `to_outside`), answers
    /// where they come in (`from_pod`, `from_outside`).
    pub const SNAT: u16 = 1 << 6;
    /// Translated as a whole and forwarded by the FIB, each direction at one hook; the stack never sees it.
    pub const ROUTED: u16 = 1 << 7;
}

/// States of a flow. The names are nf_conntrack's where it has one.
pub mod state {
    pub const NONE: u8 = 0;
    /// The client's SYN was seen.
    pub const SYN_SENT: u8 = 1;
    /// SYN-ACK was seen.
    pub const SYN_RECV: u8 = 2;
    pub const ESTABLISHED: u8 = 3;
    /// The client closed its half, the backend may go on.
    pub const FIN_CLIENT: u8 = 4;
    /// The backend closed its half, the client may go on.
    pub const FIN_BACKEND: u8 = 5;
    /// Both halves are closed.
    pub const TIME_WAIT: u8 = 6;
    /// A RST was seen. Data moves the flow back to ESTABLISHED: a forged RST shortens nothing that lives.
    pub const CLOSE: u8 = 7;
    /// UDP, no answer yet.
    pub const UDP_NEW: u8 = 8;
    /// UDP, answered.
    pub const UDP_STREAM: u8 = 9;
    pub const COUNT: usize = 10;

    /// Name as `ct list` prints it.
    pub fn name(state: u8) -> &'static str {
        const NAMES: [&str; COUNT] = [
            "NONE",
            "SYN_SENT",
            "SYN_RECV",
            "ESTABLISHED",
            "FIN_CLIENT",
            "FIN_BACKEND",
            "TIME_WAIT",
            "CLOSE",
            "UDP_NEW",
            "UDP_STREAM",
        ];
        NAMES.get(state as usize).copied().unwrap_or("?")
    }
}

/// What a packet means to the state table.
pub mod event {
    /// SYN without ACK.
    pub const SYN: u8 = 0;
    pub const SYN_ACK: u8 = 1;
    pub const FIN: u8 = 2;
    pub const RST: u8 = 3;
    /// Any other TCP segment, any UDP datagram.
    pub const DATA: u8 = 4;
    pub const COUNT: usize = 5;

    /// From the TCP flag byte (RFC 9293: FIN 1, SYN 2, RST 4, ACK 16). RST wins over FIN, SYN over FIN.
    #[inline(always)]
    pub const fn of_tcp(flags: u8) -> u8 {
        if flags & 4 != 0 {
            RST
        } else if flags & 2 != 0 {
            if flags & 16 != 0 { SYN_ACK } else { SYN }
        } else if flags & 1 != 0 {
            FIN
        } else {
            DATA
        }
    }
}

/// Result of [`step`]: the packet opens a new flow on an old tuple; forget the entry and choose again.
pub const REOPEN: u8 = 0xff;

/// State after `event` from the client (`reply` false) or from the backend.
#[inline(always)]
pub const fn step(current: u8, event: u8, reply: bool) -> u8 {
    use self::event as e;
    use state::*;
    if current >= UDP_NEW {
        return if reply { UDP_STREAM } else { current };
    }
    match (event, reply) {
        // A SYN on a flow that is over opens a new one. On a live one it is a retransmission, or a client that forgot: the backend answers
        // with a challenge ACK, the client with RST, and the next SYN finds CLOSE (RFC 9293 3.10.7.4).
        (e::SYN, false) => match current {
            NONE | FIN_CLIENT | FIN_BACKEND | TIME_WAIT | CLOSE => REOPEN,
            _ => current,
        },
        (e::SYN, true) => current,
        (e::SYN_ACK, true) => match current {
            SYN_SENT => SYN_RECV,
            _ => current,
        },
        (e::SYN_ACK, false) => current,
        (e::RST, _) => CLOSE,
        (e::FIN, false) => match current {
            FIN_BACKEND | TIME_WAIT => TIME_WAIT,
            CLOSE => CLOSE,
            _ => FIN_CLIENT,
        },
        (e::FIN, true) => match current {
            FIN_CLIENT | TIME_WAIT => TIME_WAIT,
            CLOSE => CLOSE,
            _ => FIN_BACKEND,
        },
        (_, false) => match current {
            SYN_RECV | CLOSE => ESTABLISHED,
            _ => current,
        },
        // Data from the backend before the client's ACK was seen: that ACK was lost on the way to us, not to the backend.
        (_, true) => match current {
            SYN_RECV | CLOSE => ESTABLISHED,
            _ => current,
        },
    }
}

/// Reaching this state from an unanswered one shows that both ends have spoken: the flow moves from `CT_NEW` to `CT`.
#[inline(always)]
pub const fn is_assured(current: u8) -> bool {
    current == state::ESTABLISHED || current == state::UDP_STREAM
}

/// The flow needs its backend no more: as schedulers count, it is not open.
#[inline(always)]
pub const fn is_over(current: u8) -> bool {
    current == state::TIME_WAIT || current == state::CLOSE
}

/// Seconds without a packet after which a flow in this state is expired.
#[inline(always)]
pub const fn timeout_s(current: u8) -> u32 {
    use state::*;
    match current {
        SYN_SENT => 120,
        SYN_RECV => 60,
        ESTABLISHED => 86_400,
        FIN_CLIENT | FIN_BACKEND => 3_600,
        TIME_WAIT | UDP_NEW => 30,
        UDP_STREAM => 120,
        _ => 10,
    }
}

/// The same for a flow with these [`flags`]: a source port that was chosen for it is not chosen again while the other end's socket may be in
/// TIME_WAIT, which Linux has for 60 s. An end's own ports are its own business.
#[inline(always)]
pub const fn timeout_of(current: u8, flags: u16) -> u32 {
    if current == state::TIME_WAIT && flags & (self::flags::SNAT | self::flags::ROUTED) != 0 {
        60
    } else {
        timeout_s(current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event::*;
    use state::*;

    /// Rows: state; columns: SYN, SYN_ACK, FIN, RST, DATA from the client, then the same from the backend.
    const TABLE: [(u8, [u8; 5], [u8; 5]); 10] = [
        (state::NONE, [REOPEN, NONE, FIN_CLIENT, CLOSE, NONE], [NONE, NONE, FIN_BACKEND, CLOSE, NONE]),
        (
            SYN_SENT,
            [SYN_SENT, SYN_SENT, FIN_CLIENT, CLOSE, SYN_SENT],
            [SYN_SENT, SYN_RECV, FIN_BACKEND, CLOSE, SYN_SENT],
        ),
        (
            SYN_RECV,
            [SYN_RECV, SYN_RECV, FIN_CLIENT, CLOSE, ESTABLISHED],
            [SYN_RECV, SYN_RECV, FIN_BACKEND, CLOSE, ESTABLISHED],
        ),
        (
            ESTABLISHED,
            [ESTABLISHED, ESTABLISHED, FIN_CLIENT, CLOSE, ESTABLISHED],
            [ESTABLISHED, ESTABLISHED, FIN_BACKEND, CLOSE, ESTABLISHED],
        ),
        (
            FIN_CLIENT,
            [REOPEN, FIN_CLIENT, FIN_CLIENT, CLOSE, FIN_CLIENT],
            [FIN_CLIENT, FIN_CLIENT, TIME_WAIT, CLOSE, FIN_CLIENT],
        ),
        (
            FIN_BACKEND,
            [REOPEN, FIN_BACKEND, TIME_WAIT, CLOSE, FIN_BACKEND],
            [FIN_BACKEND, FIN_BACKEND, FIN_BACKEND, CLOSE, FIN_BACKEND],
        ),
        (
            TIME_WAIT,
            [REOPEN, TIME_WAIT, TIME_WAIT, CLOSE, TIME_WAIT],
            [TIME_WAIT, TIME_WAIT, TIME_WAIT, CLOSE, TIME_WAIT],
        ),
        (CLOSE, [REOPEN, CLOSE, CLOSE, CLOSE, ESTABLISHED], [CLOSE, CLOSE, CLOSE, CLOSE, ESTABLISHED]),
        (UDP_NEW, [UDP_NEW; 5], [UDP_STREAM; 5]),
        (UDP_STREAM, [UDP_STREAM; 5], [UDP_STREAM; 5]),
    ];

    #[test]
    fn every_state_event_and_direction() {
        for (i, (from, client, backend)) in TABLE.into_iter().enumerate() {
            assert_eq!(from as usize, i, "the table has a row for each state");
            for event in 0..event::COUNT as u8 {
                assert_eq!(
                    step(from, event, false),
                    client[event as usize],
                    "{} event {event} from the client",
                    name(from)
                );
                assert_eq!(
                    step(from, event, true),
                    backend[event as usize],
                    "{} event {event} from the backend",
                    name(from)
                );
            }
        }
    }

    #[test]
    fn a_connection_from_syn_to_port_reuse() {
        let walk = [
            (SYN, false, SYN_SENT),
            (SYN_ACK, true, SYN_RECV),
            (DATA, false, ESTABLISHED),
            (DATA, true, ESTABLISHED),
            (FIN, true, FIN_BACKEND),
            (DATA, false, FIN_BACKEND),
            (FIN, false, TIME_WAIT),
            (SYN, false, REOPEN),
        ];
        let mut now = SYN_SENT;
        for (event, reply, want) in walk {
            now = step(now, event, reply);
            assert_eq!(now, want);
        }
    }

    #[test]
    fn a_stamp_from_the_near_future_is_fresh_and_the_clock_may_wrap() {
        assert_eq!([age(100, 40), age(40, 41), age(5, u32::MAX), age(0, 0)], [60, 0, 6, 0]);
        assert_eq!(age(u32::MAX / 2, 0), u32::MAX / 2);
    }

    #[test]
    fn tcp_flags_to_events() {
        let of = |flags| event::of_tcp(flags);
        assert_eq!(
            [of(0x02), of(0x12), of(0x11), of(0x14), of(0x10), of(0x18), of(0x06), of(0x00)],
            [SYN, SYN_ACK, FIN, RST, DATA, DATA, RST, DATA]
        );
    }

    #[test]
    fn reversing_twice_is_identity_and_swaps_ends() {
        let ip = |s: &str| Addr::from_ip(s.parse().unwrap());
        let key = CtKey::new(ip("10.0.0.1"), ip("fd00::1"), Port::new(1), Port::new(2), 6);
        assert_eq!(key.reversed().reversed(), key);
        assert_eq!((key.reversed().src, key.reversed().sport().get(), key.reversed().dport().get()), (key.dst, 2, 1));
    }

    #[test]
    fn only_answered_flows_are_assured_and_every_state_ends() {
        for s in 0..state::COUNT as u8 {
            assert_eq!(is_assured(s), matches!(s, ESTABLISHED | UDP_STREAM), "{}", name(s));
            assert!(timeout_s(s) > 0);
        }
    }
}
