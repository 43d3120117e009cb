//! Every way a packet can end, over tables in memory.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bytemuck::Zeroable as _;
use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::backend::{BackendValue, flags as backend_flags, state as backend_state};
use netlb_common::client::ClientValue;
use netlb_common::config::{Cidr, Config, flags as config_flags};
use netlb_common::conntrack::{CtKey, CtValue, pack_ports, state};
use netlb_common::endpoint::EndpointValue;
use netlb_common::fragment::{FragmentKey, FragmentValue};
use netlb_common::frontend::{FrontendKey, FrontendValue, flags, scheduler};
use netlb_common::socket::{SocketKey, SocketValue};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;
use netlb_common::{Addr, Port, Reason, proto};
use netlb_ebpf::tables::Tier;

use super::ask::Question;
use super::frame::{ACK, SYN};
use super::journey::Hook;
use super::network::{Lost, Network, Way};
use super::overlay::{Learnt, Overlay};
use super::words::{Told, Words};
use super::{By, Trace, trace};
use crate::devices::parse::Link;
use crate::plan::{Names, PortLabel};
use crate::store::Tables;

const NOW: u32 = 1_000_000;
const HZ: u32 = 250;
const NETNS: u64 = 1;
const CLIENT_NETNS: u64 = 2;
const EDGE: u32 = 2;
const BRIDGE: u32 = 3;
/// Pods of this node: name, interface index, address.
const PODS: [(&str, u32, &str); 2] = [("shop/client", 7, "10.0.1.2"), ("shop/web-1", 8, "10.0.1.3")];
const REMOTE: &str = "10.0.2.5";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn addr(text: &str) -> Addr {
    Addr::from_ip(ip(text))
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// Flows, sessions and source ranges that were there before.
#[derive(Default)]
struct Past {
    flows: BTreeMap<(bool, CtKey), CtValue>,
    sessions: BTreeMap<AffinityKey, AffinityValue>,
    allowed: Vec<IpAddr>,
    loads: BTreeMap<u32, u32>,
}

impl Learnt for Past {
    fn ct(&self, tier: Tier, key: &CtKey) -> Option<CtValue> {
        self.flows.get(&(tier == Tier::Assured, *key)).copied()
    }

    fn session(&self, key: &AffinityKey) -> Option<AffinityValue> {
        self.sessions.get(key).copied()
    }

    fn socket(&self, _: &SocketKey) -> Option<SocketValue> {
        None
    }

    fn fragment(&self, _: &FragmentKey) -> Option<FragmentValue> {
        None
    }

    fn turn(&self, _: u32) -> u32 {
        1
    }

    fn load(&self, backend: u32) -> u32 {
        self.loads.get(&backend).copied().unwrap_or(0)
    }

    fn in_source_range(&self, key: &SourceRangeKey) -> bool {
        self.allowed.contains(&key.addr.to_ip())
    }
}

/// A default route by eth0, pods behind their devices (or a bridge), nothing to 10.9.0.0/16.
struct Wires {
    links: BTreeMap<u32, Link>,
    bridged: bool,
}

impl Wires {
    fn way(&self, dst: IpAddr) -> Result<Way, Lost> {
        let way = |ifindex, gateway, source: &str| Way {
            local: false,
            ifindex,
            gateway,
            source: Some(ip(source)),
            mtu: 1500,
        };
        if dst == ip("192.0.2.10") || dst.is_loopback() {
            return Ok(Way { local: true, ..way(1, None, "192.0.2.10") });
        }
        if dst.to_string().starts_with("10.9.") {
            return Err(Lost::NoRoute);
        }
        match PODS.iter().find(|(.., pod)| ip(pod) == dst) {
            Some((_, ifindex, _)) => Ok(way(if self.bridged { BRIDGE } else { *ifindex }, None, "192.0.2.10")),
            None => Ok(way(EDGE, Some(ip("192.0.2.1")), "192.0.2.10")),
        }
    }
}

impl Network for Wires {
    fn input(&self, _: u32, src: IpAddr, dst: IpAddr) -> Result<Way, Lost> {
        // As the kernel has it for its own address as a source.
        if src == ip("192.0.2.10") { Err(Lost::Martian) } else { self.way(dst) }
    }

    fn output(&self, _: Option<IpAddr>, dst: IpAddr) -> Result<Way, Lost> {
        self.way(dst)
    }

    fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    fn links(&self) -> Box<dyn Iterator<Item = &Link> + '_> {
        Box::new(self.links.values())
    }
}

