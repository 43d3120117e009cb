//! How a Service spreads its flows: schedulers under IPVS's names, and weights.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scheduler {
    /// By the hash of the flow; honours weights.
    #[default]
    Random,
    /// One after the other, whatever their weights.
    RoundRobin,
    /// One after the other, each as often as its weight asks.
    WeightedRoundRobin,
    /// By the hash of the client's address.
    SourceHash,
    /// The one with the fewest flows from this node.
    LeastConnections,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Scheduler; 5] = [
        Scheduler::Random,
        Scheduler::RoundRobin,
        Scheduler::WeightedRoundRobin,
        Scheduler::SourceHash,
        Scheduler::LeastConnections,
    ];

    /// The word people write.
    pub fn name(self) -> &'static str {
        match self {
            Scheduler::Random => "random",
            Scheduler::RoundRobin => "rr",
            Scheduler::WeightedRoundRobin => "wrr",
            Scheduler::SourceHash => "sh",
            Scheduler::LeastConnections => "lc",
        }
    }

    /// From that word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheduler| scheduler.name() == text)
    }

    /// Whether a weight other than 0 means anything.
    pub fn honours_weights(self) -> bool {
        matches!(self, Scheduler::Random | Scheduler::WeightedRoundRobin)
    }
}

/// Largest weight, as in IPVS.
pub const MAX_WEIGHT: u32 = 65_535;

/// Weights that a Service gives its backends. One it does not name has its EndpointSlice's, or 1. Weight 0 drains: the backend keeps its flows and
/// takes none, under every scheduler.
pub type Weights = BTreeMap<Weighed, u32>;

/// Whom a Service gives a weight. An address comes before a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Weighed {
    Addr(IpAddr),
    /// By name, in the namespace of the Service.
    Pod(Arc<str>),
}
