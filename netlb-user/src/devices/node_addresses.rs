//! Which addresses of this node serve NodePorts (kube-proxy's nodePortAddresses, KEP-1422 and KEP-6032), and which it calls its own.
//!
//! As in kube-proxy's nftables mode: nothing named means `primary`; a list of ranges that names only one family leaves the other one open;
//! loopback is served only by `localhost`. Link-local addresses are served only by a range of such.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Picture;
use super::select::is_pod_address;
use super::uplinks::{self, Judged};
use crate::model::{Cidr, Family, HostState, PodAddresses, Uplink};

/// `--nodeport-addresses`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodePortAddresses {
    /// The node's primary address of each family.
    pub primary: bool,
    /// 127.0.0.1 and ::1, for the node's own sockets.
    pub localhost: bool,
    pub ranges: Ranges,
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        NodePortAddresses { primary: true, localhost: false, ranges: Ranges::default() }
    }
}

impl NodePortAddresses {
    /// From the words of the flag.
    ///
    /// # Errors
    /// The first word that is none.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let words: Vec<&str> = words.iter().map(|word| word.trim()).filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            return Ok(NodePortAddresses::default());
        }
        let mut wish = NodePortAddresses { primary: false, localhost: false, ranges: Ranges::default() };
        for word in words {
            match word {
                "primary" => wish.primary = true,
                "localhost" => wish.localhost = true,
                _ => wish.ranges.0.push(Cidr::parse(word).ok_or_else(|| word.to_owned())?),
            }
        }
        Ok(wish)
    }

    /// Every address of both families serves NodePorts, whatever the node has.
    pub fn are_all(&self) -> bool {
        let worded = self.primary || self.localhost;
        let all = |family| (!worded || self.ranges.names(family)) && self.ranges.of(family, &BTreeSet::new()).all;
        all(Family::V4) && all(Family::V6)
    }

    /// The addresses that serve NodePorts, out of all addresses of the node's devices.
    pub fn served(&self, own: &BTreeSet<IpAddr>, primary: PodAddresses) -> BTreeSet<IpAddr> {
        let mut served = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            // A word speaks for both families.
            let worded = self.primary || self.localhost;
            if !worded || self.ranges.names(family) {
                let found = self.ranges.of(family, own).addresses;
                served.extend(found.into_iter().filter(|ip| is_pod_address(*ip) || self.ranges.names_link_local(*ip)));
            }
        }
        if self.primary {
            served.extend(primary.v4.into_iter().chain(primary.v6));
        }
        if self.localhost {
            served.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        }
        served
    }
}

/// Ranges of addresses as kube-proxy reads them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges(pub Vec<Cidr>);

/// What ranges mean for one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Matched {
    /// Every address is meant: by a range of length 0, or because no range is of the family.
    pub all: bool,
    /// Those the node has, loopback among them.
    pub addresses: BTreeSet<IpAddr>,
}

impl Ranges {
    /// What the ranges mean for a family, given all addresses of the node's devices.
    pub fn of(&self, family: Family, own: &BTreeSet<IpAddr>) -> Matched {
        let all = !self.names(family) || self.family(family).any(|range| range.len == 0);
        let meant = |ip: &IpAddr| all || self.family(family).any(|range| range.contains(*ip));
        let addresses = own.iter().copied().filter(|ip| Family::of(*ip) == family).filter(meant).collect();
        Matched { all, addresses }
    }

    fn names(&self, family: Family) -> bool {
        self.family(family).next().is_some()
    }

    /// By a range of link-local addresses, rather than one that happens to hold them too.
    fn names_link_local(&self, ip: IpAddr) -> bool {
        is_link_local(ip) && self.0.iter().any(|range| is_link_local(range.addr) && range.contains(ip))
    }

