//! The way of a packet through the node: the hook where it arrives, then, if it goes on by the stack, the hook where it leaves.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, anyhow, bail, ensure};
use netlb_common::maps::program;
use netlb_testnode::wire::Transport;
use nix::errno::Errno;

use super::document::{Document, Packet, Protocol};
use super::listeners::Listeners;
use super::machine::{Code, Machine};
use super::site::Site;
use crate::packet::{ACK, Frame, ICMP, ICMPV6, RST, SYN, TCP, dissect, eth, show, verify};
use crate::puppet::Puppet;
use crate::sockets::errno;

/// IANA's number of SCTP.
const SCTP: u8 = 132;

/// Types of SCTP chunks (RFC 9260, 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;

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

/// Sends a row's packet with a source port; a backend answers, and the answer must come back as if from the frontend.
///
/// # Errors
/// If a program returns what no hook returns or makes a bad packet of a good one, or the answer does not come back.
pub fn send(machine: &mut Machine, site: &Site, document: &Document, packet: &Packet, port: u16) -> Result<Fate> {
    let client = SocketAddr::new(packet.from, port);
    let fate = through(machine, site, document, client, packet.to, (packet.protocol, Turn::Opens))?;
    if let Fate::Goes { from, to } = fate
        && to != packet.to
    {
        let answer = through(machine, site, document, to, from, (packet.protocol, Turn::Answers))?;
        let wanted = Fate::Goes { from: packet.to, to: client };
        ensure!(answer == wanted, "{to} answers {from}, and its answer meets {answer:?}");
    }
    Ok(fate)
}

/// What a packet is in its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Opens,
    Answers,
}

/// One packet through the node.
fn through(
    machine: &mut Machine,
    site: &Site,
    document: &Document,
    from: SocketAddr,
    to: SocketAddr,
    (protocol, turn): (Protocol, Turn),
) -> Result<Fate> {
    let device = site.pods.get(&from.ip()).unwrap_or(&site.uplink);
    let ip = eth().macs(device.mac, device.far_mac).ip(from.ip(), to.ip());
    let mut frame = filled(ip, from.port(), to.port(), protocol, turn);
    // The node's own packets begin in the stack.
    if !document.is_node(from.ip()) {
        let program = if device == &site.uplink { program::FROM_OUTSIDE } else { program::FROM_POD };
        let (code, changed) = machine.run(program, device.ifindex, &frame)?;
        match code {
            Code::Drop => return Ok(Fate::Dropped),
            Code::Redirect => return fate(&changed, from.ip()),
            Code::Pass => frame = changed,
        }
    }
    // The stack looks where it leads.
    let next = ends(&frame)?.1.ip();
    if document.is_node(next) {
        return fate(&frame, from.ip());
    }
    let (program, device) = match site.pods.get(&next) {
        Some(pod) => (program::TO_POD, pod),
        None => (program::TO_OUTSIDE, &site.uplink),
    };
    let (code, frame) = machine.run(program, device.ifindex, &frame)?;
    match code {
        Code::Drop => Ok(Fate::Dropped),
        Code::Redirect | Code::Pass => fate(&frame, from.ip()),
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

/// The frame with the ports and content of its turn.
fn filled(ip: Frame, from: u16, to: u16, protocol: Protocol, turn: Turn) -> Vec<u8> {
    let answers = turn == Turn::Answers;
    match protocol {
        Protocol::Tcp => ip.tcp(from, to, if answers { SYN | ACK } else { SYN }).bytes(),
        Protocol::Udp => ip.udp(from, to).payload(b"?").bytes(),
        Protocol::Sctp => ip.raw(SCTP).payload(&sctp(from, to, if answers { INIT_ACK } else { INIT })).bytes(),
    }
}

/// An SCTP packet with a chunk that is an INIT or looks like one (RFC 9260, 3.1 and 3.3.2).
fn sctp(from: u16, to: u16, chunk: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend([from.to_be_bytes(), to.to_be_bytes()].as_flattened());
    // Verification tag (none yet) and checksum.
    bytes.extend([0; 8]);
    bytes.extend([chunk, 0, 0, 20]);
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
        SCTP => l4[12] == ABORT,
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
