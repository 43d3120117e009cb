//! Compiling: examples of kube-proxy's rules, and the property that holds the incremental result to the full one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::k8s::convert;
use crate::model::arbitrary::{change, devices};
use crate::model::{Change, Dirty, NodeName, ServiceName, World};

/// A world of YAML documents.
fn world(yaml: &str) -> World {
    let mut world = World::default();
    for document in serde_norway::Deserializer::from_str(yaml) {
        let value = serde::Deserialize::deserialize(document).unwrap();
        let converted = convert(&value, None, "document");
        assert_eq!(converted.problems, []);
        converted.objects.into_iter().for_each(|object| drop(world.apply(object)));
    }
    world
}

/// What `ns/svc` compiles to: each port with its frontends, then its backends; then its problems.
fn check(yaml: &str, want: &[&str]) {
    let (tables, problems) = compile_service(&world(yaml), &ServiceName::new("ns", "svc"));
    let mut got = Vec::new();
    for (key, port) in &tables.ports {
        let frontends: Vec<_> = port.frontends.keys().map(|c| format!("{}:{}", c.addr, c.port)).collect();
        let backends: Vec<_> = port.backends.iter().map(|((a, p), b)| format!("{a}:{p} {:?}", b.state)).collect();
        got.push(format!("{}/{} {} -> {}", key.port, key.protocol, frontends.join(","), backends.join(", ")));
    }
    got.extend(problems.iter().map(|p| format!("{} {}: {}", p.object, p.field, p.message)));
    assert_eq!(got, want);
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: svc, namespace: ns}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
";

fn slice(name: &str, endpoints: &str) -> String {
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: ns, labels: {{kubernetes.io/service-name: svc}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{endpoints}]
"
    )
}

#[test]
fn ready_endpoints_serve_and_those_that_still_serve_drain() {
    let endpoints = "{addresses: [10.0.0.1, 10.0.0.9]}, {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}},
        {addresses: [10.0.0.3], conditions: {ready: false, serving: false, terminating: true}}, {addresses: [10.0.0.4], conditions: {ready: false, serving: false}}";
    check(
        &(SERVICE.to_owned() + &slice("x", endpoints)),
        &["/TCP 10.96.0.1:80 -> 10.0.0.1:8080 Active, 10.0.0.2:8080 Draining"],
    );
}

#[test]
fn without_a_ready_one_those_that_terminate_and_serve_take_over() {
    let endpoints = "{addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}, {addresses: [10.0.0.4], conditions: {ready: false, serving: false}},
        {addresses: [10.0.0.5], conditions: {ready: false, serving: true}}";
    let want = "/TCP 10.96.0.1:80 -> 10.0.0.2:8080 Active, 10.0.0.5:8080 Draining";
    check(&(SERVICE.to_owned() + &slice("x", endpoints)), &[want]);
    check(SERVICE, &["/TCP 10.96.0.1:80 -> "]);
}

#[test]
fn an_endpoint_listed_twice_counts_once() {
    let one = slice("x", "{addresses: [10.0.0.1]}");
    let terminating = "{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}}";
    // The pod that ends and the one that has its address now: in order.
    for (first, second) in [("x", "y"), ("y", "x")] {
        let ready = "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}";
        let yaml = SERVICE.to_owned() + &slice(first, ready) + &slice(second, terminating);
        check(&yaml, &["/TCP 10.96.0.1:80 -> 10.0.0.1:8080 Active, 10.0.0.2:8080 Active"]);
    }
    check(
        &(SERVICE.to_owned() + &one + &slice("y", "{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}")),
        &[
            "/TCP 10.96.0.1:80 -> 10.0.0.1:8080 Active, 10.0.0.2:8080 Active",
            "EndpointSlice ns/y endpoints[1].addresses[0]: 10.0.0.1 is already endpoints[0] of EndpointSlice ns/x and counts once",
        ],
    );
}

#[test]
fn nothing_is_programmed_for_what_is_not_ours() {
    let endpoints = slice("x", "{addresses: [10.0.0.1]}");
    let labelled =
        SERVICE.replace("namespace: ns", "namespace: ns, labels: {service.kubernetes.io/service-proxy-name: other}");
    check(&(labelled + &endpoints), &[]);
    check(&(SERVICE.replace("10.96.0.1", "None") + &endpoints), &[]);
    check(&(SERVICE.replace("clusterIP: 10.96.0.1", "type: ExternalName, externalName: a.example") + &endpoints), &[]);
    let headless = endpoints.replace("name: svc", "name: svc, service.kubernetes.io/headless: ''");
    check(&(SERVICE.to_owned() + &headless), &["/TCP 10.96.0.1:80 -> "]);
}

