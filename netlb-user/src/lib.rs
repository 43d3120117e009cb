//! The agent: from what the cluster says to what the kernel's maps hold, and back to people.
//!
//! The corridor is walked in one direction: [`k8s`] (objects) → [`model`] (the world) → [`compile`] (tables a Service wants) → [`plan`]
//! (ordered writes) → [`store`] (maps). Everything up to the store is pure and synchronous: no clock, no I/O, time comes in as an argument.

pub mod bpf;
pub mod cli;
pub mod compile;
pub mod config;
pub mod delivery;
pub mod devices;
pub mod events;
pub mod health;
pub mod http;
pub mod k8s;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod observe;
pub mod plan;
pub mod reconcile;
pub mod runtime;
pub mod store;
pub mod trace;
