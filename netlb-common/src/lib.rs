//! The contract between netlb's kernel programs and its agent.
//!
//! Everything that both sides must agree on stands here and nowhere else: the records in maps, map and program names, reason numbers, the
//! conntrack state table, checksum arithmetic, the flow hash. No I/O, no allocation, no clock.
//!
//! # Byte order and layout
//! - Addresses, ports and MACs are *native words that hold wire-order bytes* ([`Addr`], [`Port`], `[u32; 3]` for two MACs). A byte array
//!   would make rustc call a byte-loop `memcpy` in the kernel program. Ids, counters and times are native integers.
//! - Every field sits at its natural offset, padding is written out, the size is a multiple of 8: the kernel compares and hashes all bytes.
//! - No `bool`, `enum`, `Option` or `usize` in a record: any byte pattern found in a map must be a valid value.
//!
//! # Changing a record
//! Change it, run the tests, read the diff that `abi` prints, raise [`abi::ABI_VERSION`]: the agent then makes new maps beside the pinned ones
//! instead of reading old bytes with a new meaning. Numbers of reasons and states are never reused.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod abi;
pub mod addr;
pub mod affinity;
pub mod backend;
pub mod checksum;
pub mod client;
pub mod config;
pub mod conntrack;
pub mod endpoint;
pub mod fragment;
pub mod frontend;
pub mod hash;
pub mod maps;
mod pod;
pub mod reason;
pub mod socket;
pub mod source_range;
pub mod uplink;

pub use addr::{Addr, Port, proto};
pub use reason::Reason;

#[cfg(target_endian = "big")]
compile_error!(
    "netlb packs wire-order bytes into little-endian words; a big-endian port needs Addr::v4 and the port packing revised"
);
