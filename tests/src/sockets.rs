//! Sockets as tests need them: bounded waits, chosen source ports, answers of the test node's pods.
//!
//! Everything here acts in the network namespace of the calling thread: call it inside [`Pod::run`](netlb_testnode::Pod::run).

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlb_testnode::wire::{Answer, Transport};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, getsockopt, setsockopt, sockopt};

/// Longest wait for what should happen at once. A test that waits so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long to listen before silence counts as no answer.
pub const SILENCE: Duration = Duration::from_millis(400);

/// A connected socket, made within [`PATIENCE`]; `from` is its source port, which several sockets may share.
///
/// # Errors
/// The error of connect(), as an [`Errno`] at the root of the chain.
pub fn connect(transport: Transport, from: Option<u16>, to: SocketAddr) -> Result<OwnedFd> {
    connect_within(PATIENCE, transport, from, to)
}

/// As [`connect`], with another bound.
///
/// # Errors
/// As [`connect`]; ETIMEDOUT when nobody answers.
pub fn connect_within(bound: Duration, transport: Transport, from: Option<u16>, to: SocketAddr) -> Result<OwnedFd> {
    let kind = match transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
        Transport::Sctp => bail!("the kernel has no SCTP sockets; see netlb_testnode::sctp"),
    };
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket =
        socket::socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None).context("socket")?;
    if let Some(port) = from {
        // Connected sockets may share a source port as long as their peers differ.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        let source = SocketAddr::new(any(to.ip()), port);
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(source)).with_context(|| format!("bind {source}"))?;
    }
    match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            let deadline = Instant::now() + bound;
            let left =
                PollTimeout::try_from(deadline.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX);
            let mut events = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut events, left).context("poll")? == 0 {
                return Err(anyhow!(Errno::ETIMEDOUT).context(format!("connect to {to}")));
            }
            let errno = getsockopt(&socket, sockopt::SocketError)?;
            if errno != 0 {
                return Err(anyhow!(Errno::from_raw(errno)).context(format!("connect to {to}")));
            }
        }
        Err(errno) => return Err(anyhow!(errno).context(format!("connect to {to}"))),
    }
    Ok(socket)
}

/// A TCP connection with a read timeout of [`PATIENCE`].
///
/// # Errors
/// As [`connect`].
pub fn tcp(from: Option<u16>, to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::from(connect(Transport::Tcp, from, to)?);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connected UDP socket with a read timeout of [`PATIENCE`].
///
/// # Errors
/// As [`connect`].
pub fn udp(from: Option<u16>, to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::from(connect(Transport::Udp, from, to)?);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a line over a connection and reads the pod's answer, which must be to that line.
///
/// # Errors
/// When the connection broke or the answer is another one's.
pub fn ask_on(stream: &TcpStream, line: &str) -> Result<Answer> {
    let mut writer = stream;
    writer.write_all(format!("{line}\n").as_bytes()).context("send")?;
    // A pod's answer is one line, and the next is only sent when asked for: nothing is lost with the buffer.
    let mut text = String::new();
    BufReader::new(stream).read_line(&mut text).context("receive")?;
    answer_to(&text, line)
}

/// Sends a datagram over a connected socket and reads the pod's answer, which must be to that datagram.
///
/// # Errors
/// When none comes, or another one's.
pub fn ask_by(socket: &UdpSocket, line: &str) -> Result<Answer> {
    socket.send(line.as_bytes()).context("send")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).context("receive")?;
    answer_to(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()), line)
}

/// One request over a fresh socket.
///
/// # Errors
/// As [`connect`], [`ask_on`] and [`ask_by`].
pub fn ask(transport: Transport, to: SocketAddr, line: &str) -> Result<Answer> {
    match transport {
        Transport::Tcp => ask_on(&tcp(None, to)?, line),
        Transport::Udp => ask_by(&udp(None, to)?, line),
        Transport::Sctp => bail!("the kernel has no SCTP sockets; see netlb_testnode::sctp"),
    }
}

fn answer_to(text: &str, line: &str) -> Result<Answer> {
    let answer: Answer = text.parse().map_err(anyhow::Error::msg)?;
    ensure!(answer.echo == line, "asked {line:?}, and was answered {:?}", answer.echo);
    Ok(answer)
}

/// The error number at the root of an error, whatever made it.
#[must_use]
pub fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        let timed_out = io.is_some_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        match (cause.downcast_ref::<Errno>(), io.and_then(std::io::Error::raw_os_error)) {
            (Some(errno), _) => Some(*errno),
            // A read that timed out says EAGAIN.
            _ if timed_out => Some(Errno::ETIMEDOUT),
            (None, Some(raw)) => Some(Errno::from_raw(raw)),
            (None, None) => None,
        }
    })
}

/// Fails unless `result` is an error with this number.
///
/// # Errors
/// Says what it was instead.
pub fn expect_errno<T>(result: Result<T>, wanted: Errno, what: &str) -> Result<()> {
    match result {
        Ok(_) => bail!("{what}: succeeded, but {wanted} was to be expected"),
        Err(error) if errno(&error) == Some(wanted) => Ok(()),
        Err(error) => Err(error.context(format!("{what}: not {wanted}"))),
    }
}

/// The unspecified address of the same family.
#[must_use]
pub fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Listens on a TCP port of one family only.
///
/// # Errors
/// When the port is taken.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).with_context(|| format!("bind {address}"))?;
    socket::listen(&socket, socket::Backlog::new(128)?)?;
    Ok(socket.into())
}

/// An address as the kernel hands it out.
#[must_use]
pub fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    storage.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()))
}

/// The largest packet, in bytes, that the kernel of this namespace sends to an address, as path MTU discovery has it.
///
/// # Errors
/// When there is no route to it.
pub fn path_mtu(to: SocketAddr) -> Result<u32> {
    let socket = udp(None, to)?;
    let (level, name) =
        if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mut mtu: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>())?;
    let result =
        // SAFETY: the pointer and length are those of a live c_int.
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(&mut mtu).cast(), &raw mut length) };
    if result != 0 {
        return Err(anyhow!(Errno::last()).context(format!("path MTU to {to}")));
    }
    Ok(u32::try_from(mtu)?)
}
