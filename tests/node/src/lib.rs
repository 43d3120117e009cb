//! The test node: everything around netlb that it takes to run it without a cluster.
//!
//! Nodes and pods are network namespaces ([`topology`]), made as hostile as nodes are in the field ([`hostile`]). The
//! control plane ([`cluster`]) turns manifests into pods and EndpointSlices and writes the folder that the agent reads.
//! Nothing outlives the run: namespaces have no names ([`netns`]), processes die with the thread that started them
//! ([`process`]).

pub mod address;
pub mod agent;
pub mod cgroup;
pub mod cluster;
pub mod control;
pub mod enter;
pub mod frontends;
pub mod health;
pub mod helper;
pub mod hostile;
pub mod link;
pub mod load;
pub mod manifests;
pub mod names;
pub mod netns;
pub mod node;
pub mod objects;
pub mod offload;
pub mod pod;
pub mod probe;
pub mod process;
pub mod proof;
pub mod render;
pub mod sctp;
pub mod server;
pub mod services;
pub mod slices;
pub mod source;
pub mod state;
pub mod topology;
pub mod wire;

pub use agent::{Agent, AgentOptions};
pub use cluster::{Cluster, PodKey};
pub use helper::Helper;
pub use node::{Builder, Client, TestNode};
pub use pod::Pod;
pub use process::Stop;
pub use topology::PodNetwork;
