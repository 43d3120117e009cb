//! Bulk transfers whose every byte is compared: what arrives is what was sent, in order and whole.
//!
//! A client says how much it will send and how much it wants back; both directions carry one pattern of prime length, so
//! that a byte lost, doubled or swapped shows.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::LazyLock;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use netlb_testnode::netns::NetNs;

use crate::sockets;

/// Length of the pattern, a prime.
const PERIOD: usize = 65_521;

/// Two periods, so that a whole one can be cut out anywhere.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let period: Vec<u8> = (0..PERIOD)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        })
        .collect();
    period.repeat(2)
});

/// What stands at byte `offset` of a transfer, up to a period of it.
fn pattern(offset: u64, length: usize) -> &'static [u8] {
    let start = usize::try_from(offset % PERIOD as u64).unwrap_or_default();
    PATTERN.get(start..start + length.min(PERIOD)).unwrap_or_default()
}

/// Writes `length` bytes of the pattern.
///
/// # Errors
/// When the connection broke.
pub fn send(mut stream: &TcpStream, length: u64) -> Result<()> {
    let mut sent = 0;
    while sent < length {
        let chunk = pattern(sent, usize::try_from(length - sent).unwrap_or(PERIOD));
        stream.write_all(chunk).with_context(|| format!("send, after {sent} of {length} bytes"))?;
        sent += chunk.len() as u64;
    }
    Ok(())
}

/// Reads `length` bytes and compares each.
///
/// # Errors
/// When the connection broke, or at the first byte that is not what was sent.
pub fn receive(mut stream: &TcpStream, length: u64) -> Result<()> {
    let mut buffer = vec![0; PERIOD];
    let mut got = 0;
    while got < length {
        let want = usize::try_from(length - got).unwrap_or(PERIOD).min(PERIOD);
        let room = buffer.get_mut(..want).context("a buffer of one period")?;
        let count = stream.read(room).with_context(|| format!("receive, after {got} of {length} bytes"))?;
        ensure!(count > 0, "the connection ended after {got} of {length} bytes");
        if room.get(..count) != Some(pattern(got, count)) {
            bail!("between bytes {got} and {} something else arrived than was sent", got + count as u64);
        }
        got += count as u64;
    }
    Ok(())
}

/// One transfer over a fresh connection: `up` bytes there, then `down` bytes back.
///
/// # Errors
/// When the connection broke or a byte was wrong at either end.
pub fn transfer(to: SocketAddr, up: u64, down: u64) -> Result<()> {
    let stream = sockets::tcp(None, to)?;
    exchange(&stream, up, down)
}

/// A transfer over a connection that is open; others may follow.
///
/// # Errors
/// As [`transfer`].
pub fn exchange(mut stream: &TcpStream, up: u64, down: u64) -> Result<()> {
    stream.write_all(&[up.to_be_bytes(), down.to_be_bytes()].concat()).context("send")?;
    send(stream, up)?;
    let mut verdict = [0];
    stream.read_exact(&mut verdict).context("wait for the server's verdict")?;
    ensure!(verdict == *b"+", "something else arrived at the server than was sent");
    receive(stream, down)
}

/// Serves transfers on a port in a network namespace, both families, until dropped.
pub struct Server {
    listeners: Vec<(TcpListener, JoinHandle<()>)>,
}

impl Server {
    /// Starts serving.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(net: &NetNs, port: u16) -> Result<Self> {
        let mut listeners = Vec::new();
        for address in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
            let listener = net.run(|| sockets::listen(SocketAddr::new(address, port)))??;
            let own = listener.try_clone()?;
            let thread = std::thread::Builder::new().name("bulk".into()).spawn(move || {
                // Accepting ends when the listener is shut down.
                while let Ok((stream, _)) = own.accept() {
                    std::thread::spawn(move || serve(&stream));
                }
            })?;
            listeners.push((listener, thread));
        }
        Ok(Self { listeners })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for (listener, thread) in self.listeners.drain(..) {
            // SAFETY: the descriptor is open: the listener owns it. shutdown() takes no pointers.
            unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
            // It only accepts; a panic there has been printed and shows as a failed connection.
            thread.join().unwrap_or_default();
        }
    }
}

/// Serves transfers until the client closes; a client that breaks off finds the connection closed.
fn serve(stream: &TcpStream) {
    let mut header = [0; 16];
    let mut reader = stream;
    while reader.read_exact(&mut header).is_ok() {
        let [up, down] = [0, 8]
            .map(|at| header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes));
        let verdict = if receive(stream, up).is_ok() { b"+" } else { b"-" };
        let mut writer = stream;
        if writer.write_all(verdict).is_err() || verdict == b"-" || send(stream, down).is_err() {
            break;
        }
    }
    stream.shutdown(Shutdown::Both).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn transfers_pass_and_a_swapped_byte_is_noticed() {
        let (client, server) = loopback();
        let worker = std::thread::spawn(move || serve(&server));
        exchange(&client, 200_000, 70_000).unwrap();
        exchange(&client, 0, 1).unwrap();
        drop(client);
        worker.join().unwrap();

        let (mut client, server) = loopback();
        let mut bytes = pattern(0, 100).to_vec();
        bytes.swap(40, 41);
        client.write_all(&bytes).unwrap();
        assert!(receive(&server, 100).unwrap_err().to_string().contains("something else"));
    }

    #[test]
    fn an_early_end_is_noticed() {
        let (client, server) = loopback();
        send(&client, 10).unwrap();
        drop(client);
        assert!(receive(&server, 11).unwrap_err().to_string().contains("after 10 of 11"));
    }
}
