//! kube-proxy's own configuration file (KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1, as of Kubernetes 1.36) as settings of netlb.
//!
//! Every field is known, with its type. What still has a meaning becomes a setting; whatever else is set is accepted, with a line that says so. A
//! field that is none is named with its line and passed over, as by kube-proxy, which falls back to lenient decoding for v1alpha1: a cluster's file
//! that kube-proxy has started with for years starts netlb too. A value of the wrong type is an error, as for kube-proxy.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::Settings;
use crate::devices::detector;
use crate::health;
use crate::model::Scheduler;

/// Tells the document from netlb's own file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub const KIND: &str = "KubeProxyConfiguration";

/// A part of the document: its fields by kube-proxy's names. `null` means absent, as in Go.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($key:literal $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {
            $(#[serde(rename = $key, deserialize_with = "nullable")] pub $field: $type,)*
        }
    };
}

section! {
    /// The whole document.
    KubeProxyConfiguration {
        "apiVersion" api_version: String,
        "kind" kind: String,
        "featureGates" feature_gates: BTreeMap<String, bool>,
        "clientConnection" client_connection: ClientConnection,
        "logging" logging: Logging,
        "hostnameOverride" hostname_override: String,
        "bindAddress" bind_address: String,
        "healthzBindAddress" healthz_bind_address: String,
        "metricsBindAddress" metrics_bind_address: String,
        "bindAddressHardFail" bind_address_hard_fail: bool,
        "enableProfiling" enable_profiling: bool,
        "showHiddenMetricsForVersion" show_hidden_metrics_for_version: String,
        "mode" mode: String,
        "iptables" iptables: Iptables,
        "ipvs" ipvs: Ipvs,
        "nftables" nftables: Nftables,
        "winkernel" winkernel: Winkernel,
        "detectLocalMode" detect_local_mode: String,
        "detectLocal" detect_local: DetectLocal,
        "clusterCIDR" cluster_cidr: String,
        "nodePortAddresses" node_port_addresses: Vec<String>,
        "oomScoreAdj" oom_score_adj: Option<i32>,
        "conntrack" conntrack: Conntrack,
        "configSyncPeriod" config_sync_period: Period,
        "portRange" port_range: String,
        "windowsRunAsService" windows_run_as_service: bool,
    }
}

section! { ClientConnection {
    "kubeconfig" kubeconfig: String,
    "acceptContentTypes" accept_content_types: String,
    "contentType" content_type: String,
    "qps" qps: f32,
    "burst" burst: i32,
} }

section! {
    /// component-base's, shared by all of Kubernetes.
    Logging {
        "format" format: String,
        "flushFrequency" flush_frequency: Value,
        "verbosity" verbosity: u32,
        "vmodule" vmodule: Vec<Value>,
        "options" options: BTreeMap<String, Value>,
    }
}

section! { Iptables {
    "masqueradeBit" masquerade_bit: Option<i32>,
    "masqueradeAll" masquerade_all: bool,
    "localhostNodePorts" localhost_node_ports: Option<bool>,
    "syncPeriod" sync_period: Period,
    "minSyncPeriod" min_sync_period: Period,
} }

section! { Ipvs {
    "syncPeriod" sync_period: Period,
    "minSyncPeriod" min_sync_period: Period,
    "scheduler" scheduler: String,
    "excludeCIDRs" exclude_cidrs: Vec<String>,
    "strictARP" strict_arp: bool,
    "tcpTimeout" tcp_timeout: Period,
    "tcpFinTimeout" tcp_fin_timeout: Period,
    "udpTimeout" udp_timeout: Period,
} }

section! { Nftables {
    "masqueradeBit" masquerade_bit: Option<i32>,
    "masqueradeAll" masquerade_all: bool,
    "syncPeriod" sync_period: Period,
    "minSyncPeriod" min_sync_period: Period,
} }

