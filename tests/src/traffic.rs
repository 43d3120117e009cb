//! The cases of real traffic, as a table: tests/net.rs tries each on every road and pod network, tests/checksums.rs again
//! with finished checksums under a capture.
//!
//! A case brings the pods and Services it needs beyond [`WORLD`], under names of its own, so that cases share a rig.

mod changes;
mod choice;
mod flows;
pub(crate) mod path;
mod refusals;
mod services;

use anyhow::Result;
use netlb_testnode::PodNetwork;

use crate::rig::{Rig, Style};

/// One case.
pub struct Case {
    /// What is true, as a sentence.
    pub name: &'static str,
    /// The check that it is.
    pub run: fn(&Rig) -> Result<()>,
    /// Which rigs it is tried on.
    pub on: fn(&Style) -> bool,
}

const fn case(name: &'static str, run: fn(&Rig) -> Result<()>) -> Case {
    Case { name, run, on: |_| true }
}

pub use flows::bulk as large_frames;
pub use services::service_by_hand;

/// All cases, in the order in which they are tried.
pub const CASES: &[Case] = &[
    case("every port of every Service answers a pod from every backend, over both families", services::from_a_pod),
    case("the same from the node itself", services::from_the_node),
    case("a backend reaches every backend of its own Service, itself too", services::from_a_backend),
    case("the only backend of a Service reaches itself, seeing the VIP as its peer", services::hairpin),
    case("named ports are looked up pod by pod", services::named_ports),
    case("endpoints outside of the cluster answer", services::outside_endpoint),
    case("a Service without endpoints refuses at once", refusals::no_endpoints),
    case("ports and protocols that a VIP does not serve are refused at once", refusals::undefined_port),
    case("an address of the Service network that nobody owns does not answer", refusals::unallocated),
    case("a ping to a VIP is answered by port unreachable", refusals::ping),
    case("session affinity keeps a client's requests on one backend", flows::affinity),
    // A matter of maps and clock, not of roads; and it waits for seconds.
    Case {
        on: |style| *style == Style::ALL[0],
        ..case("session affinity ends with its timeout", flows::affinity_ends)
    },
    case("round robin takes a Service's backends in turn", choice::in_turn),
    case("weights share connections out, and 0 gets none", choice::by_weight),
    case("a backend whose weight falls to 0 keeps its connections and gets no new ones", choice::drained),
    case("source hash keeps a client at one backend", choice::by_source),
    case("least connections counts what is open", choice::least_connections),
    case("20 MB in each direction arrive as they were sent", flows::bulk),
    case("two VIPs with one backend and one client tuple work at once", flows::two_vips),
    case("the ports of a connection that is over can be used again at once", flows::port_reuse),
    case("transfers through a smaller MTU beyond the node learn the path", path::beyond_the_node),
    // A bridge's ports have one MTU: what is too large for one of them it drops without a word, with netlb or without.
    Case { on: is_routed, ..case("a backend with a smaller MTU can be sent to", path::narrow_backend) },
    Case { on: is_routed, ..case("a client with a smaller MTU can be answered", path::narrow_client) },
    case("a packet whose TTL ends on the node is reported as one to the VIP", path::ttl),
    case("UDP follows its Service from 3 pods to 0 to 2, and never reaches a removed pod", changes::udp_scale),
    case("an open connection outlives its pod's time in the Service, new ones go elsewhere", changes::draining),
    case("while many Services change, every connection reaches an old or a new backend", changes::switches),
];

fn is_routed(style: &Style) -> bool {
    style.pods == PodNetwork::Routed
}

/// The pods and Services that cases share.
pub const WORLD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {containers: [{name: client}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        ports:
        - {name: http, containerPort: 8080}
        - {name: admin, containerPort: 9090}
        - {name: syslog, containerPort: 5140, protocol: UDP}
---
# Two ports, by name.
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: admin, port: 81, targetPort: admin}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: dns}
spec:
  replicas: 2
  selector: {matchLabels: {app: dns}}
  template:
    metadata: {labels: {app: dns}}
    spec:
      containers:
      - name: dns
        ports:
        - {name: dns, containerPort: 5353, protocol: UDP}
        - {name: dns-tcp, containerPort: 5354}
---
# One port number on two protocols.
apiVersion: v1
kind: Service
metadata: {name: dns}
spec:
  selector: {app: dns}
  ports:
  - {name: dns, port: 53, protocol: UDP, targetPort: dns}
  - {name: dns-tcp, port: 53, targetPort: dns-tcp}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec:
  selector: {app: nobody}
  ports:
  - {name: http, port: 80}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata: {name: solo, labels: {app: solo}}
spec: {containers: [{name: solo, ports: [{containerPort: 8080}, {containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: solo}
spec:
  selector: {app: solo}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: dns, port: 53, protocol: UDP, targetPort: 5353}
";
