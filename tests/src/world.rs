//! The tables of a test as plain data: what an agent would have written. The host and the kernel runner both start from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use bytemuck::Zeroable;
use netlb_common::backend::{BackendValue, flags as backend, state};
use netlb_common::client::ClientValue;
use netlb_common::config::{Cidr, Config, flags, pods};
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::endpoint::EndpointValue;
use netlb_common::frontend::{FrontendKey, FrontendValue, flags as frontend};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;
use netlb_common::{Addr, Port, proto};

use netlb_ebpf::packet::Hop;

use crate::packet::{Mac, ToIp};

/// Jiffies a second, in every test world. The kernel's own number does not matter: only differences count, and tests age entries themselves.
pub const HZ: u32 = 250;

/// Interface index of the uplink in every test world.
pub const UPLINK: u32 = 20;

/// Of the uplink that is narrow.
pub const NARROW_UPLINK: u32 = 21;

/// The node's addresses.
pub const NODE_V4: &str = "192.0.2.10";
pub const NODE_V6: &str = "2001:db8:2::10";

/// Source ports of masqueraded flows (host order).
pub const SNAT_PORTS: std::ops::Range<u16> = 1_024..30_000;

/// Bytes that narrow ways take; others what the uplink does, 1500.
pub const NARROW: u32 = 1_300;

/// Destinations whose route says that it is narrow.
pub const NARROW_ROUTES: [(&str, u8); 2] = [("10.8.0.0", 16), ("fd00:8::", 64)];

/// Destinations behind the narrow uplink.
pub const NARROW_NETS: [(&str, u8); 2] = [("10.7.0.0", 16), ("fd00:7::", 64)];

/// Destinations without a way.
pub const NOWHERE: [(&str, u8); 2] = [("10.9.0.0", 16), ("fd00:9::", 64)];

/// A pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Id in `ENDPOINTS`.
    pub id: u32,
    /// Of the host side of its veth.
    pub ifindex: u32,
    pub mac: Mac,
    pub host_mac: Mac,
    pub v4: &'static str,
    pub v6: &'static str,
}

impl Pod {
    /// The address of one family.
    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.to_ip() } else { self.v4.to_ip() }
    }
}

/// A socket of the node's that is connected, or for TCP about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeSocket {
    /// TCP or UDP.
    pub proto: u8,
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

impl NodeSocket {
    /// The tuple of the packets that it gets.
    pub fn gets(&self) -> CtKey {
        let [local, peer] = [self.local, self.peer].map(|at| (Addr::from_ip(at.ip()), Port::new(at.port())));
        CtKey::new(peer.0, local.0, peer.1, local.1, self.proto)
    }
}

/// Everything the datapath reads but does not write, and the flows it starts with.
#[derive(Clone, Debug)]
pub struct World {
    pub config: Config,
    pub frontends: BTreeMap<FrontendKey, FrontendValue>,
    pub slots: BTreeMap<u32, u32>,
    pub backends: BTreeMap<u32, BackendValue>,
    pub endpoints: BTreeMap<u32, EndpointValue>,
    pub endpoint_by_addr: BTreeMap<Addr, u32>,
    pub endpoint_by_ifindex: BTreeMap<u32, u32>,
    /// By interface index.
    pub uplinks: BTreeMap<u32, UplinkValue>,
    pub source_ranges: BTreeSet<SourceRangeKey>,
    /// By network namespace cookie.
    pub clients: BTreeMap<u64, ClientValue>,
    /// Flows there from the start, in `CT_NEW`; `seen` counts back from the start in jiffies.
    pub flows: BTreeMap<CtKey, CtValue>,
    /// The node's own.
    pub sockets: BTreeSet<NodeSocket>,
    /// Capacity of `CT`, if it matters.
    pub ct_capacity: Option<u32>,
    next_slot: u32,
}

impl Default for World {
    fn default() -> Self {
        World::new()
    }
}

