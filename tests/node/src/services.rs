//! What the API server and the load balancer's controller do to a Service: defaults, addresses, node ports, and the
//! addresses in its status.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::address::Family;
use crate::objects::{ServiceSpec, ServiceStatus, view};

/// Hands out Service addresses, load balancer addresses and node ports, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Allocator {
    addresses: BTreeSet<IpAddr>,
    node_ports: BTreeSet<i64>,
}

/// The first host number that is handed out; those below are for manifests that name theirs.
const FIRST: u16 = 256;

impl Allocator {
    /// Marks what a Service has named itself, so that nobody else gets it.
    pub fn reserve(&mut self, service: &Value) {
        if let Ok(spec) = view::<ServiceSpec>(service, "/spec") {
            self.addresses.extend(spec.addresses());
            self.addresses.extend(spec.cluster_ip.parse::<IpAddr>());
            self.addresses.extend(spec.load_balancer_ip.as_deref().and_then(|text| text.parse::<IpAddr>().ok()));
            self.node_ports.extend(spec.ports.iter().filter_map(|port| port.node_port));
            self.node_ports.insert(spec.health_check_node_port);
        }
        if let Ok(status) = view::<ServiceStatus>(service, "/status") {
            self.addresses.extend(status.balancer_addresses());
        }
    }

    /// Takes back what a Service had.
    pub fn release(&mut self, service: &Value) {
        if let Ok(spec) = view::<ServiceSpec>(service, "/spec") {
            for address in spec.addresses() {
                self.addresses.remove(&address);
            }
            for port in spec.ports.iter().filter_map(|port| port.node_port) {
                self.node_ports.remove(&port);
            }
            self.node_ports.remove(&spec.health_check_node_port);
        }
        if let Ok(status) = view::<ServiceStatus>(service, "/status") {
            for address in status.balancer_addresses() {
                self.addresses.remove(&address);
            }
        }
    }

    fn address(&mut self, family: Family) -> Option<IpAddr> {
        self.first_free((FIRST..u16::MAX).map(|host| service_address(family, host)))
    }

    fn balancer_address(&mut self, family: Family) -> Option<IpAddr> {
        self.first_free((1..255).map(|host| balancer_address(family, host)))
    }

    fn first_free(&mut self, mut candidates: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
        let address = candidates.find(|address| !self.addresses.contains(address))?;
        self.addresses.insert(address);
        Some(address)
    }

    fn node_port(&mut self) -> Option<i64> {
        let port = (30_000..32_768).find(|port| !self.node_ports.contains(port))?;
        self.node_ports.insert(port);
        Some(port)
    }
}

fn service_address(family: Family, host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 96, high, low).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, host).into(),
    }
}

fn balancer_address(family: Family, host: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(198, 18, 0, host).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, 0, u16::from(host)).into(),
    }
}

