//! What the kernel holds, told to people, and tidied up behind the datapath.

pub mod names;
pub mod sockets;
pub mod status;
pub mod sweep;
