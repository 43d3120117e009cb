//! The tables as text: one line an entry, sorted for people, ids replaced by what they stand for, so that equal worlds give equal text.
//!
//! Generations, free records and slots that no frontend points at are history rather than meaning: they are left out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use netlb_common::backend::{self, BackendValue, state};
use netlb_common::config::pods;
use netlb_common::endpoint::{self, EndpointValue};
use netlb_common::frontend::{FrontendKey, FrontendValue, flags, scheduler};
use netlb_common::{Addr, proto, uplink};

use super::Tables;

/// All tables. Service ports are `S1`, `S2`… in the order of their frontends, endpoints `E1`, `E2`… in the order of their interface indexes.
pub fn dump(tables: &Tables) -> String {
    let mut out = String::new();
    let labels = Labels::new(tables);
    if let Some(config) = &tables.config {
        let _ = writeln!(out, "config flags={:#x} hz={}", config.flags, config.hz);
        if config.snat_count != 0 {
            let _ = writeln!(out, "config snat={}+{}", config.snat_first, config.snat_count);
        }
        if config.pods != pods::KNOWN {
            let _ = writeln!(out, "config pods={}", config.pods);
        }
        for cidr in config.pod_cidrs.iter().take(config.pod_cidrs_used as usize) {
            let _ = writeln!(out, "config pod-cidr={}/{}", cidr.net, prefix_len(cidr.mask, cidr.net.is_v4()));
        }
        for cidr in config.cidrs.iter().take(config.cidrs_used as usize) {
            let _ = writeln!(out, "config cidr={}/{}", cidr.net, prefix_len(cidr.mask, cidr.net.is_v4()));
        }
    }
    for (key, value) in frontends(tables) {
        if key.is_address() {
            let _ = writeln!(out, "address {} {}", key.addr, words(ADDRESS, value.flags));
            continue;
        }
        let (at, service) = (frontend(key), labels.service(value.service));
        let _ = write!(out, "frontend {at} service={service} backends={} affinity={}", value.count, value.affinity_s);
        let (inside, outside) = (tables.list(value), tables.outside_list(value));
        if inside != outside {
            let _ = write!(out, " outside={}", value.outside_count);
        }
        if value.flags & flags::SCHEDULER_MASK != 0 {
            let _ = write!(out, " scheduler={}", scheduler::name(value.flags >> flags::SCHEDULER_SHIFT & 0xf));
        }
        if value.flags & !flags::SCHEDULER_MASK != 0 {
            let _ = write!(out, " flags={}", words(FRONTEND, value.flags));
        }
        out.push('\n');
        let mut list = |word: &str, ids: &[u32]| {
            for (slot, id) in ids.iter().enumerate() {
                let target = tables.backends.get(id).map_or_else(|| format!("missing#{id}"), backend_at);
                let _ = writeln!(out, "{word} {at} {slot} {target}");
            }
        };
        list("slot", &inside);
        if inside != outside {
            list("outside-slot", &outside);
        }
    }
    for (service, range) in ranges(tables, &labels) {
        let _ = writeln!(out, "source-range {service} {range}");
    }
    for (_, value) in backends(tables) {
        let (at, state) = (backend_at(value), backend::state::name(value.state));
        let (service, endpoint) = (labels.service(value.service), labels.endpoint(value.endpoint));
        let _ = write!(out, "backend {at} service={service} state={state} endpoint={endpoint}");
        if value.flags != 0 {
            let _ = write!(out, " flags={}", words(BACKEND, value.flags));
        }
        out.push('\n');
    }
    for (id, value) in endpoints(tables) {
        let (pod, host) = macs(value);
        let (label, ifindex, mtu, bridge) = (labels.endpoint(*id), value.ifindex, value.mtu, value.bridge);
        let _ = write!(out, "endpoint {label} ifindex={ifindex} mtu={mtu} bridge={bridge} pod={pod} host={host}");
        if value.flags != 0 {
            let _ = write!(out, " flags={}", words(ENDPOINT, value.flags));
        }
        out.push('\n');
    }
    let mut by_addr: Vec<_> = tables.endpoint_by_addr.iter().map(|(addr, id)| (addr.to_ip(), id)).collect();
    by_addr.sort_unstable();
    for (addr, id) in by_addr {
        let _ = writeln!(out, "endpoint-by-addr {addr} {}", labels.endpoint(*id));
    }
    for (ifindex, id) in &tables.endpoint_by_ifindex {
        let _ = writeln!(out, "endpoint-by-ifindex {ifindex} {}", labels.endpoint(*id));
    }
    for (ifindex, value) in &tables.uplinks {
        let (v4, v6) = (known(value.addr4), known(value.addr6));
        let _ = write!(out, "uplink {ifindex} v4={v4} v6={v6} mtu={}", value.mtu);
        if value.flags != 0 {
            let _ = write!(out, " flags={}", words(UPLINK, value.flags));
        }
        out.push('\n');
    }
    for (netns, value) in &tables.clients {
        let _ = writeln!(out, "client {netns:#x} v4={} v6={}", known(value.addr4), known(value.addr6));
    }
    out
}

