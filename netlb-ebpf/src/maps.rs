//! Every map of the object, and nothing else. Sizes are defaults: the agent sets its own before loading. `netlb_common::maps` is the contract;
//! the loader compares.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::backend::BackendValue;
use netlb_common::client::ClientValue;
use netlb_common::config::Config;
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::endpoint::EndpointValue;
use netlb_common::fragment::{FragmentKey, FragmentValue};
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::maps::{NO_PREALLOC, capacity};
use netlb_common::socket::{SocketKey, SocketValue};
use netlb_common::uplink::UplinkValue;
use netlb_common::{Addr, reason};
use netlb_ebpf::tables::Scratch;

use crate::hooks::fib::Fib;

#[map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, FrontendValue> =
    HashMap::with_max_entries(capacity::FRONTENDS, NO_PREALLOC);
#[map]
pub(crate) static SLOTS: Array<u32> = Array::with_max_entries(capacity::SLOTS, 0);
#[map]
pub(crate) static BACKENDS: Array<BackendValue> = Array::with_max_entries(capacity::BACKENDS, 0);
#[map]
pub(crate) static ENDPOINTS: Array<EndpointValue> = Array::with_max_entries(capacity::ENDPOINTS, 0);
#[map]
pub(crate) static ENDPOINT_BY_ADDR: HashMap<Addr, u32> =
    HashMap::with_max_entries(capacity::ENDPOINTS * 4, NO_PREALLOC);
#[map]
pub(crate) static ENDPOINT_BY_IFINDEX: HashMap<u32, u32> = HashMap::with_max_entries(capacity::ENDPOINTS, NO_PREALLOC);
#[map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityValue> =
    LruHashMap::with_max_entries(capacity::AFFINITY, 0);
#[map]
pub(crate) static CT: HashMap<CtKey, CtValue> = HashMap::with_max_entries(capacity::CT, 0);
#[map]
pub(crate) static CT_NEW: LruHashMap<CtKey, CtValue> = LruHashMap::with_max_entries(capacity::CT_NEW, 0);
#[map]
pub(crate) static SOCKETS: LruHashMap<SocketKey, SocketValue> = LruHashMap::with_max_entries(capacity::SOCKETS, 0);
#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(reason::COUNT, 0);
#[map]
pub(crate) static BACKEND_FLOWS: PerCpuArray<u64> = PerCpuArray::with_max_entries(capacity::BACKENDS, 0);
#[map]
pub(crate) static BACKEND_LOAD: Array<u32> = Array::with_max_entries(capacity::BACKENDS, 0);
#[map]
pub(crate) static TURNS: Array<u32> = Array::with_max_entries(capacity::SLOTS, 0);
#[map]
pub(crate) static UPLINKS: HashMap<u32, UplinkValue> = HashMap::with_max_entries(capacity::UPLINKS, NO_PREALLOC);
/// The key behind the prefix length is the rest of `SourceRangeKey`.
#[map]
pub(crate) static SOURCE_RANGES: LpmTrie<[u32; 5], u32> =
    LpmTrie::with_max_entries(capacity::SOURCE_RANGES, NO_PREALLOC);
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue> =
    LruHashMap::with_max_entries(capacity::FRAGMENTS, 0);
#[map]
pub(crate) static CLIENTS: HashMap<u64, ClientValue> = HashMap::with_max_entries(capacity::CLIENTS, NO_PREALLOC);
/// Private to the object: not pinned, not part of the contract.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// As private.
#[map]
pub(crate) static FIB: PerCpuArray<Fib> = PerCpuArray::with_max_entries(1, 0);
