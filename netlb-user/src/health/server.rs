//! The thread that listens: opens and closes ports as the table says, answers, and tries again what could not be opened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::answer::Answerer;
use super::proxy::{Clock, ProxyHealth};
use super::table::Table;
use crate::model::{Family, ServiceName};

/// A port that cannot be opened is tried again after this.
const RETRY: Duration = Duration::from_secs(5);
/// A connection without a question is closed after this.
const SILENCE: Duration = Duration::from_secs(60);
/// Connections at a time, over all ports. One more, and the oldest is closed: whoever holds many open keeps nobody from asking.
const CONNECTIONS: usize = 256;
/// Connections that wait to be accepted, a port.
const BACKLOG: i32 = 128;
/// After a failed accept (out of file descriptors), so that it is not asked again at once.
const BREATH: Duration = Duration::from_millis(100);

/// What a port is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Site {
    /// `/healthz` and `/livez` of the proxy.
    Proxy,
    /// A Service's `healthCheckNodePort`.
    Service(ServiceName),
}

/// What became of the ports that are wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Opened {
    pub open: BTreeSet<(SocketAddr, Site)>,
    /// With the reason, in words.
    pub failed: BTreeMap<(SocketAddr, Site), String>,
}

/// What the thread begins with.
pub(super) struct Start {
    pub(super) at: Option<SocketAddr>,
    pub(super) table: watch::Receiver<Table>,
    pub(super) proxy: Arc<Mutex<ProxyHealth>>,
    pub(super) clock: Clock,
}

impl Start {
    /// Starts the thread, which ends when nobody can change the table any more; returns what it opened, kept up to date.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn run(self, changed: impl Fn() + Send + 'static) -> io::Result<watch::Receiver<Opened>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (report, opened) = watch::channel(Opened::default());
        let keeper = Keeper { start: self, open: BTreeMap::new(), connections: Arc::default() };
        std::thread::Builder::new()
            .name("health".to_owned())
            .spawn(move || runtime.block_on(keeper.keep(&report, changed)))?;
        Ok(opened)
    }
}

/// Keeps the ports open that are wanted.
struct Keeper {
    start: Start,
    open: BTreeMap<(SocketAddr, Site), JoinHandle<()>>,
    connections: Arc<Connections>,
}

impl Keeper {
    async fn keep(mut self, report: &watch::Sender<Opened>, changed: impl Fn()) {
        loop {
            let failed = self.sync().await;
            let again = !failed.is_empty();
            let opened = Opened { open: self.open.keys().cloned().collect(), failed };
            let news = report.send_if_modified(|last| {
                let news = *last != opened;
                *last = opened;
                news
            });
            if news {
                changed();
            }
            let ended = if again {
                matches!(timeout(RETRY, self.start.table.changed()).await, Ok(Err(_)))
            } else {
                self.start.table.changed().await.is_err()
            };
            if ended {
                // Ports are free before anybody can notice the end.
                let all: Vec<_> = self.open.keys().cloned().collect();
                return self.close(all).await;
            }
        }
    }

    /// Closes first: a port may pass from one Service to the next. Returns what could not be opened.
    async fn sync(&mut self) -> BTreeMap<(SocketAddr, Site), String> {
        let wanted = self.wanted();
        let gone: Vec<_> = self.open.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        self.close(gone).await;
        let mut failed = BTreeMap::new();
        for key in wanted {
            if self.open.contains_key(&key) {
                continue;
            }
            match listen(key.0) {
                Ok(listener) => {
                    tracing::debug!(at = %key.0, site = ?key.1, "health port opened");
                    let answerer = Answerer {
                        site: key.1.clone(),
                        table: self.start.table.clone(),
                        proxy: Arc::clone(&self.start.proxy),
                        clock: Arc::clone(&self.start.clock),
                    };
                    let task = tokio::spawn(serve(listener, answerer, Arc::clone(&self.connections)));
                    self.open.insert(key, task);
                }
                Err(error) => {
                    failed.insert(key, error.to_string());
                }
            }
        }
        failed
    }

    async fn close(&mut self, keys: Vec<(SocketAddr, Site)>) {
        for key in keys {
            if let Some(listener) = self.open.remove(&key) {
                listener.abort();
                // Its end is the only result there can be.
                drop(listener.await);
                tracing::debug!(at = %key.0, site = ?key.1, "health port closed");
            }
        }
    }

    fn wanted(&mut self) -> BTreeSet<(SocketAddr, Site)> {
        let table = self.start.table.borrow_and_update();
        let services = table.listeners().map(|(name, addr, port)| ((addr, port).into(), Site::Service(name.clone())));
        services.chain(self.start.at.map(|at| (at, Site::Proxy))).collect()
    }
}

/// An unspecified address of either family means every address of both, as it does in Go.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
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

/// Accepts until it is aborted; its connections end with it.
async fn serve(listener: TcpListener, answerer: Answerer, connections: Arc<Connections>) {
    let mut own = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.hold(own.spawn(converse(stream, answerer.clone()))),
            Err(error) => {
                tracing::debug!("a health check's connection cannot be accepted: {error}");
                sleep(BREATH).await;
            }
        }
        while own.try_join_next().is_some() {}
    }
}

/// One connection, any number of questions.
async fn converse(stream: TcpStream, answerer: Answerer) {
    let Ok(here) = stream.local_addr() else { return };
    let family = Family::of(here.ip().to_canonical());
    let service = service_fn(move |request| {
        let answer = answerer.answer(&request, family);
        async move { Ok::<_, Infallible>(answer.into_response()) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::trace!("a health check's connection ended: {error}");
    }
}

/// All connections there are, the oldest first.
#[derive(Default)]
struct Connections(Mutex<VecDeque<AbortHandle>>);

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