section! { Winkernel {
    "networkName" network_name: String,
    "sourceVip" source_vip: String,
    "enableDSR" enable_dsr: bool,
    "rootHnsEndpointName" root_hns_endpoint_name: String,
    "forwardHealthCheckVip" forward_health_check_vip: bool,
} }

section! { DetectLocal {
    "bridgeInterface" bridge_interface: String,
    "interfaceNamePrefix" interface_name_prefix: String,
} }

section! { Conntrack {
    "maxPerCore" max_per_core: Option<i32>,
    "min" min: Option<i32>,
    "tcpEstablishedTimeout" tcp_established_timeout: Option<Period>,
    "tcpCloseWaitTimeout" tcp_close_wait_timeout: Option<Period>,
    "tcpBeLiberal" tcp_be_liberal: bool,
    "udpTimeout" udp_timeout: Period,
    "udpStreamTimeout" udp_stream_timeout: Period,
} }

/// A duration as Go writes it (`1h0m0s`). netlb acts on none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Period(pub String);

impl Default for Period {
    fn default() -> Self {
        Period("0s".to_owned())
    }
}

fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

const AT_ONCE: &str = "netlb applies every change as it comes";
const WINDOWS: &str = "it is for Windows";
const OWN_TABLE: &str =
    "netlb's flows are in a table of its own, not in the kernel's conntrack; --max-conntrack is its size";
const OWN_TIMEOUTS: &str = "netlb's flows are in a table of its own, with kube-proxy's default timeouts (a TCP connection's: 24 hours, an hour once one end has closed)";
const NO_RULES: &str = "netlb has no rules, so nothing needs a mark";
const NO_LIMIT: &str = "netlb asks the API server for lists, watches and few Events, which need no limit";
const NO_CONTENT: &str = "netlb asks for what it reads";

/// Every field of the document, and why netlb does nothing with it (`None`: it is honoured).
pub const FIELDS: &[(&str, Option<&str>)] = &[
    ("featureGates", Some("netlb has none")),
    ("clientConnection.kubeconfig", None),
    ("clientConnection.acceptContentTypes", Some(NO_CONTENT)),
    ("clientConnection.contentType", Some(NO_CONTENT)),
    ("clientConnection.qps", Some(NO_LIMIT)),
    ("clientConnection.burst", Some(NO_LIMIT)),
    ("logging.format", Some("netlb logs text")),
    ("logging.flushFrequency", Some("netlb does not hold lines back")),
    ("logging.verbosity", None),
    ("logging.vmodule", Some("--log-level takes a filter by module")),
    ("logging.options", Some("netlb logs text")),
    ("hostnameOverride", None),
    ("bindAddress", None),
    ("healthzBindAddress", None),
    ("metricsBindAddress", None),
    ("bindAddressHardFail", Some("a port that cannot be opened is tried again, and `netlb status` says so")),
    ("enableProfiling", Some("netlb has no profiler")),
    ("showHiddenMetricsForVersion", Some("netlb hides no metrics")),
    ("mode", Some("netlb has one way, with the behaviour of mode nftables; --proxy-mode sets what /proxyMode answers")),
    ("iptables.masqueradeBit", Some(NO_RULES)),
    ("iptables.masqueradeAll", None),
    ("iptables.localhostNodePorts", Some("add localhost to nodePortAddresses (netlb serves both families there)")),
    ("iptables.syncPeriod", Some(AT_ONCE)),
    ("iptables.minSyncPeriod", Some(AT_ONCE)),
    ("ipvs.syncPeriod", Some(AT_ONCE)),
    ("ipvs.minSyncPeriod", Some(AT_ONCE)),
    ("ipvs.scheduler", None),
    ("ipvs.excludeCIDRs", Some("netlb leaves all of IPVS alone")),
    ("ipvs.strictARP", Some("netlb puts no Service's address on a device")),
    ("ipvs.tcpTimeout", Some(OWN_TIMEOUTS)),
    ("ipvs.tcpFinTimeout", Some(OWN_TIMEOUTS)),
    ("ipvs.udpTimeout", Some(OWN_TIMEOUTS)),
    ("nftables.masqueradeBit", Some(NO_RULES)),
    ("nftables.masqueradeAll", None),
    ("nftables.syncPeriod", Some(AT_ONCE)),
    ("nftables.minSyncPeriod", Some(AT_ONCE)),
    ("winkernel.networkName", Some(WINDOWS)),
    ("winkernel.sourceVip", Some(WINDOWS)),
    ("winkernel.enableDSR", Some(WINDOWS)),
    ("winkernel.rootHnsEndpointName", Some(WINDOWS)),
    ("winkernel.forwardHealthCheckVip", Some(WINDOWS)),
    ("detectLocalMode", None),
    ("detectLocal.bridgeInterface", None),
    ("detectLocal.interfaceNamePrefix", None),
    ("clusterCIDR", None),
    ("nodePortAddresses", None),
    ("oomScoreAdj", Some("traffic does not need the agent; set it where the agent is started")),
    ("conntrack.maxPerCore", Some(OWN_TABLE)),
    ("conntrack.min", Some(OWN_TABLE)),
    ("conntrack.tcpEstablishedTimeout", Some(OWN_TIMEOUTS)),
    ("conntrack.tcpCloseWaitTimeout", Some(OWN_TIMEOUTS)),
    ("conntrack.tcpBeLiberal", Some("netlb drops no segment for its sequence number")),
    ("conntrack.udpTimeout", Some(OWN_TIMEOUTS)),
    ("conntrack.udpStreamTimeout", Some(OWN_TIMEOUTS)),
    ("configSyncPeriod", Some(AT_ONCE)),
    ("portRange", Some("kube-proxy does nothing with it either")),
    ("windowsRunAsService", Some(WINDOWS)),
];

