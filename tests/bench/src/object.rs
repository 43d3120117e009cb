//! The benchmark's own kernel object, built by `build.rs`. The programs under test come from `netlb_user`: the very bytes the agent embeds.

/// Generator, receivers, floors and probes.
pub(crate) static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netlb-bench-ebpf"));
