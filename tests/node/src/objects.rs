//! The parts of Kubernetes objects that kubelet and endpoint controller look at. Everything else of an object is carried
//! along unread, so that the agent sees what the author wrote.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::address::Family;
use crate::wire::Transport;

/// Which object: kind, namespace (empty for those that have none) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// As in the object.
    pub kind: String,
    /// Empty for cluster-wide kinds.
    pub namespace: String,
    /// As in the object.
    pub name: String,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl ObjectKey {
    /// The key of an object; the namespace defaults to `default` where the kind has one.
    ///
    /// # Errors
    /// Names the field that is missing or not a string.
    pub fn of(object: &Value) -> Result<Self, String> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        let kind = text("/kind").ok_or("kind: missing or not a string; write `kind: Service`, for example")?;
        let name = text("/metadata/name")
            .ok_or_else(|| format!("{kind}: metadata.name: missing or not a string; give it a name"))?;
        let cluster_wide = matches!(
            kind,
            "Namespace"
                | "Node"
                | "ServiceCIDR"
                | "IPAddress"
                | "ClusterRole"
                | "ClusterRoleBinding"
                | "PriorityClass"
                | "CustomResourceDefinition"
        );
        let namespace = if cluster_wide { "" } else { text("/metadata/namespace").unwrap_or("default") };
        Ok(Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Absent: endpoints are written by somebody else.
    pub selector: BTreeMap<String, String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `None`, an address, or empty.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// The same for all families.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// `IPv4`, `IPv6`.
    pub ip_families: Vec<String>,
    /// `SingleStack`, `PreferDualStack`, `RequireDualStack`.
    pub ip_family_policy: Option<String>,
    /// `ClusterIP` if absent.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `ClientIP` or `None`.
    pub session_affinity: Option<String>,
    /// Endpoints count as ready from the start.
    pub publish_not_ready_addresses: bool,
    /// For load balancers; true if absent.
    pub allocate_load_balancer_node_ports: Option<bool>,
    /// Set: another controller looks after this load balancer.
    pub load_balancer_class: Option<String>,
    /// The address that the author wishes for the load balancer.
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: Option<String>,
    /// Networks whose clients may use the load balancer's addresses.
    pub load_balancer_source_ranges: Vec<String>,
    /// Addresses that are routed to nodes by somebody else.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// `Cluster` or `Local`, for clients outside.
    pub external_traffic_policy: Option<String>,
    /// `Cluster` or `Local`, for clients inside.
    pub internal_traffic_policy: Option<String>,
    /// Where a load balancer asks which nodes have endpoints; 0 is none.
    pub health_check_node_port: i64,
    /// `PreferClose`, `PreferSameZone` or `PreferSameNode`.
    pub traffic_distribution: Option<String>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// What the load balancer's controller wrote.
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    /// Where clients come in.
    pub ingress: Vec<Ingress>,
}

/// An entry of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// Empty if there is a host name instead.
    pub ip: String,
    /// `VIP` (packets keep this destination) or `Proxy`; `VIP` if absent.
    pub ip_mode: Option<String>,
}

impl ServiceStatus {
    /// The load balancer's addresses that packets still have as destination when they reach a node.
    #[must_use]
    pub fn balancer_addresses(&self) -> Vec<IpAddr> {
        let ingress = self.load_balancer.ingress.iter();
        ingress
            .filter(|entry| entry.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|entry| entry.ip.parse().ok())
            .collect()
    }
}

impl ServiceSpec {
    /// Whether DNS answers with an alias and nothing else is to be done.
    #[must_use]
    pub fn is_external_name(&self) -> bool {
        self.kind.as_deref() == Some("ExternalName")
    }

    /// Whether it has no address of its own.
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.cluster_ip == "None"
    }

    /// The Service's own addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.cluster_ips.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Whether its load balancer is this control plane's.
    #[must_use]
    pub fn is_balanced_here(&self) -> bool {
        self.kind.as_deref() == Some("LoadBalancer") && self.load_balancer_class.is_none()
    }

    /// The families it has, in order.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        Family::BOTH
            .into_iter()
            .filter(|family| self.ip_families.iter().any(|word| word == family.address_type()))
            .collect()
    }
}

/// An entry of a Service's `ports`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Empty if the Service has one port only.
    pub name: String,
    /// The frontend's port.
    pub port: i64,
    /// The backends' port; `port` if absent.
    pub target_port: Option<IntOrString>,
    /// `TCP` if absent.
    pub protocol: Option<String>,
    /// Passed on to slices.
    pub app_protocol: Option<String>,
    /// Where nodes listen.
    pub node_port: Option<i64>,
}

impl ServicePort {
    /// `TCP` if absent.
    #[must_use]
    pub fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or("TCP")
    }

    /// The protocol, if pods can serve it.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        transport(self.protocol())
    }
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Number(i64),
    /// A container port's name.
    Name(String),
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Containers; init containers have come and gone.
    pub containers: Vec<Container>,
    /// The node it must run on.
    pub node_name: Option<String>,
    /// Whether it shares the node's network.
    pub host_network: bool,
}

/// A container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// What it says that it listens on.
    pub ports: Vec<ContainerPort>,
}

/// A container's port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// For Services that name their target.
    pub name: String,
    /// The number.
    pub container_port: i64,
    /// `TCP` if absent.
    pub protocol: Option<String>,
}

impl ContainerPort {
    /// `TCP` if absent.
    #[must_use]
    pub fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or("TCP")
    }
}

/// `spec` of a Deployment, StatefulSet or DaemonSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSpec {
    /// 1 if absent; a DaemonSet has none.
    pub replicas: Option<u32>,
    /// What the pods are like: `metadata` and `spec`.
    pub template: Value,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Slice {
    /// Its labels name the Service.
    pub metadata: Meta,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// The ports that all of its endpoints have.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An EndpointSlice's port.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlicePort {
    /// As the Service's port.
    pub name: String,
    /// The number.
    pub port: Option<i64>,
    /// `TCP` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// As the Service's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// An EndpointSlice's endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// The first counts.
    pub addresses: Vec<String>,
    /// What it can do.
    pub conditions: Conditions,
    /// Its node.
    pub node_name: Option<String>,
    /// For whom it is meant.
    pub hints: Option<Hints>,
}

/// An endpoint's hints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// Zones.
    pub for_zones: Vec<Hint>,
    /// Nodes.
    pub for_nodes: Vec<Hint>,
}

/// A zone or node that is to use an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Hint {
    /// Its name.
    pub name: String,
}

/// An endpoint's conditions; absent means unknown, which counts as ready and serving.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conditions {
    /// May get new connections.
    pub ready: Option<bool>,
    /// Answers.
    pub serving: Option<bool>,
    /// Is on its way out.
    pub terminating: Option<bool>,
}

/// The protocol of a word like `TCP`, if pods can serve it.
#[must_use]
pub fn transport(word: &str) -> Option<Transport> {
    match word {
        "TCP" => Some(Transport::Tcp),
        "UDP" => Some(Transport::Udp),
        "SCTP" => Some(Transport::Sctp),
        _ => None,
    }
}

/// Reads a view of `object` at `field` (`/spec`, or empty for the whole).
///
/// # Errors
/// Names the object's field.
pub fn view<T: for<'a> Deserialize<'a> + Default>(object: &Value, field: &str) -> Result<T, String> {
    match object.pointer(field) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => T::deserialize(value).map_err(|error| format!("{}: {error}", field.trim_start_matches('/'))),
    }
}
