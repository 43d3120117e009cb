//! The edge to the kernel: the object, its programs, maps, links and pins. Nothing here knows what a Service is.

pub mod attach;
pub mod clock;
pub mod loader;
pub mod object;
pub mod pins;
pub mod probe;
pub mod sys;
pub mod table;
