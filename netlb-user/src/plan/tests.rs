//! Planning by example: the order of writes, ids that are kept and rested, endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netlb_common::Addr;
use netlb_common::backend::{flags as backend, state};
use netlb_common::frontend::flags;

use super::rig::Rig;
use super::{MapOp, Plan, QUARANTINE};
use crate::k8s::convert;
use crate::model::{Change, HostState, Kind, Object, ObjectKey, PodAddresses, PodDevice, PortName, Uplink};
use crate::store::{Capacity, MapStore};

/// A Service `default/NAME` on 10.96.0.N:80, and a slice of its endpoints.
fn service(name: &str, vip: u8, endpoints: &[&str]) -> Vec<Change> {
    let yaml = format!(
        "kind: List\napiVersion: v1\nitems:
- {{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: 10.96.0.{vip}, ports: [{{port: 80}}]}}}}
- {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}},
   addressType: IPv4, ports: [{{port: 80}}], endpoints: [{}]}}",
        endpoints.iter().map(|e| format!("{{addresses: [{e}]}}")).collect::<Vec<_>>().join(", ")
    );
    let converted = convert(&serde_norway::from_str(&yaml).unwrap(), None, "document");
    assert_eq!(converted.problems, []);
    converted.objects.into_iter().map(Change::Apply).collect()
}

fn delete(name: &str) -> Vec<Change> {
    let key = |kind| ObjectKey { kind, namespace: "default".into(), name: name.into() };
    vec![Change::Delete(key(Kind::Service)), Change::Delete(key(Kind::EndpointSlice))]
}

fn device(ifindex: u32, mac: u8, addrs: &[&str]) -> BTreeMap<u32, PodDevice> {
    let addrs = addrs.iter().map(|a| a.parse().unwrap()).collect();
    let name = format!("veth{ifindex}");
    let device = PodDevice {
        ifindex,
        name,
        mtu: 1500,
        bridge: 0,
        pod_mac: [mac; 6],
        host_mac: [1; 6],
        addrs,
        pod_source: false,
    };
    BTreeMap::from([(ifindex, device)])
}

/// A rig that has read its source, and wrote its config.
fn rig() -> Rig {
    let mut rig = Rig::new(Capacity::default());
    rig.settle(vec![Change::Synced], Some(&BTreeMap::new()));
    rig
}

/// One word a write.
fn words(plan: &Plan) -> Vec<String> {
    let word = |op: &MapOp| match op {
        MapOp::SetConfig(_) => "config".to_owned(),
        MapOp::SetEndpoint { id, value } => {
            format!("endpoint {id} ifindex={} generation={}", value.ifindex, value.generation)
        }
        MapOp::SetEndpointByAddr { addr, id } => format!("{addr} is endpoint {id}"),
        MapOp::DeleteEndpointByAddr { addr } => format!("{addr} is none"),
        MapOp::SetEndpointByIfindex { ifindex, id } => format!("ifindex {ifindex} is endpoint {id}"),
        MapOp::DeleteEndpointByIfindex { ifindex } => format!("ifindex {ifindex} is none"),
        MapOp::ClearBackendFlows { id } => format!("flows {id} = 0"),
        MapOp::SetBackend { id, value } => {
            format!("backend {id} {} {} generation={}", value.addr, state::name(value.state), value.generation)
        }
        MapOp::SetSlots { base, backends } => format!("slots {base} = {backends:?}"),
        MapOp::SetFrontend { key, .. } if key.is_address() => format!("address {}", key.addr),
        MapOp::SetFrontend { key, value } => {
            format!("frontend {} -> slots {} x {}", key.addr, value.slots, value.count)
        }
        MapOp::DeleteFrontend { key } if key.is_address() => format!("no address {}", key.addr),
        MapOp::DeleteFrontend { key } => format!("no frontend {}", key.addr),
        MapOp::SetSourceRange { key } => format!("range {}", key.addr),
        MapOp::DeleteSourceRange { key } => format!("no range {}", key.addr),
        MapOp::SetUplink { ifindex, value } => format!("uplink {ifindex} {}", value.addr4),
        MapOp::DeleteUplink { ifindex } => format!("no uplink {ifindex}"),
        MapOp::SetClient { netns, value } => format!("client {netns} {}", value.addr4),
        MapOp::DeleteClient { netns } => format!("no client {netns}"),
    };
    plan.ops().map(word).collect()
}

