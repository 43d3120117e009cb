//! The rules by themselves: objects in, expectations out.

use super::*;
use crate::cluster::PodState;
use crate::manifests::Manifests;

fn cluster(nodes: u8, yaml: &str) -> (Cluster, Vec<PodKey>) {
    let mut manifests = Manifests::default();
    manifests.parse("test", yaml);
    let mut cluster = Cluster::new(nodes);
    cluster.put(manifests);
    let pods = cluster.plan().unwrap().start;
    for pod in &pods {
        cluster.set_state(pod, PodState::Ready);
    }
    (cluster, pods)
}

fn answered(addresses: &[&str]) -> Outcome {
    Outcome::Answered(addresses.iter().map(|text| text.parse().unwrap()).collect())
}

fn outside() -> Origin {
    Origin::Outside(address::OUTSIDE)
}

fn pod(node: u8) -> Origin {
    Origin::Pod(node, address::pod(node, 200))
}

#[test]
fn every_port_and_family_is_a_frontend() {
    let (mut cluster, pods) = cluster(
        1,
        "{kind: Service, metadata: {name: web}, spec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [\
           {name: a, port: 80, targetPort: 8080}, {name: b, port: 53, protocol: UDP}, {name: c, port: 9, protocol: SCTP}]}}\n\
         ---\n{kind: Service, metadata: {name: none}, spec: {clusterIP: None}}\n\
         ---\n{kind: Service, metadata: {name: ext}, spec: {type: ExternalName, externalName: example.org}}\n\
         ---\n{kind: Service, metadata: {name: other, labels: {service.kubernetes.io/service-proxy-name: x}}, spec: {ports: [{port: 1}]}}\n\
         ---\n{kind: Service, metadata: {name: strange}, spec: {ipFamilyPolicy: SingleStack, ports: [{port: 80}]}}\n\
         ---\n{kind: EndpointSlice, metadata: {name: x, labels: {kubernetes.io/service-name: strange}}, \
           addressType: IPv4, ports: [{name: '', port: 80}], endpoints: [{addresses: [192.0.2.1]}]}\n\
         ---\n{kind: Deployment, metadata: {name: web}, spec: {replicas: 2, template: {metadata: {labels: {app: web}}}}}\n",
    );
    let found = frontends(&cluster);
    let seen: Vec<_> = found.all.iter().map(|f| (f.to_string(), f.backends().len(), f.affinity)).collect();
    let expected = ["a (80/TCP", "b (53/UDP", "c (9/SCTP"]
        .into_iter()
        .flat_map(|port| ["ipv4", "ipv6"].map(|family| (format!("default/web:{port}, {family}, ClusterIP)"), 2, true)));
    assert_eq!(seen, expected.collect::<Vec<_>>());
    assert_eq!(found.left_to_dns, ["default/ext", "default/none"]);
    assert_eq!(
        found.not_tried,
        ["default/other: left to the proxy x", "default/strange: its endpoint 192.0.2.1:80 is no pod of this run",]
    );

    // The last ones to serve are used while they go.
    for pod in &pods {
        cluster.set_state(pod, PodState::Terminating);
    }
    assert_eq!(frontends(&cluster).all[0].backends().len(), 2);
    cluster.set_state(&pods[0], PodState::Ready);
    assert_eq!(frontends(&cluster).all[0].backends().len(), 1);
}

/// A Service with two pods, on nodes 1 and 2 of three.
fn two_of_three(spec: &str) -> Vec<Frontend> {
    let (cluster, _) = cluster(
        3,
        &format!(
            "{{kind: Service, metadata: {{name: s}}, spec: {{selector: {{app: s}}, ipFamilyPolicy: SingleStack, \
               ports: [{{port: 80, targetPort: 8080, nodePort: 30080}}], {spec}}}}}\n\
             ---\n{{kind: Deployment, metadata: {{name: s}}, spec: {{replicas: 2, template: {{metadata: {{labels: {{app: s}}}}}}}}}}\n"
        ),
    );
    frontends(&cluster).all
}

fn of_kind(frontends: &[Frontend], kind: Kind) -> &Frontend {
    frontends.iter().find(|frontend| frontend.kind == kind).unwrap()
}

const ONE: &str = "10.244.1.2:8080";
const TWO: &str = "10.244.2.3:8080";

#[test]
fn every_kind_of_address_is_found() {
    let all = two_of_three("type: LoadBalancer, externalIPs: [198.18.1.7, 'fd00:198:18:1::7']");
    let seen: Vec<_> = all.iter().map(|f| (f.kind.word(), f.node, f.address.to_string())).collect();
    let expected = [
        ("ClusterIP", None, "10.96.1.0:80"),
        ("NodePort", Some(1), "192.168.99.11:30080"),
        ("NodePort", Some(2), "192.168.99.12:30080"),
        ("NodePort", Some(3), "192.168.99.13:30080"),
        ("LoadBalancer", None, "198.18.0.1:80"),
        ("ExternalIP", None, "198.18.1.7:80"),
    ];
    assert_eq!(seen, expected.map(|(kind, node, address)| (kind, node, address.to_owned())));
}

