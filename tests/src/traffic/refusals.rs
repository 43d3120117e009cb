//! What is not served is refused, at once and counted; what is nobody's stays silent.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use netlb_common::Reason;
use netlb_testnode::address::Family;
use netlb_testnode::wire::Transport::{self, Tcp, Udp};
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, sockopt,
};
use nix::sys::time::TimeVal;

use crate::rig::Rig;
use crate::sockets::{self, PATIENCE, SILENCE, expect_errno};

/// Three requests, each refused, each counted once: at once means at the first packet, without a retransmission.
fn refused(rig: &Rig, transport: Transport, to: SocketAddr, reason: Reason) -> Result<()> {
    for client in ["client", "web"] {
        let (_, packets) = rig.growth(reason, || {
            for _ in 0..3 {
                let result = rig.inside(client, || sockets::ask(transport, to, "anybody there?"));
                expect_errno(result, Errno::ECONNREFUSED, &format!("{} {to}", transport.word()))?;
            }
            Ok(())
        })?;
        ensure!(
            packets == 3,
            "{packets} packets were refused as {reason:?} for 3 requests to {} {to}",
            transport.word()
        );
    }
    Ok(())
}

pub(super) fn no_endpoints(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        refused(rig, Tcp, rig.frontend("empty", family, 80)?, Reason::NO_ENDPOINTS)?;
        refused(rig, Udp, rig.frontend("empty", family, 53)?, Reason::NO_ENDPOINTS)?;
    }
    Ok(())
}

pub(super) fn undefined_port(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        refused(rig, Tcp, rig.frontend("web", family, 82)?, Reason::UNDEFINED_PORT)?;
        refused(rig, Udp, rig.frontend("web", family, 82)?, Reason::UNDEFINED_PORT)?;
        // The number is served, but by the other protocol.
        refused(rig, Udp, rig.frontend("web", family, 80)?, Reason::UNDEFINED_PORT)?;
    }
    Ok(())
}

pub(super) fn unallocated(rig: &Rig) -> Result<()> {
    for text in ["10.96.255.1:80", "[fd00:10:96::ff01]:80"] {
        let to: SocketAddr = text.parse()?;
        let (_, packets) = rig.growth(Reason::UNALLOCATED, || {
            let tcp = rig.inside("client", || sockets::connect_within(SILENCE, Tcp, None, to));
            expect_errno(tcp, Errno::ETIMEDOUT, &format!("connect to {to}, which nobody owns"))?;
            let udp = rig.inside("client", || {
                let socket = sockets::udp(None, to)?;
                socket.set_read_timeout(Some(SILENCE))?;
                sockets::ask_by(&socket, "anybody there?")
            });
            expect_errno(udp, Errno::ETIMEDOUT, &format!("a datagram to {to}, which nobody owns"))
        })?;
        ensure!(
            packets >= 2,
            "{packets} packets to {to} were counted as unallocated, at least a SYN and a datagram were sent"
        );
    }
    Ok(())
}

pub(super) fn ping(rig: &Rig) -> Result<()> {
    for family in Family::BOTH {
        let vip = rig.frontend("web", family, 0)?;
        let (from, kind, code) = rig.inside("client", || echo(vip))?;
        let wanted = match family {
            Family::Ipv4 => (vip.ip(), 3, 3),
            Family::Ipv6 => (vip.ip(), 1, 4),
        };
        ensure!(
            (from, kind, code) == wanted,
            "ping {vip}: answered by {from} with ICMP type {kind} code {code}, not {wanted:?}"
        );
    }
    Ok(())
}

/// Sends an echo request; returns who sent the first ICMP message that quotes it, with type and code.
fn echo(to: SocketAddr) -> Result<(IpAddr, u8, u8)> {
    const MARK: &[u8; 8] = b"netlb\0\0\0";
    let (family, protocol) = match to.ip() {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket: OwnedFd = socket::socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(i64::try_from(PATIENCE.as_secs())?, 0))?;
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut request = [kind, 0, 0, 0, MARK[0], MARK[1], 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    request[8..].copy_from_slice(MARK);
    if to.is_ipv4() {
        // IPv6 has its own sum filled in by the kernel.
        let sum: u32 = request.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let folded = !u16::try_from((sum & 0xffff) + (sum >> 16))?;
        request[2..4].copy_from_slice(&folded.to_be_bytes());
    }
    socket::sendto(socket.as_raw_fd(), &request, &SockaddrStorage::from(to), MsgFlags::empty())?;
    let mut buffer = [0; 2048];
    loop {
        let (length, from) =
            socket::recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer).context("no answer to a ping")?;
        let packet = buffer.get(..length).unwrap_or_default();
        // IPv4 raw sockets show the IP header, IPv6 ones do not.
        let header = if to.is_ipv4() { usize::from(packet.first().copied().unwrap_or_default() & 15) * 4 } else { 0 };
        let message = packet.get(header..).unwrap_or_default();
        if let [kind @ (3 | 1), code, ..] = *message
            && message.windows(4).any(|window| window == [MARK[0], MARK[1], 0, 1])
        {
            let from = from.as_ref().and_then(sockets::address).context("an ICMP message from nobody")?.ip();
            return Ok((from, kind, code));
        }
    }
}
