//! Which endpoints take new flows: kube-proxy's `topology.go`.
//!
//! A Service port has two lists. The *cluster list* has the ready endpoints that topology hints allow; without any, those anywhere that are
//! terminating but still serve (a rolling update must not leave a gap). The *local list* has this node's ready endpoints, without any those of
//! its terminating ones that serve; hints have no say in it. Each falls back by itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::merge::Endpoints;
use crate::model::{EndpointSpec, NodeName};

/// Where a backend is reached: address and port (host order).
pub type Target = (IpAddr, u16);

/// Where we are.
#[derive(Clone, Copy)]
pub struct Here<'a> {
    pub node: Option<&'a NodeName>,
    pub zone: Option<&'a str>,
}

impl Here<'_> {
    /// Whether an endpoint is on this node.
    pub fn has(&self, endpoint: &EndpointSpec) -> bool {
        self.node.is_some() && endpoint.node.as_ref() == self.node
    }
}

/// The lists a Service port has a use for.
#[derive(Clone, Copy)]
pub struct Uses {
    pub cluster: bool,
    pub local: bool,
}

/// The lists.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    pub cluster: BTreeSet<Target>,
    pub local: BTreeSet<Target>,
    /// Some endpoint could take new flows, here or elsewhere: who finds an empty list is dropped rather than refused.
    pub any: bool,
}

/// Terminating, and still able to answer.
fn lingers(e: &EndpointSpec) -> bool {
    e.serving && e.terminating
}

/// Chooses. A list that is not used stays empty.
pub fn choose(endpoints: &Endpoints<'_>, uses: Uses, here: Here<'_>) -> Choice {
    let those = |wanted: &dyn Fn(&EndpointSpec) -> bool| -> BTreeSet<Target> {
        endpoints.iter().filter(|(_, e)| wanted(e)).map(|(at, _)| *at).collect()
    };
    let first = |preferred: BTreeSet<Target>, fallback: &dyn Fn(&EndpointSpec) -> bool| {
        if preferred.is_empty() { those(fallback) } else { preferred }
    };
    let mut choice = Choice::default();
    if uses.cluster {
        let hints = Hints::of(endpoints, here);
        choice.cluster = first(those(&|e| e.ready && hints.allow(e, here)), &lingers);
    }
    if uses.local {
        choice.local = first(those(&|e| e.ready && here.has(e)), &|e| lingers(e) && here.has(e));
    }
    choice.any = endpoints.values().any(|e| e.ready || lingers(e));
    choice
}

/// Which topology hints hold. A kind of hint counts only if every ready endpoint has one, and some are for us: a half-hinted set would overload
/// those who have hints.
#[derive(Clone, Copy)]
enum Hints {
    None,
    Node,
    Zone,
}

impl Hints {
    fn of(endpoints: &Endpoints<'_>, here: Here<'_>) -> Self {
        let ready = || endpoints.values().filter(|e| e.ready);
        let node = |e: &&EndpointSpec| for_node(e, here);
        let zone = |e: &&EndpointSpec| for_zone(e, here);
        if ready().all(|e| !e.node_hints.is_empty()) && ready().any(node) {
            Hints::Node
        } else if ready().all(|e| !e.zone_hints.is_empty()) && ready().any(zone) {
            Hints::Zone
        } else {
            Hints::None
        }
    }

    fn allow(self, e: &EndpointSpec, here: Here<'_>) -> bool {
        match self {
            Hints::None => true,
            Hints::Node => for_node(e, here),
            Hints::Zone => for_zone(e, here),
        }
    }
}

fn for_node(e: &EndpointSpec, here: Here<'_>) -> bool {
    here.node.is_some_and(|node| e.node_hints.contains(node))
}

fn for_zone(e: &EndpointSpec, here: Here<'_>) -> bool {
    here.zone.is_some_and(|zone| e.zone_hints.iter().any(|hint| **hint == *zone))
}