/// A document, read.
#[derive(Clone, PartialEq, Debug)]
pub struct Read {
    pub document: KubeProxyConfiguration,
    pub settings: Settings,
    /// What is accepted and does nothing, a line each.
    pub notes: Vec<String>,
    /// What is no field, a line each.
    pub unknown: Vec<String>,
}

/// What a YAML text says it is, if it says so; never an error.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Header {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
}

/// Whether a text is a Kubernetes object of some kind, rather than netlb's own file.
///
/// # Errors
/// If it is one of another kind.
pub fn is_one(text: &str) -> Result<bool, String> {
    let header: Header = serde_norway::from_str(text).unwrap_or_default();
    match (header.api_version.as_deref(), header.kind.as_deref()) {
        (None, None) => Ok(false),
        (Some(API_VERSION), Some(KIND)) => Ok(true),
        (version, kind) => Err(format!(
            "this is {} {}, and netlb reads {API_VERSION} {KIND}, or settings of its own (of a ConfigMap, the file config.conf in it)",
            version.unwrap_or("(no apiVersion)"),
            kind.unwrap_or("(no kind)"),
        )),
    }
}

/// Reads a document.
///
/// # Errors
/// If it is not YAML, or a value is not of its field's type or cannot be: with the field's name, and its line where the type is wrong.
pub fn read(text: &str) -> Result<Read, String> {
    let mut unknown = Vec::new();
    let document: KubeProxyConfiguration =
        serde_ignored::deserialize(serde_norway::Deserializer::from_str(text), |path| {
            let steps = steps(&path);
            let at = line(text, &steps).map_or_else(String::new, |line| format!(" (line {line})"));
            unknown.push(format!("{}{at} is no field of {KIND} {API_VERSION}: it is passed over", steps.join(".")));
        })
        .map_err(|e| e.to_string())?;
    let mut notes = idle(&document);
    let settings = document.settings(&mut notes)?;
    Ok(Read { document, settings, notes, unknown })
}

