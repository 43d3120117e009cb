//! What the endpoint controller does: from a Service's selector and the pods to EndpointSlices.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::address::{Dual, Family};
use crate::objects::{ContainerPort, IntOrString, ServicePort, ServiceSpec, SlicePort};

/// Most endpoints of one slice, as in a cluster.
const SLICE_SIZE: usize = 100;

/// A pod, as far as slices are concerned.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// The pod's name.
    pub name: &'a str,
    /// The pod's labels.
    pub labels: &'a BTreeMap<String, String>,
    /// All its containers' ports.
    pub ports: &'a [ContainerPort],
    /// Its addresses.
    pub addresses: Dual,
    /// The name of its node.
    pub node: String,
    /// The zone of its node.
    pub zone: &'static str,
    /// Whether it answers.
    pub serving: bool,
    /// Whether it is on its way out.
    pub terminating: bool,
}

/// The slices of one Service: for each family those pods together whose ports have the same numbers, and an empty slice
/// where there is no pod.
#[must_use]
pub fn slices(namespace: &str, name: &str, spec: &ServiceSpec, pods: &[Candidate<'_>]) -> Vec<Value> {
    let chosen: Vec<_> = pods.iter().filter(|pod| selects(&spec.selector, pod.labels)).collect();
    let mut out = Vec::new();
    for family in spec.families() {
        let mut groups: BTreeMap<Vec<SlicePort>, Vec<Value>> = BTreeMap::new();
        for pod in &chosen {
            groups.entry(ports(spec, pod.ports)).or_default().push(endpoint(pod, family, spec));
        }
        if groups.is_empty() {
            groups.insert(Vec::new(), Vec::new());
        }
        let parts = groups.iter().flat_map(|(ports, endpoints)| {
            let chunks: Vec<&[Value]> =
                if endpoints.is_empty() { vec![&[]] } else { endpoints.chunks(SLICE_SIZE).collect() };
            chunks.into_iter().map(move |chunk| (ports, chunk))
        });
        for (index, (ports, endpoints)) in parts.enumerate() {
            out.push(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}-{index}", family.word()),
                    "namespace": namespace,
                    "labels": {
                        "kubernetes.io/service-name": name,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    },
                },
                "addressType": family.address_type(),
                "ports": ports,
                "endpoints": endpoints,
            }));
        }
    }
    out
}

/// Whether all of the selector is among the labels. No selector selects nothing.
#[must_use]
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The number that a Service's port has on a pod: named targets are looked up there, and have none if it lacks the name.
#[must_use]
pub fn resolve(port: &ServicePort, containers: &[ContainerPort]) -> Option<i64> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Number(number)) => Some(*number),
        Some(IntOrString::Name(name)) => containers
            .iter()
            .find(|candidate| candidate.name == *name && candidate.protocol() == port.protocol())
            .map(|candidate| candidate.container_port),
    }
}

