//! The thread that listens: opens and closes ports as the table says, answers, and tries again what could not be opened.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Listen;
use super::answer::Answerer;
use super::proxy::{Clock, ProxyHealth};
use super::table::Table;
use crate::http::{self, Connections};
use crate::model::ServiceName;

/// A port that cannot be opened is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// What a port is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Site {
    /// `/healthz` and `/livez` of the proxy.
    Proxy,
    /// `/metrics` and its like, which another room answers.
    Pages,
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
    pub(super) listen: Listen,
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
            match http::listen(key.0) {
                Ok(listener) => {
                    tracing::debug!(at = %key.0, site = ?key.1, "health port opened");
                    let answerer = self.answerer(key.1.clone());
                    let connections = Arc::clone(&self.connections);
                    let answer = move |question: http::Question<'_>| answerer.answer(question);
                    self.open.insert(key, tokio::spawn(http::serve(listener, answer, connections)));
                }
                Err(error) => {
                    failed.insert(key, error.to_string());
                }
            }
        }
        failed
    }

    fn answerer(&self, site: Site) -> Answerer {
        Answerer {
            site,
            table: self.start.table.clone(),
            proxy: Arc::clone(&self.start.proxy),
            clock: Arc::clone(&self.start.clock),
            pages: self.start.listen.pages.as_ref().map(|(_, pages)| Arc::clone(pages)),
            probed: Arc::clone(&self.start.listen.probed),
        }
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
        let Listen { healthz, pages, .. } = &self.start.listen;
        let own = [healthz.map(|at| (at, Site::Proxy)), pages.as_ref().map(|(at, _)| (*at, Site::Pages))];
        services.chain(own.into_iter().flatten()).collect()
    }
}
