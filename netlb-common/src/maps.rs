//! Names, kinds and sizes of all maps and programs: the only place they exist. The loader compares each object and each pin against this table.

use core::mem::size_of;

use crate::{
    Addr, affinity, backend, client, config, conntrack, endpoint, fragment, frontend, reason, socket, source_range,
    uplink,
};

/// The kernel's map type numbers (uapi/linux/bpf.h) as far as netlb uses them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    LruHash = 9,
    LpmTrie = 11,
}

/// One map of the contract.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSpec {
    pub name: &'static str,
    pub kind: Kind,
    /// Bytes.
    pub key: u32,
    /// Bytes, of one CPU's value in a per-CPU map.
    pub value: u32,
    /// Default capacity, in entries.
    pub capacity: u32,
    /// BPF_F_* creation flags.
    pub flags: u32,
}

/// BPF_F_NO_PREALLOC: entries are allocated as they come.
pub const NO_PREALLOC: u32 = 1;

/// Names of maps, as in the object file and under the pin path.
pub mod name {
    pub const FRONTENDS: &str = "FRONTENDS";
    pub const SLOTS: &str = "SLOTS";
    pub const BACKENDS: &str = "BACKENDS";
    pub const ENDPOINTS: &str = "ENDPOINTS";
    pub const ENDPOINT_BY_ADDR: &str = "ENDPOINT_BY_ADDR";
    pub const ENDPOINT_BY_IFINDEX: &str = "ENDPOINT_BY_IFINDEX";
    pub const AFFINITY: &str = "AFFINITY";
    pub const CT: &str = "CT";
    pub const CT_NEW: &str = "CT_NEW";
    pub const SOCKETS: &str = "SOCKETS";
    pub const CONFIG: &str = "CONFIG";
    pub const COUNTERS: &str = "COUNTERS";
    pub const BACKEND_FLOWS: &str = "BACKEND_FLOWS";
    /// Open flows by backend id, as schedulers see them.
    pub const BACKEND_LOAD: &str = "BACKEND_LOAD";
    /// Round robin's place in a list, by the list's first slot.
    pub const TURNS: &str = "TURNS";
    pub const UPLINKS: &str = "UPLINKS";
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    pub const FRAGMENTS: &str = "FRAGMENTS";
    pub const CLIENTS: &str = "CLIENTS";
}

/// Names of programs, as in the object file.
pub mod program {
    /// TCX ingress on the host side of a pod's veth.
    pub const FROM_POD: &str = "from_pod";
    /// TCX egress on the host side of a pod's veth.
    pub const TO_POD: &str = "to_pod";
    /// TCX ingress on an uplink.
    pub const FROM_OUTSIDE: &str = "from_outside";
    /// TCX egress on an uplink.
    pub const TO_OUTSIDE: &str = "to_outside";
    /// The *from pod* route at XDP: for tests and measurements of the core.
    pub const XDP_FROM_POD: &str = "xdp_from_pod";
    /// The *to pod* route at XDP: for tests of the core.
    pub const XDP_TO_POD: &str = "xdp_to_pod";
    /// The *from outside* route at XDP: for tests and measurements of the core.
    pub const XDP_FROM_OUTSIDE: &str = "xdp_from_outside";
    /// Writes jiffies64 and ktime (ns) into its packet: how the agent learns HZ.
    pub const CLOCK: &str = "clock";
    pub const CONNECT4: &str = "connect4";
    pub const CONNECT6: &str = "connect6";
    pub const SENDMSG4: &str = "sendmsg4";
    pub const SENDMSG6: &str = "sendmsg6";
    pub const RECVMSG4: &str = "recvmsg4";
    pub const RECVMSG6: &str = "recvmsg6";
    pub const GETPEERNAME4: &str = "getpeername4";
    pub const GETPEERNAME6: &str = "getpeername6";

    /// Every program of the object.
    pub const ALL: [&str; 16] = [
        FROM_POD,
        TO_POD,
        FROM_OUTSIDE,
        TO_OUTSIDE,
        XDP_FROM_POD,
        XDP_TO_POD,
        XDP_FROM_OUTSIDE,
        CLOCK,
        CONNECT4,
        CONNECT6,
        SENDMSG4,
        SENDMSG6,
        RECVMSG4,
        RECVMSG6,
        GETPEERNAME4,
        GETPEERNAME6,
    ];
}

