//! The wires carry what they should, in both styles, and leave nothing behind. Needs root.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use netlb_testnode::address::{self, Family};
use netlb_testnode::link::Links;
use netlb_testnode::netns::NetNs;
use netlb_testnode::wire::{ProbeTarget, Transport};
use netlb_testnode::{Client, Helper, PodNetwork, TestNode};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 3868, protocol: SCTP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b}
spec: {containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 3868, protocol: SCTP}]}]}
";

fn helper() -> Helper {
    Helper::binary(PathBuf::from(env!("CARGO_BIN_EXE_netlb-testnode")))
}

fn start(style: PodNetwork, nodes: u8, tx_checksum: bool) -> TestNode {
    TestNode::builder()
        .pod_network(style)
        .nodes(nodes)
        .tx_checksum(tx_checksum)
        .helper(helper())
        .start()
        .expect("a test node: are you root?")
}

fn target(id: usize, address: SocketAddr, transport: Transport) -> ProbeTarget {
    ProbeTarget {
        id,
        address,
        transport,
        expect: BTreeSet::from([address]),
        refusal: false,
        silence: false,
        at_least: 4,
        at_most: 4,
        timeout_ms: 5000,
    }
}

/// Every pod answers over every protocol and family: another pod, itself, its node, the other node's pods, and the outside,
/// to which nodes route what they do not masquerade.
fn all_reach_all(node: &TestNode) {
    let mut targets = Vec::new();
    for pod in node.pods() {
        for family in Family::BOTH {
            for (port, transport) in [(80, Transport::Tcp), (53, Transport::Udp), (3868, Transport::Sctp)] {
                let address = SocketAddr::new(pod.addresses().of(family), port);
                targets.push(target(targets.len(), address, transport));
            }
        }
    }
    let mut clients: Vec<Client> = node.pods().iter().map(|pod| Client::Pod(pod.key().clone())).collect();
    clients.extend(node.nodes().iter().map(|node| Client::Node(node.number)));
    for client in clients {
        let results = node.probe(&client, targets.clone()).expect("a probe");
        assert_eq!(results.len(), targets.len());
        for (result, target) in results.iter().zip(&targets) {
            assert_eq!(result.answered.get(&target.address), Some(&4), "{client:?} to {target:?}: {result:?}");
        }
    }
}

#[test]
fn bridge_with_two_nodes() {
    let node = start(PodNetwork::Bridge, 2, true);
    node.apply(PODS).unwrap();
    all_reach_all(&node);
}

#[test]
fn routed_with_two_nodes() {
    let node = start(PodNetwork::Routed, 2, true);
    node.apply(PODS).unwrap();
    all_reach_all(&node);
}

#[test]
fn finished_checksums_are_right_too() {
    for style in [PodNetwork::Bridge, PodNetwork::Routed] {
        let node = start(style, 1, false);
        node.apply(PODS).unwrap();
        all_reach_all(&node);
    }
}

#[test]
fn hosts_outside_reach_every_node_and_are_seen_as_themselves() {
    let node = start(PodNetwork::Bridge, 2, true);
    node.apply(
        "{kind: DaemonSet, metadata: {name: d}, spec: {template: {spec: {hostNetwork: true, containers: [{ports: [{containerPort: 80}]}]}}}}",
    )
    .unwrap();
    for (client, own) in [(Client::Outside, address::OUTSIDE), (Client::Far, address::FAR)] {
        for (family, number) in Family::BOTH.into_iter().flat_map(|family| [(family, 1), (family, 2)]) {
            let at = SocketAddr::new(address::node(number).of(family), 80);
            let result = node.probe(&client, vec![target(0, at, Transport::Tcp)]).unwrap().remove(0);
            assert_eq!(result.answered.get(&at), Some(&4), "{client:?} to {at}: {result:?}");
            assert_eq!(result.sources.get(&at), Some(&BTreeSet::from([own.of(family)])));
        }
    }
}

#[test]
fn a_draining_pod_finishes_what_it_has_and_takes_nothing_more() {
    use std::io::{Read, Write};
    let node = start(PodNetwork::Bridge, 1, true);
    node.apply(PODS).unwrap();
    let (server, client) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let at = SocketAddr::new(server.addresses().v4.into(), 80);
    let mut open = client.run(|| std::net::TcpStream::connect(at).unwrap()).unwrap();
    write!(open, "GET /client HTTP/1.1\r\n\r\n").unwrap();
    let mut buffer = [0; 4096];
    let length = open.read(&mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert!(text.ends_with(&format!("\r\n\r\n{}\n", open.local_addr().unwrap())), "{text}");
    assert_eq!(server.counts().unwrap().open, 1);

    server.drain().unwrap();
    let refused = client.run(|| std::net::TcpStream::connect(at)).unwrap().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    write!(open, "GET /healthz HTTP/1.1\r\n\r\n").unwrap();
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("Connection: close") && rest.ends_with("ok\n"), "{rest}");
}

