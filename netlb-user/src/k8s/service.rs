//! Service (v1).

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::meta::{ObjectMeta, annotation, is_label, is_name, only_known, weight};
use super::place::{Place, Report, Reported, quote};
use crate::model::scheduler::MAX_WEIGHT;
use crate::model::{
    Cidr, Family, PortName, Protocol, Scheduler, ServiceName, ServicePort, ServiceSpec, ServiceType, SourceRanges,
    TrafficPolicy, Weighed, Weights,
};

/// Hands a Service to another proxy: kube-proxy does not even see it.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Marks a Service, or a slice, as headless.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Annotations: how a backend is chosen, and what some of them weigh.
const SCHEDULER: &str = "scheduler";
const WEIGHTS: &str = "weights";

/// Seconds of `sessionAffinity: ClientIP` if nothing is said, and the most that may be.
const AFFINITY_DEFAULT: u32 = 10_800;
const AFFINITY_MAX: u32 = 86_400;

pub(super) const PROTOCOLS: &[(&str, Protocol)] =
    &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
const POLICIES: &[(&str, TrafficPolicy)] = &[("Cluster", TrafficPolicy::Cluster), ("Local", TrafficPolicy::Local)];
const TYPES: &[(&str, ServiceType)] = &[
    ("ClusterIP", ServiceType::ClusterIp),
    ("NodePort", ServiceType::NodePort),
    ("LoadBalancer", ServiceType::LoadBalancer),
    ("ExternalName", ServiceType::ExternalName),
];

pub(super) fn convert(root: &Place<'_>, meta: ObjectMeta, report: &mut Report) -> Result<ServiceSpec, Reported> {
    let Some(spec) = root.object("spec", report)? else {
        return Err(report.field(root, "spec", "is missing", "give the Service a spec"));
    };
    let kind = spec.choice("type", TYPES, report)?.unwrap_or(ServiceType::ClusterIp);
    let policy =
        |key, report: &mut Report| spec.choice(key, POLICIES, report).ok().flatten().unwrap_or(TrafficPolicy::Cluster);
    let cluster_ips = cluster_ips(&spec, report)?;
    let (scheduler, weights) = (scheduler(root, &meta, report), weights(root, &meta, report));
    Ok(ServiceSpec {
        name: ServiceName { namespace: meta.namespace, name: meta.name },
        meta: meta.meta,
        kind,
        cluster_ips,
        ports: ports(&spec, report)?,
        affinity_s: affinity(&spec, report),
        internal_policy: policy("internalTrafficPolicy", report),
        external_policy: policy("externalTrafficPolicy", report),
        external_ips: ips(&spec, "externalIPs", report),
        load_balancer_ips: load_balancer_ips(root, report),
        source_ranges: source_ranges(&spec, report),
        health_check_node_port: node_port(&spec, "healthCheckNodePort", report),
        scheduler,
        weights,
        ours: !meta.labels.contains_key(PROXY_NAME) && !meta.labels.contains_key(HEADLESS),
    })
}

/// One address a family. `clusterIPs` counts, and `clusterIP` where it is absent.
fn cluster_ips(spec: &Place<'_>, report: &mut Report) -> Result<Vec<IpAddr>, Reported> {
    let mut found: Vec<IpAddr> = Vec::new();
    let list = spec.list("clusterIPs", report)?;
    let single = if list.is_empty() { spec.get("clusterIP") } else { None };
    for place in list.into_iter().chain(single) {
        if matches!(place.as_text(report), Ok("None" | "")) {
            continue;
        }
        let Ok(addr) = place.as_ip(report) else { continue };
        if let Some(fault) = unusable(addr) {
            report.place(&place, format!("{addr} is {fault}"), "use an address of the Service CIDR");
        } else if found.iter().any(|other| Family::of(*other) == Family::of(addr)) {
            let message = format!("{addr} is a second address of its family, and is not served");
            report.place(&place, message, "give at most one IPv4 and one IPv6 address");
        } else {
            found.push(addr);
        }
    }
    Ok(found)
}

