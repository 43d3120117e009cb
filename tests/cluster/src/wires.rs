//! The wires: one switch, and behind it a control plane and nodes; beside it a client outside; each a host of its own.
//!
//! ```text
//!   fabric: br0 ─┬─ eth0 │ control-plane
//!                ├─ eth0 │ node1 │ cni0 ─ veth… ═ eth0 │ pod
//!                └─ eth0 │ node2 │ …
//!           client ─ eth0 │ client
//! ```
//! Addresses are those of [`netlb_testnode::address`], save for the client's; the fabric is everybody's router, and nothing
//! leads out of it. Pods keep their addresses on the wire: every host knows the way to every node's pods. Load balancers'
//! addresses lead to the nodes that [`crate::balancer`] chooses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use netlb_testnode::address::{self, Dual};
use netlb_testnode::cgroup::Cgroup;
use netlb_testnode::link::Links;
use netlb_testnode::netns::{MountNs, NetNs, sysctl};
use netlb_testnode::process::Place;
use netlb_testnode::{hostile, topology};

use crate::mounts;

/// The control plane's name.
pub const CONTROL_PLANE: &str = "control-plane";
/// The outside client's name.
pub const CLIENT: &str = "client";
/// The outside client's addresses: not of the nodes' network, nor near it, so that who came from outside can be told by the
/// address (upstream's tests look at the first 16 bits).
pub const OUTSIDE_CLIENT: Dual =
    Dual { v4: Ipv4Addr::new(198, 51, 100, 2), v6: Ipv6Addr::new(0xfd00, 0x198, 0x51, 0x100, 0, 0, 0, 2) };
/// The fabric's addresses in the outside client's network.
const CLIENT_GATEWAY: Dual =
    Dual { v4: Ipv4Addr::new(198, 51, 100, 1), v6: Ipv6Addr::new(0xfd00, 0x198, 0x51, 0x100, 0, 0, 0, 1) };
/// The switch's device.
const SWITCH: &str = "br0";
/// Largest packet on every wire, in bytes.
const MTU: u32 = 1500;

/// The control plane's addresses.
#[must_use]
pub fn control_plane() -> Dual {
    address::node(0)
}

/// The switch and router between the hosts.
pub struct Fabric {
    links: Links,
    net: NetNs,
    nodes: u8,
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
    /// Makes the switch of a cluster with this many nodes.
    ///
    /// # Errors
    /// Names the device or setting that failed.
    pub fn create(nodes: u8) -> Result<Self> {
        let net = NetNs::create()?;
        hostile::quiet_ipv6(&net)?;
        hostile::router(&net)?;
        // Connections to a load balancer's address spread over nodes by their ports, too.
        net.run(|| -> Result<()> {
            sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
            sysctl("net/ipv6/fib_multipath_hash_policy", "1")
        })??;
        let mut links = Links::open(&net)?;
        links.up("lo")?;
        links.add_bridge(SWITCH, address::mac(address::OUTSIDE.v4))?;
        links.up(SWITCH)?;
        links.add_address(SWITCH, address::OUTSIDE.v4.into(), 24)?;
        links.add_address(SWITCH, address::OUTSIDE.v6.into(), 64)?;
        for node in 1..=nodes {
            route_to_pods(&mut links, node, SWITCH)?;
        }
        Ok(Self { links, net, nodes })
    }

    /// Makes the control plane's host.
    ///
    /// # Errors
    /// Names the device, setting or mount that failed.
    pub fn control_plane(&mut self, folders: &Folders, group: &Cgroup) -> Result<Host> {
        self.host_on_switch(CONTROL_PLANE, control_plane(), None, folders, group)
    }

