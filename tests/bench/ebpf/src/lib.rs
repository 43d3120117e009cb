//! What the benchmark's kernel programs and the benchmark agree on: records, indexes, and how a flow's number becomes its tuple.
//!
//! A *flow number* of 20 bits varies the end that is not the Service: its low 14 bits are the port (from [`PORT_BASE`]), the other six are added
//! to the last byte of the address. Addresses and ports are native words that hold wire-order bytes, as everywhere in netlb.
#![no_std]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

/// Bytes of every frame of the generator.
pub const FRAME: usize = 80;
/// The same in 64-bit words.
pub const FRAME_WORDS: usize = FRAME / 8;
/// First port of varied flows, host order.
pub const PORT_BASE: u16 = 0x4000;
/// Bits of a flow number that become its port.
pub const PORT_BITS: u32 = 14;
/// Highest flow number.
pub const FLOW_MASK: u32 = (1 << 20) - 1;

/// Indexes of `TARGETS`: what the generator tail-calls.
pub mod target {
    /// The production program under test.
    pub const PROGRAM: u32 = 0;
    /// Counts and drops.
    pub const DROP: u32 = 1;
    /// Redirects to the device [`Order::device`](crate::Order::device).
    pub const REDIRECT: u32 = 2;
    /// No tail call: the frame goes up into the stack.
    pub const STACK: u32 = 3;
}

macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C, align(8))]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        // SAFETY: the bytemuck derive above proves: repr(C), Copy, no padding, every bit pattern valid.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}

record! {
    /// The only value of `ORDER`: what the generator makes.
    pub struct Order {
        /// The frame, as it leaves the generator for a fixed flow. With `vary`, the varied port is 0 in it, and so are the checksums.
        pub words: [u64; FRAME_WORDS],
        /// Packets made so far.
        pub made: u64,
        /// State of the flow sequence: `state = state * factor + 1`.
        pub state: u64,
        /// 1: flow numbers in order. [`SHUFFLE`]: each once in a turn, in an order that no cache can guess.
        pub factor: u64,
        /// 0: every packet is the frame as it stands. 1: flow number `state & mask`.
        pub vary: u32,
        pub mask: u32,
        /// One of [`target`].
        pub target: u32,
        /// With `vary`: one's complement sum, unfolded, of the L4 segment and its pseudo header at flow number 0, the varied port and the
        /// checksum field left out.
        pub l4_sum: u32,
        /// The same for the IPv4 header.
        pub ip_sum: u32,
        /// Interface index for [`target::REDIRECT`] and for the redirect floor at TCX.
        pub device: u32,
        /// 1: the next packet received is copied to `SAMPLE`.
        pub sample: u32,
        pub pad: u32,
    }
}

record! {
    /// The only value of `PROBE`: what a map probe does, and what came of it.
    pub struct Probe {
        /// State of the index sequence: `state = state * factor + 1`.
        pub state: u64,
        /// 1: indexes in order. [`SHUFFLE`]: each once in a turn, in an order that no cache can guess.
        pub factor: u64,
        /// Indexes are `state & mask`; the mask is a power of two less one.
        pub mask: u64,
        /// Look-ups that found their key, or updates that succeeded.
        pub hits: u64,
        /// Keeps what was read alive.
        pub sum: u64,
    }
}

/// Operations that one run of a probe program does.
pub const PROBE_UNROLL: u32 = 64;

/// Factor of a linear congruential sequence of full period for every power of two (Knuth's MMIX).
pub const SHUFFLE: u64 = 6_364_136_223_846_793_005;
