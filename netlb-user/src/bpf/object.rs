//! The kernel object's bytes, embedded at build time.

/// The object as the build left it; empty after a build with `AYA_BUILD_SKIP=1`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netlb-ebpf"));

/// This binary was built without a datapath.
#[derive(Debug, thiserror::Error)]
#[error(
    "this netlb was built with AYA_BUILD_SKIP=1 and holds no kernel object; build it again without that variable (`cargo xtask build`)"
)]
pub struct NoObject;

/// The ELF bytes of the kernel object, aligned for parsing.
///
/// # Errors
/// [`NoObject`] if the build skipped it.
pub fn bytes() -> Result<&'static [u8], NoObject> {
    if OBJECT.is_empty() { Err(NoObject) } else { Ok(OBJECT) }
}
