//! The table of cases. Expectations come from the design, not from what the code does.

mod affinity;
mod cast;
mod collide;
mod fragments;
mod hairpin;
mod icmp;
mod lifecycle;
mod masquerade;
mod outside;
mod own_ports;
mod plain;
mod refuse;
mod schedulers;
mod sctp;
mod service;
mod slipped;

use crate::case::Case;

/// Every case.
pub fn all() -> Vec<Case> {
    [
        plain::cases(),
        service::cases(),
        refuse::cases(),
        hairpin::cases(),
        affinity::cases(),
        lifecycle::cases(),
        collide::cases(),
        own_ports::cases(),
        icmp::cases(),
        outside::cases(),
        masquerade::cases(),
        slipped::cases(),
        fragments::cases(),
        sctp::cases(),
        schedulers::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
