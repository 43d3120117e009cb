//! Random worlds for property tests: few names, addresses and ports, so that they meet often.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn name() -> impl Strategy<Value = &'static str> {
    select(&["a", "b", "c", "d", "e"][..])
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 3 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    let port = (select(&["", "x", "y"][..]), protocol(), select(&[80u16, 443][..]));
    port.prop_map(|(name, protocol, port)| ServicePort {
        index: 0,
        name: PortName::new(name),
        protocol,
        port,
        node_port: 0,
    })
}

/// As the conversion leaves them: names and (port, protocol) differ.
fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    vec(service_port(), 0..4).prop_map(|ports| {
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        let fresh = |p: &ServicePort| names.insert(p.name.clone()) && numbers.insert((p.port, p.protocol));
        ports.into_iter().filter(fresh).collect()
    })
}

fn service() -> impl Strategy<Value = Object> {
    let v4 = proptest::option::weighted(0.9, select(vec![ip("10.96.0.1"), ip("10.96.0.2"), ip("10.96.0.3")]));
    let v6 = proptest::option::of(select(vec![ip("fd00:10:96::1"), ip("fd00:10:96::2")]));
    let age = proptest::option::of(0i64..3);
    let rest = (proptest::option::of(select(vec![60u32, 10_800])), prop::bool::weighted(0.9));
    (name(), v4, v6, age, service_ports(), rest).prop_map(|(name, v4, v6, created, ports, (affinity_s, ours))| {
        Object::Service(ServiceSpec {
            name: ServiceName::new("ns", name),
            meta: Meta { file: None, created },
            kind: ServiceType::ClusterIp,
            cluster_ips: v4.into_iter().chain(v6).collect(),
            ports,
            affinity_s,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            health_check_node_port: 0,
            ours,
        })
    })
}

fn endpoint(family: Family) -> impl Strategy<Value = EndpointSpec> {
    let addrs = match family {
        Family::V4 => (1..8).map(|n| ip(&format!("10.244.0.{n}"))).collect::<Vec<_>>(),
        Family::V6 => (1..8).map(|n| ip(&format!("fd00:244::{n}"))).collect(),
    };
    // Ready, terminating and serving, terminating, not ready.
    let conditions =
        select(vec![(true, true, false), (false, true, true), (false, false, true), (false, false, false)]);
    (select(addrs), conditions).prop_map(|(addr, (ready, serving, terminating))| EndpointSpec {
        index: 0,
        addr,
        ready,
        serving,
        terminating,
        node: None,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    })
}

fn slice() -> impl Strategy<Value = Object> {
    let port = (select(&["", "x", "y"][..]), protocol(), select(&[8080u16, 9090][..]));
    let port = port.prop_map(|(name, protocol, port)| SlicePort { name: PortName::new(name), protocol, port });
    let head = (select(&["p", "q", "r", "s", "t", "u"][..]), proptest::option::weighted(0.95, name()), vec(port, 0..4));
    let body = select(vec![Family::V4, Family::V6]).prop_flat_map(|f| (Just(f), vec(endpoint(f), 0..6)));
    (head, body).prop_map(|((name, service, ports), (family, endpoints))| {
        Object::EndpointSlice(SliceSpec {
            name: SliceName::new("ns", name),
            meta: Meta::default(),
            service: service.map(|service| ServiceName::new("ns", service)),
            family,
            ports,
            endpoints,
        })
    })
}

fn cidr() -> impl Strategy<Value = Object> {
    let all = vec!["10.96.0.0/16", "10.97.0.0/16", "fd00:10:96::/112"];
    (select(&["k", "l"][..]), subsequence(all, 0..=3)).prop_map(|(name, cidrs)| {
        let cidrs = cidrs.into_iter().map(|text| Cidr::parse(text).expect("a range")).collect();
        Object::ServiceCidr(ServiceCidrSpec { name: name.into(), meta: Meta::default(), cidrs })
    })
}

/// Any object that has a part in compiling.
pub(crate) fn object() -> impl Strategy<Value = Object> {
    prop_oneof![4 => service(), 6 => slice(), 1 => cidr()]
}

/// A change; deletions often hit.
pub(crate) fn change() -> impl Strategy<Value = Change> {
    let delete = object().prop_map(|object| Change::Delete(object.key()));
    prop_oneof![4 => object().prop_map(Change::Apply), 1 => delete]
}

/// Pod devices by interface index.
pub(crate) fn devices() -> impl Strategy<Value = BTreeMap<u32, PodDevice>> {
    let addrs: Vec<IpAddr> =
        (1..8).flat_map(|n| [ip(&format!("10.244.0.{n}")), ip(&format!("fd00:244::{n}"))]).collect();
    let device = (btree_set(select(addrs), 0..4), select(vec![0u8, 1, 2]), select(vec![0u32, 100]));
    btree_map(2u32..8, device, 0..5).prop_map(|devices| {
        let device = |(ifindex, (addrs, mac, bridge)): (u32, (BTreeSet<IpAddr>, u8, u32))| {
            let name = format!("veth{ifindex}");
            let (pod_mac, host_mac) = ([mac; 6], [0xee; 6]);
            (ifindex, PodDevice { ifindex, name, mtu: 1500, bridge, pod_mac, host_mac, addrs })
        };
        devices.into_iter().map(device).collect()
    })
}
