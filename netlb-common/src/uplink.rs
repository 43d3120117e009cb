//! Uplinks: devices by which packets of the outside, and of other nodes' pods, come and go.

use crate::addr::Addr;
use crate::pod::record;

record! {
    /// Value of `UPLINKS`; the key is the interface index.
    pub struct UplinkValue [40] {
        /// Source of masqueraded flows that leave here; unspecified (::): the node's primary address.
        pub addr4: Addr,
        pub addr6: Addr,
        /// Bytes of IP packet the device takes.
        pub mtu: u32,
        /// See [`flags`].
        pub flags: u32,
    }
}

/// Bits of [`UplinkValue::flags`].
pub mod flags {
    /// What comes from this device counts as a pod's ([`pods::DEVICES`](crate::config::pods::DEVICES)).
    pub const POD_SOURCE: u32 = 1;
}