/// Plans, applies, and says what was written.
fn step(rig: &mut Rig, changes: Vec<Change>, devices: Option<&BTreeMap<u32, PodDevice>>) -> Vec<String> {
    rig.store.now = rig.now;
    let plan = rig.controller.update(changes, devices, rig.now);
    assert_eq!(rig.controller.apply(&plan, &mut rig.store).failed, []);
    words(&plan)
}

#[test]
fn a_service_comes_changes_and_goes_in_order() {
    let mut rig = rig();
    assert_eq!(
        step(&mut rig, service("web", 1, &["10.0.0.1", "10.0.0.2"]), None),
        [
            "flows 1 = 0",
            "backend 1 10.0.0.1 active generation=1",
            "flows 2 = 0",
            "backend 2 10.0.0.2 active generation=1",
            "slots 0 = [1, 2]",
            "address 10.96.0.1",
            "frontend 10.96.0.1 -> slots 0 x 2",
        ]
    );
    assert_eq!(
        step(&mut rig, service("web", 1, &["10.0.0.2", "10.0.0.3"]), None),
        [
            "flows 3 = 0",
            "backend 3 10.0.0.3 active generation=1",
            "slots 4 = [2, 3]",
            "frontend 10.96.0.1 -> slots 4 x 2",
            "backend 1 10.0.0.1 removed generation=1",
        ]
    );
    assert_eq!(
        step(&mut rig, service("web", 1, &[]), None),
        [
            "frontend 10.96.0.1 -> slots 0 x 0",
            "backend 2 10.0.0.2 removed generation=1",
            "backend 3 10.0.0.3 removed generation=1",
        ]
    );
    assert_eq!(step(&mut rig, delete("web"), None), ["no frontend 10.96.0.1", "no address 10.96.0.1"]);
    assert_eq!(step(&mut rig, Vec::new(), None), Vec::<String>::new());
}

/// The Service of `service`, with a load balancer address, a node port, `externalTrafficPolicy: Local` and source ranges.
fn balanced(ranges: &str, endpoints: &[(&str, &str)]) -> Vec<Change> {
    let yaml = format!(
        "kind: List\napiVersion: v1\nitems:
- {{apiVersion: v1, kind: Service, metadata: {{name: web}}, status: {{loadBalancer: {{ingress: [{{ip: 1.2.3.4}}]}}}},
   spec: {{type: LoadBalancer, externalTrafficPolicy: Local, clusterIP: 10.96.0.1, loadBalancerSourceRanges: [{ranges}], ports: [{{port: 80, nodePort: 30080}}]}}}}
- {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web, labels: {{kubernetes.io/service-name: web}}}},
   addressType: IPv4, ports: [{{port: 80}}], endpoints: [{}]}}",
        endpoints.iter().map(|(e, node)| format!("{{addresses: [{e}], nodeName: {node}}}")).collect::<Vec<_>>().join(", ")
    );
    let converted = convert(&serde_norway::from_str(&yaml).unwrap(), None, "document");
    assert_eq!(converted.problems, []);
    converted.objects.into_iter().map(Change::Apply).collect()
}

