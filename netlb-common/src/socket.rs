//! What the socket hooks remember: which VIP stands behind a backend address, for one socket.

use crate::addr::Addr;
use crate::pod::record;

record! {
    /// Key of `SOCKETS`.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct SocketKey [32] {
        /// The kernel's socket cookie.
        pub cookie: u64,
        /// The backend the socket talks to.
        pub addr: Addr,
        /// Port (wire order) in bits 0..16, protocol in 16..24.
        pub tail: u64,
    }
}

record! {
    /// What the program that owns the socket believes it talks to.
    pub struct SocketValue [32] {
        pub addr: Addr,
        /// Port (wire order) in bits 0..16.
        pub tail: u64,
        pub backend: u32,
        pub backend_generation: u32,
    }
}
