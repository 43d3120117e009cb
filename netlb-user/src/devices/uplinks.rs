//! Which devices are uplinks: those by which packets of the outside, and of other nodes' pods, come and go.
//!
//! Whatever is no pod's device is judged, and the verdict kept in words: an operator whose NodePort does not answer reads why.

use std::collections::{BTreeMap, BTreeSet};

use super::parse::{Address, Link, Route};
use super::select::{Wishes, has_subnet, is_pod_address};
use crate::model::Uplink;

/// A device that is no pod's, and whether it is an uplink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judged {
    /// As the datapath is to know it, were it one.
    pub device: Uplink,
    pub is_uplink: bool,
    /// It carries a default route.
    pub default_route: bool,
    /// Why, in words.
    pub why: String,
}

/// Tunnels between nodes whose devices carry Ethernet frames: uplinks even before the first route is there.
const TUNNELS: [&str; 2] = ["vxlan", "geneve"];
/// Devices that nothing comes from: addresses on them are bound, not reached.
const SILENT: [&str; 4] = ["dummy", "ifb", "nlmon", "vrf"];
/// Masters whose ports' packets are the master's.
const GATHERING: [&str; 4] = ["bridge", "bond", "team", "openvswitch"];

/// Judges every link that is none of `pods`, by interface index. `addresses` and `routes` (main table) are in the kernel's order.
pub fn judge(
    links: &[Link],
    addresses: &[Address],
    routes: &[Route],
    pods: &BTreeSet<u32>,
    wishes: &Wishes,
) -> BTreeMap<u32, Judged> {
    let facts = Facts {
        kinds: links.iter().map(|link| (link.ifindex, link)).collect(),
        pod_masters: links.iter().filter(|l| pods.contains(&l.ifindex) && l.master != 0).map(|l| l.master).collect(),
        masters: links.iter().map(|link| link.master).filter(|master| *master != 0).collect(),
        addresses,
        routes,
        wishes,
    };
    let others = links.iter().filter(|link| !pods.contains(&link.ifindex));
    others
        .map(|link| {
            let (is_uplink, why) = match facts.verdict(link) {
                Ok(why) => (true, why),
                Err(why) => (false, why),
            };
            let default_route = facts.routes(link).any(|route| route.destination.is_none());
            (link.ifindex, Judged { device: facts.device(link), is_uplink, default_route, why })
        })
        .collect()
}

struct Facts<'a> {
    kinds: BTreeMap<u32, &'a Link>,
    /// Devices that pods' devices are ports of.
    pod_masters: BTreeSet<u32>,
    /// Devices with ports at all.
    masters: BTreeSet<u32>,
    addresses: &'a [Address],
    routes: &'a [Route],
    wishes: &'a Wishes,
}

impl Facts<'_> {
    fn device(&self, link: &Link) -> Uplink {
        let own = |v4: bool| self.own(link).find(|a| a.lasting && a.ip.is_ipv4() == v4).map(|a| a.ip);
        let bridge = self.kinds.get(&link.master).filter(|master| master.kind == "bridge");
        let pod_source = self.wishes.detector.marks(&link.name, bridge.map(|bridge| bridge.name.as_str()));
        Uplink { name: link.name.clone(), v4: own(true), v6: own(false), mtu: link.mtu, pod_source }
    }

    /// Its addresses that others may know.
    fn own(&self, link: &Link) -> impl Iterator<Item = &Address> {
        let ifindex = link.ifindex;
        self.addresses.iter().filter(move |a| a.ifindex == ifindex && is_pod_address(a.ip))
    }

    fn routes(&self, link: &Link) -> impl Iterator<Item = &Route> + Clone {
        let ifindex = link.ifindex;
        self.routes.iter().filter(move |route| route.ifindex == ifindex)
    }

    /// Why it is an uplink, or why it is none.
    fn verdict(&self, link: &Link) -> Result<String, String> {
        if link.loopback {
            return Err("the loopback device".to_owned());
        }
        let wanted = if self.wishes.uplinks.is_empty() {
            self.found(link)?
        } else if self.wishes.names_uplink(&link.name) {
            "named by --devices"
        } else {
            return Err("not named by --devices".to_owned());
        };
        if link.ethernet { Ok(wanted.to_owned()) } else { Err(format!("not attached: no Ethernet header ({wanted})")) }
    }

    fn found(&self, link: &Link) -> Result<&'static str, String> {
        if self.pod_masters.contains(&link.ifindex) {
            return Err("pods' devices are its ports, and looked after there".to_owned());
        }
        let gathers = |master: &&&Link| GATHERING.contains(&master.kind.as_str());
        if let Some(master) = self.kinds.get(&link.master).filter(gathers) {
            return Err(format!("a port of {}", master.name));
        }
        if SILENT.contains(&link.kind.as_str()) {
            return Err(format!("a device of kind {}", link.kind));
        }
        let mut routes = self.routes(link);
        if routes.clone().any(|route| route.destination.is_none()) {
            return Ok("carries a default route");
        }
        if routes.any(|route| route.gateway) {
            return Ok("carries a route by way of a router");
        }
        if TUNNELS.contains(&link.kind.as_str()) {
            return Ok("a tunnel");
        }
        if link.kind == "bridge" && !self.masters.contains(&link.ifindex) {
            return Err("a bridge without ports".to_owned());
        }
        // A veth's address of full length is the gateway of a pod that another scheme of names left out.
        let counts = |a: &Address| link.kind != "veth" || has_subnet(a);
        if self.own(link).any(counts) {
            return Ok("has an address of its own");
        }
        Err("no default route, no route by way of a router, no address of its own".to_owned())
    }
}

