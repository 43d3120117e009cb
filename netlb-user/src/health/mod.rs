//! What load balancers and kubelet's probes are told over HTTP, in kube-proxy's words (`pkg/proxy/healthcheck` of Kubernetes 1.36): a port a Service
//! with `healthCheckNodePort`, and the proxy's own `/healthz` and `/livez`.
//!
//! One thread serves all of it, and the pages of [`metrics`](crate::metrics) beside. The loop that plans and writes only leaves word here and never waits; a packet needs none of it.

mod answer;
mod feed;
mod proxy;
mod server;
mod table;
mod view;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::http::{Answer, Question};
use crate::model::{Family, NodeName, Problem, ServiceName, World};
use crate::observe::status::{HealthPortStatus, HealthStatus};

pub use feed::Feed;
pub use proxy::{Clock, Moment, ProxyHealth, system_clock};
pub use server::{Opened, Site};
pub use table::{Addresses, HealthPort, Ready, Table};

/// A change that waits longer than this makes the proxy unhealthy: twice kube-proxy's `syncPeriod`.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// The port of `/healthz` and `/livez` where none is given.
pub const PORT: u16 = 10256;
/// The port of `/metrics` and its like where none is given.
pub const PAGES_PORT: u16 = 10249;

/// Answers on the port of `/metrics`.
pub type Pages = Arc<dyn Fn(Question<'_>) -> Answer + Send + Sync>;

/// Hears of each question to the proxy's own port, and the status of the answer.
pub type Probed = Arc<dyn Fn(Probe, u16) + Send + Sync>;

/// A question to the proxy's own port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    Healthz,
    Livez,
}

/// The agent's own ports, beside those of Services.
#[derive(Clone)]
pub struct Listen {
    /// Where `/healthz` and `/livez` answer, if anywhere.
    pub healthz: Option<SocketAddr>,
    pub probed: Probed,
    /// Where pages answer, if anywhere.
    pub pages: Option<(SocketAddr, Pages)>,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Tells the servers what to answer. Clones speak to the same servers, which end with the last of them.
#[derive(Clone)]
pub struct Health {
    table: watch::Sender<Table>,
    proxy: Arc<Mutex<ProxyHealth>>,
    opened: watch::Receiver<Opened>,
    clock: Clock,
}

impl Health {
    /// Starts the servers. `changed` is called in their thread whenever [`opened`](Self::opened) says something new.
    ///
    /// # Errors
    /// If the thread cannot be made.
    pub fn start(
        listen: Listen,
        timeout: Duration,
        clock: Clock,
        changed: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let table = watch::Sender::new(Table::default());
        let proxy = Arc::new(Mutex::new(ProxyHealth::new(timeout)));
        let server =
            server::Start { listen, table: table.subscribe(), proxy: Arc::clone(&proxy), clock: Arc::clone(&clock) };
        let opened = server.run(changed)?;
        Ok(Health { table, proxy, opened, clock })
    }

    /// A change was read that is not in the maps yet.
    pub fn queued(&self, family: Family) {
        self.proxy().queued(family, (self.clock)());
    }

    /// Everything read is in the maps.
    pub fn updated(&self, family: Family) {
        self.proxy().updated(family, (self.clock)());
    }

    /// [`queued`](Self::queued) for both families: netlb applies a change to both or to none.
    pub fn all_queued(&self) {
        FAMILIES.into_iter().for_each(|family| self.queued(family));
    }

    /// [`updated`](Self::updated) for both families.
    pub fn all_updated(&self) {
        FAMILIES.into_iter().for_each(|family| self.updated(family));
    }

    /// Whether load balancers may send to this node at all.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.proxy().set_node_eligible(eligible);
    }

    /// [`set_node_eligible`](Self::set_node_eligible) by what this node's Node says.
    pub fn see_node(&self, world: &World, here: &NodeName) {
        self.set_node_eligible(view::is_eligible(world, here));
    }

    /// Opens the ports of Services that came, closes those of Services that went; a new one has no endpoints yet.
    pub fn sync_services(&self, ports: BTreeMap<ServiceName, HealthPort>) {
        self.table.send_if_modified(|table| table.sync_services(ports));
    }

    /// How many endpoints each Service has on this node; none where nothing is said, and no matter if it has no port.
    pub fn sync_endpoints(&self, ready: &BTreeMap<ServiceName, Ready>) {
        self.table.send_if_modified(|table| table.sync_endpoints(ready));
    }

    /// Where the Services' ports are opened.
    pub fn set_addresses(&self, addresses: Addresses) {
        self.table.send_if_modified(|table| table.set_addresses(addresses));
    }

    /// Which ports are open, and which cannot be opened; as of the servers' last look.
    pub fn opened(&self) -> Opened {
        self.opened.borrow().clone()
    }

    /// What the ports of Services answer, and where.
    pub fn status(&self) -> HealthStatus {
        let (table, opened) = (self.table.borrow(), self.opened.borrow());
        let open_on = |site: &Site| -> Vec<SocketAddr> {
            opened.open.iter().filter(|(_, open)| open == site).map(|(at, _)| *at).collect()
        };
        let ports = table.services().map(|(name, port)| HealthPortStatus {
            service: name.to_string(),
            port: port.port,
            ready: port.families.iter().map(|family| (family.name().to_owned(), table.ready(name, *family))).collect(),
            open_on: open_on(&Site::Service(name.clone())),
        });
        let first = |site| open_on(site).first().copied();
        HealthStatus { healthz: first(&Site::Proxy), metrics: first(&Site::Pages), ports: ports.collect() }
    }

    /// Ports that Services ask for and that cannot be opened.
    pub fn problems(&self, world: &World) -> Vec<Problem> {
        let opened = self.opened.borrow();
        opened.failed.iter().filter_map(|((at, site), reason)| view::problem(world, site, *at, reason)).collect()
    }

    /// Why the agent's own ports are not answered, in words.
    pub fn notes(&self) -> Vec<String> {
        let opened = self.opened.borrow();
        let note = |((at, site), reason): (&(SocketAddr, Site), &String)| {
            let (what, flag) = match site {
                Site::Proxy => ("/healthz and /livez", "healthz-bind-address"),
                Site::Pages => ("/metrics, /proxyMode and /configz", "metrics-bind-address"),
                Site::Service(_) => return None,
            };
            Some(format!(
                "{what} cannot be answered on {at}: {reason}; end what listens there (kube-proxy?) or choose another address with --{flag}; it is tried again"
            ))
        };
        opened.failed.iter().filter_map(note).collect()
    }

    fn proxy(&self) -> MutexGuard<'_, ProxyHealth> {
        self.proxy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
