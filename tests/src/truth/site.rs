//! The node of a document as network namespaces: its addresses and routes, a device for each pod, an uplink.
//!
//! Everything beyond the node's devices (pods, other nodes' pods, clients, whatever rows name) is one second namespace that owns all those
//! addresses. Nothing leads out of the two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use netlb_testnode::cgroup::Cgroup;
use netlb_testnode::hostile;
use netlb_testnode::link::{Links, Mac};
use netlb_testnode::netns::{NetNs, sysctl};
use netlb_testnode::process::Place;

use super::document::{Document, Origin};
use super::listeners::Listeners;
use crate::puppet::Puppet;

/// The uplink's name on the node, and of its other end.
pub const UPLINK: &str = "uplink";
const FAR_UPLINK: &str = "far-uplink";

/// Bytes of IP packet on every device.
pub const MTU: u32 = 1500;

/// A device of the node, and the hardware address at its other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    pub name: String,
    pub ifindex: u32,
    pub mac: Mac,
    pub far_mac: Mac,
}

/// The two namespaces of a document.
pub struct Site {
    pub node: NetNs,
    far: NetNs,
    pub uplink: Device,
    /// By the pod's address.
    pub pods: BTreeMap<IpAddr, Device>,
    place: Place,
}

impl Site {
    /// Makes the namespaces of a document. Processes on the node will be in `cgroup`.
    ///
    /// # Errors
    /// Names the device, address or setting that failed.
    pub fn new(document: &Document, cgroup: &Arc<Cgroup>) -> Result<Self> {
        let (node, far) = (NetNs::create()?, NetNs::create()?);
        for net in [&node, &far] {
            hostile::quiet_ipv6(net)?;
            net.run(|| -> Result<()> {
                for scope in ["all", "default"] {
                    // Answers come back by the uplink, whatever the question left by.
                    sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
                }
                Ok(())
            })??;
        }
        node.run(|| -> Result<()> {
            sysctl("net/ipv4/ip_forward", "1")?;
            sysctl("net/ipv6/conf/all/forwarding", "1")
        })??;
        let mut wires = Wires { here: Links::open(&node)?, there: Links::open(&far)?, far };
        wires.here.up("lo")?;
        wires.there.up("lo")?;
        let uplink = wires.join(UPLINK, FAR_UPLINK)?;
        for net in document.node_addresses() {
            wires.here.add_address(UPLINK, net.addr(), net.prefix_len())?;
        }
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            wires.here.add_route(any, 0, None, UPLINK)?;
            wires.there.add_route(any, 0, None, FAR_UPLINK)?;
        }
        for net in document.node_addresses() {
            wires.there.add_neighbour(FAR_UPLINK, net.addr(), uplink.mac)?;
        }
        let mut pods = BTreeMap::new();
        for (number, address) in document.pods().into_iter().enumerate() {
            let (name, far_name) = (format!("pod{number}"), format!("far{number}"));
            let device = wires.join(&name, &far_name)?;
            wires.here.add_route(address, whole(address), None, &name)?;
            wires.settle(address, &device, &far_name)?;
            pods.insert(address, device);
        }
        for address in elsewhere(document) {
            wires.settle(address, &uplink, FAR_UPLINK)?;
        }
        let place = Place::new("truth", node.clone(), None, Some(Arc::clone(cgroup)))?;
        Ok(Site { node, far: wires.far, uplink, pods, place })
    }

    /// A process on the node, in the cgroup whose sockets netlb translates. `actor` is the program `netlb-actor`.
    ///
    /// # Errors
    /// As [`Puppet::start`].
    pub fn puppet(&self, actor: &Path) -> Result<Puppet> {
        Puppet::start(&self.place, actor)
    }

    /// Listens wherever a connection of the document may end: where its rows point, and at every endpoint.
    ///
    /// # Errors
    /// When an address cannot be listened at.
    pub fn listen(&self, document: &Document) -> Result<Listeners> {
        let mut wanted = BTreeSet::new();
        for packet in document.packets() {
            wanted.insert((packet.to, packet.protocol));
        }
        for endpoint in document.steps.iter().flat_map(|step| step.endpoints()) {
            wanted.extend(endpoint.ports.iter().map(|(protocol, port)| ((endpoint.address, *port).into(), *protocol)));
        }
        let (here, there) = wanted.into_iter().partition(|(address, _)| document.is_node(address.ip()));
        let mut listeners = self.node.run(|| Listeners::open(&here))??;
        listeners.join(self.far.run(|| Listeners::open(&there))??);
        Ok(listeners)
    }
}

/// Addresses that are neither the node's nor a pod's of this node: of clients, of what rows point at, of endpoints elsewhere.
fn elsewhere(document: &Document) -> BTreeSet<IpAddr> {
    let pods = document.pods();
    let clients = document.packets().map(|packet| packet.from).filter(|a| document.origin(*a) == Origin::Outside);
    let targets = document.packets().map(|packet| packet.to.ip());
    let endpoints = document.steps.iter().flat_map(|step| step.endpoints()).map(|endpoint| endpoint.address);
    let all = clients.chain(targets).chain(endpoints);
    all.filter(|address| !document.is_node(*address) && !pods.contains(address)).collect()
}

/// Both ends of the wires.
struct Wires {
    here: Links,
    there: Links,
    far: NetNs,
}

impl Wires {
    /// A wire from the node to the other namespace; both ends are up.
    fn join(&mut self, name: &str, far_name: &str) -> Result<Device> {
        self.here.add_veth(name, None, MTU, far_name, &self.far)?;
        self.here.up(name)?;
        self.there.up(far_name)?;
        Ok(Device {
            name: name.to_owned(),
            ifindex: self.here.index(name)?,
            mac: self.here.mac(name)?,
            far_mac: self.there.mac(far_name)?,
        })
    }

    /// Gives an address to the far end of a wire; the node knows its hardware address.
    fn settle(&mut self, address: IpAddr, device: &Device, far_name: &str) -> Result<()> {
        self.there.add_address(far_name, address, whole(address))?;
        self.here.add_neighbour(&device.name, address, device.far_mac).context("a neighbour of the node")
    }
}

/// The length of a prefix that is one address.
fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
