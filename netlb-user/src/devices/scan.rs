//! One look at the kernel: every pod device with what is behind it, every other device with what it is to netlb.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use super::parse::{self, Link, Neighbour, Route};
use super::select::{self, Wishes, is_pod_address};
use super::{Devices, Found, How, Picture, namespaces, uplinks};
use crate::model::{PodAddresses, PodDevice};
use crate::netlink::{Netlink, Request, retry};

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFA_TARGET_NETNSID: u16 = 10;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u32 = 254;

const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// Looks at every link, address and route of the agent's namespace, and into the namespaces of pods.
///
/// # Errors
/// If the agent's own namespace cannot be read. A pod's namespace that cannot be read is none: other sources tell its addresses.
pub fn scan(netlink: &mut Netlink, wishes: &Wishes) -> io::Result<Picture> {
    let links = links(netlink)?;
    let mut addresses = Vec::new();
    let mut routes = Vec::new();
    for family in FAMILIES {
        addresses.extend(dump(netlink, || Request::new(RTM_GETADDR, &address_header(family)), parse::address)?);
        let request =
            || Request::new(RTM_GETROUTE, &route_header(family)).with(RTA_TABLE, &RT_TABLE_MAIN.to_ne_bytes());
        match dump(netlink, request, parse::route) {
            Ok(found) => routes.extend(found),
            // The kernel says so for a table without routes.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => {}
            Err(e) => return Err(e),
        }
    }
    let bridges: BTreeMap<u32, &str> =
        links.iter().filter(|l| l.kind == "bridge").map(|l| (l.ifindex, l.name.as_str())).collect();
    let mut learnt = None;
    let mut pods = Devices::new();
    let mut inhabitants: BTreeMap<i32, PodAddresses> = BTreeMap::new();
    for link in select::pods(&links, &addresses, &routes, wishes) {
        let inside = inside(netlink, link).unwrap_or_default();
        let bridge_name = bridges.get(&link.master).copied();
        let bridge = if bridge_name.is_some() { link.master } else { 0 };
        let found = if inside.addrs.is_empty() {
            let learnt = match &learnt {
                Some(learnt) => learnt,
                None => learnt.insert(Learnt::read(netlink)?),
            };
            outside(link, bridge, &routes, learnt, inside.mac)
        } else {
            (How::Namespace, inside.addrs, inside.mac)
        };
        let (how, addrs, pod_mac) = found;
        // Only what the pod itself lists is sure to be what its sockets send from.
        if how == How::Namespace
            && let Some(id) = link.peer_namespace
        {
            inhabitants.entry(id).or_insert_with(|| PodAddresses {
                v4: addrs.iter().copied().find(IpAddr::is_ipv4),
                v6: addrs.iter().copied().find(IpAddr::is_ipv6),
            });
        }
        let device = PodDevice {
            ifindex: link.ifindex,
            name: link.name.clone(),
            mtu: link.mtu,
            bridge,
            pod_mac,
            host_mac: link.mac,
            addrs,
            pod_source: wishes.detector.marks(&link.name, bridge_name),
        };
        pods.insert(link.ifindex, Found { device, how });
    }
    let others = uplinks::judge(&links, &addresses, &routes, &pods.keys().copied().collect(), wishes);
    let clients = if wishes.cookies {
        let cookies = namespaces::cookies(netlink, &inhabitants.keys().copied().collect());
        cookies.into_iter().map(|(id, cookie)| (cookie, inhabitants[&id])).collect()
    } else {
        BTreeMap::new()
    };
    Ok(Picture { pods, others, addresses, clients })
}

/// What a pod's namespace says of its end of the veth.
#[derive(Default)]
struct Inside {
    addrs: BTreeSet<IpAddr>,
    mac: [u8; 6],
}

fn inside(netlink: &mut Netlink, link: &Link) -> Option<Inside> {
    let namespace = link.peer_namespace?.to_ne_bytes();
    let mut seen = Inside::default();
    for family in FAMILIES {
        let request = || Request::new(RTM_GETADDR, &address_header(family)).with(IFA_TARGET_NETNSID, &namespace);
        let addresses = dump(netlink, request, parse::address).ok()?;
        let ours = addresses.iter().filter(|a| a.ifindex == link.peer && is_pod_address(a.ip));
        seen.addrs.extend(ours.map(|a| a.ip));
    }
    let request = Request::new(RTM_GETLINK, &link_header(link.peer)).with(IFLA_TARGET_NETNSID, &namespace);
    if let Ok(Some(payload)) = netlink.one(request)
        && let Some(peer) = parse::link(&payload)
    {
        seen.mac = peer.mac;
    }
    Some(seen)
}

/// What bridges and neighbour tables know.
#[derive(Default)]
struct Learnt {
    /// MACs by the bridge's port they were seen on.
    ports: BTreeMap<u32, BTreeSet<[u8; 6]>>,
    neighbours: Vec<Neighbour>,
}

impl Learnt {
    fn read(netlink: &mut Netlink) -> io::Result<Self> {
        let mut learnt = Learnt::default();
        let ask = |netlink: &mut Netlink, family: i32| {
            dump(netlink, || Request::new(RTM_GETNEIGH, &neighbour_header(family)), parse::neighbour)
        };
        for entry in ask(netlink, libc::AF_BRIDGE)? {
            learnt.ports.entry(entry.ifindex).or_default().insert(entry.mac);
        }
        for family in FAMILIES {
            learnt.neighbours.extend(ask(netlink, family)?);
        }
        Ok(learnt)
    }
}