    /// Makes the outside client's host.
    ///
    /// # Errors
    /// As [`Fabric::control_plane`].
    pub fn client(&mut self, folders: &Folders, group: &Cgroup) -> Result<Host> {
        let (net, _) = self.plug(CLIENT, OUTSIDE_CLIENT, CLIENT_GATEWAY, false)?;
        self.links.add_address(CLIENT, CLIENT_GATEWAY.v4.into(), 24)?;
        self.links.add_address(CLIENT, CLIENT_GATEWAY.v6.into(), 64)?;
        host(CLIENT, OUTSIDE_CLIENT, net, folders, group)
    }

    /// Makes node `number`'s host; nodes count from 1.
    ///
    /// # Errors
    /// As [`Fabric::control_plane`].
    pub fn node(&mut self, number: u8, folders: &Folders, group: &Cgroup) -> Result<Host> {
        self.host_on_switch(&topology::name(number), address::node(number), Some(number), folders, group)
    }

    /// The way to load balancers.
    ///
    /// # Errors
    /// When the kernel has no netlink.
    pub fn ways(&self) -> Result<Ways> {
        Ok(Ways { links: Links::open(&self.net)?, net: self.net.clone() })
    }

    fn host_on_switch(
        &mut self,
        name: &str,
        address: Dual,
        number: Option<u8>,
        folders: &Folders,
        group: &Cgroup,
    ) -> Result<Host> {
        let (net, mut links) = self.plug(name, address, address::OUTSIDE, number.is_some())?;
        self.links.set_master(name, SWITCH)?;
        for node in (1..=self.nodes).filter(|node| Some(*node) != number) {
            route_to_pods(&mut links, node, "eth0")?;
        }
        host(name, address, net, folders, group)
    }

    /// Makes a network namespace with a device that leads here, where it is called `name`, and a default route by `gateway`.
    fn plug(&mut self, name: &str, address: Dual, gateway: Dual, bridged: bool) -> Result<(NetNs, Links)> {
        let net = NetNs::create()?;
        hostile::quiet_ipv6(&net)?;
        hostile::router(&net)?;
        // A CNI's bridge shows its packets to netfilter, or answers between its pods would miss their translation.
        hostile::bridge_netfilter(&net, bridged)?;
        self.links.add_veth(name, None, MTU, "eth0", &net)?;
        self.links.up(name)?;
        let mut links = Links::open(&net)?;
        links.up("lo")?;
        links.up("eth0")?;
        links.add_address("eth0", address.v4.into(), 24)?;
        links.add_address("eth0", address.v6.into(), 64)?;
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        for (any, gateway) in any.into_iter().zip(gateway.both()) {
            links.add_route(any, 0, Some(gateway), "eth0")?;
        }
        Ok((net, links))
    }
}

/// The fabric as a load balancer sees it: which nodes an address leads to.
pub struct Ways {
    links: Links,
    net: NetNs,
}

impl Ways {
    /// Where the fabric is: from there, nodes are asked how they are.
    #[must_use]
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// From now on `address` leads to these nodes, a connection to one of them; to none, it leads nowhere.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lead(&mut self, address: IpAddr, nodes: &[u8]) -> Result<()> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let node = |number: &u8| {
            let node = address::node(*number);
            if address.is_ipv4() { node.v4.into() } else { node.v6.into() }
        };
        let gateways: Vec<IpAddr> = nodes.iter().map(node).collect();
        if gateways.is_empty() {
            return self.links.delete_route(address, length);
        }
        self.links.replace_multipath(address, length, &gateways, SWITCH)
    }
}

fn host(name: &str, address: Dual, net: NetNs, folders: &Folders, group: &Cgroup) -> Result<Host> {
    let (disk, cgroup) = (folders.disk.join(name), Arc::new(group.child(name)?));
    let mounts = mounts::host(&folders.run, cgroup.path(), &disk, &["kubelet", "containerd"])
        .with_context(|| format!("cannot make the folders of {name}"))?;
    let place = Place::host(name, net, mounts.clone(), Arc::new(cgroup.child("host")?))?;
    Ok(Host { name: name.to_owned(), address, place, mounts, cgroup })
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
