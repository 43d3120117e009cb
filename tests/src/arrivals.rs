//! The cases of real traffic from outside of the nodes, as a table: tests/arrivals.rs tries each on two nodes with an agent each.
//!
//! Clients come by node 1: what is `near` to them is on that node, what is `remote` on the other.

mod fragments;
mod health;
mod own_ports;
mod path;
mod rolling;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use netlb_testnode::address::{self, Family};
use netlb_testnode::objects::ObjectKey;
use serde_json::Value;

use crate::rig::{Rig, Style};
use crate::traffic::Case;

const fn case(name: &'static str, run: fn(&Rig) -> Result<()>) -> Case {
    Case { name, run, on: |_| true }
}

/// All cases, in the order in which they are tried.
pub const CASES: &[Case] = &[
    case("a client whose wire is narrow gets large answers by a NodePort", path::narrow_client),
    case("answers that are too large for a wire far outside learn the path", path::narrow_path),
    case("a packet whose TTL ends on the node is reported as one to the NodePort", path::ttl),
    case("fragments of large datagrams stay together, by ClusterIP and NodePort", fragments::together),
    case("the node's own sockets share ports with masqueraded flows", own_ports::shared),
    case("load balancers are told where endpoints are, and when they go", health::follows),
    // A matter of tables and time, not of roads; and it takes a while.
    Case {
        on: |style| *style == Style::ALL[0],
        ..case("a rolling update is not noticed by clients of ClusterIP and NodePort", rolling::update)
    },
];

/// The pods that cases share: one on either node.
pub const WORLD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node1, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near}
spec: {nodeName: node1, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: remote}
spec: {nodeName: node2, containers: [{name: c}]}
";

/// A NodePort Service whose port 80 (NodePort `door`) is 7000 at these pods. Its slices are written by hand: for pods that a Service
/// selects, the test node serves the port itself.
fn service(rig: &Rig, name: &str, pods: &[&str], protocol: &str, door: u16) -> Result<String> {
    let mut yaml = format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: NodePort
  ports: [{{port: 80, protocol: {protocol}, targetPort: 7000, nodePort: {door}}}]
"
    );
    for family in Family::BOTH {
        let mut endpoints = String::new();
        for pod in pods {
            let pod = rig.pod(pod)?;
            let (address, node) = (pod.addresses().of(family), pod.node().name());
            endpoints += &format!("{{addresses: ['{address}'], nodeName: {node}, conditions: {{ready: true}}}}, ");
        }
        yaml += &format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {}
endpoints: [{endpoints}]
ports: [{{port: 7000, protocol: {protocol}}}]
",
            family.word(),
            family.address_type()
        );
    }
    Ok(yaml)
}

/// Node 1's address with a NodePort.
fn door(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(address::node(1).of(family), port)
}

/// Runs `f` in the network namespace of the host beside the nodes.
fn outside<T: Send>(rig: &Rig, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    rig.node.outside().place.net().run(f)?
}

/// A field of a Service in `default`.
fn field(rig: &Rig, service: &str, pointer: &str) -> Result<Value> {
    let key = ObjectKey { kind: "Service".into(), namespace: "default".into(), name: service.into() };
    let cluster = rig.node.cluster();
    let object = cluster.object(&key).with_context(|| format!("there is no {key}"))?;
    object.pointer(pointer).cloned().with_context(|| format!("{key} has no {pointer}"))
}

/// An address of each family in the network `number` of those beyond the outside.
fn beyond(number: u8, host: u8) -> [IpAddr; 2] {
    [[192, 168, number, host].into(), [0xfd00, u16::from(number), 0, 0, 0, 0, 0, u16::from(host)].into()]
}
