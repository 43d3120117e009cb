//! The program in every pod: answers HTTP, raw lines and datagrams with the pod's name.
//!
//! `GET /bytes/N` returns N bytes, `GET /client` the client's address and port, `GET /healthz` `ok`, any other request the
//! [`Answer`] line. SCTP is spoken by hand ([`crate::sctp`]). It ends when its standard input does, that is, with the run.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};

use crate::sctp;
use crate::wire::{Answer, Counts, Ports, ServerConfig, ServerReply, ServerRequest, Transport};

const LONGEST_LINE: u64 = 8192;
const IDLE: Duration = Duration::from_secs(60);

struct Shared {
    config: ServerConfig,
    connections: AtomicU64,
    open: AtomicU64,
    datagrams: AtomicU64,
    /// Nothing more is accepted.
    draining: AtomicBool,
    listeners: Mutex<Vec<Arc<TcpListener>>>,
    /// The SCTP ports; one raw socket a family serves them all.
    sctp: Mutex<std::collections::BTreeSet<u16>>,
}

/// Serves until standard input ends.
///
/// # Errors
/// When the run speaks another language than this server.
pub fn serve() -> Result<()> {
    let mut lines = io::stdin().lines();
    let first = lines.next().context("no configuration on standard input")?.context("cannot read standard input")?;
    let config: ServerConfig = serde_json::from_str(&first).context("cannot understand the configuration")?;
    let shared = Arc::new(Shared {
        config,
        connections: AtomicU64::new(0),
        open: AtomicU64::new(0),
        datagrams: AtomicU64::new(0),
        draining: AtomicBool::new(false),
        listeners: Mutex::default(),
        sctp: Mutex::default(),
    });
    let mut listening = Ports::default();
    for line in lines {
        let line = line.context("cannot read standard input")?;
        let request = serde_json::from_str(&line).with_context(|| format!("cannot understand the request {line}"))?;
        let reply = match request {
            ServerRequest::Listen(ports) => match listen(&shared, &mut listening, &ports) {
                Ok(()) => ServerReply::Listening(listening.clone()),
                Err(error) => ServerReply::Error(format!("{error:#}")),
            },
            ServerRequest::Counts => ServerReply::Counts(Counts {
                connections: shared.connections.load(Ordering::Relaxed),
                open: shared.open.load(Ordering::Relaxed),
                datagrams: shared.datagrams.load(Ordering::Relaxed),
            }),
            ServerRequest::Drain => {
                drain(&shared);
                ServerReply::Draining
            }
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&reply)?)?;
        out.flush()?;
    }
    Ok(())
}

fn listen(shared: &Arc<Shared>, listening: &mut Ports, wanted: &Ports) -> Result<()> {
    for &port in &wanted.tcp {
        if listening.tcp.contains(&port) {
            continue;
        }
        for &address in &shared.config.bind {
            let listener: TcpListener = open(address, port, Transport::Tcp)
                .with_context(|| format!("cannot listen on TCP {}", SocketAddr::new(address, port)))?
                .into();
            let listener = Arc::new(listener);
            lock(&shared.listeners).push(Arc::clone(&listener));
            let shared = Arc::clone(shared);
            start(move || accept(&shared, &listener))?;
        }
        listening.tcp.insert(port);
    }
    for &port in &wanted.udp {
        if listening.udp.contains(&port) {
            continue;
        }
        for &address in &shared.config.bind {
            let socket: UdpSocket = open(address, port, Transport::Udp)
                .with_context(|| format!("cannot listen on UDP {}", SocketAddr::new(address, port)))?
                .into();
            let shared = Arc::clone(shared);
            start(move || datagrams(&shared, &socket))?;
        }
        listening.udp.insert(port);
    }
    let first = listening.sctp.is_empty() && !wanted.sctp.is_empty();
    lock(&shared.sctp).extend(&wanted.sctp);
    for &address in shared.config.bind.iter().filter(|_| first) {
        let socket = sctp::raw(address.is_ipv6())?;
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, 0)))
            .with_context(|| format!("cannot listen for SCTP on {address}"))?;
        let shared = Arc::clone(shared);
        start(move || {
            let serves = |port| lock(&shared.sctp).contains(&port);
            let reply = |client: SocketAddr, port, text: &str| match own_address(&shared, client) {
                Some(own) => answer(&shared, client, SocketAddr::new(own, port), text).to_string(),
                None => String::new(),
            };
            sctp::serve(&socket, serves, reply);
        })?;
    }
    listening.sctp.extend(&wanted.sctp);
    Ok(())
}

/// Closes all listeners: shutting one down wakes whoever accepts on it.
fn drain(shared: &Shared) {
    shared.draining.store(true, Ordering::SeqCst);
    for listener in std::mem::take(&mut *lock(&shared.listeners)) {
        // It cannot fail on a listening socket; if it did, the test that asked would see connections accepted.
        socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both).unwrap_or_default();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bound socket of one family only: the standard library's IPv6 sockets would take the IPv4 port too.
fn open(address: IpAddr, port: u16, transport: Transport) -> Result<std::os::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = match transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
        Transport::Sctp => anyhow::bail!("this kernel's SCTP is not used"),
    };
    let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if transport == Transport::Tcp {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, port)))?;
    if transport == Transport::Tcp {
        socket::listen(&socket, Backlog::new(1024)?)?;
    }
    Ok(socket)
}

