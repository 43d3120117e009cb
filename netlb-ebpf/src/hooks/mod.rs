//! One file a kind of hook: its view of a packet or socket, and the numbers its verdicts become.

pub(crate) mod sock;
pub(crate) mod tc;
pub(crate) mod xdp;
