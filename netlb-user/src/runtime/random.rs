//! Numbers that nobody outside can guess, where any will do.

use std::hash::{BuildHasher as _, RandomState};

/// A number, another one each time.
pub fn number() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
