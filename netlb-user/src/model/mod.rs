//! What the cluster says, as plain data: the parts of each object that netlb reads, and the [`World`] that holds them.
//!
//! Nothing here knows Kubernetes' types, maps or time. Objects come in as a [`Change`]; what may have to be compiled again comes out as [`Dirty`].

pub mod device;
pub mod endpoints;
pub mod host;
pub mod names;
pub mod node;
pub mod object;
pub mod pod;
pub mod problem;
pub mod scheduler;
pub mod service;
pub mod types;
pub mod world;

pub use device::PodDevice;
pub use endpoints::{EndpointSpec, SlicePort, SliceSpec};
pub use host::{HostState, PodAddresses, Uplink};
pub use names::{NodeName, PodName, PolicyName, PortName, ServiceName, SliceName};
pub use node::{NamespaceSpec, NodeSpec, ServiceCidrSpec};
pub use object::{Change, Kind, Object, ObjectKey};
pub use pod::PodSpec;
pub use problem::Problem;
pub use scheduler::{Scheduler, Weighed, Weights};
pub use service::{FrontendKind, ServicePort, ServiceSpec, ServiceType, SourceRanges, TrafficPolicy};
pub use types::{Cidr, Family, Meta, Protocol};
pub use world::{Claim, Dirty, World};

#[cfg(test)]
pub(crate) mod arbitrary;
