//! The table of cases. Expectations come from the design, not from what the code does.

mod affinity;
mod cast;
mod collide;
mod hairpin;
mod icmp;
mod lifecycle;
mod plain;
mod refuse;
mod service;

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
        icmp::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