/// A line for each field that is set and does nothing.
fn idle(document: &KubeProxyConfiguration) -> Vec<String> {
    let all = serde_json::to_value(document).unwrap_or_default();
    let set = |path: &str| all.pointer(&format!("/{}", path.replace('.', "/"))).filter(|value| !is_unset(value));
    let lines = FIELDS.iter().filter_map(|(path, why)| {
        let (why, value) = ((*why)?, set(path)?);
        Some(format!("{path} ({value}) is accepted and does nothing: {why}"))
    });
    lines.collect()
}

/// What Go writes for a field that nobody set.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is) => !is,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0s" || text == "0",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_unset),
    }
}

impl KubeProxyConfiguration {
    fn settings(&self, notes: &mut Vec<String>) -> Result<Settings, String> {
        let bind_address = self.primary_address()?;
        // As kube-proxy: where the node is asked for IPv6, so are its own ports.
        let v6 = bind_address.is_some_and(|addr| addr.is_ipv6());
        let metrics = text(&self.metrics_bind_address).or_else(|| v6.then(|| format!("[::1]:{}", health::PAGES_PORT)));
        let masquerade_all = match self.mode.as_str() {
            "nftables" => self.nftables.masquerade_all,
            _ => self.iptables.masquerade_all,
        };
        let other = if self.mode == "nftables" { self.iptables.masquerade_all } else { self.nftables.masquerade_all };
        if other && !masquerade_all {
            let section = if self.mode == "nftables" { "iptables" } else { "nftables" };
            notes.push(format!("{section}.masqueradeAll counts in mode {section} only, as for kube-proxy"));
        }
        if self.node_port_addresses.is_empty() && self.mode != "nftables" {
            notes.push(
                "nodePortAddresses is not set: netlb serves NodePorts on the node's primary addresses, as mode nftables does, and not on all as other modes do; for all, list 0.0.0.0/0 and ::/0"
                    .to_owned(),
            );
        }
        Ok(Settings {
            kubeconfig: text(&self.client_connection.kubeconfig).map(PathBuf::from),
            node_name: text(&self.hostname_override),
            bind_address: bind_address.filter(|addr| !addr.is_unspecified()),
            healthz_bind_address: text(&self.healthz_bind_address),
            metrics_bind_address: metrics,
            masquerade_all: masquerade_all.then_some(true),
            detect_local_mode: self.detector(notes)?,
            cluster_cidr: list(self.cluster_cidr.split(',')),
            pod_bridge_interface: text(&self.detect_local.bridge_interface),
            pod_interface_name_prefix: text(&self.detect_local.interface_name_prefix),
            nodeport_addresses: list(self.node_port_addresses.iter().map(String::as_str)),
            scheduler: self.scheduler(notes),
            log_level: self.log_level(),
            ..Settings::default()
        })
    }

    /// kube-proxy's `bindAddress`: the node's primary address; unspecified says only which family comes first.
    fn primary_address(&self) -> Result<Option<IpAddr>, String> {
        let Some(word) = text(&self.bind_address) else { return Ok(None) };
        let bare = word.trim_start_matches('[').trim_end_matches(']');
        bare.parse()
            .map(Some)
            .map_err(|_| format!("bindAddress: {word} is no address; write one of the node's, or 0.0.0.0"))
    }

    fn detector(&self, notes: &mut Vec<String>) -> Result<Option<detector::Mode>, String> {
        Ok(Some(match self.detect_local_mode.as_str() {
            "" => return Ok(None),
            "ClusterCIDR" if self.cluster_cidr.trim().is_empty() => {
                notes.push(
                    "detectLocalMode ClusterCIDR without a clusterCIDR tells nobody from a pod: netlb goes by the pods it knows"
                        .to_owned(),
                );
                return Ok(None);
            }
            "ClusterCIDR" => detector::Mode::ClusterCidr,
            "NodeCIDR" => detector::Mode::NodeCidr,
            "BridgeInterface" => detector::Mode::BridgeInterface,
            "InterfaceNamePrefix" => detector::Mode::InterfaceNamePrefix,
            word => {
                return Err(format!(
                    "detectLocalMode: {word} is none; use ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"
                ));
            }
        }))
    }

