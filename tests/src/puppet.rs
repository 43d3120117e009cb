//! A process whose sockets a test moves: socket hooks act on processes in a cgroup, which a thread of the test cannot be in.
//!
//! [`Puppet`] is the test's end, [`play`] the process. They speak lines of JSON.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use netlb_testnode::process::{Place, Process};
use netlb_testnode::wire::{Answer, Transport};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

use crate::sockets::{PATIENCE, address};

/// What a puppet is told to do. `socket` is a number of the test's choice.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Order {
    /// A new socket.
    Open { socket: u32, transport: Transport, ipv6: bool },
    /// connect().
    Connect { socket: u32, to: SocketAddr },
    /// send(), or with an address sendto().
    Send { socket: u32, to: Option<SocketAddr>, text: String },
    /// recvfrom().
    Receive { socket: u32 },
    /// getpeername().
    Peer { socket: u32 },
    /// close().
    Close { socket: u32 },
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Outcome {
    Done,
    Received { from: Option<SocketAddr>, text: String },
    Address(SocketAddr),
    Failed { errno: i32 },
}

/// A process in a place; dropped, it is killed.
pub struct Puppet {
    _process: Process,
    orders: ChildStdin,
    outcomes: BufReader<ChildStdout>,
    sockets: u32,
}

/// A socket of a puppet.
#[derive(Clone, Copy, Debug)]
pub struct Socket(u32);

impl Puppet {
    /// Starts `program` (which must call [`play`] when its argument is `puppet`) in a place and its cgroup.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(place: &Place, program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("puppet").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = place.spawn("a puppet", command)?;
        let orders = process.pipes().stdin.take().context("the puppet has no input")?;
        let outcomes = BufReader::new(process.pipes().stdout.take().context("the puppet has no output")?);
        Ok(Self { _process: process, orders, outcomes, sockets: 0 })
    }

    fn order(&mut self, order: &Order) -> Result<Outcome> {
        writeln!(self.orders, "{}", serde_json::to_string(order)?).context("the puppet is dead")?;
        let mut line = String::new();
        self.outcomes.read_line(&mut line).context("the puppet is dead")?;
        match serde_json::from_str(&line).with_context(|| format!("cannot understand the puppet: {line:?}"))? {
            Outcome::Failed { errno } => Err(anyhow!(Errno::from_raw(errno)).context(format!("{order:?}"))),
            outcome @ (Outcome::Done | Outcome::Received { .. } | Outcome::Address(_)) => Ok(outcome),
        }
    }

    /// Makes a socket.
    ///
    /// # Errors
    /// The kernel's, with its number.
    pub fn open(&mut self, transport: Transport, ipv6: bool) -> Result<Socket> {
        self.sockets += 1;
        self.order(&Order::Open { socket: self.sockets, transport, ipv6 })?;
        Ok(Socket(self.sockets))
    }

    /// connect().
    ///
    /// # Errors
    /// The kernel's, with its number.
    pub fn connect(&mut self, socket: Socket, to: SocketAddr) -> Result<()> {
        self.order(&Order::Connect { socket: socket.0, to }).map(drop)
    }

    /// send(), or with an address sendto().
    ///
    /// # Errors
    /// The kernel's, with its number.
    pub fn send(&mut self, socket: Socket, to: Option<SocketAddr>, text: &str) -> Result<()> {
        self.order(&Order::Send { socket: socket.0, to, text: text.to_owned() }).map(drop)
    }

    /// recvfrom(): what came, and from whom as the kernel says (nobody, on a TCP connection).
    ///
    /// # Errors
    /// The kernel's, with its number; EAGAIN when nothing comes.
    pub fn receive(&mut self, socket: Socket) -> Result<(Option<SocketAddr>, String)> {
        match self.order(&Order::Receive { socket: socket.0 })? {
            Outcome::Received { from, text } => Ok((from, text)),
            other @ (Outcome::Done | Outcome::Address(_) | Outcome::Failed { .. }) => {
                bail!("the puppet answered {other:?}")
            }
        }
    }

    /// getpeername().
    ///
    /// # Errors
    /// The kernel's, with its number.
    pub fn peer(&mut self, socket: Socket) -> Result<SocketAddr> {
        match self.order(&Order::Peer { socket: socket.0 })? {
            Outcome::Address(address) => Ok(address),
            other @ (Outcome::Done | Outcome::Received { .. } | Outcome::Failed { .. }) => {
                bail!("the puppet answered {other:?}")
            }
        }
    }

    /// close().
    ///
    /// # Errors
    /// When the puppet is dead.
    pub fn close(&mut self, socket: Socket) -> Result<()> {
        self.order(&Order::Close { socket: socket.0 }).map(drop)
    }

    /// A socket that is connected; an IPv6 one for an IPv6 address.
    ///
    /// # Errors
    /// As [`Puppet::connect`].
    pub fn connected(&mut self, transport: Transport, to: SocketAddr) -> Result<Socket> {
        let socket = self.open(transport, to.is_ipv6())?;
        self.connect(socket, to)?;
        Ok(socket)
    }

    /// Sends a line over a connected socket and reads the pod's answer to it.
    ///
    /// # Errors
    /// The kernel's, or when the answer is not to that line.
    pub fn ask(&mut self, socket: Socket, line: &str) -> Result<Answer> {
        self.send(socket, None, &format!("{line}\n"))?;
        // A connection may hand an answer over in pieces.
        let mut text = String::new();
        while !text.ends_with('\n') {
            let (_, piece) = self.receive(socket)?;
            if piece.is_empty() {
                bail!("the connection ended after {text:?}");
            }
            text.push_str(&piece);
        }
        let answer: Answer = text.parse().map_err(anyhow::Error::msg)?;
        if answer.echo != line {
            bail!("asked {line:?}, and was answered {:?}", answer.echo);
        }
        Ok(answer)
    }
}