struct World {
    tables: Tables,
    past: Past,
    names: Names,
    wires: Wires,
}

/// One Service port: its name, its frontends, its backends by address.
fn service(world: &mut World, label: &str, frontends: &[(FrontendKey, u32)], backends: &[&str]) -> u32 {
    let t = &mut world.tables;
    let id = world.names.services.len() as u32 + 1;
    let (service, port) = label.split_once(':').expect("a port's name");
    let proto = frontends.first().map_or(proto::TCP, |(key, _)| key.proto());
    let label = PortLabel {
        service: service.to_owned(),
        port: port.to_owned(),
        protocol: proto::name(proto).to_owned(),
        family: "ipv4".to_owned(),
    };
    world.names.services.insert(id, label);
    let slots = t.slots.len() as u32;
    for backend in backends {
        let backend_id = t.backends.len() as u32 + 1;
        let endpoint = t.endpoint_by_addr.get(&addr(backend)).copied().unwrap_or(0);
        let value = BackendValue {
            addr: addr(backend),
            port: Port::new(8080),
            state: backend_state::ACTIVE,
            proto,
            generation: 1,
            endpoint,
            service: id,
            flags: backend_flags::CLUSTER_LIST
                | if endpoint != 0 { backend_flags::ON_NODE | backend_flags::LOCAL_LIST } else { 0 },
            pad: 0,
        };
        t.backends.insert(backend_id, value);
        t.slots.insert(t.slots.len() as u32, backend_id);
    }
    for (key, flags) in frontends {
        let count = backends.len() as u32;
        let value = FrontendValue {
            service: id,
            flags: *flags,
            slots,
            count,
            outside_slots: slots,
            outside_count: count,
            ..FrontendValue::zeroed()
        };
        t.frontends.insert(*key, value);
        if flags & self::flags::EXTERNAL == 0 {
            let vip = FrontendValue { flags: self::flags::VIP, ..FrontendValue::zeroed() };
            t.frontends.insert(FrontendKey::address(key.addr), vip);
        }
    }
    id
}

fn key(text: &str) -> FrontendKey {
    let at = at(text);
    FrontendKey::new(Addr::from_ip(at.ip()), Port::new(at.port()), proto::TCP)
}

