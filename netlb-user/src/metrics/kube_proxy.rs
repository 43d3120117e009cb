//! kube-proxy's metrics (`pkg/proxy/metrics/metrics.go` of Kubernetes 1.36): names, labels and buckets. Those of rules and of netfilter have no
//! meaning here and stay at 0, so that alerts on them find what they look for.

use std::time::Duration;

use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Result};
use prometheus::{exponential_buckets, linear_buckets};

use super::make::Maker;
use crate::model::Family;

const IP_FAMILY: [&str; 1] = ["ip_family"];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// `traffic_policy` of Service ports without an endpoint here.
pub(super) const INTERNAL: &str = "internal";
pub(super) const EXTERNAL: &str = "external";

#[derive(Clone)]
pub(super) struct KubeProxy {
    sync: HistogramVec,
    sync_full: HistogramVec,
    sync_partial: HistogramVec,
    last: GaugeVec,
    last_queued: GaugeVec,
    latency: HistogramVec,
    pub(super) endpoint_changes: IntCounter,
    pub(super) endpoint_changes_pending: IntGauge,
    pub(super) service_changes: IntCounter,
    pub(super) service_changes_pending: IntGauge,
    no_local: IntGaugeVec,
    pub(super) healthz: IntCounterVec,
    pub(super) livez: IntCounterVec,
    reconciler: HistogramVec,
    reconciler_deleted: IntCounterVec,
}

impl KubeProxy {
    pub(super) fn new(maker: &Maker<'_>) -> Result<Self> {
        let families = || FAMILIES.map(|family| [family.kubernetes()]);
        let rounds = |name, help| maker.histograms(name, help, round_buckets()?, IP_FAMILY, families());
        let codes = [["200"], ["503"]];
        let policies = FAMILIES.into_iter().flat_map(|f| [[INTERNAL, f.kubernetes()], [EXTERNAL, f.kubernetes()]]);
        idle(maker)?;
        Ok(KubeProxy {
            sync: rounds(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "From the news of a change to the end of its writes to the maps (for both families at once)",
            )?,
            sync_full: rounds(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "The same, of rounds in which the source was read whole for the first time",
            )?,
            sync_partial: rounds("kubeproxy_sync_partial_proxy_rules_duration_seconds", "The same, of all other rounds")?,
            last: maker.floats(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When all that is known was last seen to be in effect",
                IP_FAMILY,
                families(),
            )?,
            last_queued: maker.floats(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a change was last heard of; much later than the last sync, it says that something hangs",
                IP_FAMILY,
                families(),
            )?,
            latency: maker.histograms(
                "kubeproxy_network_programming_duration_seconds",
                "From what changed a Service's endpoints (annotation endpoints.kubernetes.io/last-change-trigger-time) to its effect here",
                latency_buckets()?,
                IP_FAMILY,
                families(),
            )?,
            endpoint_changes: maker.counter(
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "Changes of EndpointSlices heard of",
            )?,
            endpoint_changes_pending: maker.gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Changes of EndpointSlices that are not in effect yet",
            )?,
            service_changes: maker
                .counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services heard of")?,
            service_changes_pending: maker.gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Services whose change is not in effect yet",
            )?,
            no_local: maker.gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Service ports whose traffic policy is Local and that have endpoints only on other nodes",
                ["traffic_policy", "ip_family"],
                policies,
            )?,
            healthz: maker.counters(
                "kubeproxy_proxy_healthz_total",
                "Answers to /healthz of the health port, by HTTP status",
                ["code"],
                codes,
            )?,
            livez: maker.counters(
                "kubeproxy_proxy_livez_total",
                "Answers to /livez of the health port, by HTTP status",
                ["code"],
                codes,
            )?,
            reconciler: rounds(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "Sweeps over netlb's connections, from begin to end (for both families at once)",
            )?,
            reconciler_deleted: maker.counters(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "Connections removed because their backend serves no more",
                IP_FAMILY,
                families(),
            )?,
        })
    }

    /// A round of work that applied changes.
    pub(super) fn synced(&self, took: Duration, full: bool) {
        let kind = if full { &self.sync_full } else { &self.sync_partial };
        for family in FAMILIES {
            for histogram in [&self.sync, kind] {
                histogram.with_label_values(&[family.kubernetes()]).observe(took.as_secs_f64());
            }
        }
    }

    /// Everything known is in effect, at this time since 1970.
    pub(super) fn in_effect(&self, now: Duration) {
        for family in FAMILIES {
            self.last.with_label_values(&[family.kubernetes()]).set(now.as_secs_f64());
        }
    }

    /// A change was heard of.
    pub(super) fn queued(&self, now: Duration) {
        for family in FAMILIES {
            self.last_queued.with_label_values(&[family.kubernetes()]).set(now.as_secs_f64());
        }
    }

    /// A change of endpoints took so long to take effect.
    pub(super) fn programmed(&self, family: Family, took: Duration) {
        self.latency.with_label_values(&[family.kubernetes()]).observe(took.as_secs_f64());
    }

    /// So many Service ports have endpoints only elsewhere.
    pub(super) fn no_local(&self, policy: &'static str, family: Family, count: usize) {
        self.no_local.with_label_values(&[policy, family.kubernetes()]).set(count as i64);
    }

    /// A sweep over the connections is over.
    pub(super) fn swept(&self, took: Duration) {
        for family in FAMILIES {
            self.reconciler.with_label_values(&[family.kubernetes()]).observe(took.as_secs_f64());
        }
    }

    /// It removed so many whose backend serves no more.
    pub(super) fn removed(&self, family: Family, entries: usize) {
        self.reconciler_deleted.with_label_values(&[family.kubernetes()]).inc_by(entries as u64);
    }
}

