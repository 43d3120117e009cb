//! One write to the maps.

use netlb_common::Addr;
use netlb_common::backend::BackendValue;
use netlb_common::client::ClientValue;
use netlb_common::config::Config;
use netlb_common::endpoint::EndpointValue;
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;

/// An upsert or a delete. Each may be repeated: applying it twice leaves what applying it once leaves. Deleting what is absent succeeds.
#[derive(Clone, PartialEq, Debug)]
pub enum MapOp {
    /// `CONFIG[0]`.
    SetConfig(Box<Config>),
    /// `ENDPOINTS[id]`; ifindex 0 frees the id, and keeps its generation.
    SetEndpoint {
        id: u32,
        value: EndpointValue,
    },
    /// `ENDPOINT_BY_ADDR`.
    SetEndpointByAddr {
        addr: Addr,
        id: u32,
    },
    DeleteEndpointByAddr {
        addr: Addr,
    },
    /// `ENDPOINT_BY_IFINDEX`.
    SetEndpointByIfindex {
        ifindex: u32,
        id: u32,
    },
    DeleteEndpointByIfindex {
        ifindex: u32,
    },
    /// `BACKEND_FLOWS[id] = 0` on every CPU, and `BACKEND_LOAD[id] = 0`: the id goes to a backend that has not had a flow.
    ClearBackendFlows {
        id: u32,
    },
    /// `BACKENDS[id]`; state FREE frees the id, and keeps its generation.
    SetBackend {
        id: u32,
        value: BackendValue,
    },
    /// `SLOTS[base..base + backends.len()]`: backend ids. No frontend points there yet, so a half-done write is harmless.
    SetSlots {
        base: u32,
        backends: Vec<u32>,
    },
    /// `FRONTENDS[key]`: the switch.
    SetFrontend {
        key: FrontendKey,
        value: FrontendValue,
    },
    DeleteFrontend {
        key: FrontendKey,
    },
    /// `SOURCE_RANGES`: this range may reach its Service port's load balancer addresses.
    SetSourceRange {
        key: SourceRangeKey,
    },
    DeleteSourceRange {
        key: SourceRangeKey,
    },
    /// `UPLINKS`.
    SetUplink {
        ifindex: u32,
        value: UplinkValue,
    },
    DeleteUplink {
        ifindex: u32,
    },
    /// `CLIENTS`, by the cookie of a network namespace.
    SetClient {
        netns: u64,
        value: ClientValue,
    },
    DeleteClient {
        netns: u64,
    },
}
