//! A real Kubernetes cluster in network namespaces, on one machine: no cloud, no virtual machine, no Docker.
//!
//! Its programs are built from Go modules ([`programs`]).

pub mod programs;
