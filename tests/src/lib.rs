//! What netlb's tests share.
//!
//! - [`packet`]: frames by layers, and their check from scratch.

pub mod packet;
