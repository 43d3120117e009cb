//! What the datapath asked and did while a packet passed one hook, in its order.

use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::backend::BackendValue;
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::endpoint::EndpointValue;
use netlb_common::fragment::{FragmentKey, FragmentValue};
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;
use netlb_common::{Addr, Reason};
use netlb_ebpf::packet::Hop;
use netlb_ebpf::tables::Tier;

/// A look-up with what it found, or a write with what was written (to the overlay: the maps stay as they are).
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Event {
    Flow {
        tier: Tier,
        key: CtKey,
        found: Option<CtValue>,
    },
    Frontend {
        key: FrontendKey,
        found: Option<FrontendValue>,
    },
    Slot {
        index: u32,
        backend: u32,
    },
    Backend {
        id: u32,
        found: BackendValue,
    },
    Endpoint {
        id: u32,
        found: EndpointValue,
    },
    EndpointByAddr {
        addr: Addr,
        found: Option<u32>,
    },
    EndpointByIfindex {
        ifindex: u32,
        found: Option<u32>,
    },
    Uplink {
        ifindex: u32,
        found: Option<UplinkValue>,
    },
    /// A pod by the cookie of its network namespace.
    Client {
        netns: u64,
        known: bool,
    },
    SourceRange {
        key: SourceRangeKey,
        allowed: bool,
    },
    Fragment {
        key: FragmentKey,
        found: Option<FragmentValue>,
    },
    /// Round robin's number.
    Turn {
        turn: u32,
    },
    /// Open flows of a backend.
    Load {
        backend: u32,
        flows: u32,
    },
    Session {
        key: AffinityKey,
        found: Option<AffinityValue>,
    },
    /// The node's FIB was asked for a packet's way.
    Route {
        src: Addr,
        dst: Addr,
        hop: Hop,
    },
    /// A direction of a flow was written.
    Opened {
        key: CtKey,
        value: CtValue,
    },
    SessionKept {
        key: AffinityKey,
        value: AffinityValue,
    },
    /// A new flow was given to a backend.
    Chosen {
        backend: u32,
    },
    Counted(Reason),
}