fn world() -> World {
    let mut config = Config { netns_cookie: NETNS, hz: HZ, flags: config_flags::REDIRECT, seed: 1, ..Config::zeroed() };
    config.cidrs_used = 1;
    config.cidrs[0] = Cidr { net: addr("10.96.0.0"), mask: Addr::mask(16, true) };
    config.node4 = addr("192.0.2.10");
    (config.snat_first, config.snat_count) = (1024, 20_000);
    let mut tables = Tables { config: Some(config), ..Tables::default() };
    let link = |ifindex: u32, name: &str| Link { ifindex, name: name.to_owned(), mtu: 1500, ..Link::default() };
    let mut links = BTreeMap::from([(EDGE, link(EDGE, "eth0")), (BRIDGE, link(BRIDGE, "cni0"))]);
    let mut names = Names::default();
    for (i, (name, ifindex, ip_text)) in PODS.iter().enumerate() {
        let id = i as u32 + 1;
        let value =
            EndpointValue { ifindex: *ifindex, generation: 1, mtu: 1500, eth: [id, 0, 0], ..EndpointValue::zeroed() };
        tables.endpoints.insert(id, value);
        tables.endpoint_by_addr.insert(addr(ip_text), id);
        tables.endpoint_by_ifindex.insert(*ifindex, id);
        names.pods.insert(ip(ip_text), (*name).to_owned());
        links.insert(*ifindex, link(*ifindex, &format!("veth{ifindex}")));
    }
    names.pods.insert(ip(REMOTE), "shop/web-2".to_owned());
    tables.uplinks.insert(EDGE, UplinkValue { addr4: addr("192.0.2.10"), mtu: 1500, ..UplinkValue::zeroed() });
    tables.clients.insert(CLIENT_NETNS, ClientValue { addr4: addr("10.0.1.2"), addr6: Addr::UNSPECIFIED });
    let node = FrontendValue { flags: flags::NODE, ..FrontendValue::zeroed() };
    tables.frontends.insert(FrontendKey::address(addr("192.0.2.10")), node);
    let mut world = World { tables, past: Past::default(), names, wires: Wires { links, bridged: false } };
    service(&mut world, "shop/local:http", &[(key("10.96.0.10:80"), 0)], &["10.0.1.3"]);
    let node_port = FrontendKey::node_port(true, Port::new(30080), proto::TCP);
    let external = flags::EXTERNAL;
    let balancer = external | flags::LOAD_BALANCER | flags::SOURCE_RANGES;
    let web = [(key("10.96.0.11:80"), 0), (node_port, external), (key("203.0.113.80:80"), balancer)];
    service(&mut world, "shop/web:http", &web, &[REMOTE]);
    service(&mut world, "shop/empty:http", &[(key("10.96.0.12:80"), 0)], &[]);
    service(&mut world, "shop/both:http", &[(key("10.96.0.13:80"), 0)], &["10.0.1.3", REMOTE, REMOTE]);
    service(&mut world, "shop/self:http", &[(key("10.96.0.14:80"), 0)], &["10.0.1.2"]);
    service(&mut world, "shop/lost:http", &[(key("10.96.0.15:80"), external)], &["10.9.0.1"]);
    let local = external | flags::KEEP_CLIENT | flags::OUTSIDE_LOCAL | flags::DROP_OUTSIDE;
    let id = service(&mut world, "shop/near:http", &[(key("203.0.113.81:80"), local)], &[REMOTE]);
    for value in world.tables.frontends.values_mut().filter(|value| value.service == id) {
        value.outside_count = 0;
    }
    world
}

fn question(from: &str, to: &str) -> Question {
    Question { from: from.to_owned(), to: to.to_owned(), flags: SYN, ..Question::default() }
}

impl World {
    fn try_ask(&self, question: &Question) -> anyhow::Result<(Trace, Told, String)> {
        let overlay = Overlay::new(&self.tables, &self.past, NOW);
        let trace = trace(question, &overlay, &self.wires, &self.names)?;
        let words = Words {
            names: &self.names,
            tables: &self.tables,
            network: &self.wires,
            now: NOW,
            attached: Some([EDGE, 7, 8].into()),
        };
        let told = words.tell(&trace);
        let text = words.text(&told, &trace);
        assert!(!text.contains('#'), "an id in place of a name:\n{text}");
        Ok((trace, told, text))
    }

    fn ask(&self, from: &str, to: &str) -> (Trace, Told, String) {
        self.try_ask(&question(from, to)).unwrap_or_else(|error| panic!("{from} to {to}: {error:#}"))
    }

    fn config(&mut self) -> &mut Config {
        self.tables.config.as_mut().expect("world() made it")
    }

    fn bridge(&mut self) {
        self.wires.bridged = true;
        self.tables.endpoints.values_mut().for_each(|endpoint| endpoint.bridge = BRIDGE);
    }
}

fn hooks(told: &Told) -> Vec<&str> {
    told.stages.iter().map(|stage| stage.hook).collect()
}

/// The answer comes home, by these hooks.
fn assert_answered(told: &Told, text: &str, by: &[&str]) {
    let answer = told.answer.as_ref().unwrap_or_else(|| panic!("no answer:\n{text}"));
    assert!(answer.arrives, "{text}");
    assert_eq!(answer.stages.iter().map(|stage| stage.hook).collect::<Vec<_>>(), by, "{text}");
}