#[test]
fn what_leaves_the_pods_takes_the_nodes_address() {
    let node = start(PodNetwork::Bridge, 1, true);
    node.apply(PODS).unwrap();
    let pod = node.pod("a").unwrap();
    for family in Family::BOTH {
        let outside = address::OUTSIDE.of(family);
        let server = node.outside().place.net().run(|| std::net::UdpSocket::bind((outside, 9)).unwrap()).unwrap();
        server.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        pod.run(|| {
            let any = if outside.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            std::net::UdpSocket::bind(any).unwrap().send_to(b"hello", (outside, 9)).unwrap()
        })
        .unwrap();
        let (_, client) = server.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(client.ip(), address::node(1).of(family));
    }
}

#[test]
fn service_addresses_are_nobodys_without_an_agent() {
    let node = start(PodNetwork::Bridge, 1, true);
    node.apply(PODS).unwrap();
    for text in ["10.96.0.1:80", "[fd00:10:96::1]:80"] {
        let results = node
            .probe(
                &Client::Pod(netlb_testnode::PodKey::parse("a")),
                vec![target(0, text.parse().unwrap(), Transport::Tcp)],
            )
            .unwrap();
        assert!(results[0].answered.is_empty(), "{results:?}");
        assert_eq!(results[0].refused, 0, "{results:?}");
    }
}

#[test]
fn a_removed_pod_runs_as_long_as_it_is_held() {
    let node = start(PodNetwork::Routed, 1, true);
    node.apply("{kind: StatefulSet, metadata: {name: s}, spec: {replicas: 1, template: {spec: {containers: [{ports: [{containerPort: 53, protocol: UDP}]}]}}}}").unwrap();
    let pod = node.pod("s-0").unwrap();
    node.scale("s", 0).unwrap();
    let revision = node.settle().unwrap();
    assert!(node.pods().is_empty());
    assert!(pod.is_alive().unwrap());
    assert_eq!(pod.counts().unwrap().datagrams, 0);
    let answered =
        node.probe(&Client::Node(1), vec![target(0, SocketAddr::new(pod.addresses().v4.into(), 53), Transport::Udp)]);
    assert_eq!(answered.unwrap()[0].answered.values().sum::<u32>(), 4);
    assert_eq!(pod.counts().unwrap().datagrams, 4);
    assert!(node.scale("s", 1).unwrap() > revision);
    assert_ne!(node.pod("s-0").unwrap().addresses(), pod.addresses());
}

#[test]
fn a_killed_pod_is_replaced() {
    let node = start(PodNetwork::Bridge, 1, true);
    node.apply("{kind: Deployment, metadata: {name: d}, spec: {replicas: 2, template: {spec: {containers: [{ports: [{containerPort: 80}]}]}}}}").unwrap();
    let victim = node.pods_of("d")[0].clone();
    victim.kill().unwrap();
    assert_eq!(node.look_after_pods().unwrap(), [victim.key().clone()]);
    assert_eq!(node.look_after_pods().unwrap(), []);
    let pods = node.pods_of("d");
    assert_eq!(pods.len(), 2);
    assert!(pods.iter().all(|pod| pod.key() != victim.key() && pod.is_alive().unwrap()));
}

#[test]
fn nothing_is_left() {
    let node = start(PodNetwork::Bridge, 1, true);
    node.apply(PODS).unwrap();
    let folder = node.folder().to_owned();
    let cgroup = node.node(1).unwrap().cgroup_path().parent().unwrap().to_owned();
    let pids: Vec<u32> = node.pods().iter().map(|pod| pod.pid()).collect();
    assert!(folder.exists() && cgroup.exists());
    drop(node);
    assert!(!folder.exists() && !cgroup.exists());
    assert!(pids.iter().all(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()));
}

#[test]
fn an_address_leads_to_as_many_gateways_as_one_wants() {
    let net = NetNs::create().unwrap();
    let mut links = Links::open(&net).unwrap();
    links.add_bridge("br0", address::mac(address::OUTSIDE.v4)).unwrap();
    links.up("br0").unwrap();
    for (address, length) in address::OUTSIDE.both().into_iter().zip([24, 64]) {
        links.add_address("br0", address, length).unwrap();
    }
    for family in Family::BOTH {
        let vip: std::net::IpAddr =
            if family == Family::Ipv4 { "198.18.0.1" } else { "fd00:198:18::1" }.parse().unwrap();
        let length = if vip.is_ipv4() { 32 } else { 128 };
        let gateways = |numbers: &[u8]| numbers.iter().map(|n| address::node(*n).of(family)).collect::<Vec<_>>();
        let shown = || {
            let mut ip = std::process::Command::new("ip");
            ip.args([if vip.is_ipv4() { "-4" } else { "-6" }, "route", "show", &vip.to_string()]);
            let output = net.run(|| ip.output().unwrap()).unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            words
                .windows(2)
                .filter(|pair| pair[0] == "via")
                .map(|pair| pair[1].parse::<std::net::IpAddr>().unwrap())
                .collect::<Vec<_>>()
        };
        for numbers in [&[1, 2, 3][..], &[2], &[3, 1]] {
            links.replace_multipath(vip, length, &gateways(numbers), "br0").unwrap();
            assert_eq!(shown(), gateways(numbers));
        }
        links.delete_route(vip, length).unwrap();
        assert_eq!(shown(), gateways(&[]));
        assert!(links.delete_route(vip, length).is_err());
    }
}
