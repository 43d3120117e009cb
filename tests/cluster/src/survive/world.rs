//! The objects: a Deployment behind a Service that clients use, a pod for clients, and Services that come, change and go.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use netlb_testnode::netns::NetNs;
use netlb_testnode::process::Place;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::control_plane;

/// The image that serves, and that only waits.
const IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// The port that pods serve.
const PORT: u16 = 9376;
const PODS: u8 = 4;
/// Services that go, that change and that stay; as many come.
const EACH: u8 = 20;

/// The world, as it was made.
pub(super) struct World<'a> {
    cluster: &'a Cluster,
    /// The Service's addresses, for pods.
    pub(super) inside: Vec<SocketAddr>,
    /// Its NodePort at every node, for clients outside.
    pub(super) outside: Vec<SocketAddr>,
    /// Where clients inside run: in a pod's network.
    pub(super) pod: Place,
    backends: Vec<IpAddr>,
}

impl<'a> World<'a> {
    /// Makes the objects, and waits until all pods run.
    pub(super) fn create(cluster: &'a Cluster) -> Result<Self> {
        let first = cluster.nodes().first().context("a cluster without nodes")?;
        let ask = |arguments: &[&str], input: &str| {
            cluster.control_plane().kubectl().run(arguments, input, &cluster.options().stop)
        };
        let read = |arguments: &[&str]| -> Result<Value> {
            serde_json::from_str(&ask(arguments, "")?).context("kubectl does not speak JSON")
        };
        ask(&["apply", "--server-side", "-f", "-"], &list(workload(&first.host.name)).to_string())?;
        for name in ["web", "client"] {
            ask(&["rollout", "status", "--timeout=120s", &format!("deployment/{name}")], "")?;
        }
        let pods = read(&["get", "pods", "--selector", "app=web", "--output", "json"])?;
        let backends =
            texts(&pods, "items", "/status/podIP")?.iter().map(|ip| Ok(ip.parse()?)).collect::<Result<_>>()?;

        let service = read(&["get", "service", "web", "--output", "json"])?;
        let addresses = service.pointer("/spec/clusterIPs").and_then(Value::as_array).context("no cluster IPs")?;
        let addresses: Result<Vec<IpAddr>> =
            addresses.iter().map(|ip| Ok(ip.as_str().context("no text")?.parse()?)).collect();
        let door = service.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64).context("no NodePort")?;
        let door = u16::try_from(door)?;
        let outside = cluster.nodes().iter().flat_map(|node| node.host.address.both());

        let client = read(&["get", "pods", "--selector", "app=client", "--output", "json"])?;
        let ids = texts(&client, "items", "/status/containerStatuses/0/containerID")?;
        let id = ids.first().and_then(|id| id.strip_prefix("containerd://")).context("the client has no container")?;
        let pid = first.pid(id, &cluster.options().stop)?;
        let net = NetNs::open(&PathBuf::from(format!("/proc/{pid}/ns/net")))?;
        let cgroup = Arc::new(first.host.cgroup.child("clients")?);
        let world = Self {
            cluster,
            inside: addresses?.into_iter().map(|ip| SocketAddr::new(ip, 80)).collect(),
            outside: outside.map(|ip| SocketAddr::new(ip, door)).collect(),
            pod: Place::new("clients", net, None, Some(cgroup))?,
            backends,
        };
        let objects = (0..EACH).flat_map(|n| ["goes", "changes", "stays"].map(|word| world.by_hand(word, n, 0)));
        ask(&["apply", "--server-side", "-f", "-"], &list(objects.flatten()).to_string())?;
        Ok(world)
    }

    /// Where outside clients run.
    pub(super) fn client(&self) -> &Place {
        &self.cluster.client().place
    }

    /// Changes objects by the second API server: some Services go, some get other endpoints, some come.
    pub(super) fn change(&self) -> Result<()> {
        let (server, stop) = (control_plane::second(), &self.cluster.options().stop);
        let kubectl = |arguments: &[&str], input: &str| {
            let arguments = [&["--server", &server], arguments].concat();
            self.cluster.control_plane().kubectl().run(&arguments, input, stop)
        };
        for kind in ["service", "endpointslice"] {
            let names: Vec<String> = (0..EACH).map(|n| format!("goes-{n}")).collect();
            let mut arguments = vec!["delete", "--wait=false", kind];
            arguments.extend(names.iter().map(String::as_str));
            kubectl(&arguments, "")?;
        }
        let objects = (0..EACH).flat_map(|n| [self.by_hand("changes", n, 1), self.by_hand("comes", n, 0)]);
        kubectl(&["apply", "--server-side", "-f", "-"], &list(objects.flatten()).to_string()).map(drop)
    }

    /// A Service without selector, and its slice: two pods, from the one that `n` and `shift` choose on.
    fn by_hand(&self, word: &str, n: u8, shift: u8) -> [Value; 2] {
        let name = format!("{word}-{n}");
        let backends = self.backends.iter().cycle().skip(usize::from(n + shift)).take(2);
        let ports = json!([{"name": "http", "port": PORT, "protocol": "TCP"}]);
        let labels = json!({
            "kubernetes.io/service-name": name,
            "endpointslice.kubernetes.io/managed-by": "netlb-testcluster",
        });
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": PORT}]},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "addressType": "IPv4",
            "endpoints": backends.map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect::<Vec<_>>(),
            "ports": ports,
        });
        [service, slice]
    }
}

/// The Deployments, and the Service. The client's pod is on `node`.
fn workload(node: &str) -> [Value; 3] {
    let deployment = |name: &str, replicas: u8, mut pod: Value, arguments: &[&str]| {
        pod["containers"] = json!([{"name": name, "image": IMAGE, "imagePullPolicy": "Never", "args": arguments}]);
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
            },
        })
    };
    let spread = json!({"topologySpreadConstraints": [{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }]});
    [
        deployment("web", PODS, spread, &["serve-hostname", "--port", &PORT.to_string()]),
        deployment("client", 1, json!({"nodeSelector": {"kubernetes.io/hostname": node}}), &["pause"]),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "type": "NodePort",
                "ipFamilyPolicy": "RequireDualStack",
                "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": PORT}],
            },
        }),
    ]
}

fn list(items: impl IntoIterator<Item = Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items.into_iter().collect::<Vec<_>>()})
}

/// A text of each item of a list.
fn texts(list: &Value, items: &str, pointer: &str) -> Result<Vec<String>> {
    let items = list.get(items).and_then(Value::as_array).context("no list")?;
    let text = |item: &Value| Some(item.pointer(pointer)?.as_str()?.to_owned());
    items.iter().map(|item| text(item).with_context(|| format!("an item without {pointer}"))).collect()
}