#[test]
fn a_pod_reaches_a_pod_past_the_stack() {
    let (trace, told, text) = world().ask("client", "local");
    assert_eq!((told.result.kind, told.result.backend), ("pod", Some(at("10.0.1.3:8080"))), "{text}");
    assert_eq!(hooks(&told), ["from_pod"]);
    assert_eq!(told.result.service.as_deref(), Some("shop/local:http"));
    assert!(!told.result.masqueraded);
    assert_eq!(trace.choice.map(|choice| choice.by), Some(By::Scheduler));
    assert_answered(&told, &text, &["from_pod"]);
    let said = told.stages.first().expect("a stage");
    assert_eq!(said.text, "delivered to shop/web-1 by veth8, past the host's stack");
    assert_eq!((said.packet.src.ip(), said.packet.dst, said.packet.ttl), (ip("10.0.1.2"), at("10.0.1.3:8080"), 63));
    for words in ["TCP SYN", "veth7 (shop/client)", "reaches shop/web-1", "the only one", "10.96.0.10:80", "no flow"] {
        assert!(text.contains(words), "{words} is missing in:\n{text}");
    }
}

#[test]
fn the_same_through_the_stack_and_over_a_bridge() {
    let mut stack = world();
    stack.config().flags = 0;
    let (_, told, text) = stack.ask("shop/client", "shop/local:http");
    assert_eq!((told.result.kind, hooks(&told)), ("pod", vec!["from_pod", "stack", "to_pod"]), "{text}");
    assert_answered(&told, &text, &["from_pod", "stack", "to_pod"]);
    assert!(text.contains("packet filter"), "{text}");
    stack.bridge();
    let (_, told, text) = stack.ask("client", "local:80");
    assert_eq!((told.result.kind, hooks(&told)), ("pod", vec!["from_pod", "stack", "to_pod"]), "{text}");
    assert!(text.contains("bridged to veth8 (shop/web-1)"), "{text}");
    assert_answered(&told, &text, &["from_pod", "stack", "to_pod"]);
}

#[test]
fn a_backend_elsewhere_is_reached_by_the_uplink() {
    let (_, told, text) = world().ask("client", "web");
    assert_eq!((told.result.kind, hooks(&told)), ("away", vec!["from_pod", "stack", "to_outside"]), "{text}");
    assert!(told.result.text.contains("out of eth0 to next hop 192.0.2.1 for 10.0.2.5:8080 (shop/web-2)"), "{text}");
    assert_answered(&told, &text, &["from_outside", "stack", "to_pod"]);
}

#[test]
fn a_client_outside_is_masqueraded_to_a_backend_elsewhere() {
    let (_, told, text) = world().ask("outside", "node:30080");
    assert_eq!((told.result.kind, hooks(&told)), ("away", vec!["from_outside"]), "{text}");
    assert!(told.result.masqueraded && told.result.seen_as == Some(ip("192.0.2.10")), "{text}");
    assert!(text.contains("NodePort of shop/web:http") && text.contains("masqueraded: the backend sees"), "{text}");
    assert_answered(&told, &text, &["from_outside"]);
    let (_, by_name, text) = world().ask("198.51.100.7:4000", "web:30080");
    assert_eq!(by_name.packet.dst, at("192.0.2.10:30080"), "{text}");
    assert_eq!(by_name.packet.src, at("198.51.100.7:4000"), "{text}");
}

#[test]
fn a_client_outside_keeps_its_address_to_a_pod_here_or_not() {
    let mut world = world();
    let to_web_1 = |t: &mut Tables| {
        let id = t.slots.get(&1).copied().expect("shop/web's slot");
        let b = t.backends.get_mut(&id).expect("its backend");
        (b.addr, b.endpoint, b.flags) = (addr("10.0.1.3"), 2, b.flags | backend_flags::ON_NODE);
    };
    to_web_1(&mut world.tables);
    let (_, told, text) = world.ask("outside", "node:30080");
    assert_eq!((told.result.kind, hooks(&told)), ("pod", vec!["from_outside", "stack", "to_pod"]), "{text}");
    assert!(!told.result.masqueraded, "{text}");
    assert_answered(&told, &text, &["from_pod", "stack", "to_outside"]);
    world.config().flags |= config_flags::MASQUERADE_LOCAL;
    let (_, told, text) = world.ask("outside", "node:30080");
    assert!(told.result.kind == "pod" && told.result.masqueraded, "{text}");
    assert_eq!(told.result.seen_as, Some(ip("192.0.2.10")), "{text}");
    assert_answered(&told, &text, &["from_pod", "stack", "to_outside"]);
}

