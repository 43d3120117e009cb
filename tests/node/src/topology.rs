//! The wires: an outside, nodes with an uplink to it, and pods joined to their node in one of the two CNI styles.
//!
//! ```text
//!   outside ── br0 ─┬─ node1 ═ eth0 │ node 1 │ cni0 ─┬─ veth… ═ eth0 │ pod     (bridge)
//!      │            │               │        │ veth…  ═════════ eth0 │ pod     (routed)
//!     far           └─ node2 ═ eth0 │ node 2 │ …
//! ```
//! Nothing leads out of the machine: the outside has no device but this bridge and the wire to the far host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::address::{self, Dual, Family};
use crate::cgroup::Cgroup;
use crate::link::Links;
use crate::netns::{MountNs, NetNs, sysctl};
use crate::process::Place;
use crate::{hostile, offload};

const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// How pods are joined to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// Veths under a bridge `cni0` that has the gateway address, as the bridge plugin and flannel do.
    Bridge,
    /// A host route a pod and proxy ARP on its veth, as Calico does.
    Routed,
}

/// What the wires are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wires {
    /// The style of the pod network.
    pub pod_network: PodNetwork,
    /// Whether netfilter sees bridged packets (where the kernel can show them).
    pub bridge_netfilter: bool,
    /// Whether pods and uplinks leave checksums to (pretended) hardware.
    pub tx_checksum: bool,
    /// Largest packet of pod devices and uplinks, in bytes.
    pub mtu: u32,
}

/// The world beyond the nodes: one host on their network, which is their router, and one behind it.
pub struct Outside {
    /// Where the near host's processes run.
    pub place: Place,
    /// Where the far host's processes run.
    pub far: Place,
    links: Mutex<Links>,
}

impl Outside {
    /// Makes the outside with its bridge.
    ///
    /// # Errors
    /// Names the device or setting that failed.
    pub fn new(cgroup: &Cgroup) -> Result<Self> {
        let net = NetNs::create()?;
        hostile::quiet_ipv6(&net)?;
        hostile::router(&net)?;
        hostile::answer_strays(&net, "br0")?;
        let mut links = Links::open(&net)?;
        links.up("lo")?;
        links.add_bridge("br0", address::mac(address::OUTSIDE.v4))?;
        links.up("br0")?;
        links.add_address("br0", address::OUTSIDE.v4.into(), 24)?;
        links.add_address("br0", address::OUTSIDE.v6.into(), 64)?;

        let far = NetNs::create()?;
        hostile::quiet_ipv6(&far)?;
        let mut beyond = Links::open(&far)?;
        links.add_veth("far", None, 1500, "eth0", &far)?;
        beyond.up("lo")?;
        for (links, device, own) in [(&mut links, "far", address::NEAR), (&mut beyond, "eth0", address::FAR)] {
            links.up(device)?;
            links.add_address(device, own.v4.into(), 24)?;
            links.add_address(device, own.v6.into(), 64)?;
        }
        beyond.add_route(ANY_V4, 0, Some(address::NEAR.v4.into()), "eth0")?;
        beyond.add_route(ANY_V6, 0, Some(address::NEAR.v6.into()), "eth0")?;

        let far = Place::new("far", far, None, Some(Arc::new(cgroup.child("far")?)))?;
        let place = Place::new("outside", net, None, Some(Arc::new(cgroup.child("outside")?)))?;
        Ok(Self { place, far, links: Mutex::new(links) })
    }

    /// Routes the addresses of Services, load balancers and authors to a node.
    ///
    /// # Errors
    /// When the node's network is not there.
    pub fn route_to(&self, node: u8) -> Result<()> {
        let mut links = lock(&self.links);
        let gateway = address::node(node);
        for network in [address::SERVICES_V4, address::SERVICES_V6, address::ROUTED_V4, address::ROUTED_V6] {
            let network: IpNet = network.parse()?;
            let gateway = gateway.of(Family::of(network.addr()));
            links.replace_route(network.addr(), network.prefix_len(), Some(gateway), "br0")?;
        }
        Ok(())
    }
}

