//! The wires: one switch, and behind it a control plane, nodes and a client outside, each a host of its own.
//!
//! ```text
//!   fabric: br0 ─┬─ eth0 │ control-plane
//!                ├─ eth0 │ node1 │ cni0 ─ veth… ═ eth0 │ pod
//!                ├─ eth0 │ node2 │ …
//!                └─ eth0 │ client
//! ```
//! Addresses are those of [`netlb_testnode::address`]; the fabric is everybody's router, and nothing leads out of it. Pods
//! keep their addresses on the wire: every host knows the way to every node's pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use netlb_testnode::address::{self, Dual};
use netlb_testnode::cgroup::Cgroup;
use netlb_testnode::link::Links;
use netlb_testnode::netns::{MountNs, NetNs};
use netlb_testnode::process::Place;
use netlb_testnode::{hostile, topology};

use crate::mounts;

/// The control plane's name.
pub const CONTROL_PLANE: &str = "control-plane";
/// The outside client's name.
pub const CLIENT: &str = "client";
/// How many nodes a cluster has.
pub const NODES: u8 = 2;
/// Largest packet on every wire, in bytes.
const MTU: u32 = 1500;

/// The control plane's addresses.
#[must_use]
pub fn control_plane() -> Dual {
    address::node(0)
}

/// The outside client's addresses.
#[must_use]
pub fn client() -> Dual {
    address::node(address::MAX_NODES)
}

/// The switch and router between the hosts.
pub struct Fabric {
    links: Links,
    _net: NetNs,
}

/// A host: namespaces for its network, its mounts and its name, and a cgroup.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its addresses on the fabric.
    pub address: Dual,
    /// Where its programs run.
    pub place: Place,
    /// Its mounts.
    pub mounts: MountNs,
    /// Its cgroup2 directory: its programs are in `host` below.
    pub cgroup: Arc<Cgroup>,
}

impl Fabric {
    /// Makes the switch.
    ///
    /// # Errors
    /// Names the device or setting that failed.
    pub fn create() -> Result<Self> {
        let net = NetNs::create()?;
        hostile::quiet_ipv6(&net)?;
        hostile::router(&net)?;
        let mut links = Links::open(&net)?;
        links.up("lo")?;
        links.add_bridge("br0", address::mac(address::OUTSIDE.v4))?;
        links.up("br0")?;
        links.add_address("br0", address::OUTSIDE.v4.into(), 24)?;
        links.add_address("br0", address::OUTSIDE.v6.into(), 64)?;
        for node in 1..=NODES {
            route_to_pods(&mut links, node, "br0")?;
        }
        Ok(Self { links, _net: net })
    }

    /// Makes the control plane's host.
    ///
    /// # Errors
    /// Names the device, setting or mount that failed.
    pub fn control_plane(&mut self, folders: &Folders, group: &Cgroup) -> Result<Host> {
        self.host(CONTROL_PLANE, control_plane(), None, folders, group)
    }

    /// Makes the outside client's host.
    ///
    /// # Errors
    /// As [`Fabric::control_plane`].
    pub fn client(&mut self, folders: &Folders, group: &Cgroup) -> Result<Host> {
        self.host(CLIENT, client(), None, folders, group)
    }

    /// Makes node `number`'s host; nodes count from 1.
    ///
    /// # Errors
    /// As [`Fabric::control_plane`].
    pub fn node(&mut self, number: u8, folders: &Folders, group: &Cgroup) -> Result<Host> {
        self.host(&topology::name(number), address::node(number), Some(number), folders, group)
    }

    fn host(
        &mut self,
        name: &str,
        address: Dual,
        number: Option<u8>,
        folders: &Folders,
        group: &Cgroup,
    ) -> Result<Host> {
        let net = NetNs::create()?;
        hostile::quiet_ipv6(&net)?;
        hostile::router(&net)?;
        // A CNI's bridge shows its packets to netfilter, or answers between its pods would miss their translation.
        hostile::bridge_netfilter(&net, number.is_some())?;
        self.links.add_veth(name, None, MTU, "eth0", &net)?;
        self.links.set_master(name, "br0")?;
        self.links.up(name)?;
        let mut links = Links::open(&net)?;
        links.up("lo")?;
        links.up("eth0")?;
        links.add_address("eth0", address.v4.into(), 24)?;
        links.add_address("eth0", address.v6.into(), 64)?;
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        for (any, gateway) in any.into_iter().zip(address::OUTSIDE.both()) {
            links.add_route(any, 0, Some(gateway), "eth0")?;
        }
        for node in (1..=NODES).filter(|node| Some(*node) != number) {
            route_to_pods(&mut links, node, "eth0")?;
        }
        let (disk, cgroup) = (folders.disk.join(name), Arc::new(group.child(name)?));
        let mounts = mounts::host(&folders.run, cgroup.path(), &disk, &["kubelet", "containerd"])
            .with_context(|| format!("cannot make the folders of {name}"))?;
        let place = Place::host(name, net, mounts.clone(), Arc::new(cgroup.child("host")?))?;
        Ok(Host { name: name.to_owned(), address, place, mounts, cgroup })
    }
}

/// Where the cluster keeps files.
pub struct Folders {
    /// Small ones, below `/run`.
    pub run: PathBuf,
    /// Large ones: what containers are made of.
    pub disk: PathBuf,
}

impl Folders {
    /// Where programs' logs are.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.run.join("logs")
    }

    /// A file of a host's own.
    #[must_use]
    pub fn of(&self, host: &Host) -> PathBuf {
        self.run.join(&host.name)
    }
}

fn route_to_pods(links: &mut Links, node: u8, device: &str) -> Result<()> {
    let (gateway, network) = (address::node(node), address::pod(node, 0));
    links.add_route(network.v4.into(), 24, Some(gateway.v4.into()), device)?;
    links.add_route(network.v6.into(), 64, Some(gateway.v6.into()), device)
}
