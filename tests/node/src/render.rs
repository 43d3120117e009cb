//! The source folder as text: what a control plane knows, as plain YAML, one file an object.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::address;
use crate::cluster::{Cluster, PodKey, PodRecord, PodState, zone};
use crate::objects::ObjectKey;
use crate::topology::{self, short_hash};

impl Cluster {
    /// The source folder: what each file is called and what it says.
    #[must_use]
    pub fn render(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let mut add = |object: &Value| {
            if let (Ok(key), Ok(text)) = (ObjectKey::of(object), serde_norway::to_string(object)) {
                files.insert(file_name(&key), text);
            }
        };
        for node in 1..=self.nodes {
            add(&node_object(node));
        }
        add(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": [address::SERVICES_V4, address::SERVICES_V6]},
        }));
        let mut namespaces: BTreeSet<&str> = BTreeSet::from(["default"]);
        namespaces.extend(self.objects.keys().map(|key| key.namespace.as_str()).filter(|name| !name.is_empty()));
        for name in namespaces {
            add(&json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            }));
        }
        for (key, object) in &self.objects {
            // Pods are written below, as the kubelet reports them; an author's EndpointSlice is among the slices.
            if key.kind != "Pod" && key.kind != "EndpointSlice" {
                add(object);
            }
        }
        for (key, pod) in self.pods() {
            add(&pod_object(key, pod));
        }
        for slice in self.slices() {
            add(&slice);
        }
        for broken in self.broken.values() {
            let stem = broken.origin.rsplit('/').next().unwrap_or_default();
            let stem = stem.trim_end_matches(".yaml");
            files
                .insert(format!("broken.{}.{:08x}.yaml", clean(stem), short_hash(&broken.origin)), broken.text.clone());
        }
        files
    }
}

fn node_object(number: u8) -> Value {
    let name = topology::name(number);
    let own = address::node(number);
    let cidrs = address::pod_cidrs(number);
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone(number)},
        },
        "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": own.v4},
                {"type": "InternalIP", "address": own.v6},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn pod_object(key: &PodKey, pod: &PodRecord) -> Value {
    let mut object = pod.object.clone();
    if !object.is_object() {
        object = json!({});
    }
    object["apiVersion"] = json!("v1");
    object["kind"] = json!("Pod");
    object["metadata"]["name"] = json!(key.name);
    object["metadata"]["namespace"] = json!(key.namespace);
    if pod.state == PodState::Terminating {
        // Agents look whether it is there, not what it says: the same in every run.
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    object["spec"]["nodeName"] = json!(topology::name(pod.node));
    let ready = matches!(pod.state, PodState::Ready | PodState::Terminating);
    let host = address::node(pod.node);
    object["status"] = json!({
        "phase": if pod.state == PodState::Starting { "Pending" } else { "Running" },
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        "hostIP": host.v4,
        "hostIPs": [{"ip": host.v4}, {"ip": host.v6}],
        "podIP": pod.addresses.v4,
        "podIPs": [{"ip": pod.addresses.v4}, {"ip": pod.addresses.v6}],
    });
    object
}

/// `kind.namespace.name.yaml`, short enough for a file system; long or odd names are told apart by a hash.
#[must_use]
pub fn file_name(key: &ObjectKey) -> String {
    let full = format!("{}.{}.{}", key.kind.to_ascii_lowercase(), key.namespace, key.name).replace("..", ".");
    let cleaned = clean(&full);
    if cleaned == full { format!("{full}.yaml") } else { format!("{cleaned}.{:08x}.yaml", short_hash(&full)) }
}

fn clean(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' }).collect()
}
