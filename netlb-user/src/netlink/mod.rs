//! Netlink, as much of it as the agent asks: dumps and single requests over any of the kernel's netlink families, and notifications.
//!
//! Messages are taken apart here rather than by a crate of all known attributes: the agent wants a dozen attributes of six families, and one
//! unknown attribute of a newer kernel must not cost it a whole dump.

mod message;

pub use message::{Attributes, Request, attributes};

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};

use message::{Messages, Payload};

/// Bytes of one datagram from the kernel: it fills at most 32 KiB in a dump.
const RECEIVE: usize = 64 * 1024;

/// How long a request may take: the kernel answers from memory.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket for requests, one at a time.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket of a netlink family (`libc::NETLINK_ROUTE`, …) in the network namespace of the calling thread. Headers of requests are
    /// checked strictly, so that the kernel filters a dump as asked rather than ignore what it does not understand.
    ///
    /// # Errors
    /// EPROTONOSUPPORT if the kernel lacks the family.
    pub fn open(family: i32) -> io::Result<Self> {
        let mut socket = Socket::new(family as isize)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        if family == libc::NETLINK_ROUTE {
            socket.set_netlink_get_strict_chk(true)?;
        }
        nix::sys::socket::setsockopt(&borrow(&socket), nix::sys::socket::sockopt::ReceiveTimeout, &PATIENCE_TIMEVAL)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends a dump request and hands each answer (message type, payload after the netlink header) to `each`.
    ///
    /// # Errors
    /// The kernel's error, or EINTR if the tables changed so much meanwhile that the dump is not consistent: ask again.
    pub fn dump(&mut self, request: Request, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.send(request.dump())?;
        let mut interrupted = false;
        loop {
            let datagram = self.receive()?;
            for message in Messages::new(&datagram) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.interrupted;
                match message.payload {
                    Payload::Done if interrupted => return Err(io::Error::from_raw_os_error(libc::EINTR)),
                    Payload::Done => return Ok(()),
                    Payload::Error(0) => {}
                    Payload::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    Payload::Data(kind, bytes) => each(kind, bytes),
                }
            }
        }
    }

    /// Sends a request for one object and returns the answer's payload; `None` if the kernel only says "done".
    ///
    /// # Errors
    /// The kernel's error.
    pub fn one(&mut self, request: Request) -> io::Result<Option<Vec<u8>>> {
        self.send(request.acknowledged())?;
        let mut answer = None;
        loop {
            let datagram = self.receive()?;
            for message in Messages::new(&datagram) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                match message.payload {
                    Payload::Done | Payload::Error(0) => return Ok(answer),
                    Payload::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    Payload::Data(_, bytes) => answer = Some(bytes.to_vec()),
                }
            }
        }
    }

    fn send(&mut self, request: Request) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence);
        let sent = self.socket.send(&bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("the kernel took half a netlink request")) }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(RECEIVE);
        self.socket.recv(&mut buffer, 0)?;
        Ok(buffer)
    }
}

/// A dump that changes keep disturbing is asked for this often.
const ATTEMPTS: usize = 5;

/// Asks again as long as changes disturb a dump, a few times.
///
/// # Errors
/// The last error.
pub fn retry<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match ask() {
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
            result => return result,
        }
    }
    ask()
}

const PATIENCE_TIMEVAL: nix::sys::time::TimeVal = nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0);

/// A socket that hears of changes in the groups it joined.
pub struct Listener {
    socket: Socket,
}

/// What a [`Listener`] heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// At least one notification.
    Change,
    /// The kernel dropped notifications: whatever is known may be old.
    Overrun,
    /// The time is over.
    Nothing,
}

impl Listener {
    /// Joins multicast groups (`RTNLGRP_*`) of the routing family, and hears of the namespaces that this one has ids for as well.
    ///
    /// # Errors
    /// The kernel's: EPERM without CAP_NET_BROADCAST for other namespaces.
    pub fn open(groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(libc::NETLINK_ROUTE as isize)?;
        socket.bind_auto()?;
        socket.set_listen_all_namespaces(true)?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Listener { socket })
    }

    /// Joins one more group.
    ///
    /// # Errors
    /// The kernel's.
    pub fn join(&mut self, group: u32) -> io::Result<()> {
        self.socket.add_membership(group)
    }

    /// Waits for a notification, and throws away what has come: it says that something changed, the dump says what.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, timeout: Duration) -> io::Result<Heard> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let millis = u16::try_from(timeout.as_millis()).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(borrow(&self.socket), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(Heard::Nothing),
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        let mut heard = Heard::Nothing;
        let mut buffer = Vec::with_capacity(RECEIVE);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) if heard == Heard::Nothing => heard = Heard::Change,
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => heard = Heard::Overrun,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(heard),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the socket's, which the returned borrow keeps alive.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}