impl World {
    /// A node without Services and pods; the Service CIDRs are 10.96.0.0/16 and fd00:10:96::/112, only the stack road is open.
    pub fn new() -> Self {
        let mut config = Config::zeroed();
        (config.hz, config.seed) = (HZ, 1);
        (config.node4, config.node6) = (Addr::from_ip(NODE_V4.to_ip()), Addr::from_ip(NODE_V6.to_ip()));
        config.snat_first = SNAT_PORTS.start.into();
        config.snat_count = SNAT_PORTS.len() as u32;
        let uplink = |mtu| UplinkValue { addr4: config.node4, addr6: config.node6, mtu, flags: 0 };
        World {
            config,
            frontends: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            endpoint_by_addr: BTreeMap::new(),
            endpoint_by_ifindex: BTreeMap::new(),
            uplinks: BTreeMap::from([(UPLINK, uplink(1_500)), (NARROW_UPLINK, uplink(NARROW))]),
            source_ranges: BTreeSet::new(),
            clients: BTreeMap::new(),
            flows: BTreeMap::new(),
            sockets: BTreeSet::new(),
            ct_capacity: None,
            next_slot: 0,
        }
        .cidr("10.96.0.0", 16)
        .cidr("fd00:10:96::", 112)
    }

    /// Adds a Service CIDR.
    pub fn cidr(mut self, net: &str, len: u8) -> Self {
        let net = Addr::from_ip(net.to_ip());
        let i = self.config.cidrs_used as usize;
        self.config.cidrs[i] = Cidr { net: net.masked(len), mask: Addr::mask(len, net.is_v4()) };
        self.config.cidrs_used += 1;
        self
    }

    /// Opens the redirect road.
    pub fn redirect(mut self) -> Self {
        self.config.flags |= flags::REDIRECT;
        self
    }

    /// Adds a pod with both its addresses, MTU 1500, not on a bridge.
    pub fn pod(mut self, pod: &Pod) -> Self {
        let mut twelve = [0; 12];
        twelve[..6].copy_from_slice(&pod.mac);
        twelve[6..].copy_from_slice(&pod.host_mac);
        let word = |i: usize| u32::from_ne_bytes([twelve[i], twelve[i + 1], twelve[i + 2], twelve[i + 3]]);
        let value = EndpointValue {
            ifindex: pod.ifindex,
            generation: 1,
            mtu: 1500,
            bridge: 0,
            eth: [word(0), word(4), word(8)],
            flags: 0,
        };
        self.endpoints.insert(pod.id, value);
        self.endpoint_by_ifindex.insert(pod.ifindex, pod.id);
        for v6 in [false, true] {
            self.endpoint_by_addr.insert(Addr::from_ip(pod.ip(v6)), pod.id);
        }
        self
    }

    /// Makes every pod's device a port of this bridge.
    pub fn bridge(mut self, ifindex: u32) -> Self {
        self.endpoints.values_mut().for_each(|e| e.bridge = ifindex);
        self
    }

    /// A pod's device by id, to change.
    pub fn endpoint(&mut self, pod: &Pod) -> &mut EndpointValue {
        self.endpoints.get_mut(&pod.id).unwrap_or_else(|| panic!("no endpoint {}: call pod() first", pod.id))
    }

    /// Adds one port of a Service, `"10.96.0.10:80/TCP"`, with its backends, `"10.0.1.3:8080"`. A backend that is a pod's address is known as
    /// local.
    pub fn service(mut self, frontend: &str, backends: &[&str]) -> Self {
        let key = frontend_key(frontend);
        let service = self.frontends.len() as u32 + 1;
        let owner = FrontendKey::address(key.addr);
        self.frontends.entry(owner).or_insert_with(FrontendValue::zeroed).flags |= frontend::VIP;
        self.frontends.insert(key, FrontendValue { service, ..FrontendValue::zeroed() });
        for backend in backends {
            let (addr, port) = address(backend);
            let id = self.backends.keys().last().map_or(1, |id| id + 1);
            let endpoint = self.endpoint_by_addr.get(&addr).copied().unwrap_or(0);
            let value = BackendValue {
                addr,
                port,
                state: state::ACTIVE,
                proto: key.proto(),
                generation: 1,
                endpoint,
                service,
                flags: backend::CLUSTER_LIST | if endpoint != 0 { backend::ON_NODE | backend::LOCAL_LIST } else { 0 },
                pad: 0,
            };
            self.backends.insert(id, value);
        }
        self.switch(service);
        self
    }