/// A node: a network namespace with an uplink, a mount namespace with a bpffs of its own, a cgroup.
pub struct Node {
    /// Counts from 1.
    pub number: u8,
    /// Where the agent and other programs of the node run.
    pub place: Place,
    /// The node's mount namespace.
    pub mount: MountNs,
    /// The node's cgroup: `host` and `pods/…` are below it.
    pub cgroup: Arc<Cgroup>,
    pods: Cgroup,
    wires: Wires,
    links: Mutex<Links>,
    /// Pods so far: a pod may come back under its name while its predecessor is still going.
    joined: AtomicU32,
}

impl Node {
    /// Makes node `number` and joins it to the outside.
    ///
    /// # Errors
    /// Names the device, setting or rule that failed.
    pub fn new(number: u8, wires: Wires, outside: &Outside, run: &Cgroup) -> Result<Self> {
        let net = NetNs::create()?;
        hostile::quiet_ipv6(&net)?;
        hostile::router(&net)?;
        let mut links = Links::open(&net)?;
        links.up("lo")?;

        let uplink = format!("node{number}");
        {
            let mut out = lock(&outside.links);
            out.add_veth(&uplink, None, wires.mtu, "eth0", &net)?;
            out.set_master(&uplink, "br0")?;
            out.up(&uplink)?;
        }
        let own = address::node(number);
        links.up("eth0")?;
        links.add_address("eth0", own.v4.into(), 24)?;
        links.add_address("eth0", own.v6.into(), 64)?;
        links.add_route(ANY_V4, 0, Some(address::OUTSIDE.v4.into()), "eth0")?;
        links.add_route(ANY_V6, 0, Some(address::OUTSIDE.v6.into()), "eth0")?;
        if !wires.tx_checksum {
            offload::set_tx_checksum(outside.place.net(), &uplink, false)?;
            offload::set_tx_checksum(&net, "eth0", false)?;
        }
        if wires.pod_network == PodNetwork::Bridge {
            let gateway = address::pod(number, 1);
            links.add_bridge("cni0", address::mac(gateway.v4))?;
            links.set_mtu("cni0", wires.mtu)?;
            links.up("cni0")?;
            links.add_address("cni0", gateway.v4.into(), 24)?;
            links.add_address("cni0", gateway.v6.into(), 64)?;
        }
        hostile::cni_rules(&net, number)?;
        hostile::answer_strays(&net, "eth0")?;
        if !hostile::bridge_netfilter(&net, wires.bridge_netfilter)? && wires.bridge_netfilter {
            tracing::warn!("this kernel has no br_netfilter: bridged packets stay out of netfilter's sight");
        }

        let mount = net.run(MountNs::create)??;
        let cgroup = Arc::new(run.child(&format!("node{number}"))?);
        let pods = cgroup.child("pods")?;
        let host = Arc::new(cgroup.child("host")?);
        let place = Place::new(&format!("node{number}"), net, Some(mount.clone()), Some(host))?;
        Ok(Self { number, place, mount, cgroup, pods, wires, links: Mutex::new(links), joined: AtomicU32::new(0) })
    }

    /// The node's name in Kubernetes.
    #[must_use]
    pub fn name(&self) -> String {
        name(self.number)
    }

    /// The node's network namespace.
    #[must_use]
    pub fn net(&self) -> &NetNs {
        self.place.net()
    }

    /// Adds static routes to the pods of another node.
    ///
    /// # Errors
    /// When the routes are there already.
    pub fn add_route_to(&self, other: u8) -> Result<()> {
        let (gateway, network) = (address::node(other), address::pod(other, 0));
        let mut links = lock(&self.links);
        links.add_route(network.v4.into(), 24, Some(gateway.v4.into()), "eth0")?;
        links.add_route(network.v6.into(), 64, Some(gateway.v6.into()), "eth0")
    }