/// Fills in what a Service leaves open. `old` is the Service as it was before, whose addresses it keeps.
///
/// A Service without `ipFamilyPolicy` becomes `PreferDualStack` here (the API server would say `SingleStack`), so that
/// both families are tried.
///
/// # Errors
/// Names the field that cannot be understood; the Service is then left as it was written.
pub fn complete(service: &mut Value, old: Option<&Value>, allocator: &mut Allocator) -> Result<(), String> {
    let spec: ServiceSpec = view(service, "/spec")?;
    if spec.is_external_name() {
        return Ok(());
    }
    let before = old.and_then(|old| view::<ServiceSpec>(old, "/spec").ok()).unwrap_or_default();

    let mut addresses: Vec<String> =
        if spec.cluster_ips.is_empty() { vec![spec.cluster_ip.clone()] } else { spec.cluster_ips.clone() };
    addresses.retain(|address| !address.is_empty());
    let headless = addresses.first().is_some_and(|address| address == "None");

    let mut families = spec.families_as_written()?;
    for address in &addresses {
        if let Ok(address) = address.parse::<IpAddr>() {
            let family = Family::of(address);
            if !families.contains(&family) {
                families.push(family);
            }
        }
    }
    let policy = spec.ip_family_policy.clone().unwrap_or_else(|| "PreferDualStack".to_owned());
    let wanted = if policy == "SingleStack" { 1 } else { 2 };
    for family in Family::BOTH {
        if families.len() < wanted && !families.contains(&family) {
            families.push(family);
        }
    }

    if !headless {
        for family in &families {
            let has = |list: &[String]| {
                list.iter().find(|text| text.parse().is_ok_and(|address| Family::of(address) == *family)).cloned()
            };
            let malformed = addresses.iter().any(|text| text.parse::<IpAddr>().is_err());
            if malformed || has(&addresses).is_some() {
                continue;
            }
            let address = has(&before.cluster_ips)
                .or_else(|| allocator.address(*family).map(|address| address.to_string()))
                .ok_or("spec.clusterIP: the Service network is full; delete Services")?;
            addresses.push(address);
        }
    }

    let ports = complete_ports(service, &spec, &before, allocator)?;
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let health_check = match (spec.kind.as_deref(), spec.health_check_node_port, before.health_check_node_port) {
        (Some("LoadBalancer"), 0, 0) if local => Some(allocator.node_port().ok_or(NO_NODE_PORT)?),
        (Some("LoadBalancer"), 0, kept) if local => Some(kept),
        _ => None,
    };
    let reachable = matches!(spec.kind.as_deref(), Some("NodePort" | "LoadBalancer")) || !spec.external_ips.is_empty();
    let kind = spec.kind.clone().unwrap_or_else(|| "ClusterIP".to_owned());
    let spec = service
        .get_mut("spec")
        .and_then(Value::as_object_mut)
        .ok_or("spec: missing or not a mapping; write the Service's ports there")?;
    if let Some(first) = addresses.first() {
        spec.insert("clusterIP".to_owned(), json!(first));
    }
    spec.insert("clusterIPs".to_owned(), json!(addresses));
    spec.insert("ipFamilies".to_owned(), json!(families.iter().map(|f| f.address_type()).collect::<Vec<_>>()));
    spec.insert("ipFamilyPolicy".to_owned(), json!(policy));
    spec.insert("type".to_owned(), json!(kind));
    spec.entry("sessionAffinity").or_insert_with(|| json!("None"));
    if !headless {
        spec.entry("internalTrafficPolicy").or_insert_with(|| json!("Cluster"));
        if reachable {
            spec.entry("externalTrafficPolicy").or_insert_with(|| json!("Cluster"));
        }
    }
    if let Some(port) = health_check {
        spec.insert("healthCheckNodePort".to_owned(), json!(port));
    }
    if let Some(ports) = ports {
        spec.insert("ports".to_owned(), ports);
    }
    balance(service, old, &families, allocator)?;
    allocator.reserve(service);
    Ok(())
}

/// What the load balancer's controller does: an address a family into the status, unless somebody wrote it already.
fn balance(
    service: &mut Value,
    old: Option<&Value>,
    families: &[Family],
    allocator: &mut Allocator,
) -> Result<(), String> {
    let spec: ServiceSpec = view(service, "/spec")?;
    let status: ServiceStatus = view(service, "/status")?;
    if !spec.is_balanced_here() || !status.load_balancer.ingress.is_empty() {
        return Ok(());
    }
    let before = old.and_then(|old| view::<ServiceStatus>(old, "/status").ok()).unwrap_or_default();
    let mut ingress = Vec::new();
    for family in families {
        let wished = spec.load_balancer_ip.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
        let address = wished
            .into_iter()
            .chain(before.balancer_addresses())
            .find(|address| Family::of(*address) == *family)
            .or_else(|| allocator.balancer_address(*family))
            .ok_or("spec.type: no load balancer address is left; delete Services")?;
        ingress.push(json!({"ip": address, "ipMode": "VIP"}));
    }
    if let Some(object) = service.as_object_mut() {
        object.insert("status".to_owned(), json!({"loadBalancer": {"ingress": ingress}}));
    }
    Ok(())
}

const NO_NODE_PORT: &str = "spec.ports: no node port is left; delete Services";

fn complete_ports(
    service: &Value,
    spec: &ServiceSpec,
    before: &ServiceSpec,
    allocator: &mut Allocator,
) -> Result<Option<Value>, String> {
    let Some(written) = service.pointer("/spec/ports").and_then(Value::as_array) else { return Ok(None) };
    let node_ports = match spec.kind.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    };
    let mut ports = written.clone();
    for (port, view) in ports.iter_mut().zip(&spec.ports) {
        let Some(fields) = port.as_object_mut() else { continue };
        fields.entry("protocol").or_insert_with(|| json!("TCP"));
        fields.entry("targetPort").or_insert_with(|| json!(view.port));
        if node_ports && view.node_port.is_none() {
            let kept = before
                .ports
                .iter()
                .find(|old| old.name == view.name && old.port == view.port)
                .and_then(|old| old.node_port);
            let number = kept.or_else(|| allocator.node_port()).ok_or(NO_NODE_PORT)?;
            fields.insert("nodePort".to_owned(), json!(number));
        }
    }
    Ok(Some(Value::Array(ports)))
}