#[test]
fn the_older_service_owns_an_address_and_port() {
    let service = |name: &str, created: &str, ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: ns, creationTimestamp: {created}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{ports}]}}\n"
        )
    };
    let other = service("old", "2020-01-01T00:00:00Z", "{port: 80}");
    let loser = service("svc", "2021-01-01T00:00:00Z", "{name: a, port: 80}, {name: b, port: 81}");
    let want = [
        "b/TCP 10.96.0.1:81 -> ",
        "Service ns/svc spec.ports[0].port: 10.96.0.1:80/TCP belongs to the older Service ns/old; this one does not serve it",
    ];
    check(&(loser + &other), &want);
    let winner = service("svc", "2019-01-01T00:00:00Z", "{port: 80}");
    check(&(winner + &other), &["/TCP 10.96.0.1:80 -> "]);
    // Without an age it is the youngest.
    check(
        &(SERVICE.to_owned() + &other),
        &[
            "Service ns/svc spec.ports[0].port: 10.96.0.1:80/TCP belongs to the older Service ns/old; this one does not serve it",
        ],
    );
}

#[test]
fn the_same_port_serves_every_protocol() {
    let ports = "{name: s, port: 80, protocol: SCTP}, {name: t, port: 80}, {name: u, port: 80, protocol: UDP}";
    let want = ["s/SCTP 10.96.0.1:80 -> ", "t/TCP 10.96.0.1:80 -> ", "u/UDP 10.96.0.1:80 -> "];
    check(&SERVICE.replace("{port: 80}", ports), &want);
}

#[test]
fn an_endpoint_at_an_address_of_this_node_is_on_it_and_not_local_by_that() {
    let spec = SERVICE.replace("clusterIP", "internalTrafficPolicy: Local, clusterIP");
    let endpoints =
        "{addresses: [192.168.0.2]}, {addresses: [10.0.0.1], nodeName: here}, {addresses: [10.0.0.2], nodeName: there}";
    let mut world = world(&(spec + &slice("x", endpoints)));
    world.set_here(Some(NodeName::new("here")));
    let name = ServiceName::new("ns", "svc");
    let seen = |world: &World| -> Vec<(bool, bool)> {
        let (tables, _) = compile_service(world, &name);
        tables.ports.values().flat_map(|port| port.backends.values()).map(|b| (b.on_node, b.in_local_list)).collect()
    };
    assert_eq!(seen(&world), [(true, true), (false, false), (false, false)]);
    let dirty = world.set_own_addresses(["192.168.0.2".parse().unwrap()].into());
    assert_eq!(dirty.services, [name.clone()].into());
    assert_eq!(seen(&world), [(true, true), (false, false), (true, false)]);
}

#[test]
fn source_ranges_let_the_address_itself_in_where_the_node_is() {
    let balanced = SERVICE.replace(
        "spec: {",
        "status: {loadBalancer: {ingress: [{ip: 1.2.3.4}]}}\nspec: {type: LoadBalancer, loadBalancerSourceRanges: [192.168.0.0/24], ",
    );
    let mut world = world(&balanced);
    let ranges = |world: &World| -> Vec<String> {
        let (tables, _) = compile_service(world, &ServiceName::new("ns", "svc"));
        let ranges = tables.ports.values().flat_map(|port| port.source_ranges.iter().flatten());
        ranges.map(ToString::to_string).collect()
    };
    assert_eq!(ranges(&world), ["192.168.0.0/24"]);
    assert_eq!(world.set_node_addresses(["192.168.0.2".parse().unwrap()].into()).services.len(), 1);
    assert_eq!(ranges(&world), ["1.2.3.4/32", "192.168.0.0/24"]);
}

#[test]
fn ranges_beyond_what_the_datapath_keeps_are_reported() {
    let ranges: Vec<_> = (0..10).map(|n| format!("10.{n}.0.0/16")).collect();
    let yaml = format!(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: k}}\nspec: {{cidrs: [{}]}}",
        ranges.join(", ")
    );
    let (kept, problems) = compile_cidrs(&world(&yaml));
    assert_eq!((kept.len(), kept[7].to_string()), (8, "10.7.0.0/16".to_owned()));
    let fields: Vec<_> = problems.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(fields, ["spec.cidrs[8]", "spec.cidrs[9]"]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Compiling only what is dirty gives what compiling everything gives, and the world does not remember how it came about.
    #[test]
    fn incremental_equals_full(changes in prop::collection::vec((change(), prop::option::weighted(0.1, devices())), 1..60)) {
        let (mut world, mut compiled, mut objects) = (World::default(), Compiled::default(), BTreeMap::new());
        world.set_here(Some(NodeName::new("here")));
        for (change, devices) in changes {
            let mut dirty = match change {
                Change::Apply(object) => {
                    objects.insert(object.key(), object.clone());
                    world.apply(object)
                }
                Change::Delete(key) => {
                    objects.remove(&key);
                    world.delete(&key)
                }
                Change::Incomplete | Change::Synced => Dirty::default(),
            };
            if let Some(devices) = devices {
                dirty.merge(world.set_devices(&devices));
            }
            compiled.update(&world, &dirty);
            prop_assert_eq!(&compiled, &Compiled::full(&world));
        }
        let mut fresh = World::default();
        fresh.set_here(world.here().cloned());
        fresh.set_devices(world.devices());
        fresh.reset(objects.values().rev().cloned());
        prop_assert_eq!(&fresh, &world);
        // Everything can be taken away again.
        world.reset([]);
        world.set_devices(&BTreeMap::new());
        world.set_here(None);
        prop_assert_eq!(world, World::default());
    }
}
