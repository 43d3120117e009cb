//! The kernel's own conntrack table: emptied between rounds, so that new flows stay new and the table never fills up.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE (uapi/linux/netfilter/nfnetlink_conntrack.h).
const CT_DELETE: u16 = 0x0102;
/// NLM_F_REQUEST | NLM_F_ACK.
const FLAGS: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;

/// Time for the kernel to free what was deleted (RCU), before something else is measured.
const SETTLE: Duration = Duration::from_millis(30);

/// Deletes all entries of the calling thread's network namespace.
///
/// # Errors
/// When the kernel has no ctnetlink, or refuses.
pub(crate) fn flush() -> Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("cannot open a netfilter-netlink socket")?;
    socket.bind_auto().context("cannot bind the netfilter-netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("cannot connect the netfilter-netlink socket")?;
    // struct nlmsghdr, then struct nfgenmsg: family unspecified, version 0, resource 0. No tuple: everything.
    let mut message = Vec::with_capacity(20);
    message.extend(20_u32.to_ne_bytes());
    message.extend(CT_DELETE.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend([0; 8]);
    socket.send(&message, 0).context("cannot ask to empty the conntrack table")?;
    let (answer, _) = socket.recv_from_full().context("cannot read the answer of nf_conntrack")?;
    match parse(&answer) {
        Some(0) => {
            std::thread::sleep(SETTLE);
            Ok(())
        }
        Some(errno) => Err(std::io::Error::from_raw_os_error(-errno))
            .context("cannot empty the conntrack table; the kernel needs nf_conntrack_netlink"),
        None => bail!("the answer of nf_conntrack makes no sense"),
    }
}

/// The error number of an acknowledgement, 0 for success.
fn parse(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(())?;
    Some(i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_an_error_of_zero() {
        let mut answer = [0; 36];
        answer[4] = 2;
        assert_eq!(parse(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(parse(&answer), Some(-1));
        assert_eq!(parse(&answer[..10]), None);
    }
}