    /// Where the node forwards a packet of `len` bytes.
    pub fn hop(&self, dst: Addr, len: u32) -> Hop {
        let inside = |nets: &[(&str, u8)]| {
            nets.iter().any(|(net, bits)| {
                let net = Addr::from_ip(net.to_ip());
                net.is_v4() == dst.is_v4() && dst.masked(*bits) == net.masked(*bits)
            })
        };
        let multicast = !dst.is_v4() && dst.masked(8) == Addr::from_ip("ff00::".to_ip());
        // What is multicast the kernel leaves to the stack, as it does what is its own.
        if dst == self.config.node4 || dst == self.config.node6 || multicast {
            Hop::Local
        } else if inside(&NOWHERE) {
            Hop::Nowhere
        } else {
            let (ifindex, mtu) = match () {
                () if inside(&NARROW_NETS) => (NARROW_UPLINK, NARROW),
                () if inside(&NARROW_ROUTES) => (UPLINK, NARROW),
                () => (UPLINK, 1_500),
            };
            if len > mtu { Hop::TooBig(mtu) } else { Hop::To(ifindex) }
        }
    }

    /// Gives a Service port ClientIP affinity.
    pub fn sticky(mut self, frontend: &str, seconds: u32) -> Self {
        let service = self.frontend(frontend).service;
        self.frontends.values_mut().filter(|f| f.service == service).for_each(|f| f.affinity_s = seconds);
        self
    }

    /// A backend of some frontend, by address, as its id.
    pub fn backend_id(&self, frontend: &str, backend: &str) -> u32 {
        let (addr, port) = address(backend);
        let service = self.frontends.get(&frontend_key(frontend)).map(|f| f.service);
        self.backends
            .iter()
            .find(|(_, b)| (b.addr, b.port, Some(b.service)) == (addr, port, service))
            .map(|(id, _)| *id)
            .unwrap_or_else(|| panic!("{frontend} has no backend {backend}"))
    }

    /// Moves a backend to a state (see `netlb_common::backend::state`) and gives its Service a new block of slots without it, if it takes no new
    /// flows any more.
    pub fn set_state(&mut self, frontend: &str, backend: &str, state: u8) {
        self.set_state_of(self.backend_id(frontend, backend), state);
    }

    /// As [`set_state`](Self::set_state), by id.
    pub fn set_state_of(&mut self, id: u32, state: u8) {
        let value = self.backends.get_mut(&id).unwrap_or_else(|| panic!("no backend {id}"));
        value.state = state;
        let service = value.service;
        self.switch(service);
    }

    /// Gives a backend's id to another address: its generation grows.
    pub fn reuse_id(&mut self, frontend: &str, backend: &str, other: &str) {
        let id = self.backend_id(frontend, backend);
        let (addr, port) = address(other);
        let endpoint = self.endpoint_by_addr.get(&addr).copied().unwrap_or(0);
        let value = self.backends.get_mut(&id).expect("backend_id found it");
        (value.addr, value.port, value.endpoint) = (addr, port, endpoint);
        value.generation += 1;
    }