/// Addresses and MAC as they show from outside: host routes to the device, else neighbours of its bridge whose MAC was learnt on its port.
fn outside(
    link: &Link,
    bridge: u32,
    routes: &[Route],
    learnt: &Learnt,
    mac_inside: [u8; 6],
) -> (How, BTreeSet<IpAddr>, [u8; 6]) {
    let routed: BTreeSet<IpAddr> = routes
        .iter()
        .filter(|r| r.ifindex == link.ifindex && !r.gateway && !r.shared)
        .filter_map(|r| r.destination.filter(|ip| r.prefix == if ip.is_ipv4() { 32 } else { 128 }))
        .filter(|ip| is_pod_address(*ip))
        .collect();
    if !routed.is_empty() {
        let neighbour = learnt
            .neighbours
            .iter()
            .find(|n| n.ifindex == link.ifindex && n.ip.is_some_and(|ip| routed.contains(&ip)))
            .map(|n| n.mac);
        return (How::HostRoutes, routed, neighbour.unwrap_or(mac_inside));
    }
    let on_port = learnt.ports.get(&link.ifindex).filter(|_| bridge != 0);
    // Several MACs behind one port: which of them is the pod's cannot be told.
    if let Some(mac) = on_port.filter(|macs| macs.len() == 1).and_then(|macs| macs.first()) {
        let addrs: BTreeSet<IpAddr> = learnt
            .neighbours
            .iter()
            .filter(|n| n.ifindex == bridge && n.mac == *mac)
            .filter_map(|n| n.ip)
            .filter(|ip| is_pod_address(*ip))
            .collect();
        if !addrs.is_empty() {
            return (How::Neighbours, addrs, *mac);
        }
    }
    (How::Unknown, BTreeSet::new(), mac_inside)
}

pub fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    dump(netlink, || Request::new(RTM_GETLINK, &link_header(0)), parse::link)
}

fn dump<T: IntoIterator>(
    netlink: &mut Netlink,
    request: impl Fn() -> Request,
    parse: impl Fn(&[u8]) -> T,
) -> io::Result<Vec<T::Item>> {
    retry(|| {
        let mut found = Vec::new();
        netlink.dump(request(), |_, payload| found.extend(parse(payload)))?;
        Ok(found)
    })
}

fn link_header(ifindex: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header
}

fn address_header(family: i32) -> [u8; 8] {
    let mut header = [0; 8];
    header[0] = family as u8;
    header
}

fn route_header(family: i32) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family as u8;
    header
}

fn neighbour_header(family: i32) -> [u8; 12] {
    route_header(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn set(addrs: &[&str]) -> BTreeSet<IpAddr> {
        addrs.iter().map(|a| ip(a)).collect()
    }

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn route(ifindex: u32, to: &str, prefix: u8, gateway: bool) -> Route {
        Route { ifindex, destination: Some(ip(to)), prefix, gateway, shared: false }
    }

    #[test]
    fn host_routes_of_full_length_prove_addresses() {
        let link = Link { ifindex: 9, ..Link::default() };
        let routes = [
            route(9, "10.244.1.5", 32, false),
            route(9, "fd00:244:1::5", 128, false),
            route(9, "fe80::1", 128, false),
            route(9, "10.244.2.0", 24, false),
            route(9, "10.244.1.9", 32, true),
            route(8, "10.244.1.6", 32, false),
            Route { shared: true, ..route(9, "10.244.1.7", 32, false) },
        ];
        let neighbours = vec![Neighbour { ifindex: 9, ip: Some(ip("10.244.1.5")), mac: MAC }];
        let learnt = Learnt { neighbours, ..Learnt::default() };
        let want = (How::HostRoutes, set(&["10.244.1.5", "fd00:244:1::5"]), MAC);
        assert_eq!(outside(&link, 0, &routes, &learnt, [0; 6]), want);
        let (_, _, mac) = outside(&link, 0, &routes, &Learnt::default(), [7; 6]);
        assert_eq!(mac, [7; 6], "without a neighbour entry, the namespace's word for the MAC");
    }

    #[test]
    fn a_bridge_port_is_known_by_the_one_mac_behind_it() {
        let link = Link { ifindex: 9, ..Link::default() };
        let neighbours = vec![
            Neighbour { ifindex: 3, ip: Some(ip("10.244.0.5")), mac: MAC },
            Neighbour { ifindex: 3, ip: Some(ip("10.244.0.6")), mac: [2, 0, 0, 0, 0, 8] },
            Neighbour { ifindex: 4, ip: Some(ip("10.9.0.5")), mac: MAC },
        ];
        let ports = BTreeMap::from([(9, BTreeSet::from([MAC]))]);
        let learnt = Learnt { ports, neighbours: neighbours.clone() };
        assert_eq!(outside(&link, 3, &[], &learnt, [0; 6]), (How::Neighbours, set(&["10.244.0.5"]), MAC));
        let unknown = (How::Unknown, set(&[]), [0; 6]);
        assert_eq!(outside(&link, 0, &[], &learnt, [0; 6]), unknown, "no port of a bridge");
        let ports = BTreeMap::from([(9, BTreeSet::from([MAC, [2, 0, 0, 0, 0, 8]]))]);
        assert_eq!(outside(&link, 3, &[], &Learnt { ports, neighbours }, [0; 6]), unknown, "two MACs behind one port");
    }
}