fn start(body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().stack_size(128 << 10).spawn(body).context("cannot start a thread")?;
    Ok(())
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        match listener.accept() {
            Ok((stream, client)) => {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let worker = Arc::clone(shared);
                // A client that goes away in the middle is its own business; so is one more than there are threads for.
                worker.open.fetch_add(1, Ordering::Relaxed);
                let talk = move || {
                    converse(&worker, &stream, client).unwrap_or_default();
                    // Closed before it is counted as closed.
                    drop(stream);
                    worker.open.fetch_sub(1, Ordering::Relaxed);
                };
                if start(talk).is_err() {
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                }
            }
            Err(_) if shared.draining.load(Ordering::SeqCst) => return,
            // Out of descriptors, or the client left before it was accepted: try again, but not at full speed.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// One TCP connection: requests of HTTP or raw lines, told apart by each first line.
fn converse(shared: &Shared, stream: &TcpStream, client: SocketAddr) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let server = stream.local_addr()?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let Some(line) = read_line(&mut reader)? else { return Ok(()) };
        match http_path(&line) {
            Some(path) => {
                let headers = read_headers(&mut reader)?;
                let body = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
                io::copy(&mut reader.by_ref().take(body), &mut io::sink())?;
                let close = shared.draining.load(Ordering::SeqCst);
                respond(shared, writer, &path, client, server, close)?;
                let close = close || headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
                if close || line.ends_with("HTTP/1.0") {
                    return Ok(());
                }
            }
            None => {
                let last = shared.draining.load(Ordering::SeqCst);
                writeln!(writer, "{}", answer(shared, client, server, &line))?;
                if last {
                    return Ok(());
                }
            }
        }
    }
}

fn respond(
    shared: &Shared,
    mut out: &TcpStream,
    path: &str,
    client: SocketAddr,
    server: SocketAddr,
    close: bool,
) -> io::Result<()> {
    if let Some(length) = path.strip_prefix("/bytes/").and_then(|n| n.parse::<u64>().ok()) {
        write!(out, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n")?;
        return io::copy(&mut io::repeat(b'n').take(length), &mut out).map(drop);
    }
    let body = match path {
        "/healthz" => "ok\n".to_owned(),
        "/client" => format!("{client}\n"),
        path => format!("{}\n", answer(shared, client, server, path)),
    };
    // A client that is told so does not send another request into a connection that is about to end.
    let end = if close { "Connection: close\r\n" } else { "" };
    // One write, so that small answers are one segment.
    let length = body.len();
    out.write_all(
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{end}Content-Length: {length}\r\n\r\n{body}")
            .as_bytes(),
    )
}

fn datagrams(shared: &Shared, socket: &UdpSocket) {
    let mut buffer = vec![0; 65536];
    loop {
        // An error here is a client's ICMP message about an earlier answer: nothing to do about it.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        shared.datagrams.fetch_add(1, Ordering::Relaxed);
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        let port = socket.local_addr().map_or(0, |address| address.port());
        let Some(own) = own_address(shared, client) else { continue };
        let line = answer(shared, client, SocketAddr::new(own, port), text.lines().next().unwrap_or_default());
        // The client may be gone; it will not miss the answer.
        socket.send_to(format!("{line}\n").as_bytes(), client).unwrap_or_default();
    }
}

/// The pod's address of the client's family.
fn own_address(shared: &Shared, client: SocketAddr) -> Option<IpAddr> {
    shared.config.addresses.iter().find(|own| own.is_ipv4() == client.is_ipv4()).copied()
}

fn answer(shared: &Shared, client: SocketAddr, server: SocketAddr, echo: &str) -> Answer {
    Answer { pod: shared.config.pod.clone(), client, server, echo: echo.chars().take(200).collect() }
}

/// A line without its end; `None` at the end of the stream.
fn read_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()))
}

fn read_headers(reader: &mut impl BufRead) -> io::Result<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    while let Some(line) = read_line(reader)? {
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(headers)
}

/// The path, if the line is the first of an HTTP/1 request.
fn http_path(line: &str) -> Option<String> {
    let mut words = line.split(' ');
    let (_method, path, version) = (words.next()?, words.next()?, words.next()?);
    (version.starts_with("HTTP/1.") && words.next().is_none()).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::http_path;

    #[test]
    fn http_is_told_from_lines() {
        assert_eq!(http_path("GET /bytes/7 HTTP/1.1").as_deref(), Some("/bytes/7"));
        assert_eq!(http_path("GET /bytes/7"), None);
        assert_eq!(http_path("hello there you"), None);
    }
}
