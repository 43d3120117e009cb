//! `/configz`: the settings in effect, as component-base shows them: JSON by component.

use serde_json::{Value, json};

use super::kube_proxy::{API_VERSION, KIND, KubeProxyConfiguration};
use super::{Config, Source};
use crate::devices::detector::Detector;
use crate::devices::node_addresses::NodePortAddresses;

/// kube-proxy's fields under its own key, whatever they were set by; where netlb does nothing with a field, it says what the file of `--config`
/// said. netlb's own settings stand beside, named like the flags.
pub fn configz(document: Option<KubeProxyConfiguration>, config: &Config) -> Value {
    json!({ "kubeproxy.config.k8s.io": kube_proxy(document.unwrap_or_default(), config), "netlb": own(config) })
}

fn kube_proxy(mut document: KubeProxyConfiguration, config: &Config) -> KubeProxyConfiguration {
    let d = &mut document;
    (d.api_version, d.kind) = (API_VERSION.to_owned(), KIND.to_owned());
    d.hostname_override.clone_from(&config.node_name);
    d.client_connection.kubeconfig = match &config.source {
        Source::Cluster(access) => access.kubeconfig.iter().map(|path| path.display().to_string()).collect(),
        Source::Folder(_) => String::new(),
    };
    if let Some(address) = config.bind_address {
        d.bind_address = address.to_string();
    }
    let at = |address: Option<std::net::SocketAddr>| address.map(|at| at.to_string()).unwrap_or_default();
    (d.healthz_bind_address, d.metrics_bind_address) = (at(config.healthz), at(config.metrics));
    d.mode.clone_from(&config.proxy_mode);
    (d.iptables.masquerade_all, d.nftables.masquerade_all) = (config.masquerade_all, config.masquerade_all);
    d.ipvs.scheduler = config.scheduler.name().to_owned();
    d.node_port_addresses = words(&config.nodeport_addresses);
    let mode = match &config.detector {
        Detector::Known | Detector::None => "",
        Detector::Cidrs(ranges) => {
            d.cluster_cidr = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            "ClusterCIDR"
        }
        Detector::NodeCidrs => "NodeCIDR",
        Detector::Bridge(name) => {
            d.detect_local.bridge_interface.clone_from(name);
            "BridgeInterface"
        }
        Detector::Prefix(prefix) => {
            d.detect_local.interface_name_prefix.clone_from(prefix);
            "InterfaceNamePrefix"
        }
    };
    mode.clone_into(&mut d.detect_local_mode);
    document
}

fn own(config: &Config) -> Value {
    json!({
        "source": config.source.to_string(),
        "pin-path": config.pin_path,
        "run-dir": config.run_dir,
        "cgroup": config.cgroup,
        "devices": config.devices,
        "pod-interfaces": config.pod_interfaces,
        "masquerade": config.masquerade,
        "service-node-port-range": config.node_ports.to_string(),
        "accel": if config.socket_accel { "socket" } else { "none" },
        "delivery": config.delivery.name(),
        "detached": config.detached,
        "max-services": config.max_services,
        "max-backends": config.max_backends,
        "max-conntrack": config.max_conntrack,
    })
}

fn words(wish: &NodePortAddresses) -> Vec<String> {
    let named = [(wish.primary, "primary"), (wish.localhost, "localhost")];
    let named = named.into_iter().filter(|(is, _)| *is).map(|(_, word)| word.to_owned());
    named.chain(wish.ranges.0.iter().map(ToString::to_string)).collect()
}
