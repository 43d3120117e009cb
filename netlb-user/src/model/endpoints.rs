//! An EndpointSlice: where a Service's flows may go.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::names::{NodeName, PortName, ServiceName, SliceName};
use super::types::{Family, Meta, Protocol};

/// What we keep of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SliceSpec {
    pub name: SliceName,
    pub meta: Meta,
    /// From the label `kubernetes.io/service-name`; `None`: of no Service.
    pub service: Option<ServiceName>,
    pub family: Family,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<EndpointSpec>,
    /// When what last changed it happened, since 1970 (annotation `endpoints.kubernetes.io/last-change-trigger-time`).
    pub last_change: Option<Duration>,
}

/// One entry of `ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    pub name: PortName,
    pub protocol: Protocol,
    /// 1..=65535, host order.
    pub port: u16,
}

/// One entry of `endpoints`. Absent conditions stand as kube-proxy reads them: ready, serving, not terminating.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSpec {
    /// Its place in `endpoints`, for messages.
    pub index: usize,
    /// The first of `addresses`; kube-proxy reads no other. Of the slice's family.
    pub addr: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<NodeName>,
    /// The Pod it is (`targetRef`), in the namespace of its slice.
    pub pod: Option<Arc<str>>,
    /// From its slice (annotation `netlb.io/weight`).
    pub weight: Option<u32>,
    /// Zone and node hints (`hints.forZones`, `hints.forNodes`).
    pub zone_hints: Vec<Arc<str>>,
    pub node_hints: Vec<NodeName>,
}
