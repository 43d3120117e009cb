//! IPsec policies (ip-xfrm(8)): where there are some, packets between pods may have to be encrypted, which only the stack does.

use std::io;

use crate::netlink::{Netlink, Request};

const XFRM_MSG_GETPOLICY: u16 = 0x15;

/// `struct xfrm_userpolicy_id`: selector, index, direction; all zero in a dump.
const HEADER: [u8; 64] = [0; 64];

/// How many policies the namespace has. A kernel without IPsec has none.
///
/// # Errors
/// The kernel's: EPERM without CAP_NET_ADMIN.
pub fn policies() -> io::Result<usize> {
    let mut netlink = match Netlink::open(libc::NETLINK_XFRM) {
        Ok(netlink) => netlink,
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(0),
        Err(e) => return Err(e),
    };
    crate::netlink::retry(|| {
        let mut count = 0;
        netlink.dump(Request::new(XFRM_MSG_GETPOLICY, &HEADER), |_, _| count += 1)?;
        Ok(count)
    })
}