    /// Makes a pod's namespace and joins it to the node. Processes and devices are named after `key`.
    ///
    /// # Errors
    /// Names the device or setting that failed.
    pub fn attach_pod(&self, key: &str, addresses: Dual) -> Result<PodPort> {
        let net = NetNs::create()?;
        hostile::quiet_ipv6(&net)?;
        let key = &self.unique(key);
        let device = device_name(key);
        let mut inside = Links::open(&net)?;
        inside.up("lo")?;
        let mut links = lock(&self.links);
        match self.wires.pod_network {
            PodNetwork::Bridge => {
                links.add_veth(&device, None, self.wires.mtu, "eth0", &net)?;
                links.set_master(&device, "cni0")?;
                links.up(&device)?;
                inside.up("eth0")?;
                let gateway = address::pod(self.number, 1);
                inside.add_address("eth0", addresses.v4.into(), 24)?;
                inside.add_address("eth0", addresses.v6.into(), 64)?;
                inside.add_route(ANY_V4, 0, Some(gateway.v4.into()), "eth0")?;
                inside.add_route(ANY_V6, 0, Some(gateway.v6.into()), "eth0")?;
            }
            PodNetwork::Routed => {
                links.add_veth(&device, Some(address::ROUTED_GATEWAY_MAC), self.wires.mtu, "eth0", &net)?;
                self.net().run(|| -> Result<()> {
                    sysctl(&format!("net/ipv4/conf/{device}/proxy_arp"), "1")?;
                    sysctl(&format!("net/ipv4/neigh/{device}/proxy_delay"), "0")
                })??;
                links.up(&device)?;
                inside.up("eth0")?;
                inside.add_address("eth0", addresses.v4.into(), 32)?;
                inside.add_address("eth0", addresses.v6.into(), 128)?;
                inside.add_route(address::ROUTED_GATEWAY_V4.into(), 32, None, "eth0")?;
                inside.add_route(ANY_V4, 0, Some(address::ROUTED_GATEWAY_V4.into()), "eth0")?;
                inside.add_route(ANY_V6, 0, Some(address::ROUTED_GATEWAY_V6.into()), "eth0")?;
                links.add_route(addresses.v4.into(), 32, None, &device)?;
                links.add_route(addresses.v6.into(), 128, None, &device)?;
            }
        }
        if !self.wires.tx_checksum {
            offload::set_tx_checksum(&net, "eth0", false)?;
        }
        let cgroup = Arc::new(self.pods.child(key)?);
        let place = Place::new(key, net, None, Some(cgroup))?;
        Ok(PodPort { place, device })
    }

    /// Removes a pod's device, so that the node knows of its going at once.
    pub(crate) fn detach_pod(&self, device: &str) {
        if let Err(error) = lock(&self.links).delete(device) {
            tracing::debug!("{error:#}");
        }
    }

    /// A place for processes of a pod that shares the node's network.
    ///
    /// # Errors
    /// When the cgroup cannot be made.
    pub fn host_pod(&self, key: &str) -> Result<Place> {
        let key = &self.unique(key);
        Place::new(key, self.net().clone(), None, Some(Arc::new(self.pods.child(key)?)))
    }

    fn unique(&self, key: &str) -> String {
        format!("{key}.{}", self.joined.fetch_add(1, Ordering::Relaxed))
    }

    /// The cgroup directory that programs for the whole node attach to.
    #[must_use]
    pub fn cgroup_path(&self) -> &Path {
        self.cgroup.path()
    }
}

/// A pod's end of the wire.
pub struct PodPort {
    /// Where the pod's processes run.
    pub place: Place,
    /// The node's end of the pod's veth.
    pub device: String,
}

/// Node `number`'s name in Kubernetes.
#[must_use]
pub fn name(number: u8) -> String {
    format!("node{number}")
}

/// Joins every node's pods to every other node.
///
/// # Errors
/// As [`Node::add_route_to`].
pub fn mesh(nodes: &[Arc<Node>]) -> Result<()> {
    for node in nodes {
        for other in nodes.iter().filter(|other| other.number != node.number) {
            node.add_route_to(other.number)
                .with_context(|| format!("cannot join {} to {}", node.name(), other.name()))?;
        }
    }
    Ok(())
}

/// `veth` and eight digits that follow from the pod's name, as CNI plugins name them.
fn device_name(key: &str) -> String {
    format!("veth{:08x}", short_hash(key))
}

/// FNV-1a, 32 bits: short stable names from long ones.
#[must_use]
pub fn short_hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
