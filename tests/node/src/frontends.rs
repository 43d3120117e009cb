//! What a correct load balancer would answer: every Service port's address, and the backends behind it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::address::Family;
use crate::cluster::{Cluster, PodKey};
use crate::objects::{Conditions, Slice, view};
use crate::wire::Transport;

/// One port of one Service in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frontend {
    /// `namespace/name`.
    pub service: String,
    /// The port's name; empty if it has none.
    pub port_name: String,
    /// The Service's address and port.
    pub address: SocketAddr,
    /// The protocol.
    pub transport: Transport,
    /// Whether a client stays with its backend (`sessionAffinity: ClientIP`).
    pub affinity: bool,
    /// Every backend that is to get new connections; none: clients are to be refused.
    pub backends: BTreeSet<SocketAddr>,
}

impl Frontend {
    /// The address family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.address.ip())
    }
}

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.service)?;
        if !self.port_name.is_empty() {
            write!(f, ":{}", self.port_name)?;
        }
        write!(f, " ({}/{}, {})", self.address.port(), self.transport.word(), self.family().word())
    }
}

/// All frontends, and the Services that have none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Frontends {
    /// In the order of Services, ports and families.
    pub all: Vec<Frontend>,
    /// Services without an address of their own: names, which DNS answers.
    pub left_to_dns: Vec<String>,
    /// What cannot be tried here, with the reason.
    pub not_tried: Vec<String>,
}

/// The frontends of a cluster.
#[must_use]
pub fn frontends(cluster: &Cluster) -> Frontends {
    let mut out = Frontends::default();
    let slices: Vec<Slice> = cluster.slices().iter().filter_map(|slice| view(slice, "").ok()).collect();
    let namespaces: Vec<String> = cluster
        .slices()
        .iter()
        .map(|slice| slice.pointer("/metadata/namespace").and_then(|n| n.as_str()).unwrap_or("default").to_owned())
        .collect();
    let pods: BTreeMap<IpAddr, &PodKey> =
        cluster.pods().iter().flat_map(|(key, pod)| pod.addresses.both().map(|address| (address, key))).collect();
    for (key, spec) in cluster.services() {
        let service = format!("{}/{}", key.namespace, key.name);
        if spec.is_external_name() || spec.is_headless() {
            out.left_to_dns.push(service);
            continue;
        }
        let own: Vec<&Slice> = slices
            .iter()
            .zip(&namespaces)
            .filter(|(slice, namespace)| {
                **namespace == key.namespace
                    && slice.metadata.labels.get("kubernetes.io/service-name") == Some(&key.name)
            })
            .map(|(slice, _)| slice)
            .collect();
        for port in &spec.ports {
            let (Some(transport), Ok(number)) = (port.transport(), u16::try_from(port.port)) else {
                out.not_tried.push(format!("{service}: pods here cannot serve port {}/{}", port.port, port.protocol()));
                continue;
            };
            for address in spec.addresses() {
                let backends = backends(&own, Family::of(address), &port.name, transport);
                if let Some(stranger) = backends.iter().find(|backend| !pods.contains_key(&backend.ip())) {
                    out.not_tried.push(format!("{service}: its endpoint {stranger} is no pod of this run"));
                    continue;
                }
                out.all.push(Frontend {
                    service: service.clone(),
                    port_name: port.name.clone(),
                    address: SocketAddr::new(address, number),
                    transport,
                    affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
                    backends,
                });
            }
        }
    }
    out.not_tried.sort();
    out.not_tried.dedup();
    out
}

/// The ready endpoints of a port; if none is ready, those that still serve while they go.
fn backends(slices: &[&Slice], family: Family, port_name: &str, transport: Transport) -> BTreeSet<SocketAddr> {
    let collect = |wanted: fn(&Conditions) -> bool| -> BTreeSet<SocketAddr> {
        let mut found = BTreeSet::new();
        for slice in slices.iter().filter(|slice| slice.address_type == family.address_type()) {
            for port in &slice.ports {
                let protocol = port.protocol.as_deref().unwrap_or("TCP");
                let Some(number) = port.port.and_then(|number| u16::try_from(number).ok()) else { continue };
                if port.name != port_name || protocol != transport.word() {
                    continue;
                }
                for endpoint in slice.endpoints.iter().filter(|endpoint| wanted(&endpoint.conditions)) {
                    let address = endpoint.addresses.first().and_then(|address| address.parse().ok());
                    found.extend(address.map(|address| SocketAddr::new(address, number)));
                }
            }
        }
        found
    };
    let ready = collect(|conditions| conditions.ready != Some(false));
    if !ready.is_empty() {
        return ready;
    }
    collect(|conditions| conditions.terminating == Some(true) && conditions.serving != Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::PodState;
    use crate::manifests::Manifests;

    #[test]
    fn every_port_and_family_is_a_frontend() {
        let mut manifests = Manifests::default();
        manifests.parse(
            "test",
            "{kind: Service, metadata: {name: web}, spec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [\
               {name: a, port: 80, targetPort: 8080}, {name: b, port: 53, protocol: UDP}, {name: c, port: 9, protocol: SCTP}]}}\n\
             ---\n{kind: Service, metadata: {name: none}, spec: {clusterIP: None}}\n\
             ---\n{kind: Service, metadata: {name: ext}, spec: {type: ExternalName, externalName: example.org}}\n\
             ---\n{kind: Service, metadata: {name: strange}, spec: {ipFamilyPolicy: SingleStack, ports: [{port: 80}]}}\n\
             ---\n{kind: EndpointSlice, metadata: {name: x, labels: {kubernetes.io/service-name: strange}}, \
               addressType: IPv4, ports: [{name: '', port: 80}], endpoints: [{addresses: [192.0.2.1]}]}\n\
             ---\n{kind: Deployment, metadata: {name: web}, spec: {replicas: 2, template: {metadata: {labels: {app: web}}}}}\n",
        );
        let mut cluster = Cluster::new(1);
        cluster.put(manifests);
        let pods = cluster.plan().unwrap().start;
        for pod in &pods {
            cluster.set_state(pod, PodState::Ready);
        }
        let found = frontends(&cluster);
        let seen: Vec<_> = found.all.iter().map(|f| (f.to_string(), f.backends.len(), f.affinity)).collect();
        assert_eq!(
            seen,
            [
                ("default/web:a (80/TCP, ipv4)".to_owned(), 2, true),
                ("default/web:a (80/TCP, ipv6)".to_owned(), 2, true),
                ("default/web:b (53/UDP, ipv4)".to_owned(), 2, true),
                ("default/web:b (53/UDP, ipv6)".to_owned(), 2, true),
            ]
        );
        assert_eq!(found.left_to_dns, ["default/ext", "default/none"]);
        assert_eq!(
            found.not_tried,
            [
                "default/strange: its endpoint 192.0.2.1:80 is no pod of this run",
                "default/web: pods here cannot serve port 9/SCTP"
            ]
        );

        // The last ones to serve are used while they go.
        for pod in &pods {
            cluster.set_state(pod, PodState::Terminating);
        }
        assert_eq!(frontends(&cluster).all[0].backends.len(), 2);
        cluster.set_state(&pods[0], PodState::Ready);
        assert_eq!(frontends(&cluster).all[0].backends.len(), 1);
    }
}