const ADDRESS: &[(u32, &str)] = &[(flags::VIP, "vip"), (flags::NODE, "node")];
const FRONTEND: &[(u32, &str)] = &[
    (flags::EXTERNAL, "external"),
    (flags::LOAD_BALANCER, "load-balancer"),
    (flags::KEEP_CLIENT, "keep-client"),
    (flags::INSIDE_LOCAL, "inside-local"),
    (flags::OUTSIDE_LOCAL, "outside-local"),
    (flags::DROP_INSIDE, "drop-inside"),
    (flags::DROP_OUTSIDE, "drop-outside"),
    (flags::SOURCE_RANGES, "source-ranges"),
];
const ENDPOINT: &[(u32, &str)] = &[(endpoint::flags::POD_SOURCE, "pod-source")];
const BACKEND: &[(u32, &str)] = &[
    (backend::flags::ON_NODE, "on-node"),
    (backend::flags::CLUSTER_LIST, "cluster-list"),
    (backend::flags::LOCAL_LIST, "local-list"),
];
const UPLINK: &[(u32, &str)] = &[(uplink::flags::POD_SOURCE, "pod-source")];

/// Flags in words; bits without one as a number.
fn words(names: &[(u32, &str)], bits: u32) -> String {
    let bits = bits & !flags::SCHEDULER_MASK;
    let set = names.iter().filter(|(bit, _)| bits & bit != 0);
    let left = set.clone().fold(bits, |bits, (bit, _)| bits & !bit);
    let mut words: Vec<String> = set.map(|(_, name)| (*name).to_owned()).collect();
    words.extend((left != 0).then(|| format!("{left:#x}")));
    words.join(",")
}

fn known(addr: Addr) -> String {
    if addr == Addr::UNSPECIFIED { "none".to_owned() } else { addr.to_string() }
}

/// Source ranges by the labels of their Service ports.
fn ranges(tables: &Tables, labels: &Labels) -> Vec<(String, String)> {
    let mut all: Vec<_> = tables.source_ranges.iter().collect();
    all.sort_by_key(|key| (labels.services.get(&key.service).copied(), key.addr.to_ip(), key.prefix));
    all.iter().map(|key| (labels.service(key.service), key.to_string())).collect()
}

/// New numbers for ids, given in an order that follows from the content.
struct Labels {
    services: BTreeMap<u32, usize>,
    endpoints: BTreeMap<u32, usize>,
}

impl Labels {
    fn new(tables: &Tables) -> Self {
        let mut labels = Labels { services: BTreeMap::new(), endpoints: BTreeMap::new() };
        let ports = frontends(tables).into_iter().filter(|(key, _)| !key.is_address()).map(|(_, value)| value.service);
        for id in ports.chain(backends(tables).into_iter().map(|(_, value)| value.service)) {
            let next = labels.services.len() + 1;
            labels.services.entry(id).or_insert(next);
        }
        for (index, (id, _)) in endpoints(tables).into_iter().enumerate() {
            labels.endpoints.insert(*id, index + 1);
        }
        labels
    }

    fn service(&self, id: u32) -> String {
        self.services.get(&id).map_or_else(|| format!("missing#{id}"), |label| format!("S{label}"))
    }

    fn endpoint(&self, id: u32) -> String {
        match self.endpoints.get(&id) {
            Some(label) => format!("E{label}"),
            None if id == 0 => "none".to_owned(),
            None => format!("missing#{id}"),
        }
    }
}

/// Frontends in the order of addresses, each address entry before its ports.
fn frontends(tables: &Tables) -> Vec<(&FrontendKey, &FrontendValue)> {
    let mut all: Vec<_> = tables.frontends.iter().collect();
    all.sort_by_key(|(key, _)| (key.addr.to_ip(), key.port().get(), key.proto()));
    all
}

/// Backends in use, in the order of addresses; those of one address and port in the order of their Services' first frontends.
fn backends(tables: &Tables) -> Vec<(&u32, &BackendValue)> {
    let mut first: BTreeMap<u32, (IpAddr, u16, u8)> = BTreeMap::new();
    for (key, value) in frontends(tables).into_iter().filter(|(key, _)| !key.is_address()) {
        first.entry(value.service).or_insert((key.addr.to_ip(), key.port().get(), key.proto()));
    }
    let mut all: Vec<_> = tables.backends.iter().filter(|(_, value)| value.state != state::FREE).collect();
    all.sort_by_key(|(id, value)| {
        let at = (value.addr.to_ip(), value.port.get(), value.proto);
        (at, !first.contains_key(&value.service), first.get(&value.service).copied(), value.state, **id)
    });
    all
}

fn endpoints(tables: &Tables) -> Vec<(&u32, &EndpointValue)> {
    let mut all: Vec<_> = tables.endpoints.iter().filter(|(_, value)| value.ifindex != 0).collect();
    all.sort_by_key(|(id, value)| (value.ifindex, **id));
    all
}

fn frontend(key: &FrontendKey) -> String {
    if key.is_node_port() {
        let family = if key.addr.is_v4() { "ipv4" } else { "ipv6" };
        return format!("nodeport-{family}:{}/{}", key.port().get(), proto::name(key.proto()));
    }
    socket(key.addr, key.port().get(), key.proto())
}

fn backend_at(value: &BackendValue) -> String {
    socket(value.addr, value.port.get(), value.proto)
}

fn socket(addr: Addr, port: u16, proto: u8) -> String {
    let name = proto::name(proto);
    if addr.is_v4() { format!("{addr}:{port}/{name}") } else { format!("[{addr}]:{port}/{name}") }
}

fn macs(value: &EndpointValue) -> (String, String) {
    let bytes: Vec<u8> = value.eth.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text = |mac: &[u8]| mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let (pod, host) = bytes.split_at(6);
    (text(pod), text(host))
}

/// Length of the prefix a mask stands for.
fn prefix_len(mask: Addr, v4: bool) -> u32 {
    let ones = mask.hi.count_ones() + mask.lo.count_ones();
    if v4 { ones.saturating_sub(96) } else { ones }
}