#[test]
fn equal_lists_share_a_block_and_ranges_are_widened_before_the_switch() {
    let mut rig = rig();
    rig.controller.set_host(&HostState::default());
    let both = [("10.0.0.1", "here"), ("10.0.0.2", "there")];
    assert_eq!(
        step(&mut rig, balanced("203.0.113.0/24", &both[..1]), None),
        [
            "flows 1 = 0",
            "backend 1 10.0.0.1 active generation=1",
            "slots 0 = [1]",
            "range 203.0.113.0",
            "address 10.96.0.1",
            "frontend 0.0.0.0 -> slots 0 x 1",
            "frontend 1.2.3.4 -> slots 0 x 1",
            "frontend 10.96.0.1 -> slots 0 x 1",
        ]
    );
    // The local list stays where it is; the cluster list gets a block of its own.
    assert_eq!(
        step(&mut rig, balanced("198.51.100.0/24", &both), None),
        [
            "flows 2 = 0",
            "backend 2 10.0.0.2 active generation=1",
            "slots 4 = [1, 2]",
            "range 198.51.100.0",
            "frontend 0.0.0.0 -> slots 4 x 2",
            "frontend 1.2.3.4 -> slots 4 x 2",
            "frontend 10.96.0.1 -> slots 4 x 2",
            "no range 203.0.113.0",
        ]
    );
    let outside: BTreeSet<_> = rig.tables().frontends.values().map(|f| (f.outside_slots, f.outside_count)).collect();
    assert_eq!(outside, BTreeSet::from([(0, 0), (0, 1), (4, 2)]));
    // Without a restriction, the frontend is opened before the range goes.
    assert_eq!(step(&mut rig, balanced("", &both), None), ["frontend 1.2.3.4 -> slots 4 x 2", "no range 198.51.100.0"]);
    // A backend leaves the local list: written when no frontend points there any more.
    let moved = [("10.0.0.1", "there"), ("10.0.0.2", "there")];
    let words = step(&mut rig, balanced("", &moved), None);
    assert_eq!(words.first().map(String::as_str), Some("backend 1 10.0.0.1 active generation=1"));
    assert_eq!(words.last().map(String::as_str), Some("backend 1 10.0.0.1 active generation=1"));
    assert_eq!(
        rig.tables().backends.values().map(|b| b.flags).collect::<Vec<_>>(),
        [backend::CLUSTER_LIST, backend::CLUSTER_LIST]
    );
}

#[test]
fn node_addresses_uplinks_and_clients_follow_the_host() {
    let mut rig = rig();
    rig.settle(service("web", 1, &["10.0.0.1"]), None);
    let uplink =
        |v4: &str| Uplink { name: "eth0".to_owned(), v4: v4.parse().ok(), v6: None, mtu: 1500, pod_source: false };
    let pod = PodAddresses { v4: "10.0.0.1".parse().ok(), v6: None };
    let host = HostState {
        node_port_addresses: ["192.168.0.2".parse().unwrap(), "10.96.0.1".parse().unwrap()].into(),
        uplinks: BTreeMap::from([(2, uplink("192.168.0.2"))]),
        clients: BTreeMap::from([(7, pod)]),
    };
    rig.controller.set_host(&host);
    assert_eq!(
        step(&mut rig, Vec::new(), None),
        ["uplink 2 192.168.0.2", "client 7 10.0.0.1", "address 10.96.0.1", "address 192.168.0.2"]
    );
    let flags_at = |rig: &Rig| rig.controller.shadow().address(Addr::from_ip("10.96.0.1".parse().unwrap()));
    assert_eq!(flags_at(&rig), flags::VIP | flags::NODE);
    // A restarted agent keeps them until it knows its node; the Service goes meanwhile, and takes only what is its own.
    let mut next = Rig::restarted(rig.tables(), Capacity::default());
    next.settle(vec![Change::Synced], Some(&BTreeMap::new()));
    assert_eq!((flags_at(&next), next.tables().uplinks.len(), next.tables().clients.len()), (flags::NODE, 1, 1));
    next.controller
        .set_host(&HostState { uplinks: BTreeMap::from([(3, uplink("192.168.0.3"))]), ..HostState::default() });
    let words = step(&mut next, Vec::new(), None);
    let want = ["no uplink 2", "no client 7", "uplink 3 192.168.0.3", "no address 10.96.0.1", "no address 192.168.0.2"];
    assert_eq!(words, want);
    assert_eq!(step(&mut next, Vec::new(), None), Vec::<String>::new());
}

