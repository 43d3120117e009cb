//! A real Kubernetes cluster in network namespaces, on one machine: no cloud, no virtual machine, no Docker.
//!
//! Its programs are upstream's own, built from Go modules ([`programs`]); pods are made of images packed here ([`images`]). A
//! [`cluster`] is a control plane, nodes and an outside client ([`wires`]), each with network, mounts, host name and cgroup of
//! its own; it has load balancers ([`balancer`]) and a service proxy to be tried ([`proxy`]: netlb's [`agents`], or kube-proxy),
//! by upstream's own tests ([`conformance`]) and by load while its programs are killed ([`survive`]). Nothing outlives it: see
//! [`netlb_testnode::process`] and [`state`].

pub mod agents;
pub mod balancer;
pub mod certificates;
pub mod cgroup1;
pub mod cluster;
pub mod conformance;
pub mod control_plane;
pub mod daemon;
pub mod etcd;
pub mod images;
pub mod mounts;
pub mod node;
pub mod programs;
pub mod proxy;
pub mod state;
pub mod survive;
pub mod wires;

pub use cluster::{Cluster, Options};
pub use proxy::Proxy;