#[test]
fn the_external_policy_binds_clients_outside_only() {
    let all = two_of_three("type: NodePort, externalTrafficPolicy: Local");
    let door = of_kind(&all, Kind::NodePort);
    assert_eq!(door.outcome(&outside(), 1), answered(&[ONE]));
    assert_eq!(door.outcome(&outside(), 3), Outcome::Dropped);
    assert_eq!(door.outcome(&pod(3), 3), answered(&[ONE, TWO]));
    assert_eq!(door.outcome(&Origin::Node(3), 3), answered(&[ONE, TWO]));
    // Another node's NodePort is asked from outside of it.
    assert_eq!(door.outcome(&pod(1), 3), Outcome::Dropped);
    assert_eq!(of_kind(&all, Kind::ClusterIp).outcome(&outside(), 3), answered(&[ONE, TWO]));
}

#[test]
fn the_internal_policy_binds_the_cluster_ip_only() {
    let all = two_of_three("type: NodePort, internalTrafficPolicy: Local");
    assert_eq!(of_kind(&all, Kind::ClusterIp).outcome(&pod(2), 2), answered(&[TWO]));
    assert_eq!(of_kind(&all, Kind::ClusterIp).outcome(&pod(3), 3), Outcome::Dropped);
    assert_eq!(of_kind(&all, Kind::NodePort).outcome(&pod(3), 3), answered(&[ONE, TWO]));
}

#[test]
fn nobody_at_all_refuses_whatever_the_policy() {
    let (cluster, _) = cluster(
        2,
        "{kind: Service, metadata: {name: s}, spec: {type: NodePort, externalTrafficPolicy: Local, \
           internalTrafficPolicy: Local, selector: {app: nobody}, ports: [{port: 80}]}}",
    );
    for frontend in frontends(&cluster).all {
        assert_eq!(frontend.outcome(&outside(), 1), Outcome::Refused);
        assert_eq!(frontend.outcome(&pod(1), 1), Outcome::Refused);
    }
}

#[test]
fn source_ranges_bind_the_load_balancer_only() {
    let all = two_of_three("type: LoadBalancer, loadBalancerSourceRanges: [' 192.168.99.0/24', 'fd00::/8']");
    let balancer = of_kind(&all, Kind::LoadBalancer);
    assert_eq!(balancer.outcome(&outside(), 3), answered(&[ONE, TWO]));
    assert_eq!(balancer.outcome(&Origin::Node(2), 2), answered(&[ONE, TWO]));
    assert_eq!(balancer.outcome(&pod(1), 1), Outcome::Dropped);
    assert_eq!(balancer.outcome(&Origin::Outside(address::FAR), 1), Outcome::Dropped);
    assert_eq!(of_kind(&all, Kind::NodePort).outcome(&pod(1), 1), answered(&[ONE, TWO]));
    let open = two_of_three("type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/8, 0.0.0.0/0]");
    assert_eq!(of_kind(&open, Kind::LoadBalancer).outcome(&outside(), 3), answered(&[ONE, TWO]));
}

#[test]
fn hints_are_followed_where_they_mean_somebody() {
    let near = two_of_three("trafficDistribution: PreferSameZone");
    let near = of_kind(&near, Kind::ClusterIp);
    assert_eq!(near.outcome(&pod(1), 1), answered(&[ONE]));
    assert_eq!(near.outcome(&pod(2), 2), answered(&[TWO]));
    assert_eq!(near.outcome(&pod(3), 3), answered(&[ONE, TWO]));
}

#[test]
fn sources_are_kept_or_masqueraded() {
    let (one, two): (SocketAddr, SocketAddr) = (ONE.parse().unwrap(), TWO.parse().unwrap());
    let ip = |text: &str| BTreeSet::from([text.parse::<IpAddr>().unwrap()]);
    let cluster = two_of_three("type: NodePort");
    let (own, door) = (of_kind(&cluster, Kind::ClusterIp), of_kind(&cluster, Kind::NodePort));
    assert_eq!(own.sources(&pod(1), 1, two), ip("10.244.1.200"));
    assert_eq!(own.sources(&Origin::Pod(1, address::pod(1, 2)), 1, one), ip("10.96.1.0"));
    assert_eq!(own.sources(&outside(), 1, two), ip("192.168.99.11"));
    assert_eq!(door.sources(&pod(1), 1, one), ip("10.244.1.200"));
    assert_eq!(door.sources(&pod(1), 1, two), ip("192.168.99.11"));
    assert_eq!(door.sources(&outside(), 2, two), ip("192.168.99.1"));
    assert_eq!(door.sources(&outside(), 2, one), ip("192.168.99.12"));
    // From pod 1 by way of node 2 to node 1: masqueraded twice.
    assert_eq!(door.sources(&pod(1), 2, one), ip("192.168.99.12"));
    assert_eq!(door.sources(&pod(1), 2, two), ip("192.168.99.11"));
    let local = two_of_three("type: NodePort, externalTrafficPolicy: Local");
    assert_eq!(of_kind(&local, Kind::NodePort).sources(&pod(1), 1, two), ip("10.244.1.200"));
    assert_eq!(of_kind(&local, Kind::NodePort).sources(&outside(), 1, one), ip("192.168.99.1"));
}

#[test]
fn health_checks_count_ready_pods_by_node() {
    let (cluster, _) = cluster(
        3,
        "{kind: Service, metadata: {name: s}, spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: s}, \
           ports: [{name: a, port: 80}, {name: b, port: 81}]}}\n\
         ---\n{kind: Deployment, metadata: {name: s}, spec: {replicas: 2, template: {metadata: {labels: {app: s}}}}}\n",
    );
    let found = frontends(&cluster).health_checks;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].ready, BTreeMap::from([(1, 1), (2, 1), (3, 0)]));
    assert_eq!(found[0].port, 30_002);
}