#[test]
fn a_change_costs_what_it_touches() {
    let mut rig = rig();
    for n in 0..200u8 {
        rig.settle(service(&format!("s{n}"), n, &["10.0.0.1"]), None);
    }
    let words = step(&mut rig, service("s7", 7, &["10.0.0.1", "10.0.0.2"]), None);
    assert_eq!(words.len(), 4, "{words:?}");
}

#[test]
fn a_backend_keeps_its_id_until_no_flow_names_it() {
    let mut rig = rig();
    rig.settle(service("web", 1, &["10.0.0.1", "10.0.0.2"]), None);
    rig.settle(service("web", 1, &["10.0.0.2"]), None);
    // It comes back while flows may name it: the same id and generation.
    let words = step(&mut rig, service("web", 1, &["10.0.0.1", "10.0.0.2"]), None);
    assert_eq!(words[0], "backend 1 10.0.0.1 active generation=1");
    // Removed, swept and rested, its id serves another, as another.
    rig.settle(service("web", 1, &["10.0.0.2"]), None);
    rig.sweep();
    assert_eq!(rig.tables().backends[&1].state, state::FREE);
    let words = step(&mut rig, service("web", 1, &["10.0.0.2", "10.0.0.3"]), None);
    assert_eq!(words[1], "backend 3 10.0.0.3 active generation=1");
    rig.now += QUARANTINE;
    rig.settle(Vec::new(), None);
    let words = step(&mut rig, service("web", 1, &["10.0.0.2", "10.0.0.3", "10.0.0.4"]), None);
    assert_eq!(words[..2], ["flows 1 = 0", "backend 1 10.0.0.4 active generation=2"]);
}

#[test]
fn a_sweep_frees_only_what_was_removed_when_it_began() {
    let mut rig = rig();
    rig.settle(service("web", 1, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]), None);
    rig.settle(service("web", 1, &["10.0.0.2", "10.0.0.3"]), None);
    assert_eq!(rig.controller.begin_sweep(), BTreeSet::from([1]));
    rig.settle(service("web", 1, &["10.0.0.1", "10.0.0.3"]), None);
    rig.settle(service("web", 1, &["10.0.0.3"]), None);
    // 1 was in use in between, 2 was removed while the sweep ran, 3 is in use.
    rig.controller.release([1, 2, 3]);
    assert_eq!(step(&mut rig, Vec::new(), None), Vec::<String>::new());
}

#[test]
fn a_failed_write_holds_back_its_service_and_no_other() {
    let mut rig = rig();
    let changes = [service("a", 1, &["10.0.0.1"]), service("b", 2, &["10.0.0.2"])].concat();
    let plan = rig.controller.update(changes, None, rig.now);
    // The first write of `a`'s backend.
    rig.store.fail_in = Some(1);
    let applied = rig.controller.apply(&plan, &mut rig.store);
    let ops: Vec<_> = applied.failed.iter().map(|(op, _)| op.clone()).collect();
    assert!(matches!(ops[..], [MapOp::SetBackend { id: 1, .. }]), "{ops:?}");
    assert_eq!(applied.skipped, 3);
    let served: Vec<_> = rig.tables().frontends.keys().map(|key| key.addr.to_string()).collect();
    assert_eq!(served, ["10.96.0.2", "10.96.0.2"]);
    let problems = rig.controller.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!((problems[0].object.as_str(), rig.controller.due()), ("Service default/a", Some(rig.now)));
    rig.settle(Vec::new(), None);
    assert_eq!((rig.tables().frontends.len(), rig.controller.problems(), rig.controller.due()), (4, vec![], None));
}

