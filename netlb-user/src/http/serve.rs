//! Listening, and conversations.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::Answer;
use crate::model::Family;

/// A connection without a question is closed after this.
const SILENCE: Duration = Duration::from_secs(60);
/// Connections at a time, over all ports. One more, and the oldest is closed: whoever holds many open keeps nobody from asking.
const CONNECTIONS: usize = 256;
/// Connections that wait to be accepted, a port.
const BACKLOG: i32 = 128;
/// After a failed accept (out of file descriptors), so that it is not asked again at once.
const BREATH: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub method: &'a Method,
    /// Without what follows a question mark.
    pub path: &'a str,
    /// By which the question came.
    pub family: Family,
}

/// An unspecified address of either family means every address of both, as it does in Go.
///
/// # Errors
/// The kernel's.
pub fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    if !at.ip().is_unspecified() {
        return bind(at);
    }
    match bind(SocketAddr::new(IpAddr::from(Ipv6Addr::UNSPECIFIED), at.port())) {
        // No IPv6 in this kernel.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), at.port()))
        }
        bound => bound,
    }
}

fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(!at.ip().is_unspecified())?;
    }
    // Connections that the last agent closed may still wait for their end.
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until it is aborted; its connections end with it. `answer` is asked in this thread and shall not wait.
pub async fn serve<A>(listener: TcpListener, answer: A, connections: Arc<Connections>)
where
    A: Fn(Question<'_>) -> Answer + Clone + Send + 'static,
{
    let mut own = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.hold(own.spawn(converse(stream, answer.clone()))),
            Err(error) => {
                tracing::debug!("a connection cannot be accepted: {error}");
                sleep(BREATH).await;
            }
        }
        while own.try_join_next().is_some() {}
    }
}

/// One connection, any number of questions.
async fn converse(stream: TcpStream, answer: impl Fn(Question<'_>) -> Answer) {
    let Ok(here) = stream.local_addr() else { return };
    let family = Family::of(here.ip().to_canonical());
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(Question { method: request.method(), path: request.uri().path(), family });
        async move { Ok::<_, Infallible>(answer.into_response()) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::trace!("a connection ended: {error}");
    }
}

/// All connections there are, the oldest first.
#[derive(Default)]
pub struct Connections(Mutex<VecDeque<AbortHandle>>);

impl Connections {
    /// Takes a new one in; the oldest goes if there are too many.
    fn hold(&self, connection: AbortHandle) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= CONNECTIONS {
            all.retain(|connection| !connection.is_finished());
        }
        if all.len() >= CONNECTIONS
            && let Some(oldest) = all.pop_front()
        {
            oldest.abort();
        }
        all.push_back(connection);
    }
}