    /// Writes fresh blocks of the active backends of a Service port, all of them and this node's, and switches its frontends to them.
    fn switch(&mut self, service: u32) {
        let everywhere = self.block(service, backend::CLUSTER_LIST);
        let here = self.block(service, backend::LOCAL_LIST);
        for (key, value) in &mut self.frontends {
            if value.service != service || key.is_address() {
                continue;
            }
            let list = |local: u32| if value.flags & local != 0 { here } else { everywhere };
            let (inside, outside) = (list(frontend::INSIDE_LOCAL), list(frontend::OUTSIDE_LOCAL));
            // Without a backend anywhere a client is told so; where a policy alone forbids those there are, it is not.
            let drops = |list: (u32, u32), flag: u32| if list.1 == 0 && everywhere.1 != 0 { flag } else { 0 };
            value.flags &= !(frontend::DROP_INSIDE | frontend::DROP_OUTSIDE);
            value.flags |= drops(inside, frontend::DROP_INSIDE) | drops(outside, frontend::DROP_OUTSIDE);
            (value.slots, value.count) = inside;
            (value.outside_slots, value.outside_count) = outside;
            value.generation += 1;
        }
    }

    /// First slot and length of a new block of a Service port's active backends with this flag.
    fn block(&mut self, service: u32, flag: u32) -> (u32, u32) {
        let serves = |b: &BackendValue| b.service == service && b.state == state::ACTIVE && b.flags & flag != 0;
        let active: Vec<u32> = self.backends.iter().filter(|(_, b)| serves(b)).map(|(id, _)| *id).collect();
        let first = self.next_slot;
        self.next_slot += active.len() as u32;
        self.slots.extend((first..).zip(active.iter().copied()));
        (first, active.len() as u32)
    }

    /// A frontend, by its text, to change.
    pub fn frontend(&mut self, frontend: &str) -> &mut FrontendValue {
        self.frontends.get_mut(&frontend_key(frontend)).unwrap_or_else(|| panic!("no frontend {frontend}"))
    }

    /// Makes an address one of the node's that serve NodePorts.
    pub fn node_address(mut self, addr: impl ToIp) -> Self {
        let key = FrontendKey::address(Addr::from_ip(addr.to_ip()));
        self.frontends.entry(key).or_insert_with(FrontendValue::zeroed).flags |= frontend::NODE;
        self
    }

    /// Gives a Service port, named by its cluster IP's frontend, a NodePort of the same family. The node's own addresses serve it.
    pub fn node_port(self, frontend: &str, port: u16) -> Self {
        let key = frontend_key(frontend);
        let own = if key.addr.is_v4() { NODE_V4 } else { NODE_V6 };
        self.door(frontend, FrontendKey::node_port(key.addr.is_v4(), Port::new(port), key.proto()), 0).node_address(own)
    }

    /// Gives a Service port an external address and port, `"203.0.113.10:80"`.
    pub fn external(self, frontend: &str, at: &str) -> Self {
        let (addr, port) = address(at);
        let proto = frontend_key(frontend).proto();
        self.door(frontend, FrontendKey::new(addr, port, proto), 0)
    }

    /// As [`external`](Self::external): a load balancer's, for clients in these ranges, `("198.51.100.0", 24)`, or for all if there are none.
    pub fn load_balancer(mut self, frontend: &str, at: &str, ranges: &[(&str, u8)]) -> Self {
        let service = self.frontend(frontend).service;
        let key = |(net, len): &(&str, u8)| SourceRangeKey::range(service, Addr::from_ip(net.to_ip()), *len);
        self.source_ranges.extend(ranges.iter().map(key));
        let flag = if ranges.is_empty() { 0 } else { frontend::SOURCE_RANGES };
        let (addr, port) = address(at);
        let proto = frontend_key(frontend).proto();
        self.door(frontend, FrontendKey::new(addr, port, proto), frontend::LOAD_BALANCER | flag)
    }

    /// One more way to a Service port, from outside the cluster.
    fn door(mut self, frontend: &str, key: FrontendKey, flags: u32) -> Self {
        let FrontendValue { service, affinity_s, .. } = *self.frontend(frontend);
        let policy = self.frontends.values().find(|f| f.service == service && f.flags & frontend::EXTERNAL != 0);
        let policy = policy.map_or(0, |f| f.flags & (frontend::KEEP_CLIENT | frontend::OUTSIDE_LOCAL));
        let scheduler = self.frontend(frontend).flags & frontend::SCHEDULER_MASK;
        let flags = flags | frontend::EXTERNAL | policy | scheduler;
        self.frontends.insert(key, FrontendValue { service, flags, affinity_s, ..FrontendValue::zeroed() });
        self.switch(service);
        self
    }

