//! Merging the EndpointSlices of a Service into one set of endpoints per port, as kube-proxy's `endpointslicecache.go` does.
//!
//! An endpoint is its address and port. If it stands in several places, one that is not terminating beats one that is (the address of a pod
//! that ends may already be another pod's), then a ready one, then a serving one, then the first by slice name and place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{EndpointSpec, Family, PortName, Problem, Protocol, ServiceName, SliceSpec, World};

/// Which endpoints belong together: those of one Service port in one family.
pub type PortId = (PortName, Protocol, Family);

/// Endpoints by address and port (host order).
pub type Endpoints<'w> = BTreeMap<(IpAddr, u16), &'w EndpointSpec>;

/// Where an endpoint stands.
type Place<'w> = (&'w SliceSpec, &'w EndpointSpec);

/// All endpoints of a Service by port, and which of them stand there twice.
pub fn merge<'w>(world: &'w World, service: &ServiceName) -> (BTreeMap<PortId, Endpoints<'w>>, BTreeSet<Problem>) {
    let mut merged: BTreeMap<PortId, BTreeMap<(IpAddr, u16), Place<'w>>> = BTreeMap::new();
    let mut problems = BTreeSet::new();
    for slice in world.slices_of(service) {
        for port in &slice.ports {
            let endpoints = merged.entry((port.name.clone(), port.protocol, slice.family)).or_default();
            for endpoint in &slice.endpoints {
                let place = endpoints.entry((endpoint.addr, port.port)).or_insert((slice, endpoint));
                let (held_in, held) = *place;
                if std::ptr::eq(held, endpoint) {
                    continue;
                }
                // While a pod's address passes to the next pod both are listed, and that is in order.
                if held.terminating == endpoint.terminating {
                    problems.insert(duplicate(slice, endpoint, held_in, held));
                }
                if rank(endpoint) > rank(held) {
                    *place = (slice, endpoint);
                }
            }
        }
    }
    let strip = |all: BTreeMap<_, Place<'w>>| all.into_iter().map(|(at, (_, e))| (at, e)).collect();
    (merged.into_iter().map(|(port, endpoints)| (port, strip(endpoints))).collect(), problems)
}

fn rank(e: &EndpointSpec) -> (Reverse<bool>, bool, bool) {
    (Reverse(e.terminating), e.ready, e.serving)
}

fn duplicate(slice: &SliceSpec, endpoint: &EndpointSpec, held_in: &SliceSpec, held: &EndpointSpec) -> Problem {
    Problem {
        file: slice.meta.file.as_deref().map(str::to_owned),
        object: format!("EndpointSlice {}", slice.name),
        field: format!("endpoints[{}].addresses[0]", endpoint.index),
        message: format!(
            "{} is already endpoints[{}] of EndpointSlice {} and counts once",
            endpoint.addr, held.index, held_in.name
        ),
        remedy: "list each address of a port once".to_owned(),
    }
}
