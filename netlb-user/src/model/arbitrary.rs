//! Random worlds for property tests: few names, addresses and ports, so that they meet often.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

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
    let port =
        (select(&["", "x", "y"][..]), protocol(), select(&[80u16, 443][..]), select(&[0u16, 0, 30_080, 30_081][..]));
    port.prop_map(|(name, protocol, port, node_port)| ServicePort {
        index: 0,
        name: PortName::new(name),
        protocol,
        port,
        node_port,
    })
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![2 => Just(TrafficPolicy::Cluster), 1 => Just(TrafficPolicy::Local)]
}

/// How a Service is reached from outside. Some addresses are a cluster IP, or the node's own.
#[derive(Clone, Debug)]
struct Outside {
    kind: ServiceType,
    internal_policy: TrafficPolicy,
    external_policy: TrafficPolicy,
    load_balancer_ips: Vec<IpAddr>,
    external_ips: Vec<IpAddr>,
    source_ranges: SourceRanges,
}

fn outside() -> impl Strategy<Value = Outside> {
    let kind = select(vec![ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer]);
    let balancers = vec![ip("1.2.3.4"), ip("192.168.0.1"), ip("10.96.0.2"), ip("2001:db8::4")];
    let externals = vec![ip("1.2.3.4"), ip("192.168.0.2"), ip("10.96.0.1"), ip("2001:db8::5")];
    let ranges = vec!["203.0.113.0/25", "192.168.0.0/24", "203.0.113.7/25", "2001:db8::/32", "0.0.0.0/0"];
    let ranges = subsequence(ranges, 0..=2)
        .prop_map(|all| all.into_iter().map(|text| Cidr::parse(text).expect("a range")).collect::<Vec<_>>());
    let restricted = (ranges, prop::bool::weighted(0.1));
    (kind, policy(), policy(), subsequence(balancers, 0..=2), subsequence(externals, 0..=1), restricted).prop_map(
        |(kind, internal_policy, external_policy, load_balancer_ips, external_ips, (ranges, unreadable))| Outside {
            kind,
            internal_policy,
            external_policy,
            load_balancer_ips,
            external_ips,
            source_ranges: SourceRanges { ranges, unreadable },
        },
    )
}

/// As the conversion leaves them: names and (port, protocol) differ.
fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    vec(service_port(), 0..4).prop_map(|ports| {
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        let fresh = |p: &ServicePort| names.insert(p.name.clone()) && numbers.insert((p.port, p.protocol));
        ports.into_iter().filter(fresh).collect()
    })
}

fn spread() -> impl Strategy<Value = (Option<Scheduler>, Weights)> {
    let weight = (select(vec![ip("10.244.0.1"), ip("10.244.0.2"), ip("fd00:244::1")]), select(vec![0u32, 2, 3]));
    let weights = vec(weight, 0..2).prop_map(|all| all.into_iter().map(|(addr, w)| (Weighed::Addr(addr), w)).collect());
    (proptest::option::weighted(0.3, select(Scheduler::ALL.to_vec())), weights)
}

fn service() -> impl Strategy<Value = Object> {
    let v4 = proptest::option::weighted(0.9, select(vec![ip("10.96.0.1"), ip("10.96.0.2"), ip("10.96.0.3")]));
    let v6 = proptest::option::of(select(vec![ip("fd00:10:96::1"), ip("fd00:10:96::2")]));
    let age = proptest::option::of(0i64..3);
    let rest = (proptest::option::of(select(vec![60u32, 10_800])), prop::bool::weighted(0.9), outside(), spread());
    (name(), v4, v6, age, service_ports(), rest).prop_map(
        |(name, v4, v6, created, ports, (affinity_s, ours, outside, (scheduler, weights)))| {
            Object::Service(ServiceSpec {
                name: ServiceName::new("ns", name),
                meta: Meta { file: None, created },
                kind: outside.kind,
                cluster_ips: v4.into_iter().chain(v6).collect(),
                ports,
                affinity_s,
                internal_policy: outside.internal_policy,
                external_policy: outside.external_policy,
                external_ips: outside.external_ips,
                load_balancer_ips: outside.load_balancer_ips,
                source_ranges: outside.source_ranges,
                scheduler,
                weights,
                health_check_node_port: 0,
                ours,
            })
        },
    )
}

fn endpoint(family: Family) -> impl Strategy<Value = EndpointSpec> {
    let addrs = match family {
        Family::V4 => (1..8).map(|n| ip(&format!("10.244.0.{n}"))).collect::<Vec<_>>(),
        Family::V6 => (1..8).map(|n| ip(&format!("fd00:244::{n}"))).collect(),
    };
    // Ready, terminating and serving, terminating, not ready.
    let conditions =
        select(vec![(true, true, false), (false, true, true), (false, false, true), (false, false, false)]);
    let node = select(vec![None, Some("here"), Some("there")]);
    let hints = (subsequence(vec!["z1", "z2"], 0..=2), subsequence(vec!["here", "there"], 0..=1));
    let place = (node, hints);
    (select(addrs), conditions, place).prop_map(|(addr, (ready, serving, terminating), (node, (zones, nodes)))| {
        EndpointSpec {
            index: 0,
            addr,
            ready,
            serving,
            terminating,
            node: node.map(NodeName::new),
            pod: None,
            weight: if zones.len() == 2 { Some(2) } else { None },
            zone_hints: zones.into_iter().map(Arc::from).collect(),
            node_hints: nodes.into_iter().map(NodeName::new).collect(),
        }
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
            last_change: None,
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

fn node() -> impl Strategy<Value = Object> {
    let zone = proptest::option::of(select(&["z1", "z2"][..]));
    (select(&["here", "there"][..]), zone).prop_map(|(name, zone)| {
        Object::Node(NodeSpec {
            name: NodeName::new(name),
            meta: Meta::default(),
            addresses: Vec::new(),
            zone: zone.map(Arc::from),
            pod_cidrs: Vec::new(),
            deleting: false,
            taints: Vec::new(),
        })
    })
}

/// Any object that has a part in compiling.
pub(crate) fn object() -> impl Strategy<Value = Object> {
    prop_oneof![4 => service(), 6 => slice(), 1 => cidr(), 1 => node()]
}

/// What an agent finds on its node; some addresses are Services' too.
pub(crate) fn host() -> impl Strategy<Value = HostState> {
    let addrs = vec![ip("192.168.0.1"), ip("192.168.0.2"), ip("10.96.0.1"), ip("fd00:10:96::1")];
    let uplinks = btree_map(2u32..5, select(vec![1500u32, 9000]), 0..3);
    let clients = btree_set(1u64..4, 0..3);
    (subsequence(addrs, 0..=3), uplinks, clients).prop_map(|(addrs, uplinks, clients)| HostState {
        node_port_addresses: addrs.into_iter().collect(),
        uplinks: uplinks
            .into_iter()
            .map(|(ifindex, mtu)| {
                let name = format!("eth{ifindex}");
                (ifindex, Uplink { name, v4: Some(ip("192.168.0.1")), v6: None, mtu, pod_source: mtu == 9000 })
            })
            .collect(),
        clients: clients.into_iter().map(|netns| (netns, PodAddresses::default())).collect(),
    })
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
            (ifindex, PodDevice { ifindex, name, mtu: 1500, bridge, pod_mac, host_mac, addrs, pod_source: false })
        };
        devices.into_iter().map(device).collect()
    })
}
