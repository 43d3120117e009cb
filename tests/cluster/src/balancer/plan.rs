//! What a load balancer does about a Service: which addresses it gets, what is written to it, which nodes serve it. No I/O.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Deserialize;

/// What keeps a Service until its load balancer is gone; upstream's service controller uses the same.
pub(super) const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Where kube-proxy, and who stands in its place, says how it is.
const PROXY_HEALTH: u16 = 10256;
/// The network of load balancers' IPv4 addresses, as [`netlb_testnode::address`] plans it.
const NETWORK_V4: [u8; 3] = [198, 18, 0];
/// The same of IPv6.
const NETWORK_V6: [u16; 7] = [0xfd00, 0x198, 0x18, 0, 0, 0, 0];

/// What a load balancer needs to know of a Service.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Service {
    pub(super) metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    #[serde(default)]
    finalizers: Vec<String>,
    deletion_timestamp: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "type")]
    kind: String,
    load_balancer_class: Option<String>,
    #[serde(rename = "loadBalancerIP")]
    load_balancer_ip: Option<String>,
    #[serde(default)]
    ip_families: Vec<String>,
    external_traffic_policy: Option<String>,
    health_check_node_port: Option<u16>,
    session_affinity: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct LoadBalancer {
    #[serde(default)]
    ingress: Vec<Ingress>,
}

#[derive(Clone, Debug, Deserialize)]
struct Ingress {
    ip: Option<IpAddr>,
}

/// What is to be written to a Service next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// Its finalizers, all of them.
    Finalizers(Vec<String>),
    /// Its load balancer's addresses, all of them.
    Addresses(Vec<IpAddr>),
}

impl Service {
    /// Its name, with its namespace.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Whether it asks for a load balancer, of no class in particular.
    fn wants(&self) -> bool {
        self.spec.kind == "LoadBalancer"
            && self.spec.load_balancer_class.is_none()
            && self.metadata.deletion_timestamp.is_none()
    }

    fn held(&self) -> bool {
        self.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }

    /// Whether it may have addresses: it wants them, and cannot go before they are taken back.
    pub(super) fn ready(&self) -> bool {
        self.wants() && self.held()
    }

    /// What is to be written next, if anything, when it has these addresses.
    pub(super) fn write(&self, addresses: &[IpAddr]) -> Option<Write> {
        let mut finalizers = self.metadata.finalizers.clone();
        let ingress = &self.status.load_balancer.ingress;
        // Addresses that are none of ours are somebody else's to change.
        let ours = ingress.iter().all(|ingress| ingress.ip.is_some_and(|ip| number(ip).is_some()));
        let written = ingress.iter().filter_map(|ingress| ingress.ip).eq(addresses.iter().copied());
        if self.wants() && !self.held() {
            finalizers.push(FINALIZER.to_owned());
            return Some(Write::Finalizers(finalizers));
        }
        if self.held() && ours && !written {
            return Some(Write::Addresses(addresses.to_vec()));
        }
        if self.held() && !self.wants() {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            return Some(Write::Finalizers(finalizers));
        }
        None
    }

    /// The port at which a node says whether it serves this Service: whether it has endpoints, where it must (external traffic
    /// policy Local), else whether its service proxy is well.
    pub(super) fn health_port(&self) -> u16 {
        match (self.spec.external_traffic_policy.as_deref(), self.spec.health_check_node_port) {
            (Some("Local"), Some(port)) => port,
            _ => PROXY_HEALTH,
        }
    }

    /// Which of the `healthy` nodes get its traffic. A client that is to stay with an endpoint must stay with a node: then it is
    /// one for all clients, the one it is `now` as long as that is healthy.
    pub(super) fn nodes(&self, healthy: &[u8], now: &[u8]) -> Vec<u8> {
        if self.spec.session_affinity.as_deref() == Some("ClientIP") {
            let stays = now.iter().find(|node| healthy.contains(node));
            return stays.or(healthy.first()).copied().into_iter().collect();
        }
        healthy.to_vec()
    }
}

/// The addresses that are given out: pairs with the same number in either network.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// Who has which number, by uid.
    held: BTreeMap<String, u8>,
    /// The number that was given out last: one that was taken back is not another's at once.
    last: u8,
}

impl Pool {
    /// The addresses of a Service, of its families in its order; it keeps them until [`Pool::release`]. None if the one it asks
    /// for is not there, or all are given out.
    pub(super) fn addresses(&mut self, service: &Service) -> Vec<IpAddr> {
        let uid = &service.metadata.uid;
        let Some(number) = self.held.get(uid).copied().or_else(|| self.choose(service)) else { return Vec::new() };
        self.held.insert(uid.clone(), number);
        let family = |family: &String| match family.as_str() {
            "IPv6" => {
                let [a, b, c, d, e, f, g] = NETWORK_V6;
                Ipv6Addr::new(a, b, c, d, e, f, g, number.into()).into()
            }
            _ => {
                let [a, b, c] = NETWORK_V4;
                Ipv4Addr::new(a, b, c, number).into()
            }
        };
        service.spec.ip_families.iter().map(family).collect()
    }

    /// Takes a Service's addresses back.
    pub(super) fn release(&mut self, uid: &str) {
        self.held.remove(uid);
    }

    fn choose(&mut self, service: &Service) -> Option<u8> {
        let free = |candidate: &u8| (1..=254).contains(candidate) && !self.held.values().any(|held| held == candidate);
        if let Some(wish) = service.spec.load_balancer_ip.as_deref().filter(|wish| !wish.is_empty()) {
            return number(wish.parse().ok()?).filter(free);
        }
        let after = |step: u8| self.last.wrapping_add(step);
        let number = (1..=u8::MAX).map(after).find(free)?;
        self.last = number;
        Some(number)
    }
}

