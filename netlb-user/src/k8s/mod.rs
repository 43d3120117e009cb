//! From objects as people and controllers write them to what netlb keeps of them.
//!
//! Objects are read field by field from plain values: strict about types (a string where a number belongs is a [`Problem`] that names the field
//! path), and tolerant about the rest (one bad port does not stop the others). `service`, `endpoint_slice`… only convert; [`file`] reads a
//! folder, [`watch`] tells when to read it again; [`cluster`] follows an API server.
//!
//! [`Problem`]: crate::model::Problem

pub mod cluster;
pub mod convert;
mod endpoint_slice;
pub mod file;
mod meta;
mod namespace;
mod network_policy;
mod news;
mod node;
mod place;
mod pod;
mod service;
mod service_cidr;
pub mod watch;

pub use cluster::{Access, Cluster};
pub use convert::{Converted, convert};
pub use file::{Folder, ReadError, Snapshot};
pub use news::{SourceFailure, SourceNews};
pub use watch::Watcher;