    /// IPVS's scheduler in mode ipvs, where kube-proxy's default is `rr`.
    fn scheduler(&self, notes: &mut Vec<String>) -> Option<String> {
        let word = text(&self.ipvs.scheduler);
        if self.mode != "ipvs" {
            if word.is_some() {
                notes.push(
                    "ipvs.scheduler counts in mode ipvs only, as for kube-proxy; --scheduler sets netlb's".to_owned(),
                );
            }
            return None;
        }
        let word = word.unwrap_or_else(|| Scheduler::RoundRobin.name().to_owned());
        if Scheduler::parse(&word).is_none() {
            notes.push(format!(
                "ipvs.scheduler: netlb has no {word}; it chooses at random (--scheduler: rr, wrr, sh or lc)"
            ));
            return None;
        }
        Some(word)
    }

    /// klog's levels: from 4 on debugging, from 6 on everything.
    fn log_level(&self) -> Option<String> {
        match self.logging.verbosity {
            0..4 => None,
            4..6 => Some("debug".to_owned()),
            6.. => Some("trace".to_owned()),
        }
    }
}

fn text(value: &str) -> Option<String> {
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> Option<Vec<String>> {
    let words: Vec<String> = words.filter_map(text).collect();
    (!words.is_empty()).then_some(words)
}

/// The names on the way to an ignored key, from the outside in.
fn steps(path: &serde_ignored::Path<'_>) -> Vec<String> {
    use serde_ignored::Path;
    let (parent, own) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, Some(index.to_string())),
        Path::Map { parent, key } => (parent, Some(key.clone())),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => (parent, None),
    };
    let mut all = steps(parent);
    all.extend(own);
    all
}

