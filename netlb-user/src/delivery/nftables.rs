//! Names of all nftables tables and chains (iptables-nft's among them), by nfnetlink.

use std::io;

use crate::netlink::{Netlink, Request, attributes};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;

/// `struct nfgenmsg`: family (0: all), version, resource id.
const HEADER: [u8; 4] = [0; 4];

/// Table names, then chain names. A kernel without nftables has none.
///
/// # Errors
/// The kernel's: EPERM without CAP_NET_ADMIN.
pub fn names() -> io::Result<Vec<String>> {
    let mut netlink = match Netlink::open(libc::NETLINK_NETFILTER) {
        Ok(netlink) => netlink,
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for (message, attribute) in [(NFT_MSG_GETTABLE, NFTA_TABLE_NAME), (NFT_MSG_GETCHAIN, NFTA_CHAIN_NAME)] {
        let listed = crate::netlink::retry(|| {
            let mut found = Vec::new();
            let request = Request::new(NFNL_SUBSYS_NFTABLES << 8 | message, &HEADER);
            netlink.dump(request, |_, payload| found.extend(attributes(payload, HEADER.len()).text(attribute)))?;
            Ok(found)
        });
        match listed {
            Ok(found) => names.extend(found),
            // No such subsystem: the module is not there, so neither is a table.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(names)
}