    fn family(&self, family: Family) -> impl Iterator<Item = &Cidr> {
        self.0.iter().filter(move |range| Family::of(range.addr) == family)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The node's primary address of each family: the first of those `named` (by `--bind-address`, then by the Node object) that is on this machine,
/// else the first lasting one of an uplink; uplinks with a default route come first.
pub fn primary(picture: &Picture, named: &[IpAddr]) -> PodAddresses {
    let own: BTreeSet<IpAddr> = own(picture);
    let mut judged: Vec<&Judged> = picture.others.values().filter(|j| j.is_uplink).collect();
    judged.sort_by_key(|j| !j.default_route);
    let of = |family: Family, address: fn(&Uplink) -> Option<IpAddr>| {
        let mut named = named.iter().copied().filter(|ip| Family::of(*ip) == family && own.contains(ip));
        named.next().or_else(|| judged.iter().find_map(|j| address(&j.device)))
    };
    PodAddresses { v4: of(Family::V4, |uplink| uplink.v4), v6: of(Family::V6, |uplink| uplink.v6) }
}

fn own(picture: &Picture) -> BTreeSet<IpAddr> {
    picture.addresses.iter().map(|address| address.ip).collect()
}

/// This node for the plan.
pub fn host_state(picture: &Picture, wish: &NodePortAddresses, primary: PodAddresses) -> HostState {
    HostState {
        node_port_addresses: wish.served(&own(picture), primary),
        uplinks: uplinks::uplinks(&picture.others).map(|(ifindex, uplink)| (ifindex, uplink.clone())).collect(),
        clients: picture.clients.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::parse::Address;
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| ip(text)).collect()
    }

    fn wish(list: &str) -> NodePortAddresses {
        let words: Vec<String> = list.split(',').map(str::to_owned).collect();
        NodePortAddresses::parse(&words).expect("good words")
    }

    #[test]
    fn all_means_all_of_both_families() {
        for (list, all) in [
            ("0.0.0.0/0,::/0", true),
            ("0.0.0.0/0", true),
            ("0.0.0.0/0,2001:db8::/32", false),
            ("0.0.0.0/0,primary", false),
            ("primary", false),
            ("10.0.0.0/8", false),
        ] {
            assert_eq!(wish(list).are_all(), all, "{list}");
        }
    }

    #[test]
    fn what_each_word_serves() {
        let own = set(&[
            "127.0.0.1",
            "127.0.1.1",
            "::1",
            "192.168.99.11",
            "10.0.0.7",
            "169.254.1.1",
            "fe80::7",
            "2001:db8::1",
            "fd00::9",
        ]);
        let primary = PodAddresses { v4: Some(ip("192.168.99.11")), v6: Some(ip("2001:db8::1")) };
        let v4: &[&str] = &["192.168.99.11", "10.0.0.7"];
        let v6: &[&str] = &["2001:db8::1", "fd00::9"];
        for (list, want) in [
            ("", &["192.168.99.11", "2001:db8::1"][..]),
            ("primary", &["192.168.99.11", "2001:db8::1"]),
            ("localhost", &["127.0.0.1", "::1"]),
            ("primary,localhost", &["127.0.0.1", "::1", "192.168.99.11", "2001:db8::1"]),
            ("primary, 10.0.0.0/8", &["192.168.99.11", "10.0.0.7", "2001:db8::1"]),
            ("localhost,10.0.0.0/8", &["127.0.0.1", "::1", "10.0.0.7"]),
            ("0.0.0.0/0,::/0", &[v4, v6].concat()),
            ("0.0.0.0/0", &[v4, v6].concat()),
            ("10.0.0.0/8", &[&["10.0.0.7"], v6].concat()),
            ("10.0.0.0/8,fd00::/8", &["10.0.0.7", "fd00::9"]),
            ("127.0.0.0/8,::1/128", &[]),
            ("169.254.0.0/16,fe80::/10", &["169.254.1.1", "fe80::7"]),
            ("169.254.0.0/16,::/0", &["169.254.1.1", "2001:db8::1", "fd00::9"]),
            ("10.0.0.7/32,2001:db8::/127", &["10.0.0.7", "2001:db8::1"]),
            ("172.16.0.0/12,fd01::/16", &[]),
        ] {
            assert_eq!(wish(list).served(&own, primary), set(want), "{list}");
        }
        for bad in ["10.0.0.1", "10.0.0.0/33", "all", "primary;localhost"] {
            assert_eq!(NodePortAddresses::parse(&[bad.to_owned()]), Err(bad.to_owned()));
        }
    }

    #[test]
    fn the_primary_address_is_the_node_objects_if_it_is_here() {
        let uplink = |v4: &str, default_route| Judged {
            device: Uplink { name: String::new(), v4: Some(ip(v4)), v6: None, mtu: 1500, pod_source: false },
            is_uplink: true,
            default_route,
            why: String::new(),
        };
        let others = BTreeMap::from([(2, uplink("10.1.0.2", false)), (3, uplink("10.2.0.2", true))]);
        let address = |text: &str| Address { ifindex: 2, ip: ip(text), prefix: 24, lasting: true };
        let addresses = vec![address("10.1.0.2"), address("10.1.0.3"), address("fd00::1")];
        let mut picture = Picture { others, addresses, ..Picture::default() };
        let ask = |picture: &Picture, object: &[&str]| {
            let object: Vec<IpAddr> = object.iter().map(|text| ip(text)).collect();
            let found = primary(picture, &object);
            (found.v4, found.v6)
        };
        assert_eq!(ask(&picture, &["10.9.9.9", "10.1.0.3", "fd00::1"]), (Some(ip("10.1.0.3")), Some(ip("fd00::1"))));
        assert_eq!(ask(&picture, &["10.9.9.9"]), (Some(ip("10.2.0.2")), None), "the uplink with the default route");
        picture.others.retain(|ifindex, _| *ifindex == 2);
        assert_eq!(ask(&picture, &[]), (Some(ip("10.1.0.2")), None));
        picture.others.clear();
        assert_eq!(ask(&picture, &[]), (None, None));
    }
}
