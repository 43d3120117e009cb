//! Every Service answers, whoever asks.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use netlb_common::Reason;
use netlb_testnode::address::{self, Family};
use netlb_testnode::wire::Transport::{self, Tcp, Udp};
use netlb_testnode::{Client, PodKey};

use crate::bulk;
use crate::rig::Rig;
use crate::sockets;

/// Every frontend of the shared world with the backends that must answer there.
fn frontends(rig: &Rig) -> Result<Vec<(Transport, SocketAddr, BTreeSet<SocketAddr>)>> {
    let mut all = Vec::new();
    for family in Family::BOTH {
        for (service, transport, port, workload, target) in [
            ("web", Tcp, 80, "web", 8080),
            ("web", Tcp, 81, "web", 9090),
            ("dns", Udp, 53, "dns", 5353),
            ("dns", Tcp, 53, "dns", 5354),
            ("solo", Tcp, 80, "solo", 8080),
            ("solo", Udp, 53, "solo", 5353),
        ] {
            let backends = rig.backends(workload, family, target);
            ensure!(!backends.is_empty(), "{workload} has no pods: this would check nothing");
            all.push((transport, rig.frontend(service, family, port)?, backends));
        }
    }
    Ok(all)
}

pub(super) fn from_a_pod(rig: &Rig) -> Result<()> {
    rig.ask_all(&Client::Pod(PodKey::parse("client")), &frontends(rig)?)
}

pub(super) fn from_the_node(rig: &Rig) -> Result<()> {
    rig.ask_all(&Client::Node(1), &frontends(rig)?)
}

pub(super) fn from_a_backend(rig: &Rig) -> Result<()> {
    for workload in ["web", "dns"] {
        let pod = rig.pod(workload)?;
        rig.ask_all(&Client::Pod(pod.key().clone()), &frontends(rig)?)?;
    }
    Ok(())
}

pub(super) fn hairpin(rig: &Rig) -> Result<()> {
    let solo = rig.pod("solo")?;
    for family in Family::BOTH {
        for (transport, port) in [(Tcp, 80), (Udp, 53)] {
            let vip = rig.frontend("solo", family, port)?;
            let (answer, hairpins) =
                rig.growth(Reason::HAIRPIN, || rig.inside("solo", || sockets::ask(transport, vip, "to myself")))?;
            ensure!(answer.pod == "solo" && answer.server.ip() == solo.addresses().of(family), "{answer}");
            // From its own address the pod would drop it; another pod's or the node's would be a lie.
            ensure!(answer.client.ip() == vip.ip(), "the pod saw {} as its peer, not the VIP {vip}", answer.client);
            ensure!(hairpins == 1, "{hairpins} hairpin flows were counted for one request");
        }
    }
    Ok(())
}

pub(super) fn named_ports(rig: &Rig) -> Result<()> {
    rig.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: named-old, labels: {app: named}}
spec: {containers: [{ports: [{name: api, containerPort: 8001}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: named-new, labels: {app: named}}
spec: {containers: [{ports: [{name: api, containerPort: 8002}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: named}
spec: {selector: {app: named}, ports: [{port: 80, targetPort: api}]}
",
    )?;
    let mut wanted = Vec::new();
    for family in Family::BOTH {
        let mut backends = rig.backends("named-old", family, 8001);
        backends.extend(rig.backends("named-new", family, 8002));
        ensure!(backends.len() == 2, "two pods, not {backends:?}");
        wanted.push((Tcp, rig.frontend("named", family, 80)?, backends));
    }
    rig.ask_all(&Client::Pod(PodKey::parse("client")), &wanted)
}

pub(super) fn outside_endpoint(rig: &Rig) -> Result<()> {
    let _server = bulk::Server::start(rig.node.outside().place.net(), 7001)?;
    rig.apply(&service_by_hand("beyond", address::OUTSIDE.both(), 7001))?;
    for family in Family::BOTH {
        let vip = rig.frontend("beyond", family, 80)?;
        for client in ["client", "web"] {
            rig.inside(client, || bulk::transfer(vip, 5000, 5000))?;
        }
    }
    Ok(())
}

/// A Service on port 80 without selector, and the EndpointSlices that its author wrote.
#[must_use]
pub fn service_by_hand(name: &str, addresses: [IpAddr; 2], port: u16) -> String {
    let mut yaml =
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n");
    for address in addresses {
        let family = Family::of(address);
        yaml.push_str(&format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-by-hand-{}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {}
endpoints: [{{addresses: ['{address}'], conditions: {{ready: true}}}}]
ports: [{{port: {port}, protocol: TCP}}]
",
            family.word(),
            family.address_type()
        ));
    }
    yaml
}