/// Default capacities.
pub mod capacity {
    pub const FRONTENDS: u32 = 65_536;
    pub const SLOTS: u32 = 262_144;
    pub const BACKENDS: u32 = 131_072;
    pub const ENDPOINTS: u32 = 1_024;
    pub const AFFINITY: u32 = 65_536;
    pub const CT: u32 = 262_144;
    pub const CT_NEW: u32 = 65_536;
    pub const SOCKETS: u32 = 65_536;
    pub const UPLINKS: u32 = 256;
    pub const SOURCE_RANGES: u32 = 65_536;
    pub const FRAGMENTS: u32 = 8_192;
    pub const CLIENTS: u32 = ENDPOINTS;
}

/// Every map there is.
pub const ALL: &[MapSpec] = &[
    hash(
        name::FRONTENDS,
        size_of::<frontend::FrontendKey>(),
        size_of::<frontend::FrontendValue>(),
        capacity::FRONTENDS,
    ),
    array(name::SLOTS, size_of::<u32>(), capacity::SLOTS),
    array(name::BACKENDS, size_of::<backend::BackendValue>(), capacity::BACKENDS),
    array(name::ENDPOINTS, size_of::<endpoint::EndpointValue>(), capacity::ENDPOINTS),
    hash(name::ENDPOINT_BY_ADDR, size_of::<Addr>(), size_of::<u32>(), capacity::ENDPOINTS * 4),
    hash(name::ENDPOINT_BY_IFINDEX, size_of::<u32>(), size_of::<u32>(), capacity::ENDPOINTS),
    lru(name::AFFINITY, size_of::<affinity::AffinityKey>(), size_of::<affinity::AffinityValue>(), capacity::AFFINITY),
    preallocated(name::CT, size_of::<conntrack::CtKey>(), size_of::<conntrack::CtValue>(), capacity::CT),
    lru(name::CT_NEW, size_of::<conntrack::CtKey>(), size_of::<conntrack::CtValue>(), capacity::CT_NEW),
    lru(name::SOCKETS, size_of::<socket::SocketKey>(), size_of::<socket::SocketValue>(), capacity::SOCKETS),
    array(name::CONFIG, size_of::<config::Config>(), 1),
    per_cpu(name::COUNTERS, size_of::<u64>(), reason::COUNT),
    per_cpu(name::BACKEND_FLOWS, size_of::<u64>(), capacity::BACKENDS),
    array(name::BACKEND_LOAD, size_of::<u32>(), capacity::BACKENDS),
    array(name::TURNS, size_of::<u32>(), capacity::SLOTS),
    hash(name::UPLINKS, size_of::<u32>(), size_of::<uplink::UplinkValue>(), capacity::UPLINKS),
    MapSpec {
        name: name::SOURCE_RANGES,
        kind: Kind::LpmTrie,
        key: size_of::<source_range::SourceRangeKey>() as u32,
        value: size_of::<u32>() as u32,
        capacity: capacity::SOURCE_RANGES,
        flags: NO_PREALLOC,
    },
    lru(name::FRAGMENTS, size_of::<fragment::FragmentKey>(), size_of::<fragment::FragmentValue>(), capacity::FRAGMENTS),
    hash(name::CLIENTS, size_of::<u64>(), size_of::<client::ClientValue>(), capacity::CLIENTS),
];

/// The specification of a map by name.
pub fn spec(name: &str) -> Option<&'static MapSpec> {
    ALL.iter().find(|spec| spec.name == name)
}

const fn hash(name: &'static str, key: usize, value: usize, capacity: u32) -> MapSpec {
    MapSpec { name, kind: Kind::Hash, key: key as u32, value: value as u32, capacity, flags: NO_PREALLOC }
}

/// A hash whose entries exist from the start: insertion costs a third, and its memory is known before traffic comes (`bench --micro`).
const fn preallocated(name: &'static str, key: usize, value: usize, capacity: u32) -> MapSpec {
    MapSpec { name, kind: Kind::Hash, key: key as u32, value: value as u32, capacity, flags: 0 }
}

const fn lru(name: &'static str, key: usize, value: usize, capacity: u32) -> MapSpec {
    MapSpec { name, kind: Kind::LruHash, key: key as u32, value: value as u32, capacity, flags: 0 }
}

const fn array(name: &'static str, value: usize, capacity: u32) -> MapSpec {
    MapSpec { name, kind: Kind::Array, key: 4, value: value as u32, capacity, flags: 0 }
}

const fn per_cpu(name: &'static str, value: usize, capacity: u32) -> MapSpec {
    MapSpec { name, kind: Kind::PerCpuArray, key: 4, value: value as u32, capacity, flags: 0 }
}