#[test]
fn who_loses_a_frontend_keeps_its_backends_until_the_other_has_it() {
    let mut rig = rig();
    rig.settle(service("young", 1, &["10.0.0.1"]), None);
    let mut older = service("old", 1, &["10.0.0.2"]);
    if let Change::Apply(Object::Service(spec)) = &mut older[0] {
        spec.meta.created = Some(0);
    }
    let plan = rig.controller.update(older, None, rig.now);
    // Not written: the new backend. Then nothing of either may move.
    rig.store.fail_in = Some(1);
    assert_eq!(rig.controller.apply(&plan, &mut rig.store).failed.len(), 1);
    let states = |rig: &Rig| rig.tables().backends.values().map(|b| state::name(b.state)).collect::<Vec<_>>();
    assert_eq!(states(&rig), ["active"]);
    rig.settle(Vec::new(), None);
    assert_eq!(states(&rig), ["removed", "active"]);
}

#[test]
fn what_was_given_to_a_service_that_does_not_fit_is_taken_back() {
    let mut rig = Rig::new(Capacity { slots: 4, ..Capacity::default() });
    let mut two = service("a", 1, &["10.0.0.1"]);
    if let [Change::Apply(Object::Service(spec)), Change::Apply(Object::EndpointSlice(slice))] = &mut two[..] {
        let (mut port, mut target) = (spec.ports[0].clone(), slice.ports[0].clone());
        (port.name, port.port, target.name) = (PortName::new("more"), 81, PortName::new("more"));
        spec.ports.push(port);
        slice.ports.push(target);
    }
    rig.settle(two, None);
    assert_eq!((rig.controller.problems().len(), rig.tables().frontends.len()), (1, 0));
    rig.settle(service("b", 2, &["10.0.0.1"]), None);
    assert_eq!(rig.tables().backends[&1].addr.to_string(), "10.0.0.1");
    assert_eq!(rig.tables().frontends.len(), 2);
}

#[test]
fn an_id_whose_write_never_came_about_is_free_again() {
    let mut rig = Rig::new(Capacity { backends: 2, ..Capacity::default() });
    rig.controller.update(service("web", 1, &["10.0.0.1"]), None, rig.now);
    rig.settle(service("web", 1, &["10.0.0.2"]), None);
    assert_eq!(rig.tables().backends[&1].addr.to_string(), "10.0.0.2");
}

#[test]
fn a_released_backend_that_is_wanted_again_stays() {
    let mut rig = rig();
    rig.settle(service("web", 1, &["10.0.0.1", "10.0.0.2"]), None);
    rig.settle(service("web", 1, &["10.0.0.2"]), None);
    let removed = rig.controller.begin_sweep();
    rig.controller.release(removed);
    let words = step(&mut rig, service("web", 1, &["10.0.0.1", "10.0.0.2"]), None);
    assert_eq!(words[0], "backend 1 10.0.0.1 active generation=1");
    assert_eq!(step(&mut rig, Vec::new(), None), Vec::<String>::new());
}

#[test]
fn who_waits_for_room_is_told_when_to_ask() {
    let mut rig = Rig::new(Capacity { backends: 2, ..Capacity::default() });
    rig.settle([service("a", 1, &["10.0.0.1"]), service("b", 2, &["10.0.0.2"]), vec![Change::Synced]].concat(), None);
    assert_eq!(rig.controller.problems().len(), 1);
    assert_eq!(rig.controller.due(), None);
    rig.now = Duration::from_secs(100);
    rig.settle(delete("a"), None);
    rig.sweep();
    // First the block of `a` has had its grace, then its id has rested.
    for _ in 0..2 {
        assert_eq!(rig.controller.problems().len(), 1);
        rig.now = rig.controller.due().expect("room will appear");
        rig.settle(Vec::new(), None);
    }
    assert_eq!((rig.controller.problems(), rig.controller.due()), (vec![], None));
    assert_eq!(rig.tables().backends[&1].addr.to_string(), "10.0.0.2");
}

