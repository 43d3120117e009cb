//! SCTP by hand (RFC 9260), for kernels without it: as much of the protocol as one request and one answer take, over raw
//! sockets. Nothing is sent twice: the wires of a test node lose nothing.
//!
//! A socket of the node's own sends nothing that connect() hooks would see, so requests come from pods and from outside.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use crc::{CRC_32_ISCSI, Crc};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, MsgFlags, SockaddrStorage, setsockopt, sockopt};

const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Chunk types (RFC 9260, section 3.2).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const INIT: u8 = 1;
    pub(super) const INIT_ACK: u8 = 2;
    pub(super) const SACK: u8 = 3;
    pub(super) const ABORT: u8 = 6;
    pub(super) const SHUTDOWN: u8 = 7;
    pub(super) const SHUTDOWN_ACK: u8 = 8;
    pub(super) const COOKIE_ECHO: u8 = 10;
    pub(super) const COOKIE_ACK: u8 = 11;
    pub(super) const SHUTDOWN_COMPLETE: u8 = 14;
}

const STATE_COOKIE: u16 = 7;
const WINDOW: u32 = 65_536;
/// The tag by which clients address this server, and the number of its first (and only) data chunk.
const SERVER_TAG: u32 = 0x6e65_746c;
const SERVER_TSN: u32 = 1000;
const CLIENT_TSN: u32 = 1;
/// Most associations that a server remembers.
const MOST: usize = 4096;

/// A packet without its IP header. Numbers in host order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    source: u16,
    destination: u16,
    tag: u32,
    chunks: Vec<Chunk>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chunk {
    kind: u8,
    flags: u8,
    value: Vec<u8>,
}

impl Chunk {
    fn new(kind: u8, value: Vec<u8>) -> Self {
        Self { kind, flags: 0, value }
    }

    /// INIT, or with a cookie INIT ACK: own tag, window, one stream each way, first data chunk's number.
    fn init(tag: u32, tsn: u32, cookie: Option<&[u8]>) -> Self {
        let mut value = Vec::new();
        value.extend(tag.to_be_bytes());
        value.extend(WINDOW.to_be_bytes());
        value.extend([0, 1, 0, 1]);
        value.extend(tsn.to_be_bytes());
        if let Some(cookie) = cookie {
            value.extend(STATE_COOKIE.to_be_bytes());
            value.extend(u16::try_from(4 + cookie.len()).unwrap_or(4).to_be_bytes());
            value.extend(cookie);
        }
        Self::new(if cookie.is_some() { kind::INIT_ACK } else { kind::INIT }, value)
    }

    /// One whole message on stream 0.
    fn data(tsn: u32, text: &str) -> Self {
        let mut value = tsn.to_be_bytes().to_vec();
        value.extend([0; 8]);
        value.extend(text.as_bytes());
        Self { kind: kind::DATA, flags: 3, value }
    }

    fn sack(tsn: u32) -> Self {
        let mut value = tsn.to_be_bytes().to_vec();
        value.extend(WINDOW.to_be_bytes());
        value.extend([0; 4]);
        Self::new(kind::SACK, value)
    }

    /// The word at `offset` of the value.
    fn word(&self, offset: usize) -> Result<u32> {
        let bytes = self.value.get(offset..offset + 4).context("a chunk is cut short")?;
        Ok(u32::from_be_bytes(bytes.try_into()?))
    }

    /// The message of a data chunk.
    fn text(&self) -> String {
        String::from_utf8_lossy(self.value.get(12..).unwrap_or_default()).into_owned()
    }