#[test]
fn refusals_and_drops_name_their_reason_and_what_to_do() {
    let mut world = world();
    world.past.allowed = vec![ip("198.51.100.9")];
    for (from, to, kind, reason, advised) in [
        ("client", "empty", "refused", Reason::NO_ENDPOINTS, true),
        ("client", "10.96.0.10:81", "refused", Reason::UNDEFINED_PORT, true),
        ("client", "10.96.99.99:80", "dropped", Reason::UNALLOCATED, true),
        ("outside", "web", "dropped", Reason::SOURCE_RANGE, true),
        ("outside", "near", "dropped", Reason::NO_LOCAL_EXTERNAL, true),
        ("outside", "lost", "dropped", Reason::NO_ROUTE, true),
        ("node", "empty", "refused", Reason::SOCKET_NO_ENDPOINTS, true),
        ("node", "10.96.99.99:80", "dropped", Reason::SOCKET_UNALLOCATED, true),
    ] {
        let (_, told, text) = world.ask(from, to);
        assert_eq!((told.result.kind, told.result.reason), (kind, reason.name()), "{from} to {to}:\n{text}");
        assert_eq!(told.result.advice.is_some(), advised, "{text}");
        assert!(told.answer.is_none(), "{text}");
    }
    let (_, told, text) = world.ask("198.51.100.9", "web");
    assert_eq!((told.result.kind, told.packet.dst), ("away", at("203.0.113.80:80")), "{text}");
    let (_, told, text) = world.ask("client", "empty");
    let back = &told.stages.first().expect("a stage").packet;
    assert_eq!((back.src, back.flags.as_slice()), (at("10.96.0.12:80"), &["ACK", "RST"][..]), "{text}");
}

#[test]
fn a_segment_of_no_flow_is_refused() {
    let world = world();
    let (_, told, text) = world.try_ask(&Question { flags: ACK, ..question("client", "local") }).expect("known names");
    assert_eq!((told.result.kind, told.result.reason), ("refused", Some("no_flow")), "{text}");
}

#[test]
fn a_pod_that_is_its_own_backend_sees_its_service() {
    let (_, told, text) = world().ask("client", "self");
    assert_eq!(told.result.kind, "pod", "{text}");
    assert!(text.contains("sent back to shop/client, which is its own backend"), "{text}");
    assert!(!told.result.masqueraded, "{text}");
    assert_answered(&told, &text, &["from_pod"]);
}

#[test]
fn a_process_of_the_node_connects_to_the_backend() {
    let (trace, told, text) = world().ask("node", "both");
    assert_eq!(told.stages.first().map(|stage| stage.hook), Some("connect"), "{text}");
    assert!(text.contains("in place of 10.96.0.13:80"), "{text}");
    assert_eq!(told.result.backends.len(), 2, "{text}");
    assert_eq!(trace.choice.map(|choice| (choice.by, choice.list.len())), Some((By::Socket, 3)));
    assert_eq!(told.packet.dst, at("10.96.0.13:80"));
    assert!(told.answer.as_ref().is_some_and(|answer| answer.arrives), "{text}");
    // No hook sees it: the packet is caught where it would leave.
    let mut world = world();
    let sctp = FrontendKey::new(addr("10.96.0.20"), Port::new(38412), proto::SCTP);
    service(&mut world, "shop/core:n2", &[(sctp, 0)], &[REMOTE]);
    let (_, told, text) = world.ask("node", "core");
    assert_eq!((told.packet.protocol, hooks(&told)), ("SCTP", vec!["stack", "to_outside"]), "{text}");
    assert!(text.contains("slipped"), "{text}");
}

