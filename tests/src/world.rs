//! The tables of a test as plain data: what an agent would have written. The host and the kernel runner both start from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use bytemuck::Zeroable;
use netlb_common::backend::{BackendValue, flags as backend, state};
use netlb_common::client::ClientValue;
use netlb_common::config::{Cidr, Config, flags};
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

/// The node's addresses.
pub const NODE_V4: &str = "192.0.2.10";
pub const NODE_V6: &str = "2001:db8:2::10";

/// Source ports of masqueraded flows (host order).
pub const SNAT_PORTS: std::ops::Range<u16> = 1_024..30_000;

/// MTU of the way to these destinations; others take what the uplink does, 1500.
pub const NARROW: [(&str, u8, u32); 2] = [("10.8.0.0", 16, 1_300), ("fd00:8::", 64, 1_300)];

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
        let uplink = UplinkValue { addr4: config.node4, addr6: config.node6, mtu: 1500, flags: 0 };
        World {
            config,
            frontends: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            endpoint_by_addr: BTreeMap::new(),
            endpoint_by_ifindex: BTreeMap::new(),
            uplinks: BTreeMap::from([(UPLINK, uplink)]),
            source_ranges: BTreeSet::new(),
            clients: BTreeMap::new(),
            flows: BTreeMap::new(),
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
        let vip = FrontendValue { flags: frontend::VIP, ..FrontendValue::zeroed() };
        self.frontends.insert(FrontendKey::address(key.addr), vip);
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
        let inside = |net: &str, bits: u8| {
            let net = Addr::from_ip(net.to_ip());
            net.is_v4() == dst.is_v4() && dst.masked(bits) == net.masked(bits)
        };
        if dst == self.config.node4 || dst == self.config.node6 {
            Hop::Local
        } else if NOWHERE.iter().any(|(net, bits)| inside(net, *bits)) {
            Hop::Nowhere
        } else {
            let narrow = NARROW.iter().find(|(net, bits, _)| inside(net, *bits));
            let mtu = narrow.map_or(1_500, |(.., mtu)| *mtu);
            if len > mtu { Hop::TooBig(mtu) } else { Hop::To(UPLINK) }
        }
    }

    /// Gives a Service port ClientIP affinity.
    pub fn sticky(mut self, frontend: &str, seconds: u32) -> Self {
        let value = self.frontends.get_mut(&frontend_key(frontend)).unwrap_or_else(|| panic!("no frontend {frontend}"));
        value.affinity_s = seconds;
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

    /// Writes a fresh block of the active backends of a Service port, and switches its frontend to it.
    fn switch(&mut self, service: u32) {
        let active: Vec<u32> = self
            .backends
            .iter()
            .filter(|(_, b)| b.service == service && b.state == state::ACTIVE)
            .map(|(id, _)| *id)
            .collect();
        let first = self.next_slot;
        self.next_slot += active.len() as u32;
        self.slots.extend((first..).zip(active.iter().copied()));
        for (key, value) in &mut self.frontends {
            if value.service == service && !key.is_address() {
                (value.slots, value.count) = (first, active.len() as u32);
                (value.outside_slots, value.outside_count) = (value.slots, value.count);
                value.generation += 1;
            }
        }
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