    /// The cookie of an INIT ACK, if it is its only parameter.
    fn cookie(&self) -> Result<&[u8]> {
        let parameter = self.value.get(16..20).context("INIT ACK without a cookie")?;
        ensure!(parameter.starts_with(&STATE_COOKIE.to_be_bytes()), "INIT ACK begins with another parameter");
        self.value.get(20..).context("INIT ACK without a cookie")
    }
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.source.to_be_bytes());
        out.extend(self.destination.to_be_bytes());
        out.extend(self.tag.to_be_bytes());
        out.extend([0; 4]);
        for chunk in &self.chunks {
            let length = 4 + chunk.value.len();
            out.extend([chunk.kind, chunk.flags]);
            out.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
            out.extend(&chunk.value);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        let sum = CHECKSUM.checksum(&out);
        out.splice(8..12, sum.to_le_bytes());
        out
    }

    /// # Errors
    /// When the checksum is wrong or something is cut short.
    fn parse(bytes: &[u8]) -> Result<Self> {
        let (head, mut rest) = bytes.split_at_checked(12).context("an SCTP packet without a header")?;
        let [s0, s1, d0, d1, t0, t1, t2, t3, c0, c1, c2, c3] = <[u8; 12]>::try_from(head)?;
        let mut zeroed = bytes.to_vec();
        zeroed.splice(8..12, [0; 4]);
        let (stands, right) = (u32::from_le_bytes([c0, c1, c2, c3]), CHECKSUM.checksum(&zeroed));
        ensure!(stands == right, "an SCTP packet with the checksum {stands:08x} instead of {right:08x}");
        let mut chunks = Vec::new();
        while let Some(&[kind, flags, l0, l1]) = rest.get(..4) {
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            let value = rest.get(4..length).context("an SCTP chunk that is longer than its packet")?.to_vec();
            chunks.push(Chunk { kind, flags, value });
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(Self {
            source: u16::from_be_bytes([s0, s1]),
            destination: u16::from_be_bytes([d0, d1]),
            tag: u32::from_be_bytes([t0, t1, t2, t3]),
            chunks,
        })
    }
}

/// A raw socket for SCTP in the calling thread's namespace. With IPv4 what it receives begins with the IP header.
///
/// # Errors
/// When the caller is not root.
pub(crate) fn raw(ipv6: bool) -> Result<OwnedFd> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("cannot open a raw socket");
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next packet and its sender's address; none if it was no proper SCTP packet.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<(Result<Packet>, IpAddr), Errno> {
    let (length, from) = socket::recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer)?;
    let bytes = buffer.get(..length).unwrap_or_default();
    let from = from.as_ref();
    if let Some(v6) = from.and_then(SockaddrStorage::as_sockaddr_in6) {
        return Ok((Packet::parse(bytes), v6.ip().into()));
    }
    let header = bytes.first().map_or(0, |first| usize::from(first & 15) * 4);
    let source = match bytes.get(12..16) {
        Some(&[a, b, c, d]) => IpAddr::from([a, b, c, d]),
        _ => return Err(Errno::EBADMSG),
    };
    Ok((Packet::parse(bytes.get(header..).unwrap_or_default()), source))
}

/// A server of one family: answers requests to the ports that `serves` knows, for ever. `answer` gets the client, the port
/// and the request.
pub(crate) fn serve(socket: &OwnedFd, serves: impl Fn(u16) -> bool, answer: impl Fn(SocketAddr, u16, &str) -> String) {
    let mut buffer = vec![0; 65_536];
    // The tags of clients, by their address and port.
    let mut tags: HashMap<(SocketAddr, u16), u32> = HashMap::new();
    loop {
        // What is broken is dropped, as a kernel does it; errors are ICMP messages about earlier answers.
        let Ok((Ok(packet), from)) = receive(socket, &mut buffer) else { continue };
        let client = SocketAddr::new(from, packet.source);
        let port = packet.destination;
        let mut reply = Vec::new();
        let mut tag = tags.get(&(client, port)).copied().unwrap_or_default();
        for chunk in &packet.chunks {
            match (chunk.kind, chunk.word(0)) {
                (kind::INIT, Ok(theirs)) => {
                    tag = theirs;
                    reply.push(if serves(port) {
                        Chunk::init(SERVER_TAG, SERVER_TSN, Some(&theirs.to_be_bytes()))
                    } else {
                        Chunk::new(kind::ABORT, Vec::new())
                    });
                }
                (kind::COOKIE_ECHO, Ok(theirs)) => {
                    if tags.len() >= MOST {
                        tags.clear();
                    }
                    tags.insert((client, port), theirs);
                    tag = theirs;
                    reply.push(Chunk::new(kind::COOKIE_ACK, Vec::new()));
                }
                (kind::DATA, Ok(tsn)) if packet.tag == SERVER_TAG => {
                    reply.push(Chunk::sack(tsn));
                    reply.push(Chunk::data(SERVER_TSN, &answer(client, port, &chunk.text())));
                }
                (kind::SHUTDOWN, _) => reply.push(Chunk::new(kind::SHUTDOWN_ACK, Vec::new())),
                (kind::SHUTDOWN_COMPLETE | kind::ABORT, _) => {
                    tags.remove(&(client, port));
                }
                _ => {}
            }
        }
        if !reply.is_empty() {
            let packet = Packet { source: port, destination: client.port(), tag, chunks: reply };
            let to = SockaddrStorage::from(SocketAddr::new(client.ip(), 0));
            // The client may be gone; it will not miss the answer.
            socket::sendto(socket.as_raw_fd(), &packet.bytes(), &to, MsgFlags::empty()).unwrap_or_default();
        }
    }
}

