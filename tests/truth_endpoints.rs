//! kube-proxy's own tables of endpoints, through the compiler: how slices are merged, and which endpoints take new flows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use netlb_common::frontend::flags;
use netlb_tests::harness::{self, Trial};
use netlb_user::compile::merge::merge;
use netlb_user::compile::{BackendState, Target, compile_service};
use netlb_user::k8s::convert;
use netlb_user::model::{NodeName, ServiceName, World};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn main() -> ExitCode {
    let (choices, merges): (Vec<Choice>, Vec<Merge>) = (cases("endpoints"), cases("merge"));
    println!("{} cases of endpoint choice, {} of merged slices", choices.len(), merges.len());
    let counted = if (choices.len(), merges.len()) == (32, 12) { Ok(()) } else { Err("a case was lost".to_owned()) };
    let mut trials = vec![Trial::new("every case is there", || counted)];
    trials.extend(choices.iter().map(|case| {
        Trial::new(format!("choice: {} (topology_test.go:{})", case.name, case.line), || {
            same(choose(case), &case.expect)
        })
    }));
    trials.extend(merges.iter().map(|case| {
        let name = format!("merge: {} (endpointslicecache_test.go:{})", case.name, case.line);
        Trial::new(name, || same(merged(case), &case.expect))
    }));
    harness::run(Ok(()), trials)
}

fn same<T: PartialEq + Debug>(found: T, want: &T) -> Result<(), String> {
    if found == *want { Ok(()) } else { Err(format!("found {found:?}\n want {want:?}")) }
}

/// All cases of a folder of lists.
fn cases<T: DeserializeOwned>(folder: &str) -> Vec<T> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("truth").join(folder);
    let mut files: Vec<PathBuf> =
        folder.read_dir().expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let read = |path: &PathBuf| -> Vec<T> {
        let text = std::fs::read_to_string(path).expect("a file");
        serde_norway::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files.iter().flat_map(read).collect()
}

/// A world of these objects, on this node. What is wrong with them is reported, and is no matter here.
fn world(node: Option<&str>, objects: &[Value]) -> World {
    let mut world = World::default();
    world.set_here(node.map(NodeName::new));
    for object in objects {
        for object in convert(object, None, "case").objects {
            world.apply(object);
        }
    }
    world
}

fn slice(namespace: &str, name: &str, service: &str, kind: &str, ports: &Value, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
        "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": service}},
        "ports": ports, "endpoints": endpoints,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Choice {
    name: String,
    line: u32,
    node: Node,
    service: Policies,
    endpoints: Vec<Endpoint>,
    expect: Lists,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    name: String,
    zone: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policies {
    external: String,
    internal: String,
    #[serde(rename = "nodePort")]
    node_port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    at: SocketAddr,
    on: String,
    ready: bool,
    serving: bool,
    terminating: bool,
    #[serde(default)]
    zones: Vec<String>,
    #[serde(default)]
    nodes: Vec<String>,
}

#[derive(Deserialize, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
struct Lists {
    cluster: BTreeSet<SocketAddr>,
    local: BTreeSet<SocketAddr>,
    reachable: BTreeSet<SocketAddr>,
    any: bool,
}

fn named(names: &[String]) -> Vec<Value> {
    names.iter().map(|name| json!({"name": name})).collect()
}

/// What the compiler makes of a case.
fn choose(case: &Choice) -> Lists {
    let kind = if case.service.node_port == 0 { "ClusterIP" } else { "NodePort" };
    let mut labels = serde_json::Map::new();
    labels.extend(case.node.zone.clone().map(|zone| ("topology.kubernetes.io/zone".to_owned(), zone.into())));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": case.node.name, "labels": labels}});
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": "svc"},
        "spec": {
            "type": kind, "clusterIP": "172.30.0.41",
            "externalTrafficPolicy": case.service.external, "internalTrafficPolicy": case.service.internal,
            "ports": [{"port": 80, "nodePort": case.service.node_port}],
        },
    });
    let endpoint = |e: &Endpoint| {
        json!({
            "addresses": [e.at.ip()], "nodeName": e.on,
            "conditions": {"ready": e.ready, "serving": e.serving, "terminating": e.terminating},
            "hints": {"forZones": named(&e.zones), "forNodes": named(&e.nodes)},
        })
    };
    let ports: BTreeSet<u16> = case.endpoints.iter().map(|e| e.at.port()).collect();
    let slices = ports.into_iter().map(|port| {
        let endpoints: Vec<Value> = case.endpoints.iter().filter(|e| e.at.port() == port).map(endpoint).collect();
        slice("ns", &format!("svc-{port}"), "svc", "IPv4", &json!([{"port": port}]), &endpoints)
    });
    let world = world(Some(&case.node.name), &[node, service].into_iter().chain(slices).collect::<Vec<_>>());
    let (tables, _) = compile_service(&world, &ServiceName::new("ns", "svc"));
    let port = tables.ports.values().next().expect("the Service has one port");
    let set = |list: &[Target]| list.iter().map(|at| SocketAddr::from(*at)).collect();
    let active = port.backends.iter().filter(|(_, backend)| backend.state == BackendState::Active);
    // Whether an empty list drops or refuses; without one, something can be used.
    let drops = flags::DROP_INSIDE | flags::DROP_OUTSIDE;
    let any = !port.cluster.is_empty()
        || !port.local.is_empty()
        || port.frontends.values().any(|frontend| frontend.flags & drops != 0);
    let reachable = active.map(|(at, _)| SocketAddr::from(*at)).collect();
    Lists { cluster: set(&port.cluster), local: set(&port.local), reachable, any }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Merge {
    name: String,
    line: u32,
    service: String,
    node: Option<String>,
    slices: Vec<Slice>,
    expect: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slice {
    name: String,
    service: String,
    #[serde(rename = "type")]
    kind: String,
    ports: Value,
    endpoints: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    addresses: Vec<String>,
    on: Option<String>,
    conditions: Value,
}

/// The endpoints of a case's Service, in the words of the case.
fn merged(case: &Merge) -> BTreeMap<String, BTreeSet<String>> {
    let endpoint = |e: &Listed| json!({"addresses": e.addresses, "nodeName": e.on, "conditions": e.conditions});
    let slices = case.slices.iter().map(|s| {
        let (namespace, name) = s.name.split_once('/').expect("namespace/name");
        let endpoints: Vec<Value> = s.endpoints.iter().map(endpoint).collect();
        slice(namespace, name, &s.service, &s.kind, &s.ports, &endpoints)
    });
    let world = world(case.node.as_deref(), &slices.collect::<Vec<_>>());
    let (namespace, name) = case.service.split_once('/').expect("namespace/name");
    let (ports, _) = merge(&world, &ServiceName::new(namespace, name));
    let mut merged: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for ((port, protocol, _), endpoints) in ports {
        for (at, e) in endpoints {
            let here = if e.node.is_some() && e.node.as_ref() == world.here() { "here" } else { "elsewhere" };
            let mut words = vec![SocketAddr::from(at).to_string(), here.to_owned()];
            let conditions = [(e.ready, "ready"), (e.serving, "serving"), (e.terminating, "terminating")];
            words.extend(conditions.into_iter().filter(|(holds, _)| *holds).map(|(_, word)| word.to_owned()));
            merged.entry(format!("{port}/{protocol}")).or_default().insert(words.join(" "));
        }
    }
    merged
}
