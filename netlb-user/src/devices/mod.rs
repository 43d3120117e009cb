//! Which veths lead to pods of this node, and which addresses sit behind each; which devices lead to the outside.
//!
//! The agent is told neither by the CNI nor by the cluster: it reads the kernel. A packet's source is never proof of anything.
//!
//! - [`parse`]: netlink payloads to plain records.
//! - [`select`]: which links are pods' devices. Never an uplink, never anything without a peer in another network namespace.
//! - [`uplinks`]: which of the others are uplinks, and why.
//! - [`node_addresses`]: which of the node's addresses serve NodePorts.
//! - [`detector`]: whose packets count as a pod's.
//! - [`namespaces`]: the cookies of pods' network namespaces.
//! - [`scan`]: asks the kernel and puts it together: addresses by the pod's namespace, else by host routes, else by FDB and neighbours.
//! - [`watch`]: a thread that follows changes.

pub mod detector;
pub mod namespaces;
pub mod node_addresses;
pub mod parse;
pub mod scan;
pub mod select;
pub mod uplinks;
pub mod watch;

use std::collections::BTreeMap;

use crate::model::{PodAddresses, PodDevice};
use parse::Address;
use uplinks::Judged;

/// How the addresses behind a device became known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum How {
    /// The pod's own network namespace lists them on the veth's other end.
    Namespace,
    /// Host routes of full length lead to the device.
    HostRoutes,
    /// The bridge has learnt the MAC behind the port, and neighbours tie addresses to it.
    Neighbours,
    /// They are not known (yet): the stack delivers.
    Unknown,
}

impl How {
    /// The word in `netlb status`.
    pub fn name(self) -> &'static str {
        match self {
            How::Namespace => "namespace",
            How::HostRoutes => "host routes",
            How::Neighbours => "neighbours",
            How::Unknown => "unknown",
        }
    }
}

/// A pod's device, and how its addresses became known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub device: PodDevice,
    pub how: How,
}

/// Pod devices by interface index.
pub type Devices = BTreeMap<u32, Found>;

/// What one look at the kernel found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Picture {
    pub pods: Devices,
    /// Every other device by interface index, uplink or not.
    pub others: BTreeMap<u32, Judged>,
    /// Addresses of the node's devices, in the kernel's order.
    pub addresses: Vec<Address>,
    /// The pods by the cookie of their network namespace, if that was asked for.
    pub clients: BTreeMap<u64, PodAddresses>,
}