#[test]
fn with_accel_socket_a_pods_call_comes_first() {
    let mut world = world();
    world.config().flags |= config_flags::SOCKET_ALL;
    let (_, told, text) = world.ask("client", "local");
    assert_eq!((told.result.kind, hooks(&told)[..2].to_vec()), ("pod", vec!["connect", "from_pod"]), "{text}");
    assert_eq!(told.result.backend, Some(at("10.0.1.3:8080")), "{text}");
    // What is to be refused is left to its packets.
    let (_, told, text) = world.ask("client", "empty");
    assert_eq!((told.result.kind, hooks(&told)), ("refused", vec!["connect", "from_pod"]), "{text}");
}

#[test]
fn a_flow_that_is_there_decides() {
    let mut world = world();
    let backend = 1;
    let tuple = CtKey::new(addr("10.0.1.2"), addr("10.96.0.13"), Port::new(40_000), Port::new(80), proto::TCP);
    let entry = CtValue {
        src: addr("10.0.1.2"),
        dst: addr("10.0.1.3"),
        ports: pack_ports(Port::new(40_000), Port::new(8080)),
        state: state::ESTABLISHED,
        seen: NOW - 3 * HZ,
        timeout: 1000 * HZ,
        backend,
        backend_generation: 1,
        service: 4,
        ..CtValue::zeroed()
    };
    world.past.flows.insert((true, tuple), entry);
    let ask = Question { flags: ACK, ..question("10.0.1.2:40000", "both") };
    let (trace, told, text) = world.try_ask(&ask).expect("known names");
    assert_eq!((told.result.backend, told.result.chosen_by), (Some(at("10.0.1.3:8080")), Some("flow")), "{text}");
    assert_eq!(trace.choice.map(|choice| choice.by), Some(By::Flow));
    for words in ["ESTABLISHED, answered, last seen 3.0 s ago; it decides", "the flow that was there before has it"] {
        assert!(text.contains(words), "{words} is missing in:\n{text}");
    }
    // Without a port of its own the question is about a new flow.
    let (_, told, text) = world.ask("10.0.1.2", "both");
    assert_eq!(told.result.chosen_by, Some("random"), "{text}");
    // Over since long.
    world.past.flows.values_mut().for_each(|entry| entry.timeout = HZ);
    let (_, told, text) = world.ask("10.0.1.2:40000", "both");
    assert!(text.contains("counts as none") && told.result.chosen_by == Some("random"), "{text}");
}

#[test]
fn sessions_and_schedulers_are_told_apart() {
    let mut world = world();
    let mut set = |affinity_s: u32, scheduler: u32| {
        let value = world.tables.frontends.get_mut(&key("10.96.0.13:80")).expect("shop/both");
        (value.affinity_s, value.flags) = (affinity_s, scheduler << flags::SCHEDULER_SHIFT);
        let ids: Vec<u32> =
            world.tables.backends.iter().filter(|(_, b)| b.service == value.service).map(|(id, _)| *id).collect();
        let session = AffinityKey { client: addr("10.0.1.2"), service: value.service, pad: 0 };
        world.past.loads = ids.iter().map(|id| (*id, 10 - *id)).collect();
        let kept = AffinityValue { backend: ids[0], backend_generation: 1, seen: NOW - HZ, pad: 0 };
        world.past.sessions = BTreeMap::from([(session, kept)]);
        let (_, told, text) = world.ask("client", "both");
        (told.result.chosen_by.expect("a backend was chosen"), told.result.backend.expect("with an address"), text)
    };
    let (by, backend, text) = set(60, scheduler::RANDOM);
    assert_eq!((by, backend), ("session", at("10.0.1.3:8080")), "{text}");
    assert!(text.contains("was at 10.0.1.3:8080 (shop/web-1)"), "{text}");
    let (by, backend, text) = set(0, scheduler::ROUND_ROBIN);
    assert_eq!((by, backend), ("rr", at("10.0.2.5:8080")), "the turn is 1:\n{text}");
    let (by, backend, text) = set(0, scheduler::LEAST_CONNECTIONS);
    assert_eq!((by, backend), ("lc", at("10.0.2.5:8080")), "{text}");
    assert_eq!(set(0, scheduler::SOURCE_HASH).0, "sh");
}