/// Obeys orders from standard input until it ends.
///
/// # Errors
/// When an order is not understood.
pub fn play() -> Result<()> {
    let mut sockets = BTreeMap::new();
    for line in io::stdin().lines() {
        let order: Order =
            serde_json::from_str(&line.context("cannot read orders")?).context("cannot understand an order")?;
        let outcome = obey(&mut sockets, order).unwrap_or_else(|errno| Outcome::Failed { errno: errno as i32 });
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&outcome)?)?;
        out.flush()?;
    }
    Ok(())
}

fn obey(sockets: &mut BTreeMap<u32, OwnedFd>, order: Order) -> Result<Outcome, Errno> {
    let get =
        |sockets: &BTreeMap<u32, OwnedFd>, number| sockets.get(&number).map(AsRawFd::as_raw_fd).ok_or(Errno::EBADF);
    match order {
        Order::Open { socket, transport, ipv6 } => {
            let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
            let kind = match transport {
                Transport::Tcp => SockType::Stream,
                Transport::Udp => SockType::Datagram,
                Transport::Sctp => return Err(Errno::EPROTONOSUPPORT),
            };
            let made = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
            let patience = TimeVal::new(i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX), 0);
            setsockopt(&made, sockopt::ReceiveTimeout, &patience)?;
            setsockopt(&made, sockopt::SendTimeout, &patience)?;
            sockets.insert(socket, made);
            Ok(Outcome::Done)
        }
        Order::Connect { socket, to } => {
            socket::connect(get(sockets, socket)?, &SockaddrStorage::from(to))?;
            Ok(Outcome::Done)
        }
        Order::Send { socket, to, text } => {
            let fd = get(sockets, socket)?;
            match to {
                Some(to) => socket::sendto(fd, text.as_bytes(), &SockaddrStorage::from(to), MsgFlags::MSG_NOSIGNAL)?,
                None => socket::send(fd, text.as_bytes(), MsgFlags::MSG_NOSIGNAL)?,
            };
            Ok(Outcome::Done)
        }
        Order::Receive { socket } => {
            let mut buffer = [0; 4096];
            let (length, from) = socket::recvfrom::<SockaddrStorage>(get(sockets, socket)?, &mut buffer)?;
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            Ok(Outcome::Received { from: from.as_ref().and_then(address), text })
        }
        Order::Peer { socket } => {
            let peer: SockaddrStorage = socket::getpeername(get(sockets, socket)?)?;
            address(&peer).map(Outcome::Address).ok_or(Errno::EAFNOSUPPORT)
        }
        Order::Close { socket } => {
            sockets.remove(&socket).ok_or(Errno::EBADF)?;
            Ok(Outcome::Done)
        }
    }
}
