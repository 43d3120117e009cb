//! The two kernel objects, built by `build.rs`.

use aya::include_bytes_aligned;

/// The benchmark's own programs.
pub(crate) static BENCH: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netlb-bench-ebpf"));

/// netlb's programs, as the agent embeds them.
pub(crate) static PRODUCTION: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netlb-ebpf"));
