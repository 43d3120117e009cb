//! Sockets that take every connection and datagram, to see where those of the node end.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::document::Protocol;
use crate::sockets::{self, PATIENCE};

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
        }
    }
}

/// Listening sockets with their addresses.
pub struct Listeners(Vec<(SocketAddr, Socket)>);

/// A connection or datagram that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

impl Listeners {
    /// Listens at each address in the namespace of the calling thread. SCTP is left out: the test's sockets do not speak it.
    ///
    /// # Errors
    /// When an address is taken, or not there.
    pub fn open(wanted: &BTreeSet<(SocketAddr, Protocol)>) -> Result<Self> {
        let mut all = Vec::new();
        for (address, protocol) in wanted {
            let socket = match protocol {
                Protocol::Tcp => Socket::Tcp(sockets::listen(*address)?),
                Protocol::Udp => Socket::Udp(UdpSocket::bind(address).with_context(|| format!("bind {address}"))?),
                Protocol::Sctp => continue,
            };
            all.push((*address, socket));
        }
        Ok(Listeners(all))
    }

    /// Adds those of another namespace.
    pub fn join(&mut self, other: Listeners) {
        self.0.extend(other.0);
    }

    /// Waits for the next arrival anywhere.
    ///
    /// # Errors
    /// When nothing arrives.
    pub fn next(&self) -> Result<Arrival> {
        let mut events: Vec<PollFd<'_>> =
            self.0.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut events, PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX)).context("poll")?;
        let ready = events.iter().position(|event| event.any() == Some(true));
        let Some((to, socket)) = ready.and_then(|at| self.0.get(at)) else {
            bail!("it arrives nowhere");
        };
        let from = match socket {
            Socket::Tcp(listener) => listener.accept().context("accept")?.1,
            Socket::Udp(socket) => socket.recv_from(&mut [0; 64]).context("recvfrom")?.1,
        };
        Ok(Arrival { from, to: *to })
    }
}
