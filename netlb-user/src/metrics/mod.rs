//! What can be counted, for Prometheus and for people who look: `/metrics`, and the pages beside it.
//!
//! kube-proxy's metrics keep their names ([`kube_proxy`]), so that dashboards and alerts go on as they are; netlb's own stand beside them
//! ([`own`]). All labels have few values, known beforehand: every series is there from the start, at 0 if nothing happened; only those of the API
//! server ([`rest_client`]) come with the first question to it.

mod feed;
mod kube_proxy;
mod latency;
mod make;
mod own;
mod pages;
mod rest_client;

use std::sync::Arc;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};

use crate::health::{Probe, Probed};
use crate::k8s::cluster::OnAsked;
use kube_proxy::KubeProxy;
use make::Maker;
use own::Own;
use rest_client::RestClient;

pub use feed::{Feed, Seen};
pub use own::Packets;
pub use pages::Pages;

/// Prometheus' classic text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics. Clones count into the same.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    kube_proxy: KubeProxy,
    own: Own,
    rest_client: RestClient,
}

impl Metrics {
    /// All at 0. `packets`: counters of the datapath, if there is one.
    ///
    /// # Errors
    /// Two metrics of one name, or a name that cannot be.
    pub fn new(packets: Option<Packets>) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let maker = Maker { registry: &registry };
        let (kube_proxy, own) = (KubeProxy::new(&maker)?, Own::new(&maker, packets.map(Arc::new))?);
        let rest_client = RestClient::new(&maker)?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Metrics { registry, kube_proxy, own, rest_client })
    }

    /// How many entries maps have room for, by name.
    pub fn set_capacities(&self, capacities: impl Iterator<Item = (&'static str, u32)>) {
        self.own.set_capacities(capacities);
    }

    /// Everything, as it is now, in the text format.
    ///
    /// # Errors
    /// A metric that cannot be written.
    pub fn text(&self) -> prometheus::Result<String> {
        self.own.look();
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Counts questions to the proxy's own port.
    pub fn probed(&self) -> Probed {
        let kube_proxy = self.kube_proxy.clone();
        Arc::new(move |probe, status| match probe {
            Probe::Healthz => kube_proxy.healthz.with_label_values(&[status.to_string()]).inc(),
            Probe::Livez => kube_proxy.livez.with_label_values(&[status.to_string()]).inc(),
        })
    }

    /// Counts questions to the API server.
    pub fn asked(&self) -> OnAsked {
        let rest_client = self.rest_client.clone();
        Arc::new(move |asked| rest_client.asked(asked))
    }
}