    /// `externalTrafficPolicy: Local` for a Service port that has its external frontends.
    pub fn external_local(mut self, frontend: &str) -> Self {
        let service = self.frontend(frontend).service;
        for value in self.frontends.values_mut() {
            if value.service == service && value.flags & frontend::EXTERNAL != 0 {
                value.flags |= frontend::KEEP_CLIENT | frontend::OUTSIDE_LOCAL;
            }
        }
        self.switch(service);
        self
    }

    /// `internalTrafficPolicy: Local` for a Service port.
    pub fn internal_local(mut self, frontend: &str) -> Self {
        let value = self.frontend(frontend);
        value.flags |= frontend::INSIDE_LOCAL | frontend::OUTSIDE_LOCAL;
        let service = value.service;
        self.switch(service);
        self
    }

    /// Another scheduler than random for a Service port (`netlb_common::frontend::scheduler`).
    pub fn scheduler(mut self, frontend: &str, scheduler: u32) -> Self {
        let service = self.frontend(frontend).service;
        for value in self.frontends.values_mut() {
            if value.service == service {
                value.flags = value.flags & !frontend::SCHEDULER_MASK | scheduler << frontend::SCHEDULER_SHIFT;
            }
        }
        self
    }

    /// A backend that is the node itself rather than a pod of it: on the node, with no device.
    pub fn on_host(mut self, frontend: &str, at: &str) -> Self {
        let id = self.backend_id(frontend, at);
        let value = self.backends.get_mut(&id).expect("backend_id found it");
        value.flags |= backend::ON_NODE | backend::LOCAL_LIST;
        let service = value.service;
        self.switch(service);
        self
    }

    /// Masquerades as kube-proxy does, also towards backends on this node.
    pub fn masquerade_local(mut self) -> Self {
        self.config.flags |= flags::MASQUERADE_LOCAL;
        self
    }

    /// Masquerades whatever goes to a cluster IP.
    pub fn masquerade_all(mut self) -> Self {
        self.config.flags |= flags::MASQUERADE_ALL;
        self
    }

    /// Whose packets count as a pod's (`netlb_common::config::pods`).
    pub fn pods(mut self, detector: u32) -> Self {
        self.config.pods = detector;
        self
    }

    /// The sources that count as a pod's are those in this range too.
    pub fn pod_cidr(mut self, net: &str, len: u8) -> Self {
        let net = Addr::from_ip(net.to_ip());
        let i = self.config.pod_cidrs_used as usize;
        self.config.pod_cidrs[i] = Cidr { net: net.masked(len), mask: Addr::mask(len, net.is_v4()) };
        self.config.pod_cidrs_used += 1;
        self.pods(pods::CIDRS)
    }

    /// One source port for all that is masqueraded.
    pub fn one_snat_port(mut self, port: u16) -> Self {
        (self.config.snat_first, self.config.snat_count) = (port.into(), 1);
        self
    }
}

/// `"10.96.0.10:80/TCP"`, `"[fd00::1]:53/UDP"`.
pub fn frontend_key(text: &str) -> FrontendKey {
    let (socket, name) = text.split_once('/').unwrap_or_else(|| panic!("{text:?} lacks /TCP or /UDP"));
    let (addr, port) = address(socket);
    let proto = match name {
        "TCP" => proto::TCP,
        "UDP" => proto::UDP,
        "SCTP" => proto::SCTP,
        _ => panic!("{text:?}: the protocol is TCP, UDP or SCTP"),
    };
    FrontendKey::new(addr, port, proto)
}

/// `"10.0.1.3:8080"`, `"[fd00::3]:8080"`.
pub fn address(text: &str) -> (Addr, Port) {
    let socket: SocketAddr = text.parse().unwrap_or_else(|_| panic!("{text:?} is not address:port"));
    (Addr::from_ip(socket.ip()), Port::new(socket.port()))
}
