//! From the tables the world wants to the writes that bring the maps there.
//!
//! The plan starts from the [`Shadow`](shadow::Shadow), which holds what the store accepted and nothing else, and is made so that any prefix of
//! it leaves each frontend old or new. A plan may be dropped at any point: the next one starts from what stuck.
//!
//! - [`order`]: the one order of writes.
//! - [`ids`]: dense ids, kept while anything may name them, rested before they are given again.
//! - [`blocks`]: room in `SLOTS`; every change of a list goes to a fresh block.
//! - [`lists`]: the lists in those blocks, from first plan to end of grace.
//! - `services`, `endpoints`, `host`: the differences of Services, of pod devices, and of this node's uplinks and pods.
//! - [`controller`]: world, compiled tables and plan behind one door.

pub mod blocks;
pub mod controller;
mod endpoints;
mod host;
pub mod ids;
pub mod lists;
pub mod names;
pub mod op;
pub mod order;
mod pass;
mod services;
pub mod shadow;

pub use controller::{Applied, Controller, NodeConfig};
pub use names::{Names, PortLabel};
pub use op::MapOp;
pub use order::{Plan, Step};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;

use std::time::Duration;

/// How long a block that no frontend points at keeps its content: far longer than any program run that may still read it.
pub const GRACE: Duration = Duration::from_secs(1);

/// How long a freed id rests. Its generation protects what still names it; the rest keeps such uses rare, and dumps readable.
pub const QUARANTINE: Duration = Duration::from_secs(30);
