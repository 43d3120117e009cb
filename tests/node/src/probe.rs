//! The program that sends requests: each over a socket of its own, from a source port that no other request had.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, getsockopt, setsockopt, sockopt};

use crate::sctp;
use crate::wire::{Answer, ProbePlan, ProbeResult, ProbeTarget, Transport};

/// Source ports of probes; the range does not meet the kernel's own choices (32768 and up).
pub const PORTS: std::ops::Range<u16> = 10_000..32_000;
/// After this many failures, or one that took all the time there was, a target is given up: more say nothing new.
const ENOUGH_ERRORS: u32 = 3;
pub(crate) const NO_ANSWER: &str = "no answer in time";

/// Reads a [`ProbePlan`] from standard input and writes a [`ProbeResult`] a target, a line each.
///
/// # Errors
/// When the plan is not understood.
pub fn probe() -> Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("cannot read the plan from standard input")?;
    let plan: ProbePlan = serde_json::from_str(&text).context("cannot understand the plan")?;
    let mut port = plan.first_port;
    let mut out = io::stdout().lock();
    for target in &plan.targets {
        let result = ask(target, &mut port);
        writeln!(out, "{}", serde_json::to_string(&result)?)?;
        out.flush()?;
    }
    Ok(())
}

fn ask(target: &ProbeTarget, port: &mut u16) -> ProbeResult {
    let mut result = ProbeResult { id: target.id, ..ProbeResult::default() };
    let mut missing: BTreeSet<SocketAddr> = target.expect.clone();
    let mut errors = 0;
    while result.sent < target.at_least || (!missing.is_empty() && result.sent < target.at_most) {
        let marker = format!("request-{}-{}", target.id, result.sent);
        result.sent += 1;
        let started = Instant::now();
        match request(target, result.sent, &marker, port) {
            Ok(answer) if answer.echo.trim_start_matches('/') == marker => {
                result.latencies_us.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
                missing.remove(&answer.server);
                *result.answered.entry(answer.server).or_default() += 1;
                result.sources.entry(answer.server).or_default().insert(answer.client.ip());
                result.pods.insert(answer.server, answer.pod);
            }
            Ok(answer) => {
                errors += 1;
                *result.errors.entry(format!("answer to another request: {answer}")).or_default() += 1;
            }
            Err(error) if is_refusal(&error) && target.refusal => result.refused += 1,
            Err(error) if is_silence(&error) && target.silence => result.dropped += 1,
            Err(error) => {
                errors += if is_timeout(&error) { ENOUGH_ERRORS } else { 1 };
                if is_silence(&error) {
                    result.dropped += 1;
                }
                if is_refusal(&error) {
                    result.refused += 1;
                }
                *result.errors.entry(format!("{error:#}")).or_default() += 1;
            }
        }
        if errors >= ENOUGH_ERRORS {
            break;
        }
    }
    result.next_port = *port;
    result
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<Errno>().is_some_and(|errno| *errno == Errno::ECONNREFUSED)
            || cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
}

fn is_timeout(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.to_string() == NO_ANSWER)
}

/// Nothing came; or it was the node's own connect(), which need not wait to know that a packet would be dropped.
fn is_silence(error: &anyhow::Error) -> bool {
    let unreachable = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<Errno>().is_some_and(|errno| *errno == Errno::EHOSTUNREACH)
            || cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::HostUnreachable)
    };
    is_timeout(error) || error.chain().any(unreachable)
}

fn request(target: &ProbeTarget, turn: u32, marker: &str, port: &mut u16) -> Result<Answer> {
    let timeout = Duration::from_millis(target.timeout_ms);
    let deadline = Instant::now() + timeout;
    match target.transport {
        Transport::Sctp => parse(&sctp::ask(target.address, next(port), marker, deadline)?),
        Transport::Udp => {
            let socket = UdpSocket::from(connect(target, port, deadline)?);
            socket.set_nonblocking(false)?;
            socket.set_read_timeout(Some(timeout))?;
            socket.send(marker.as_bytes()).context("send")?;
            let mut buffer = [0; 2048];
            let length = socket.recv(&mut buffer).map_err(plain_timeout).context("receive")?;
            parse(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()))
        }
        Transport::Tcp => {
            let stream = TcpStream::from(connect(target, port, deadline)?);
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(timeout))?;
            if turn.is_multiple_of(2) { raw(&stream, marker) } else { http(&stream, target.address, marker) }
        }
    }
}

fn http(mut stream: &TcpStream, host: SocketAddr, marker: &str) -> Result<Answer> {
    write!(stream, "GET /{marker} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").context("send")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(plain_timeout).context("receive")?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer that is not HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("HTTP answer {}", head.lines().next().unwrap_or_default());
    }
    parse(body)
}

fn raw(mut stream: &TcpStream, marker: &str) -> Result<Answer> {
    writeln!(stream, "{marker}").context("send")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(plain_timeout).context("receive")?;
    parse(&line)
}

fn parse(text: &str) -> Result<Answer> {
    text.lines().next().unwrap_or_default().parse().map_err(anyhow::Error::msg)
}

/// Takes a source port.
fn next(port: &mut u16) -> u16 {
    let taken = *port;
    *port = if PORTS.contains(&(taken + 1)) { taken + 1 } else { PORTS.start };
    taken
}

/// A connected socket from the next free source port.
fn connect(target: &ProbeTarget, port: &mut u16, deadline: Instant) -> Result<OwnedFd> {
    let (family, any): (_, IpAddr) = match target.address.ip() {
        IpAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let kind = if target.transport == Transport::Udp { SockType::Datagram } else { SockType::Stream };
    for _ in PORTS {
        let source = SocketAddr::new(any, next(port));
        let socket =
            socket::socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None).context("socket")?;
        // Without this a datagram that cannot be delivered is lost in silence, and the request waits for nothing.
        if target.address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true).context("setsockopt")?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true).context("setsockopt")?;
        }
        match socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(source)) {
            Ok(()) => {}
            Err(Errno::EADDRINUSE) => continue,
            Err(errno) => return Err(errno).context("bind"),
        }
        match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(target.address)) {
            Ok(()) => return Ok(socket),
            Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno).context("connect"),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let mut events = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut events, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).context("poll")? == 0 {
            return Err(anyhow!(NO_ANSWER)).context("connect");
        }
        let errno = getsockopt(&socket, sockopt::SocketError).context("connect")?;
        if errno != 0 {
            return Err(Errno::from_raw(errno)).context("connect");
        }
        return Ok(socket);
    }
    bail!("no free source port between {} and {}", PORTS.start, PORTS.end)
}

/// A read that timed out says "would block", which would puzzle whoever reads the report.
fn plain_timeout(error: io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::WouldBlock { anyhow!(NO_ANSWER) } else { error.into() }
}

/// The sum of all answers.
#[must_use]
pub fn total(answered: &BTreeMap<SocketAddr, u32>) -> u32 {
    answered.values().sum()
}