/// The uplinks among what was judged, by interface index.
pub fn uplinks(judged: &BTreeMap<u32, Judged>) -> impl Iterator<Item = (u32, &Uplink)> {
    judged.iter().filter(|(_, j)| j.is_uplink).map(|(ifindex, j)| (*ifindex, &j.device))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// What a device is to be: a word of the reason why it is an uplink, or why it is none.
    type Want = Result<&'static str, &'static str>;
    /// What is told apart, what the kernel says, and the device that is asked about.
    type Case = (&'static str, Vec<Link>, Vec<Address>, Vec<Route>, u32, Want);

    fn link(ifindex: u32, name: &str, kind: &str) -> Link {
        let (name, kind) = (name.to_owned(), kind.to_owned());
        Link { ifindex, name, kind, mtu: 1500, ethernet: true, ..Link::default() }
    }

    fn port(link: Link, master: u32) -> Link {
        Link { master, ..link }
    }

    fn address(ifindex: u32, text: &str) -> Address {
        let (ip, prefix) = text.split_once('/').expect("has a prefix length");
        let (ip, prefix) = (ip.parse().expect("an address"), prefix.parse().expect("a length"));
        Address { ifindex, ip, prefix, lasting: true }
    }

    fn default_route(ifindex: u32) -> Route {
        Route { ifindex, destination: None, prefix: 0, gateway: true, shared: false }
    }

    fn to(ifindex: u32, net: [u8; 4], gateway: bool) -> Route {
        Route { ifindex, destination: Some(net.into()), prefix: 24, gateway, shared: false }
    }

    /// One device a line: kinds of nodes that people run.
    #[test]
    fn every_kind_of_device() {
        let lo = Link { loopback: true, ethernet: false, ..link(1, "lo", "") };
        let wireguard = |index| Link { ethernet: false, ..link(index, "wg0", "wireguard") };
        let pod = |index, master| port(link(index, "vetha", "veth"), master);
        let pods = BTreeSet::from([90, 91]);
        let table: [Case; 22] = [
            (
                "a NIC with the default route",
                vec![link(2, "eth0", "")],
                vec![],
                vec![default_route(2)],
                2,
                Ok("default route"),
            ),
            (
                "a default route without a router",
                vec![link(2, "eth0", "")],
                vec![],
                vec![Route { gateway: false, ..default_route(2) }],
                2,
                Ok("default route"),
            ),
            (
                "a way among several",
                vec![link(2, "eth0", "")],
                vec![],
                vec![Route { shared: true, ..default_route(2) }],
                2,
                Ok("default route"),
            ),
            (
                "a NIC with a route by way of a router",
                vec![link(2, "eth1", "")],
                vec![],
                vec![to(2, [10, 0, 0, 0], true)],
                2,
                Ok("router"),
            ),
            (
                "a NIC with an address",
                vec![link(2, "eth1", "")],
                vec![address(2, "10.1.0.2/24")],
                vec![],
                2,
                Ok("address"),
            ),
            (
                "a NIC with a link-local address only",
                vec![link(2, "eth1", "")],
                vec![address(2, "fe80::1/64")],
                vec![],
                2,
                Err("no address of its own"),
            ),
            (
                "a node that is a container",
                vec![link(2, "eth0", "veth")],
                vec![address(2, "10.1.0.2/24")],
                vec![],
                2,
                Ok("address"),
            ),
            (
                "the host side of a veth with a gateway's address",
                vec![link(2, "cali1", "veth")],
                vec![address(2, "10.244.0.1/32")],
                vec![],
                2,
                Err("no address of its own"),
            ),
            (
                "loopback",
                vec![lo],
                vec![address(1, "127.0.0.1/8"), address(1, "10.0.0.9/32")],
                vec![default_route(1)],
                1,
                Err("loopback"),
            ),
            (
                "the bridge of pods",
                vec![link(3, "cni0", "bridge"), pod(90, 3)],
                vec![address(3, "10.244.0.1/24")],
                vec![default_route(3)],
                3,
                Err("pods' devices are its ports"),
            ),
            (
                "the bridge of a NIC",
                vec![link(3, "br0", "bridge"), port(link(2, "eth0", ""), 3)],
                vec![address(3, "10.1.0.2/24")],
                vec![default_route(3)],
                3,
                Ok("default route"),
            ),
            (
                "the NIC of a bridge",
                vec![link(3, "br0", "bridge"), port(link(2, "eth0", ""), 3)],
                vec![address(3, "10.1.0.2/24")],
                vec![default_route(3)],
                2,
                Err("a port of br0"),
            ),
            (
                "a bridge whose pods have gone",
                vec![link(3, "cni0", "bridge")],
                vec![address(3, "10.244.0.1/24")],
                vec![],
                3,
                Err("without ports"),
            ),
            (
                "a bond with an address",
                vec![link(4, "bond0", "bond"), port(link(2, "eth0", ""), 4)],
                vec![address(4, "10.1.0.2/24")],
                vec![],
                4,
                Ok("address"),
            ),
            (
                "a port of a bond",
                vec![link(4, "bond0", "bond"), port(link(2, "eth0", ""), 4)],
                vec![address(4, "10.1.0.2/24")],
                vec![default_route(4)],
                2,
                Err("a port of bond0"),
            ),
            (
                "a member of a VRF",
                vec![link(4, "red", "vrf"), port(link(2, "eth0", ""), 4)],
                vec![address(2, "10.1.0.2/24")],
                vec![],
                2,
                Ok("address"),
            ),
            (
                "a VRF",
                vec![link(4, "red", "vrf")],
                vec![address(4, "10.1.0.2/24")],
                vec![default_route(4)],
                4,
                Err("vrf"),
            ),
            (
                "a VLAN with an address",
                vec![link(5, "eth0.7", "vlan")],
                vec![address(5, "10.7.0.2/32")],
                vec![],
                5,
                Ok("address"),
            ),
            (
                "a VLAN without",
                vec![link(5, "eth0.7", "vlan")],
                vec![],
                vec![to(5, [10, 7, 0, 0], false)],
                5,
                Err("no address of its own"),
            ),
            ("a tunnel of nodes", vec![link(6, "flannel.1", "vxlan")], vec![], vec![], 6, Ok("a tunnel")),
            (
                "a tunnel without Ethernet",
                vec![wireguard(6)],
                vec![],
                vec![to(6, [10, 244, 1, 0], true)],
                6,
                Err("no Ethernet header (carries a route by way of a router)"),
            ),
            (
                "bound addresses",
                vec![link(7, "kube-ipvs0", "dummy")],
                vec![address(7, "10.96.0.1/32")],
                vec![],
                7,
                Err("kind dummy"),
            ),
        ];
        for (what, links, addresses, routes, ifindex, want) in table {
            let judged = judge(&links, &addresses, &routes, &pods, &Wishes::default());
            assert!(judged.keys().all(|ifindex| !pods.contains(ifindex)), "{what}: pods' devices are not judged");
            let found = &judged[&ifindex];
            let (is_uplink, word) = match want {
                Ok(word) => (true, word),
                Err(word) => (false, word),
            };
            assert_eq!(found.is_uplink, is_uplink, "{what}: {}", found.why);
            assert!(found.why.contains(word), "{what}: {}", found.why);
        }
    }

    #[test]
    fn the_operators_word_is_the_only_one() {
        let wishes = Wishes { uplinks: vec!["eth*".to_owned(), "wg0".to_owned()], ..Wishes::default() };
        let links = [
            port(link(2, "eth0", ""), 3),
            link(3, "br0", "bridge"),
            Link { ethernet: false, ..link(6, "wg0", "wireguard") },
            Link { loopback: true, ..link(1, "eth-lo", "") },
        ];
        let judged = judge(&links, &[], &[default_route(3)], &BTreeSet::new(), &wishes);
        let say = |ifindex: u32| (judged[&ifindex].is_uplink, judged[&ifindex].why.as_str());
        assert_eq!(say(2), (true, "named by --devices"));
        assert_eq!(say(3), (false, "not named by --devices"));
        assert_eq!(say(6), (false, "not attached: no Ethernet header (named by --devices)"));
        assert_eq!(say(1), (false, "the loopback device"));
    }

    #[test]
    fn the_first_lasting_address_of_each_family_is_the_uplinks() {
        let passing = |address: Address| Address { lasting: false, ..address };
        let addresses = [
            address(2, "169.254.7.7/16"),
            address(2, "10.1.0.2/24"),
            address(2, "10.1.0.3/24"),
            address(9, "10.9.0.1/24"),
            passing(address(2, "fd00:1::7/64")),
            address(2, "fe80::1/64"),
            address(2, "fd00:1::2/64"),
        ];
        let judged =
            judge(&[link(2, "eth0", "")], &addresses, &[default_route(2)], &BTreeSet::new(), &Wishes::default());
        let ip = |text: &str| text.parse::<IpAddr>().ok();
        let (ifindex, uplink) = uplinks(&judged).next().expect("an uplink");
        assert_eq!((ifindex, uplink.v4, uplink.v6, uplink.mtu), (2, ip("10.1.0.2"), ip("fd00:1::2"), 1500));
    }
}
