//! Clients whose sockets are translated with `--accel socket`: the pods of this node.

use crate::addr::Addr;
use crate::pod::record;

record! {
    /// Value of `CLIENTS`; the key is the cookie (u64) of the pod's network namespace. Its addresses are the client's identity for session
    /// affinity: the same as in its packets. Unspecified (::): none of that family.
    pub struct ClientValue [32] {
        pub addr4: Addr,
        pub addr6: Addr,
    }
}