fn ports(spec: &ServiceSpec, containers: &[ContainerPort]) -> Vec<SlicePort> {
    spec.ports
        .iter()
        .filter_map(|port| {
            Some(SlicePort {
                name: port.name.clone(),
                port: Some(resolve(port, containers)?),
                protocol: Some(port.protocol().to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(pod: &Candidate<'_>, family: Family, spec: &ServiceSpec) -> Value {
    let ready = spec.publish_not_ready_addresses || (pod.serving && !pod.terminating);
    let mut endpoint = json!({
        "addresses": [pod.addresses.of(family)],
        "conditions": {
            "ready": ready,
            "serving": pod.serving,
            "terminating": pod.terminating,
        },
        "nodeName": pod.node,
        "zone": pod.zone,
        "targetRef": { "kind": "Pod", "name": pod.name },
    });
    if ready && let Some(hints) = hints(pod, spec) {
        endpoint["hints"] = hints;
    }
    endpoint
}

/// For whom an endpoint is meant, if the Service wishes traffic to be distributed by place: ready endpoints only.
fn hints(pod: &Candidate<'_>, spec: &ServiceSpec) -> Option<Value> {
    let zones = json!([{"name": pod.zone}]);
    match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => Some(json!({"forZones": zones})),
        "PreferSameNode" => Some(json!({"forZones": zones, "forNodes": [{"name": pod.node}]})),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address;
    use crate::objects::view;

    fn labels(text: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("app".to_owned(), text.to_owned())])
    }

    fn named(name: &str, number: i64) -> ContainerPort {
        ContainerPort { name: name.to_owned(), container_port: number, protocol: None }
    }

    fn pod<'a>(
        name: &'a str,
        host: u8,
        labels: &'a BTreeMap<String, String>,
        ports: &'a [ContainerPort],
    ) -> Candidate<'a> {
        Candidate {
            name,
            labels,
            ports,
            addresses: address::pod(1, host),
            node: "node1".to_owned(),
            zone: "zone-a",
            serving: true,
            terminating: false,
        }
    }

    fn spec(ports: Value) -> ServiceSpec {
        view(&json!({"selector": {"app": "a"}, "ipFamilies": ["IPv4", "IPv6"], "ports": ports}), "").unwrap()
    }

    #[test]
    fn names_are_looked_up_pod_by_pod() {
        let (app, other) = (labels("a"), labels("b"));
        let (old, new) = ([named("http", 8080)], [named("http", 9090)]);
        let pods = [pod("x", 2, &app, &old), pod("y", 3, &app, &new), pod("z", 4, &other, &new)];
        let out = slices("shop", "a", &spec(json!([{"name": "web", "port": 80, "targetPort": "http"}])), &pods);
        let seen: Vec<_> = out
            .iter()
            .map(|s| {
                (
                    s["metadata"]["name"].as_str().unwrap(),
                    s["ports"][0]["port"].clone(),
                    s["endpoints"][0]["addresses"][0].clone(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("a-ipv4-0", json!(8080), json!("10.244.1.2")),
                ("a-ipv4-1", json!(9090), json!("10.244.1.3")),
                ("a-ipv6-0", json!(8080), json!("fd00:244:0:1::2")),
                ("a-ipv6-1", json!(9090), json!("fd00:244:0:1::3")),
            ]
        );
        assert_eq!(out[0]["metadata"]["labels"]["kubernetes.io/service-name"], "a");
        assert!(out.iter().all(|s| s["endpoints"].as_array().unwrap().len() == 1));
    }

    #[test]
    fn without_pods_there_is_an_empty_slice_a_family() {
        let out = slices("shop", "a", &spec(json!([{"port": 80}])), &[]);
        assert_eq!(out.len(), 2);
        assert!(out.iter().all(|slice| slice["endpoints"] == json!([])));
    }

    #[test]
    fn a_pod_without_the_named_port_keeps_its_other_ports() {
        let app = labels("a");
        let ports = [named("http", 8080)];
        let pods = [pod("x", 2, &app, &ports)];
        let spec = spec(
            json!([{"name": "web", "port": 80, "targetPort": "http"}, {"name": "m", "port": 90, "targetPort": "metrics"}]),
        );
        let out = slices("shop", "a", &spec, &pods);
        assert_eq!(out[0]["ports"], json!([{"name": "web", "port": 8080, "protocol": "TCP"}]));
    }

    #[test]
    fn conditions_follow_the_pod() {
        let app = labels("a");
        let mut leaving = pod("x", 2, &app, &[]);
        leaving.terminating = true;
        let out = slices("shop", "a", &spec(json!([{"port": 80}])), &[leaving]);
        assert_eq!(out[0]["endpoints"][0]["conditions"], json!({"ready": false, "serving": true, "terminating": true}));
    }

    #[test]
    fn distribution_becomes_hints_on_ready_endpoints() {
        let app = labels("a");
        let mut leaving = pod("y", 3, &app, &[]);
        leaving.terminating = true;
        let mut spec = spec(json!([{"port": 80}]));
        let hints = |spec: &ServiceSpec| {
            let out = slices("s", "a", spec, &[pod("x", 2, &app, &[]), leaving.clone()]);
            [out[0]["endpoints"][0]["hints"].clone(), out[0]["endpoints"][1]["hints"].clone()]
        };
        assert_eq!(hints(&spec), [Value::Null, Value::Null]);
        spec.traffic_distribution = Some("PreferClose".to_owned());
        assert_eq!(hints(&spec), [json!({"forZones": [{"name": "zone-a"}]}), Value::Null]);
        spec.traffic_distribution = Some("PreferSameNode".to_owned());
        let both = json!({"forZones": [{"name": "zone-a"}], "forNodes": [{"name": "node1"}]});
        assert_eq!(hints(&spec), [both, Value::Null]);
    }

    #[test]
    fn big_services_have_several_slices() {
        let app = labels("a");
        let names: Vec<String> = (0..150).map(|n| format!("p{n}")).collect();
        let pods: Vec<_> = (2..152).zip(&names).map(|(host, name)| pod(name, host, &app, &[])).collect();
        let mut one = spec(json!([{"port": 80}]));
        one.ip_families = vec!["IPv4".to_owned()];
        let sizes: Vec<_> =
            slices("s", "a", &one, &pods).iter().map(|s| s["endpoints"].as_array().unwrap().len()).collect();
        assert_eq!(sizes, [100, 50]);
    }
}
