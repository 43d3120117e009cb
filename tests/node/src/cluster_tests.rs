//! The control plane by itself: objects in, plans and files out.

use super::*;
use crate::render::file_name;

fn put(cluster: &mut Cluster, yaml: &str) -> Vec<String> {
    let mut manifests = Manifests::default();
    manifests.parse("test", yaml);
    cluster.put(manifests)
}

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81, targetPort: 9000}]}
";

fn started(nodes: u8) -> (Cluster, Vec<PodKey>) {
    let mut cluster = Cluster::new(nodes);
    assert_eq!(put(&mut cluster, WEB), Vec::<String>::new());
    let plan = cluster.plan().unwrap();
    for key in &plan.start {
        cluster.set_state(key, PodState::Ready);
    }
    (cluster, plan.start)
}

#[test]
fn a_plan_that_is_carried_out_is_empty() {
    let (mut cluster, pods) = started(2);
    assert_eq!(pods.len(), 2);
    assert_eq!(cluster.plan().unwrap(), Plan::default());
    let nodes: BTreeSet<u8> = cluster.pods().values().map(|pod| pod.node).collect();
    assert_eq!(nodes, BTreeSet::from([1, 2]));
}

#[test]
fn pods_listen_on_numbers_that_only_the_service_names() {
    let (cluster, pods) = started(1);
    assert_eq!(cluster.wanted_ports(&pods[0]).tcp, BTreeSet::from([8080, 9000]));
}

#[test]
fn scaling_down_stops_the_youngest() {
    let (mut cluster, pods) = started(1);
    cluster.scale("web", 1).unwrap();
    let plan = cluster.plan().unwrap();
    assert_eq!(plan, Plan { start: vec![], stop: vec![pods[1].clone()] });
    cluster.set_state(&pods[1], PodState::Terminating);
    assert_eq!(cluster.plan().unwrap(), Plan::default());
    assert!(cluster.scale("nothing", 1).unwrap_err().contains("default/web"));
}

#[test]
fn a_rolling_update_replaces_no_more_pods_at_once_than_it_may() {
    let mut cluster = Cluster::new(1);
    let deployment = |version: u8| {
        format!(
            "{{kind: Deployment, metadata: {{name: d}}, spec: {{replicas: 3, strategy: {{rollingUpdate: {{maxSurge: 2}}}}, \
               template: {{metadata: {{labels: {{version: v{version}}}}}}}}}}}"
        )
    };
    put(&mut cluster, &deployment(1));
    let first = cluster.plan().unwrap();
    assert_eq!((first.start.len(), first.stop.len()), (3, 0));
    put(&mut cluster, &deployment(2));
    for (started, stopped) in [(2, 2), (1, 1), (0, 0)] {
        let plan = cluster.plan().unwrap();
        assert_eq!((plan.start.len(), plan.stop.len()), (started, stopped));
        for key in &plan.stop {
            cluster.set_state(key, PodState::Terminating);
        }
    }
    let new = cluster.pods().values().filter(|pod| pod.state != PodState::Terminating);
    assert!(new.clone().count() == 3 && new.clone().all(|pod| pod.labels["version"] == "v2"));
}

#[test]
fn a_dead_pod_is_replaced_by_one_with_another_address() {
    let (mut cluster, pods) = started(1);
    let old = cluster.pods()[&pods[0]].addresses;
    cluster.set_state(&pods[0], PodState::Dead);
    let plan = cluster.plan().unwrap();
    assert_eq!(plan.stop, [pods[0].clone()]);
    assert_eq!(plan.start.len(), 1);
    assert_ne!(cluster.pods()[&plan.start[0]].addresses, old);
}

#[test]
fn a_stateful_pod_comes_back_under_its_name() {
    let mut cluster = Cluster::new(1);
    put(
        &mut cluster,
        "kind: StatefulSet\nmetadata: {name: db}\nspec: {replicas: 1, template: {metadata: {labels: {a: b}}}}\n",
    );
    let first = cluster.plan().unwrap().start;
    assert_eq!(first, [PodKey::parse("db-0")]);
    cluster.set_state(&first[0], PodState::Dead);
    assert_eq!(cluster.plan().unwrap(), Plan { start: vec![], stop: first.clone() });
    cluster.forget(&first[0]);
    assert_eq!(cluster.plan().unwrap().start, first);
}

#[test]
fn daemons_run_on_every_node_and_may_share_its_network() {
    let mut cluster = Cluster::new(3);
    put(&mut cluster, "kind: DaemonSet\nmetadata: {name: d}\nspec: {template: {spec: {hostNetwork: true}}}\n");
    let plan = cluster.plan().unwrap();
    let places: BTreeSet<_> = plan.start.iter().map(|key| cluster.pods()[key].addresses).collect();
    assert_eq!(places, BTreeSet::from([address::node(1), address::node(2), address::node(3)]));
}

#[test]
fn files_read_back_as_the_objects() {
    let (cluster, _) = started(1);
    let files = cluster.render();
    let mut kinds = BTreeMap::<String, u32>::new();
    for (name, text) in &files {
        let object: Value = serde_norway::from_str(text).unwrap();
        let key = ObjectKey::of(&object).unwrap();
        assert_eq!(file_name(&key), *name);
        *kinds.entry(key.kind).or_default() += 1;
    }
    let expected = [
        ("Deployment", 1),
        ("EndpointSlice", 2),
        ("Namespace", 1),
        ("Node", 1),
        ("Pod", 2),
        ("Service", 1),
        ("ServiceCIDR", 1),
    ];
    assert_eq!(kinds, expected.map(|(kind, count)| (kind.to_owned(), count)).into());
    let slice: Value = serde_norway::from_str(&files["endpointslice.default.web-ipv4-0.yaml"]).unwrap();
    let endpoints = slice["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 2);
    assert!(endpoints.iter().all(|e| e["conditions"]["ready"] == json!(true) && e["nodeName"] == json!("node1")));
    let pod: Value =
        serde_norway::from_str(files.iter().find(|(name, _)| name.starts_with("pod.")).unwrap().1).unwrap();
    assert_eq!(pod["status"]["podIPs"].as_array().unwrap().len(), 2);
    assert_eq!(pod["metadata"]["labels"]["app"], "web");
}

#[test]
fn what_is_not_understood_is_passed_on() {
    let mut cluster = Cluster::new(1);
    let notes =
        put(&mut cluster, "kind: Service\nmetadata: {name: s}\nspec: {ports: many}\n---\nname: nobody\n---\nkind: [\n");
    assert_eq!(notes.len(), 3, "{notes:?}");
    let files = cluster.render();
    assert!(files["service.default.s.yaml"].contains("ports: many"));
    assert_eq!(files.keys().filter(|name| name.starts_with("broken.")).count(), 2);
}

#[test]
fn long_and_odd_names_stay_apart() {
    let key = |name: &str| ObjectKey { kind: "Service".into(), namespace: "default".into(), name: name.into() };
    let (a, b) = (file_name(&key(&"x".repeat(10_000))), file_name(&key(&"x".repeat(10_001))));
    assert!(a.len() < 255 && b.len() < 255 && a != b);
    assert_ne!(file_name(&key("a/b")), file_name(&key("a_b")));
}