#[test]
fn what_is_no_services_passes_as_it_is() {
    let (trace, told, text) = world().ask("client", "198.51.100.5:443");
    assert_eq!((told.result.kind, hooks(&told)), ("away", vec!["from_pod", "stack", "to_outside"]), "{text}");
    assert!(trace.choice.is_none() && text.contains("left as it is, and passed to the host's stack"), "{text}");
    let (_, told, text) = world().ask("client", "10.9.0.1:443");
    assert_eq!(told.result.kind, "stuck", "{text}");
    assert!(text.contains("no route"), "{text}");
    let (_, told, text) = world().ask("outside", "192.0.2.10:22");
    assert_eq!((told.result.kind, hooks(&told)), ("node", vec!["from_outside", "stack"]), "{text}");
    let large = Question { size: 9000, ..question("client", "198.51.100.5:443") };
    let (_, told, text) = world().try_ask(&large).expect("known names");
    assert_eq!((told.result.kind, told.packet.size), ("stuck", 9000), "{text}");
    assert!(text.contains("takes 1500 bytes"), "{text}");
}

#[test]
fn devices_without_programs_are_told() {
    let world = world();
    let overlay = Overlay::new(&world.tables, &world.past, NOW);
    let trace = trace(&question("client", "local"), &overlay, &world.wires, &world.names).expect("known names");
    let words = Words {
        names: &world.names,
        tables: &world.tables,
        network: &world.wires,
        now: NOW,
        attached: Some([8].into()),
    };
    let notes = words.tell(&trace).notes;
    assert!(notes.iter().any(|note| note.contains("not on veth7 (shop/client)")), "{notes:?}");
    assert!(!notes.iter().any(|note| note.contains("veth8")), "{notes:?}");
}

#[test]
fn unknown_and_ambiguous_names_are_refused_with_what_is_known() {
    let mut world = world();
    service(&mut world, "shop/two:a", &[(key("10.96.0.30:80"), 0)], &[]);
    service(&mut world, "shop/two:b", &[(key("10.96.0.30:81"), 0)], &[]);
    service(&mut world, "other/web:http", &[(key("10.96.0.31:80"), 0)], &[]);
    let cases: [(&str, &str, &[&str]); 10] = [
        ("client", "nobody", &["no Service nobody", "netlb service list"]),
        ("client", "web", &["other/web", "shop/web", "namespace"]),
        ("client", "two", &["a (TCP)", "b (TCP)"]),
        ("client", "shop/web:9999", &["no such port"]),
        ("client", "10.0.1.3", &["names no port", "10.0.1.3:80"]),
        ("web", "two:a", &["no pod web", "shop/web-1"]),
        ("ghost", "two:a", &["no pod ghost", "outside"]),
        ("fd00::1", "two:a", &["two families"]),
        ("client", "[fd00::1]:80", &["no address of the family"]),
        ("client", "node", &["node:30080"]),
    ];
    for (from, to, words) in cases {
        let error = world.try_ask(&question(from, to)).expect_err("not to be understood").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{from} to {to}: {error}");
    }
    let by = |device: &str| Question { device: Some(device.to_owned()), ..question("outside", "node:30080") };
    assert!(world.try_ask(&by("cni0")).is_err_and(|error| error.to_string().contains("no uplink")));
    assert!(world.try_ask(&by("eth9")).is_err_and(|error| error.to_string().contains("no device eth9")));
    assert!(world.try_ask(&by("eth0")).is_ok());
}

#[test]
fn nothing_is_left_of_a_trace() {
    let world = world();
    let first = world.ask("client", "both").1;
    assert_eq!(world.ask("client", "both").1, first);
}

#[test]
fn hooks_have_names() {
    let names = [Hook::FromPod, Hook::ToPod, Hook::FromOutside, Hook::ToOutside].map(Hook::name);
    let programs = netlb_common::maps::program::ALL;
    assert!(names.iter().all(|name| programs.contains(name)), "{names:?}");
}