/// The line (from 1) on which a key stands, as far as the text is block YAML: the first with this name below its parent's.
fn line(text: &str, steps: &[String]) -> Option<usize> {
    let mut lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    let (mut at, mut outside) = (None, None);
    for step in steps {
        let (number, indent) = lines.by_ref().find_map(|(number, line)| {
            let bare = line.trim_start();
            let indent = line.len() - bare.len();
            let key = bare.split_once(':')?.0.trim_matches(['"', '\'']);
            (key == step && outside.is_none_or(|outside| indent > outside)).then_some((number, indent))
        })?;
        (at, outside) = (Some(number), Some(indent));
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn read_with(fields: &str) -> Read {
        read(&format!("{HEADER}{fields}")).expect("a good document")
    }

    /// `config.conf` of the ConfigMap kube-proxy as kubeadm 1.36 writes it.
    #[test]
    fn kubeadms_file() {
        let text = include_str!("kubeadm.yaml");
        assert_eq!(is_one(text), Ok(true));
        let read = read(text).expect("kube-proxy starts with it");
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        let kubeconfig = Some(PathBuf::from("/var/lib/kube-proxy/kubeconfig.conf"));
        let want =
            Settings { kubeconfig, cluster_cidr: words(&["10.244.0.0/16", "fd00:10:244::/56"]), ..Settings::default() };
        assert_eq!(read.settings, want);
        assert_eq!(read.unknown, Vec::<String>::new());
        let noted: Vec<&str> = read.notes.iter().filter_map(|note| note.split(' ').next()).collect();
        assert_eq!(noted, ["nodePortAddresses"], "{:?}", read.notes);
    }

    /// Every field that kube-proxy's own test sets (`TestLoadConfig`), and what becomes of it.
    #[test]
    fn a_file_with_much_in_it() {
        let read = read_with(
            "bindAddress: 9.8.7.6\nclientConnection: {acceptContentTypes: abc, burst: 100, contentType: x, qps: 7}\nclusterCIDR: 1.2.3.0/24\nconfigSyncPeriod: 15s\nconntrack: {maxPerCore: 2, min: 1, tcpCloseWaitTimeout: 10s, tcpEstablishedTimeout: 20s}\nhealthzBindAddress: 1.2.3.4:12345\nhostnameOverride: foo\niptables: {masqueradeAll: true, masqueradeBit: 17, minSyncPeriod: 10s, syncPeriod: 60s, localhostNodePorts: true}\nipvs: {minSyncPeriod: 10s, syncPeriod: 60s, excludeCIDRs: [10.20.30.40/16, 'fd00:1::0/64']}\nnftables: {masqueradeAll: true, masqueradeBit: 18, minSyncPeriod: 10s, syncPeriod: 60s}\nmetricsBindAddress: 2.3.4.5:23456\nmode: iptables\noomScoreAdj: 17\nportRange: 2-7\ndetectLocalMode: ClusterCIDR\ndetectLocal: {bridgeInterface: cbr0, interfaceNamePrefix: veth}\nnodePortAddresses: [10.20.30.40/16, 'fd00:1::0/64']\nlogging: {verbosity: 4}\n",
        );
        let text = |text: &str| Some(text.to_owned());
        let want = Settings {
            node_name: text("foo"),
            bind_address: "9.8.7.6".parse().ok(),
            healthz_bind_address: text("1.2.3.4:12345"),
            metrics_bind_address: text("2.3.4.5:23456"),
            masquerade_all: Some(true),
            detect_local_mode: Some(detector::Mode::ClusterCidr),
            cluster_cidr: Some(vec!["1.2.3.0/24".to_owned()]),
            pod_bridge_interface: text("cbr0"),
            pod_interface_name_prefix: text("veth"),
            nodeport_addresses: Some(vec!["10.20.30.40/16".to_owned(), "fd00:1::0/64".to_owned()]),
            log_level: text("debug"),
            ..Settings::default()
        };
        assert_eq!(read.settings, want);
        let noted: Vec<&str> = read.notes.iter().filter_map(|note| note.split(' ').next()).collect();
        let set = [
            "clientConnection.acceptContentTypes",
            "clientConnection.contentType",
            "clientConnection.qps",
            "clientConnection.burst",
            "mode",
            "iptables.masqueradeBit",
            "iptables.localhostNodePorts",
            "iptables.syncPeriod",
            "iptables.minSyncPeriod",
            "ipvs.syncPeriod",
            "ipvs.minSyncPeriod",
            "ipvs.excludeCIDRs",
            "nftables.masqueradeBit",
            "nftables.syncPeriod",
            "nftables.minSyncPeriod",
            "oomScoreAdj",
            "conntrack.maxPerCore",
            "conntrack.min",
            "conntrack.tcpEstablishedTimeout",
            "conntrack.tcpCloseWaitTimeout",
            "configSyncPeriod",
            "portRange",
        ];
        assert_eq!(noted, set);
        assert!(
            read.notes[5].starts_with("iptables.masqueradeBit (17) is accepted and does nothing: netlb has no rules")
        );
    }

    #[test]
    fn masquerade_all_and_the_scheduler_go_by_the_mode() {
        for (fields, all, scheduler, note) in [
            ("mode: nftables\nnftables: {masqueradeAll: true}\n", Some(true), None, ""),
            (
                "mode: nftables\niptables: {masqueradeAll: true}\n",
                None,
                None,
                "iptables.masqueradeAll counts in mode iptables",
            ),
            ("nftables: {masqueradeAll: true}\n", None, None, "nftables.masqueradeAll counts in mode nftables"),
            ("mode: ipvs\niptables: {masqueradeAll: true}\n", Some(true), Some("rr"), ""),
            ("mode: ipvs\nipvs: {scheduler: sh}\n", None, Some("sh"), ""),
            ("mode: ipvs\nipvs: {scheduler: sed}\n", None, None, "netlb has no sed"),
            ("ipvs: {scheduler: sh}\n", None, None, "ipvs.scheduler counts in mode ipvs only"),
        ] {
            let read = read_with(fields);
            assert_eq!(
                (read.settings.masquerade_all, read.settings.scheduler.as_deref()),
                (all, scheduler),
                "{fields}"
            );
            assert!(read.notes.iter().any(|line| line.contains(note)), "{fields}: {:?}", read.notes);
        }
    }

    #[test]
    fn addresses_and_detectors() {
        let settings = |fields: &str| read_with(fields).settings;
        assert_eq!(settings("bindAddress: 0.0.0.0\n").metrics_bind_address, None);
        for all in ["'::'", "'[::]'", "::0"] {
            let v6 = settings(&format!("bindAddress: {all}\n"));
            assert_eq!((v6.bind_address, v6.metrics_bind_address.as_deref()), (None, Some("[::1]:10249")), "{all}");
        }
        assert_eq!(settings("bindAddress: 2001:db8::1\n").bind_address, "2001:db8::1".parse().ok());
        let nobody = read_with("detectLocalMode: ClusterCIDR\n");
        assert!(
            nobody.settings.detect_local_mode.is_none()
                && nobody.notes.iter().any(|n| n.contains("without a clusterCIDR"))
        );
        for (fields, words) in [
            ("bindAddress: here\n", "bindAddress: here is no address"),
            ("detectLocalMode: Guess\n", "detectLocalMode: Guess is none; use ClusterCIDR"),
            ("iptables: {masqueradeAll: 'yes'}\n", "iptables.masqueradeAll"),
            ("nodePortAddresses: 10.0.0.0/8\n", "nodePortAddresses: invalid type"),
            ("mode: a\nmode: b\n", "duplicate field `mode`"),
        ] {
            let error = read(&format!("{HEADER}{fields}")).expect_err(fields);
            assert!(error.contains(words), "{error}");
        }
    }

    /// As kube-proxy: strict first, then lenient, with word of it.
    #[test]
    fn fields_that_are_none_are_named_with_their_lines_and_passed_over() {
        let read = read_with(
            "hostnameOverride: foo\nudpIdleTimeout: 250ms\niptables:\n  masqueradeAll: true\n  max: 3\nconntrack:\n  min: 1\n  max: 4\nfeatureGates: {Any: true}\n",
        );
        let what = "is no field of KubeProxyConfiguration kubeproxy.config.k8s.io/v1alpha1: it is passed over";
        let lines = [
            format!("udpIdleTimeout (line 4) {what}"),
            format!("iptables.max (line 7) {what}"),
            format!("conntrack.max (line 10) {what}"),
        ];
        assert_eq!(read.unknown, lines);
        assert_eq!(read.settings.masquerade_all, Some(true));
        let json = super::read(
            r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "ipvs": {"x": 1}}"#,
        );
        assert_eq!(
            json.expect("JSON is YAML").unknown,
            [format!("ipvs.x {what}")],
            "where lines say little, none is named"
        );
    }

    /// [`FIELDS`] is what the notes and the documentation go by.
    #[test]
    fn the_list_of_fields_is_the_documents() {
        fn leaves(at: &str, value: &Value, all: &mut Vec<String>) {
            let Some(map) = value.as_object().filter(|map| !map.is_empty()) else {
                return all.push(at.to_owned());
            };
            for (key, value) in map {
                leaves(&if at.is_empty() { key.clone() } else { format!("{at}.{key}") }, value, all);
            }
        }
        let mut found = Vec::new();
        leaves("", &serde_json::to_value(KubeProxyConfiguration::default()).expect("JSON"), &mut found);
        found.retain(|field| field != "apiVersion" && field != "kind");
        let mut listed: Vec<&str> = FIELDS.iter().map(|(field, _)| *field).collect();
        listed.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, listed);
    }
}