/// The client's end of an association.
struct Client {
    socket: OwnedFd,
    port: u16,
    to: SocketAddr,
    deadline: Instant,
}

impl Client {
    fn send(&self, tag: u32, chunks: Vec<Chunk>) -> Result<()> {
        let packet = Packet { source: self.port, destination: self.to.port(), tag, chunks };
        socket::send(self.socket.as_raw_fd(), &packet.bytes(), MsgFlags::empty()).context("send").map(drop)
    }

    /// Waits for a chunk of this kind; others are passed over.
    fn wait(&self, wanted: u8) -> Result<(Packet, Chunk)> {
        let mut buffer = vec![0; 65_536];
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let mut events = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut events, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).context("poll")? == 0 {
                bail!("{}", crate::probe::NO_ANSWER);
            }
            let (packet, _) = receive(&self.socket, &mut buffer).context("receive")?;
            let packet = packet?;
            if (packet.source, packet.destination) != (self.to.port(), self.port) {
                continue;
            }
            if packet.chunks.iter().any(|chunk| chunk.kind == kind::ABORT) {
                return Err(anyhow!(Errno::ECONNREFUSED).context("ABORT"));
            }
            if let Some(chunk) = packet.chunks.iter().find(|chunk| chunk.kind == wanted) {
                let chunk = chunk.clone();
                return Ok((packet, chunk));
            }
        }
    }
}

/// Opens an association from `port`, sends one message, and returns the answer; the association is closed in order.
///
/// # Errors
/// ECONNREFUSED (an [`Errno`] in the chain) for ABORT and for ICMP's "port unreachable"; when nothing comes before
/// `deadline`; when a packet comes with a wrong checksum.
pub fn ask(to: SocketAddr, port: u16, text: &str, deadline: Instant) -> Result<String> {
    let socket = raw(to.is_ipv6())?;
    if to.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true).context("setsockopt")?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true).context("setsockopt")?;
    }
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to.ip(), 0))).context("connect")?;
    let client = Client { socket, port, to, deadline };
    let own_tag = 0x0100_0000 | u32::from(port);
    client.send(0, vec![Chunk::init(own_tag, CLIENT_TSN, None)])?;
    let (packet, ack) = client.wait(kind::INIT_ACK)?;
    ensure!(packet.tag == own_tag, "INIT ACK with the tag {:08x} instead of {own_tag:08x}", packet.tag);
    let tag = ack.word(0)?;
    client.send(tag, vec![Chunk::new(kind::COOKIE_ECHO, ack.cookie()?.to_vec())])?;
    client.wait(kind::COOKIE_ACK)?;
    client.send(tag, vec![Chunk::data(CLIENT_TSN, text)])?;
    let (_, data) = client.wait(kind::DATA)?;
    let tsn = data.word(0)?;
    client.send(tag, vec![Chunk::sack(tsn)])?;
    client.send(tag, vec![Chunk::new(kind::SHUTDOWN, tsn.to_be_bytes().to_vec())])?;
    client.wait(kind::SHUTDOWN_ACK)?;
    client.send(tag, vec![Chunk::new(kind::SHUTDOWN_COMPLETE, Vec::new())])?;
    Ok(data.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_survive_the_wire_and_broken_ones_do_not() {
        let packet = Packet {
            source: 4000,
            destination: 3868,
            tag: 7,
            chunks: vec![Chunk::init(9, 1, Some(b"abcd")), Chunk::data(5, "hello")],
        };
        let bytes = packet.bytes();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(Packet::parse(&bytes).unwrap(), packet);
        assert_eq!(packet.chunks[0].cookie().unwrap(), b"abcd");
        assert_eq!(packet.chunks[1].text(), "hello");
        let mut broken = bytes;
        broken[0] ^= 1;
        assert!(Packet::parse(&broken).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of the catalogue of parametrised CRC algorithms.
        assert_eq!(CHECKSUM.checksum(b"123456789"), 0xe306_9283);
    }
}
