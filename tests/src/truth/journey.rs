//! The way of a packet through the node: the hook where it arrives, then, if it goes on by the stack, the hook where it leaves.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, anyhow, bail, ensure};
use netlb_common::maps::program;
use netlb_testnode::wire::Transport;
use nix::errno::Errno;

use super::document::{Document, Origin, Packet, Protocol};
use super::listeners::Listeners;
use super::machine::{Code, Machine};
use super::site::Site;
use crate::packet::{Frame, ICMP, ICMPV6, RST, SYN, TCP, dissect, eth, show, verify};
use crate::puppet::Puppet;
use crate::sockets::errno;

/// IANA's number of SCTP.
const SCTP: u8 = 132;

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fate {
    /// Refused with an answer.
    Refused,
    /// Dropped without one, or a socket call failed otherwise.
    Dropped,
    /// It is on its way, or arrived.
    Goes { from: SocketAddr, to: SocketAddr },
}

/// Sends a row's packet with a source port.
///
/// # Errors
/// If a program returns what no hook returns, or makes a bad packet of a good one.
pub fn send(machine: &mut Machine, site: &Site, document: &Document, packet: &Packet, port: u16) -> Result<Fate> {
    let (program, device) = match document.origin(packet.from) {
        Origin::Pod => (program::FROM_POD, site.pod(packet.from)?),
        Origin::Outside => (program::FROM_OUTSIDE, &site.uplink),
        Origin::Node => bail!("{} is the node's: its packets begin with a socket", packet.from),
    };
    let sent = opening(eth().macs(device.mac, device.far_mac).ip(packet.from, packet.to.ip()), packet, port);
    let (code, frame) = machine.run(program, device.ifindex, &sent)?;
    match code {
        Code::Drop => return Ok(Fate::Dropped),
        Code::Redirect => return fate(&frame, packet.from),
        Code::Pass => {}
    }
    // The stack looks where it leads.
    let to = ends(&frame)?.1.ip();
    if document.is_node(to) {
        return fate(&frame, packet.from);
    }
    let (program, device) = match site.pods.get(&to) {
        Some(pod) => (program::TO_POD, pod),
        None => (program::TO_OUTSIDE, &site.uplink),
    };
    let (code, frame) = machine.run(program, device.ifindex, &frame)?;
    match code {
        Code::Drop => Ok(Fate::Dropped),
        Code::Redirect | Code::Pass => fate(&frame, packet.from),
    }
}

/// The same by a socket of the node.
///
/// # Errors
/// If what was sent arrives nowhere.
pub fn connect(puppet: &mut Puppet, listeners: &Listeners, packet: &Packet) -> Result<Fate> {
    let transport = match packet.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => bail!("the test's sockets do not speak SCTP"),
    };
    let socket = puppet.open(transport, packet.to.is_ipv6())?;
    let mut reach = || -> Result<()> {
        puppet.connect(socket, packet.to)?;
        if transport == Transport::Udp {
            puppet.send(socket, None, "?")?;
        }
        Ok(())
    };
    let fate = match reach() {
        Ok(()) => listeners.next().map(|arrival| Fate::Goes { from: arrival.from, to: arrival.to }),
        Err(error) => match errno(&error) {
            Some(Errno::ECONNREFUSED) => Ok(Fate::Refused),
            Some(_) => Ok(Fate::Dropped),
            None => Err(error),
        },
    };
    puppet.close(socket)?;
    fate
}

/// The first frame of a flow.
fn opening(ip: Frame, packet: &Packet, port: u16) -> Vec<u8> {
    let to = packet.to.port();
    match packet.protocol {
        Protocol::Tcp => ip.tcp(port, to, SYN).bytes(),
        Protocol::Udp => ip.udp(port, to).payload(b"?").bytes(),
        Protocol::Sctp => ip.raw(SCTP).payload(&init(port, to)).bytes(),
    }
}

/// An SCTP packet with an INIT chunk (RFC 9260, 3.1 and 3.3.2).
fn init(from: u16, to: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend([from.to_be_bytes(), to.to_be_bytes()].as_flattened());
    // Verification tag (none yet) and checksum.
    bytes.extend([0; 8]);
    bytes.extend([1, 0, 0, 20]);
    for word in [0x5eed_u32, 65_536, 10 << 16 | 10, 1] {
        bytes.extend(word.to_be_bytes());
    }
    let sum = crc32c(&bytes);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// CRC32c by its definition (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// What a frame that goes on means to its sender: a refusal, if it is one that is addressed to them.
fn fate(frame: &[u8], client: IpAddr) -> Result<Fate> {
    verify(frame).map_err(|e| anyhow!("a bad packet: {e}\n{}", show(frame)))?;
    let ip = dissect(frame).map_err(anyhow::Error::msg)?.ip.ok_or_else(|| anyhow!("no IP packet"))?;
    let l4 = &frame[ip.l4..ip.end];
    if ip.proto == SCTP {
        let mut bare = l4.to_vec();
        bare[8..12].fill(0);
        ensure!(crc32c(&bare).to_le_bytes() == l4[8..12], "a wrong SCTP checksum\n{}", show(frame));
    }
    let refusal = match ip.proto {
        TCP => l4[13] & RST != 0,
        // An ABORT (RFC 9260, 3.3.7).
        SCTP => l4[12] == 6,
        ICMP => l4[0] == 3,
        ICMPV6 => l4[0] == 1,
        _ => false,
    };
    if refusal {
        ensure!(ip.dst == client, "{client} is refused by a packet to {}\n{}", ip.dst, show(frame));
        return Ok(Fate::Refused);
    }
    let (from, to) = ends(frame)?;
    Ok(Fate::Goes { from, to })
}

/// Source and destination.
fn ends(frame: &[u8]) -> Result<(SocketAddr, SocketAddr)> {
    let ip = dissect(frame).map_err(anyhow::Error::msg)?.ip.ok_or_else(|| anyhow!("no IP packet"))?;
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    Ok((SocketAddr::new(ip.src, port(ip.l4)), SocketAddr::new(ip.dst, port(ip.l4 + 2))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