impl ServiceSpec {
    fn families_as_written(&self) -> Result<Vec<Family>, String> {
        self.ip_families
            .iter()
            .map(|word| {
                Family::BOTH
                    .into_iter()
                    .find(|family| family.address_type() == word)
                    .ok_or_else(|| format!("spec.ipFamilies: {word:?} is not a family; write IPv4 or IPv6"))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(spec: Value) -> Value {
        let mut service = json!({"kind": "Service", "metadata": {"name": "a"}, "spec": spec});
        complete(&mut service, None, &mut Allocator::default()).unwrap();
        service["spec"].clone()
    }

    #[test]
    fn open_service_becomes_dual_stack() {
        let spec = completed(json!({"ports": [{"port": 80}]}));
        assert_eq!(spec["clusterIPs"], json!(["10.96.1.0", "fd00:10:96::100"]));
        assert_eq!(spec["clusterIP"], "10.96.1.0");
        assert_eq!(spec["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(spec["ipFamilyPolicy"], "PreferDualStack");
        assert_eq!(spec["ports"], json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
        assert_eq!(spec["type"], "ClusterIP");
    }

    #[test]
    fn order_and_number_of_families_are_kept() {
        let six = completed(json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"], "ports": [{"port": 80}]}));
        assert_eq!(six["clusterIPs"], json!(["fd00:10:96::100"]));
        let both = completed(json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80}]}));
        assert_eq!(both["clusterIPs"], json!(["fd00:10:96::100", "10.96.1.0"]));
    }

    #[test]
    fn written_addresses_stay_and_headless_stays_headless() {
        let named = completed(json!({"clusterIP": "10.96.0.10", "ports": [{"port": 53}]}));
        assert_eq!(named["clusterIPs"], json!(["10.96.0.10", "fd00:10:96::100"]));
        let headless = completed(json!({"clusterIP": "None", "ports": [{"port": 53}]}));
        assert_eq!(headless["clusterIPs"], json!(["None"]));
    }

    #[test]
    fn nobody_gets_an_address_twice() {
        let mut allocator = Allocator::default();
        let mut first =
            json!({"metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.1.0", "ipFamilyPolicy": "SingleStack"}});
        let mut second = json!({"metadata": {"name": "b"}, "spec": {"ipFamilyPolicy": "SingleStack"}});
        complete(&mut first, None, &mut allocator).unwrap();
        complete(&mut second, None, &mut allocator).unwrap();
        assert_eq!(second["spec"]["clusterIP"], "10.96.1.1");
        allocator.release(&second);
        let mut third = json!({"metadata": {"name": "c"}, "spec": {"ipFamilyPolicy": "SingleStack"}});
        complete(&mut third, None, &mut allocator).unwrap();
        assert_eq!(third["spec"]["clusterIP"], "10.96.1.1");
    }

    #[test]
    fn a_changed_service_keeps_its_address_and_node_port() {
        let mut allocator = Allocator::default();
        let written = json!({"metadata": {"name": "a"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let mut old = written.clone();
        complete(&mut old, None, &mut allocator).unwrap();
        let mut new = written;
        complete(&mut new, Some(&old), &mut allocator).unwrap();
        assert_eq!(new, old);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30_000);
    }

    #[test]
    fn a_load_balancer_gets_addresses_and_a_health_check() {
        let mut allocator = Allocator::default();
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        let written = json!({"metadata": {"name": "a"}, "spec": spec});
        let mut first = written.clone();
        complete(&mut first, None, &mut allocator).unwrap();
        let ips = |service: &Value| {
            service["status"]["loadBalancer"]["ingress"]
                .as_array()
                .map(|list| list.iter().map(|entry| entry["ip"].as_str().unwrap().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(ips(&first), Some(vec!["198.18.0.1".to_owned(), "fd00:198:18::1".to_owned()]));
        assert_eq!(first["spec"]["ports"][0]["nodePort"], 30_000);
        assert_eq!(first["spec"]["healthCheckNodePort"], 30_001);
        let mut again = written.clone();
        complete(&mut again, Some(&first), &mut allocator).unwrap();
        assert_eq!(again, first);

        let mut second = written.clone();
        second["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        second["spec"]["externalTrafficPolicy"] = json!("Cluster");
        complete(&mut second, None, &mut allocator).unwrap();
        assert_eq!(ips(&second).unwrap()[0], "198.18.0.2");
        assert_eq!(second["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(second["spec"].get("healthCheckNodePort"), None);

        let mut others = written.clone();
        others["spec"]["loadBalancerClass"] = json!("example.org/other");
        complete(&mut others, None, &mut allocator).unwrap();
        assert_eq!(ips(&others), None);
        let mut told = written;
        told["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.18.0.9", "ipMode": "Proxy"}]}});
        complete(&mut told, None, &mut allocator).unwrap();
        assert_eq!(ips(&told).unwrap(), ["198.18.0.9"]);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let mut service = json!({"metadata": {"name": "a"}, "spec": {"ports": "many"}});
        let error = complete(&mut service, None, &mut Allocator::default()).unwrap_err();
        assert!(error.starts_with("spec:"), "{error}");
    }
}