/// Metrics of netfilter's rules: netlb has none, and they stay at 0.
fn idle(maker: &Maker<'_>) -> Result<()> {
    const HELP: &str = "Always 0: netlb has no such rules";
    let families = || FAMILIES.map(|family| [family.kubernetes()]);
    for name in [
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
        "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
    ] {
        maker.counters(name, HELP, IP_FAMILY, families())?;
    }
    let tables = || FAMILIES.into_iter().flat_map(|f| [["filter", f.kubernetes()], ["nat", f.kubernetes()]]);
    for name in ["kubeproxy_sync_proxy_rules_iptables_total", "kubeproxy_sync_proxy_rules_iptables_last"] {
        maker.gauges(name, HELP, ["table", "ip_family"], tables())?;
    }
    for name in [
        "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
        "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
    ] {
        maker.counter(name, HELP)?;
    }
    Ok(())
}

/// 1 ms to 16 s, each twice the one before.
fn round_buckets() -> Result<Vec<f64>> {
    exponential_buckets(0.001, 2.0, 15)
}

/// Of SIG Scalability's network programming latency: fine up to a minute, coarse up to five.
fn latency_buckets() -> Result<Vec<f64>> {
    let parts = [(0.25, 0.25, 2), (1.0, 1.0, 59), (60.0, 5.0, 12), (120.0, 30.0, 7)];
    let buckets = parts.map(|(from, width, count)| linear_buckets(from, width, count));
    Ok(buckets.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_kube_proxys() {
        let rounds = round_buckets().expect("good numbers");
        assert_eq!((rounds.len(), rounds[0], rounds[14]), (15, 0.001, 16.384));
        let latency = latency_buckets().expect("good numbers");
        assert_eq!(latency.len(), 2 + 59 + 12 + 7);
        assert!(latency.is_sorted());
        assert_eq!(latency[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(latency[59..63], [58.0, 59.0, 60.0, 65.0]);
        assert_eq!(latency[71..], [110.0, 115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0][..]);
    }
}