/// The number of an address that may be given out.
fn number(address: IpAddr) -> Option<u8> {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, number] = address.octets();
            ([a, b, c] == NETWORK_V4).then_some(number)
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, number] = address.segments();
            if [a, b, c, d, e, f, g] == NETWORK_V6 { u8::try_from(number).ok() } else { None }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(change: Value) -> Service {
        let mut object = json!({
            "metadata": {"namespace": "ns", "name": "s", "uid": "a", "resourceVersion": "7", "finalizers": ["other", FINALIZER]},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv6", "IPv4"]},
            "status": {"loadBalancer": {}},
        });
        let Value::Object(change) = change else { panic!("not an object") };
        for (pointer, value) in change {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[key] = value;
        }
        serde_json::from_value(object).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_service_is_held_before_it_has_addresses_and_let_go_after_it_had_them() {
        let addresses = [ip("198.18.0.1")];
        let new = service(json!({"/metadata/finalizers": ["other"]}));
        assert!(!new.ready());
        assert_eq!(new.write(&[]), Some(Write::Finalizers(vec!["other".into(), FINALIZER.into()])));

        let held = service(json!({}));
        assert!(held.ready());
        assert_eq!(held.write(&addresses), Some(Write::Addresses(addresses.to_vec())));
        let written = json!({"ingress": [{"ip": "198.18.0.1", "ipMode": "VIP"}]});
        assert_eq!(service(json!({"/status/loadBalancer": written})).write(&addresses), None);

        let turned = service(json!({"/spec/type": "ClusterIP", "/status/loadBalancer": written}));
        assert!(!turned.ready());
        assert_eq!(turned.write(&[]), Some(Write::Addresses(vec![])));
        let last = Some(Write::Finalizers(vec!["other".into()]));
        assert_eq!(service(json!({"/spec/type": "ClusterIP"})).write(&[]), last);
        assert_eq!(service(json!({"/metadata/deletionTimestamp": "2026-11-21T00:00:00Z"})).write(&[]), last);
        assert_eq!(service(json!({"/spec/type": "ClusterIP", "/metadata/finalizers": []})).write(&[]), None);
    }

    #[test]
    fn what_others_serve_or_wrote_is_left_alone() {
        let class = service(json!({"/spec/loadBalancerClass": "example.com/other", "/metadata/finalizers": []}));
        assert_eq!(class.write(&[]), None);
        let theirs = service(json!({"/status/loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}));
        assert_eq!(theirs.write(&[ip("198.18.0.1")]), None);
        let named = service(json!({"/status/loadBalancer": {"ingress": [{"hostname": "example.com"}]}}));
        assert_eq!(named.write(&[ip("198.18.0.1")]), None);
    }

    #[test]
    fn an_address_of_each_family_is_kept_and_not_given_out_again_at_once() {
        let mut pool = Pool::default();
        let addresses = pool.addresses(&service(json!({})));
        assert_eq!(addresses, [ip("fd00:198:18::1"), ip("198.18.0.1")]);
        assert_eq!(pool.addresses(&service(json!({"/spec/ipFamilies": ["IPv4"]}))), [ip("198.18.0.1")]);
        pool.release("a");
        assert_eq!(pool.addresses(&service(json!({"/metadata/uid": "b"}))), [ip("fd00:198:18::2"), ip("198.18.0.2")]);
        let wish = service(json!({"/metadata/uid": "c", "/spec/loadBalancerIP": "198.18.0.9"}));
        assert_eq!(pool.addresses(&wish), [ip("fd00:198:18::9"), ip("198.18.0.9")]);
        let taken = service(json!({"/metadata/uid": "d", "/spec/loadBalancerIP": "198.18.0.9"}));
        assert!(pool.addresses(&taken).is_empty());
        for wish in ["192.0.2.1", "198.18.0.0", "none"] {
            let service = service(json!({"/metadata/uid": "d", "/spec/loadBalancerIP": wish}));
            assert!(pool.addresses(&service).is_empty());
        }
    }

    #[test]
    fn all_numbers_but_the_networks_own_are_given_out_once() {
        let mut pool = Pool::default();
        let mut numbers: Vec<IpAddr> = (0..254)
            .flat_map(|uid| {
                pool.addresses(&service(json!({"/metadata/uid": uid.to_string(), "/spec/ipFamilies": ["IPv4"]})))
            })
            .collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), 254);
        assert!(!numbers.contains(&ip("198.18.0.0")) && !numbers.contains(&ip("198.18.0.255")));
        assert!(pool.addresses(&service(json!({"/metadata/uid": "one more"}))).is_empty());
    }

    #[test]
    fn healthy_nodes_share_the_traffic_unless_clients_are_to_stay() {
        let local = json!({"/spec/externalTrafficPolicy": "Local", "/spec/healthCheckNodePort": 30001});
        assert_eq!(service(local).health_port(), 30001);
        assert_eq!(service(json!({"/spec/externalTrafficPolicy": "Cluster"})).health_port(), 10256);
        assert_eq!(service(json!({})).nodes(&[1, 3], &[2]), [1, 3]);
        let sticky = service(json!({"/spec/sessionAffinity": "ClientIP"}));
        assert_eq!(sticky.nodes(&[1, 3], &[]), [1]);
        assert_eq!(sticky.nodes(&[1, 3], &[3]), [3]);
        assert_eq!(sticky.nodes(&[1, 3], &[1, 2, 3]), [1]);
        assert_eq!(sticky.nodes(&[1, 3], &[2]), [1]);
        assert!(sticky.nodes(&[], &[1]).is_empty());
    }
}
