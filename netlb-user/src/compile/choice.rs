//! Which endpoints take new flows, which only keep theirs: kube-proxy's `topology.go`, as far as traffic policy Cluster goes.
//!
//! Ready endpoints serve. Without any, those that are terminating but still serving do (a rolling update must not leave a gap). The choice is
//! made per *list*; a Service has one list today, and local ones will stand beside it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::merge::Endpoints;
use super::service::BackendState;

/// The endpoints that have a part in a Service port: those in the list are ACTIVE, others that still serve are DRAINING, the rest is absent.
pub fn cluster(endpoints: &Endpoints<'_>) -> BTreeMap<(IpAddr, u16), BackendState> {
    let any_ready = endpoints.values().any(|e| e.ready);
    let state = |ready: bool, serving: bool, terminating: bool| {
        if ready || (!any_ready && serving && terminating) {
            Some(BackendState::Active)
        } else if serving {
            Some(BackendState::Draining)
        } else {
            None
        }
    };
    endpoints.iter().filter_map(|(at, e)| Some((*at, state(e.ready, e.serving, e.terminating)?))).collect()
}