#[test]
fn an_endpoint_gets_a_new_generation_when_it_may_be_another_pods() {
    let mut rig = rig();
    let first = device(5, 0xa, &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(
        step(&mut rig, Vec::new(), Some(&first)),
        [
            "endpoint 1 ifindex=5 generation=1",
            "10.0.0.1 is endpoint 1",
            "10.0.0.2 is endpoint 1",
            "ifindex 5 is endpoint 1"
        ]
    );
    let mut larger = first.clone();
    larger.get_mut(&5).unwrap().mtu = 9000;
    assert_eq!(step(&mut rig, Vec::new(), Some(&larger)), ["endpoint 1 ifindex=5 generation=1"]);
    assert_eq!(
        step(&mut rig, Vec::new(), Some(&device(5, 0xa, &["10.0.0.1"]))),
        ["endpoint 1 ifindex=5 generation=2", "10.0.0.2 is none"]
    );
    assert_eq!(step(&mut rig, Vec::new(), Some(&device(5, 0xb, &["10.0.0.1"]))), ["endpoint 1 ifindex=5 generation=3"]);
    // The pod moves to another device: the old one loses its record before anything else.
    assert_eq!(
        step(&mut rig, Vec::new(), Some(&device(6, 0xb, &["10.0.0.1"]))),
        [
            "endpoint 1 ifindex=0 generation=4",
            "endpoint 2 ifindex=6 generation=1",
            "10.0.0.1 is endpoint 2",
            "ifindex 6 is endpoint 2",
            "ifindex 5 is none",
        ]
    );
}

#[test]
fn a_backend_on_this_node_knows_its_endpoint() {
    let mut rig = rig();
    rig.settle(service("web", 1, &["10.0.0.1"]), None);
    let endpoint = |rig: &Rig| rig.tables().backends[&1].endpoint;
    assert_eq!(endpoint(&rig), 0);
    rig.settle(Vec::new(), Some(&device(5, 0xa, &["10.0.0.1"])));
    assert_eq!(endpoint(&rig), 1);
    rig.settle(Vec::new(), Some(&BTreeMap::new()));
    assert_eq!(endpoint(&rig), 0);
}

#[test]
fn a_restarted_agent_that_has_not_listed_devices_keeps_endpoints() {
    let (mut rig, devices) = (rig(), device(5, 0xa, &["10.0.0.1"]));
    rig.settle(service("web", 1, &["10.0.0.1"]), Some(&devices));
    let mut next = Rig::restarted(rig.tables(), Capacity::default());
    next.settle([service("web", 1, &["10.0.0.1"]), vec![Change::Synced]].concat(), None);
    assert_eq!(next.dump(), rig.dump());
    // Listed, they are gone.
    next.settle(Vec::new(), Some(&BTreeMap::new()));
    let tables = next.tables();
    assert_eq!((tables.backends[&1].endpoint, tables.endpoints[&1].ifindex, tables.endpoint_by_addr.len()), (0, 0, 0));
}

#[test]
fn config_follows_node_and_ranges() {
    let mut rig = rig();
    let yaml = "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: k}, spec: {cidrs: [10.96.7.0/16, \"fd00::/112\"]}}";
    let object = convert(&serde_norway::from_str(yaml).unwrap(), None, "document").objects.remove(0);
    assert_eq!(step(&mut rig, vec![Change::Apply(object)], None), ["config"]);
    let config = rig.tables().config.unwrap();
    // A mask of IPv4 keeps the bits that make it a v4-mapped address.
    let ranges: Vec<_> =
        config.cidrs.iter().take(config.cidrs_used as usize).map(|c| (c.net.to_string(), c.mask.to_string())).collect();
    let want =
        [("10.96.0.0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0"), ("fd00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0")];
    assert_eq!(ranges, want.map(|(net, mask)| (net.to_owned(), mask.to_owned())));
    assert_eq!((config.hz, config.seed, config.netns_cookie, config.flags), (250, 42, 7, 1));
}

#[test]
fn names_stand_for_ids() {
    let mut rig = rig();
    rig.settle(service("web", 1, &["10.0.0.1"]), None);
    let id = rig.tables().backends[&1].service;
    let names = rig.controller.names();
    assert_eq!((names.service(id), names.service(99)), ("default/web".to_owned(), "service#99".to_owned()));
    let label = &names.services[&id];
    assert_eq!((label.protocol.as_str(), label.family.as_str()), ("TCP", "ipv4"));
    assert!(rig.store.read().is_ok());
}
