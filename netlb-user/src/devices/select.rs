//! Which links are pods' devices.
//!
//! A pod's device is a veth whose other end is in another network namespace. A node that itself is a container has such a veth as its uplink:
//! what carries an address with a subnet, or a route by way of a router, is one, and no pod's device. (The host side of a pod's veth has no
//! address, a link-local one, or the gateway's with full prefix length.)

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::detector::Detector;
use super::parse::{Address, Link, Route};

/// What the operator says about devices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wishes {
    /// Names (with `*`) of pods' devices; empty: any veth to another namespace.
    pub pod_interfaces: Vec<String>,
    /// Names (with `*`) of uplinks, and of nothing else; empty: they are found.
    pub uplinks: Vec<String>,
    /// Which devices mark what comes from them as a pod's.
    pub detector: Detector,
    /// Find out the cookies of pods' network namespaces.
    pub cookies: bool,
}

impl Wishes {
    /// The operator says that this is an uplink.
    pub fn names_uplink(&self, name: &str) -> bool {
        matches(&self.uplinks, name)
    }
}

fn matches(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|p| glob(p, name))
}

/// The links that lead to pods, in the order given.
pub fn pods<'a>(links: &'a [Link], addresses: &[Address], routes: &[Route], wishes: &Wishes) -> Vec<&'a Link> {
    let uplinks: BTreeSet<u32> = addresses
        .iter()
        .filter(|a| has_subnet(a))
        .map(|a| a.ifindex)
        .chain(routes.iter().filter(|r| r.gateway).map(|r| r.ifindex))
        .collect();
    links
        .iter()
        .filter(|link| link.kind == "veth" && link.peer_namespace.is_some())
        .filter(|link| !uplinks.contains(&link.ifindex) && !wishes.names_uplink(&link.name))
        .filter(|link| wishes.pod_interfaces.is_empty() || matches(&wishes.pod_interfaces, &link.name))
        .collect()
}

/// Neighbours share the address's network, so it is no pod's gateway.
pub(super) fn has_subnet(address: &Address) -> bool {
    match address.ip {
        IpAddr::V4(ip) => address.prefix < 32 && !ip.is_link_local(),
        IpAddr::V6(ip) => address.prefix < 128 && !ip.is_unicast_link_local(),
    }
}

/// Whether an address can be a pod's as others know it.
pub fn is_pod_address(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast()),
    }
}

/// `*` stands for any characters, everything else for itself.
fn glob(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((front, rest)) => name.strip_prefix(front).is_some_and(|after| {
            (0..=after.len()).filter(|i| after.is_char_boundary(*i)).any(|i| glob(rest, &after[i..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str, kind: &str, peer_namespace: Option<i32>) -> Link {
        Link { ifindex, name: name.to_owned(), kind: kind.to_owned(), peer_namespace, ..Link::default() }
    }

    fn address(ifindex: u32, text: &str) -> Address {
        let (ip, prefix) = text.split_once('/').expect("has a prefix length");
        let (ip, prefix) = (ip.parse().expect("an address"), prefix.parse().expect("a length"));
        Address { ifindex, ip, prefix, lasting: true }
    }

    fn names<'a>(links: &'a [Link], addresses: &[Address], routes: &[Route], wishes: &Wishes) -> Vec<&'a str> {
        pods(links, addresses, routes, wishes).into_iter().map(|l| l.name.as_str()).collect()
    }

    fn world() -> Vec<Link> {
        vec![
            link(1, "lo", "", None),
            link(2, "eth0", "veth", Some(0)),
            link(3, "cni0", "bridge", None),
            link(4, "vetha", "veth", Some(1)),
            link(5, "calib", "veth", Some(2)),
            link(6, "here", "veth", None),
            link(7, "eth1", "veth", Some(3)),
        ]
    }

    #[test]
    fn uplinks_are_known_by_their_subnet_or_their_router() {
        let addresses = [
            address(2, "192.168.99.11/24"),
            address(4, "fe80::1/64"),
            address(5, "169.254.1.1/32"),
            address(5, "10.244.1.1/32"),
        ];
        let routes = [
            Route { ifindex: 7, destination: None, prefix: 0, gateway: true, shared: false },
            Route { ifindex: 5, destination: Some([10, 244, 1, 5].into()), prefix: 32, gateway: false, shared: false },
        ];
        assert_eq!(names(&world(), &addresses, &routes, &Wishes::default()), ["vetha", "calib"]);
        let v6 = [address(4, "fd00::1/64")];
        assert_eq!(names(&world(), &v6, &routes, &Wishes::default()), ["eth0", "calib"]);
    }

    #[test]
    fn the_operator_may_restrict_and_exclude() {
        let say = |pods: &[&str], uplinks: &[&str]| Wishes {
            pod_interfaces: pods.iter().map(|s| (*s).to_owned()).collect(),
            uplinks: uplinks.iter().map(|s| (*s).to_owned()).collect(),
            ..Wishes::default()
        };
        assert_eq!(names(&world(), &[], &[], &say(&["cali*"], &[])), ["calib"]);
        assert_eq!(names(&world(), &[], &[], &say(&[], &["eth*"])), ["vetha", "calib"]);
        assert_eq!(names(&world(), &[], &[], &say(&["eth*", "vetha"], &["eth1"])), ["eth0", "vetha"]);
    }

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("veth*", "veth0", true),
            ("veth*", "cali0", false),
            ("*", "", true),
            ("e*0", "eth10", true),
            ("e*0", "eth1", false),
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
        ] {
            assert_eq!(glob(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn link_local_addresses_are_no_pods() {
        for (ip, want) in
            [("10.244.0.5", true), ("169.254.3.4", false), ("fd00::5", true), ("fe80::5", false), ("127.0.0.1", false)]
        {
            assert_eq!(is_pod_address(ip.parse().expect("an address")), want, "{ip}");
        }
    }
}