/// Why an address can be neither a Service's nor an endpoint's, in a word.
pub(super) fn unusable(addr: IpAddr) -> Option<&'static str> {
    match addr {
        _ if addr.is_unspecified() => Some("the unspecified address"),
        _ if addr.is_loopback() => Some("a loopback address"),
        _ if addr.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address written as IPv6"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// The ports that can be served; the others are reported one by one.
fn ports(spec: &Place<'_>, report: &mut Report) -> Result<Vec<ServicePort>, Reported> {
    let (mut ports, mut names, mut numbers) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for (index, place) in spec.list("ports", report)?.into_iter().enumerate() {
        let Ok(port) = port(&place, index, report) else { continue };
        if !names.insert(port.name.clone()) {
            let message = format!("{} names a port before this one, which is not served", quote(&port.name.0));
            report.field(&place, "name", message, "give each port its own name");
        } else if !numbers.insert((port.port, port.protocol)) {
            let message = format!("{}/{} is a port before this one, which is not served", port.port, port.protocol);
            report.field(&place, "port", message, "list each port and protocol once");
        } else {
            ports.push(port);
        }
    }
    Ok(ports)
}

fn port(place: &Place<'_>, index: usize, report: &mut Report) -> Result<ServicePort, Reported> {
    let name = place.text("name", report)?.unwrap_or("");
    if !name.is_empty() && !is_label(name) {
        let message = format!("{} is not a port name", quote(name));
        return Err(report.field(place, "name", message, "use at most 63 lower case letters, digits and '-'"));
    }
    let protocol = place.choice("protocol", PROTOCOLS, report)?.unwrap_or(Protocol::Tcp);
    let Some(port) = place.port("port", report)? else {
        return Err(report.field(place, "port", "is missing", "write a number from 1 to 65535"));
    };
    let node_port = node_port(place, "nodePort", report);
    Ok(ServicePort { index, name: PortName::new(name), protocol, port, node_port })
}

/// A node port; 0 and absent: none.
fn node_port(place: &Place<'_>, key: &str, report: &mut Report) -> u16 {
    match place.integer(key, report) {
        Ok(None | Some(0)) | Err(_) => 0,
        Ok(Some(_)) => place.port(key, report).ok().flatten().unwrap_or(0),
    }
}

/// Seconds of session affinity. A timeout that cannot be is reported, and the default stands in for it.
fn affinity(spec: &Place<'_>, report: &mut Report) -> Option<u32> {
    let client_ip = spec.choice("sessionAffinity", &[("None", false), ("ClientIP", true)], report).ok().flatten()?;
    if !client_ip {
        return None;
    }
    let timeout = || -> Result<Option<u32>, Reported> {
        let Some(config) = spec.object("sessionAffinityConfig", report)? else { return Ok(None) };
        let Some(client) = config.object("clientIP", report)? else { return Ok(None) };
        let Some(seconds) = client.integer("timeoutSeconds", report)? else { return Ok(None) };
        match u32::try_from(seconds) {
            Ok(seconds @ 1..=AFFINITY_MAX) => Ok(Some(seconds)),
            Ok(_) | Err(_) => {
                let message = format!("{seconds} is no timeout; {AFFINITY_DEFAULT} stands in for it");
                let remedy = format!("write a number from 1 to {AFFINITY_MAX}");
                Err(report.field(&client, "timeoutSeconds", message, &remedy))
            }
        }
    };
    let mut timeout = timeout;
    Some(timeout().ok().flatten().unwrap_or(AFFINITY_DEFAULT))
}

fn scheduler(root: &Place<'_>, meta: &ObjectMeta, report: &mut Report) -> Option<Scheduler> {
    only_known(root, meta, &[SCHEDULER, WEIGHTS], report);
    let text = meta.annotations.get(SCHEDULER)?;
    let found = Scheduler::parse(text.trim());
    if found.is_none() {
        let known = Scheduler::ALL.map(Scheduler::name).join(", ");
        let message = format!("{} is no scheduler; the agent's own stands in for it", quote(text));
        annotation(root, SCHEDULER, message, &format!("write one of {known}"), report);
    }
    found
}

/// `address=weight` or `pod=weight`, with commas between. An entry that cannot be read counts for nothing.
fn weights(root: &Place<'_>, meta: &ObjectMeta, report: &mut Report) -> Weights {
    let mut weights = Weights::default();
    let text = meta.annotations.get(WEIGHTS).map_or("", String::as_str);
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let parsed = entry.split_once('=').and_then(|(name, number)| Some((name.trim(), weight(number)?)));
        match parsed.map(|(name, weight)| (name, name.parse::<IpAddr>(), weight)) {
            Some((_, Ok(addr), weight)) => {
                weights.insert(Weighed::Addr(addr), weight);
            }
            Some((name, Err(_), weight)) if is_name(name) => {
                weights.insert(Weighed::Pod(name.into()), weight);
            }
            Some(_) | None => {
                let message = format!("{} is not a weight of an address or pod, and counts for nothing", quote(entry));
                let remedy = format!("write ADDRESS=WEIGHT or POD=WEIGHT, with weights from 0 to {MAX_WEIGHT}");
                annotation(root, WEIGHTS, message, &remedy, report);
            }
        }
    }
    weights
}

/// Who may come. A range that cannot be read lets nobody in, and does not open the Service to everybody.
fn source_ranges(spec: &Place<'_>, report: &mut Report) -> SourceRanges {
    let Ok(list) = spec.list("loadBalancerSourceRanges", report) else {
        return SourceRanges { ranges: Vec::new(), unreadable: true };
    };
    let ranges: Vec<Cidr> = list.iter().filter_map(|range| range.as_cidr(report).ok()).collect();
    SourceRanges { unreadable: ranges.len() < list.len(), ranges }
}

/// An address that clients of the outside may use.
fn public(place: &Place<'_>, report: &mut Report) -> Option<IpAddr> {
    let addr = place.as_ip(report).ok()?;
    if let Some(fault) = unusable(addr) {
        report.place(place, format!("{addr} is {fault}, and is not served"), "use an address that clients can reach");
        return None;
    }
    Some(addr)
}

fn ips(spec: &Place<'_>, key: &str, report: &mut Report) -> Vec<IpAddr> {
    let list = spec.list(key, report).unwrap_or_default();
    list.iter().filter_map(|place| public(place, report)).collect()
}

/// Ingress addresses whose packets reach the node with the VIP as destination: `ipMode` VIP, or not said. Host names are not for a proxy.
fn load_balancer_ips(root: &Place<'_>, report: &mut Report) -> Vec<IpAddr> {
    let mut read = || -> Result<Vec<IpAddr>, Reported> {
        let Some(status) = root.object("status", report)? else { return Ok(Vec::new()) };
        let Some(balancer) = status.object("loadBalancer", report)? else { return Ok(Vec::new()) };
        let mut ips = Vec::new();
        for ingress in balancer.list("ingress", report)? {
            let vip = ingress.choice("ipMode", &[("VIP", true), ("Proxy", false)], report);
            if let (Some(ip), Ok(Some(true) | None)) = (ingress.get("ip"), vip) {
                ips.extend(public(&ip, report));
            }
        }
        Ok(ips)
    };
    read().unwrap_or_default()
}
