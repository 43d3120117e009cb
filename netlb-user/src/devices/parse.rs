//! rtnetlink payloads (rtnetlink(7)) to the few fields the agent uses.

use std::net::IpAddr;

use crate::netlink::{Attributes, attributes};

/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Of its ifi_type (if_arp.h).
const ARPHRD_ETHER: u16 = 1;
/// Of its ifi_flags (if.h).
const IFF_LOOPBACK: u32 = 0x8;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;

/// `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// Of an IPv6 address: made up for privacy, and given up after a while. Of an IPv4 address: not the first of its subnet.
const IFA_F_TEMPORARY: u32 = 0x01;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;

/// `struct rtmsg`.
const ROUTE_HEADER: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
const RTN_UNICAST: u8 = 1;
/// `struct rtnexthop`: length of it with its attributes, flags, hops, interface index.
const NEXT_HOP_HEADER: usize = 8;

/// `struct ndmsg`.
const NEIGHBOUR_HEADER: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_INCOMPLETE: u16 = 0x01;
const NUD_FAILED: u16 = 0x20;
const NUD_PERMANENT: u16 = 0x80;

/// A link of the agent's namespace, or a pod's end of a veth.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// `veth`, `bridge`, …; empty for hardware.
    pub kind: String,
    pub mtu: u32,
    pub mac: [u8; 6],
    /// Interface index of the master; 0: none.
    pub master: u32,
    /// Interface index of the veth's other end, in its own namespace; 0: none.
    pub peer: u32,
    /// This namespace's id for the one the other end is in; `None`: it is in this one.
    pub peer_namespace: Option<i32>,
    /// Its frames begin with an Ethernet header.
    pub ethernet: bool,
    pub loopback: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    pub ifindex: u32,
    pub ip: IpAddr,
    pub prefix: u8,
    /// Others may be told of it: it is proven to be nobody else's, and not about to go.
    pub lasting: bool,
}

/// A route of the main table, as far as it says what is behind a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Interface it leaves by.
    pub ifindex: u32,
    /// Destination; `None` for a default route.
    pub destination: Option<IpAddr>,
    pub prefix: u8,
    /// By way of a router.
    pub gateway: bool,
    /// One of several ways to the destination: says nothing about what is behind one device.
    pub shared: bool,
}

/// A neighbour of an interface, or a MAC a bridge learnt on a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    pub ifindex: u32,
    /// `None` in a bridge's table.
    pub ip: Option<IpAddr>,
    pub mac: [u8; 6],
}

/// RTM_NEWLINK.
pub fn link(payload: &[u8]) -> Option<Link> {
    let attributes = attributes(payload, LINK_HEADER);
    let kind = attributes.get(IFLA_LINKINFO).map(|info| crate::netlink::attributes(info, 0).text(IFLA_INFO_KIND));
    Some(Link {
        ifindex: word(payload, 4)?,
        name: attributes.text(IFLA_IFNAME)?,
        kind: kind.flatten().unwrap_or_default(),
        mtu: attributes.u32(IFLA_MTU).unwrap_or(0),
        mac: mac(&attributes, IFLA_ADDRESS).unwrap_or_default(),
        master: attributes.u32(IFLA_MASTER).unwrap_or(0),
        peer: attributes.u32(IFLA_LINK).unwrap_or(0),
        peer_namespace: attributes.u32(IFLA_LINK_NETNSID).map(|id| id as i32).filter(|id| *id >= 0),
        ethernet: payload.get(2..4)? == ARPHRD_ETHER.to_ne_bytes(),
        loopback: word(payload, 8)? & IFF_LOOPBACK != 0,
    })
}

/// RTM_NEWADDR; addresses that failed duplicate detection are nobody's.
pub fn address(payload: &[u8]) -> Option<Address> {
    let attributes = attributes(payload, ADDRESS_HEADER);
    let flags = attributes.u32(IFA_FLAGS).unwrap_or(0);
    if flags & IFA_F_DADFAILED != 0 {
        return None;
    }
    let ip = attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS)).and_then(ip)?;
    let passing = IFA_F_TENTATIVE | IFA_F_DEPRECATED | if ip.is_ipv6() { IFA_F_TEMPORARY } else { 0 };
    Some(Address { ifindex: word(payload, 4)?, ip, prefix: *payload.get(1)?, lasting: flags & passing == 0 })
}

/// RTM_NEWROUTE; unicast routes only. A multipath route is one a device.
pub fn route(payload: &[u8]) -> Vec<Route> {
    ways(payload).unwrap_or_default()
}

fn ways(payload: &[u8]) -> Option<Vec<Route>> {
    let attributes = attributes(payload, ROUTE_HEADER);
    if *payload.get(7)? != RTN_UNICAST {
        return None;
    }
    let (destination, prefix) = (attributes.get(RTA_DST).and_then(ip), *payload.get(1)?);
    let routed = |hop: &Attributes<'_>| hop.get(RTA_GATEWAY).is_some() || hop.get(RTA_VIA).is_some();
    let Some(mut hops) = attributes.get(RTA_MULTIPATH) else {
        let (ifindex, gateway) = (attributes.u32(RTA_OIF)?, routed(&attributes));
        return Some(vec![Route { ifindex, destination, prefix, gateway, shared: false }]);
    };
    let mut ways = Vec::new();
    while let Some(len) = hops.get(..2) {
        let len = usize::from(u16::from_ne_bytes(len.try_into().ok()?));
        let hop = hops.get(..len).filter(|_| len >= NEXT_HOP_HEADER)?;
        let gateway = routed(&crate::netlink::attributes(hop, NEXT_HOP_HEADER));
        ways.push(Route { ifindex: word(hop, 4)?, destination, prefix, gateway, shared: true });
        hops = hops.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(ways)
}

/// RTM_NEWNEIGH: of an interface, or (family AF_BRIDGE) of a bridge's port. Entries without a proven MAC, and a bridge's own, are left out.
pub fn neighbour(payload: &[u8]) -> Option<Neighbour> {
    let attributes = attributes(payload, NEIGHBOUR_HEADER);
    let state = u16::from_ne_bytes(payload.get(8..10)?.try_into().ok()?);
    let bridge = i32::from(*payload.first()?) == libc::AF_BRIDGE;
    if state & (NUD_INCOMPLETE | NUD_FAILED) != 0 || bridge && state & NUD_PERMANENT != 0 {
        return None;
    }
    Some(Neighbour {
        ifindex: word(payload, 4)?,
        ip: attributes.get(NDA_DST).and_then(ip).filter(|_| !bridge),
        mac: mac(&attributes, NDA_LLADDR)?,
    })
}

fn mac(attributes: &Attributes<'_>, kind: u16) -> Option<[u8; 6]> {
    attributes.get(kind)?.try_into().ok()
}

pub fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

fn word(payload: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(payload.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attributes as the kernel lays them out.
    fn with(header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        for (kind, value) in attributes {
            bytes.extend((4 + value.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn link_header(ifindex: u32) -> Vec<u8> {
        let mut header = vec![0u8; LINK_HEADER];
        header[2..4].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        header
    }

    #[test]
    fn devices_without_ethernet_headers_and_the_loopback() {
        let mut header = link_header(1);
        header[2..4].copy_from_slice(&772u16.to_ne_bytes());
        header[8..12].copy_from_slice(&(IFF_LOOPBACK | 1).to_ne_bytes());
        let lo = link(&with(&header, &[(IFLA_IFNAME, b"lo\0")])).expect("a link");
        assert_eq!((lo.ethernet, lo.loopback), (false, true));
    }

    #[test]
    fn a_veth_with_its_peer_elsewhere() {
        let kind = with(&[], &[(IFLA_INFO_KIND, b"veth\0")]);
        let payload = with(
            &link_header(7),
            &[
                (IFLA_IFNAME, b"veth0a1b\0"),
                (IFLA_MTU, &1450u32.to_ne_bytes()),
                (IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
                (IFLA_LINK, &2u32.to_ne_bytes()),
                (IFLA_MASTER, &4u32.to_ne_bytes()),
                (IFLA_LINKINFO | 0x8000, &kind),
                (IFLA_LINK_NETNSID, &3u32.to_ne_bytes()),
            ],
        );
        let want = Link {
            ifindex: 7,
            name: "veth0a1b".to_owned(),
            kind: "veth".to_owned(),
            mtu: 1450,
            mac: [2, 0, 0, 0, 0, 1],
            master: 4,
            peer: 2,
            peer_namespace: Some(3),
            ethernet: true,
            loopback: false,
        };
        assert_eq!(link(&payload), Some(want));
        let unassigned = with(&link_header(7), &[(IFLA_IFNAME, b"a\0"), (IFLA_LINK_NETNSID, &(-1i32).to_ne_bytes())]);
        assert_eq!(link(&unassigned).and_then(|l| l.peer_namespace), None);
        assert_eq!(link(&link_header(7)), None, "a link without a name is not one");
    }

    #[test]
    fn addresses_prefer_the_local_end_and_skip_duplicates() {
        let header = [2, 24, 0, 0, 5, 0, 0, 0];
        let payload = with(&header, &[(IFA_ADDRESS, &[10, 0, 0, 1]), (IFA_LOCAL, &[10, 0, 0, 2])]);
        let ip: IpAddr = [10, 0, 0, 2].into();
        assert_eq!(address(&payload), Some(Address { ifindex: 5, ip, prefix: 24, lasting: true }));
        let v6 = with(&[10, 64, 0, 0, 5, 0, 0, 0], &[(IFA_ADDRESS, &[0xfd; 16])]);
        assert_eq!(address(&v6).map(|a| a.ip), Some(IpAddr::from([0xfd; 16])));
        let duplicate = with(&header, &[(IFA_LOCAL, &[10, 0, 0, 2]), (IFA_FLAGS, &IFA_F_DADFAILED.to_ne_bytes())]);
        assert_eq!(address(&duplicate), None);
        let lasts = |family: u8, ip: &[u8], flags: u32| {
            let header = [family, 24, 0, 0, 5, 0, 0, 0];
            address(&with(&header, &[(IFA_ADDRESS, ip), (IFA_FLAGS, &flags.to_ne_bytes())])).map(|a| a.lasting)
        };
        assert_eq!(lasts(2, &[10, 0, 0, 2], IFA_F_TEMPORARY), Some(true), "the second of its subnet");
        for flags in [IFA_F_TEMPORARY, IFA_F_TENTATIVE, IFA_F_DEPRECATED] {
            assert_eq!(lasts(10, &[0xfd; 16], flags), Some(false), "{flags}");
        }
    }

    #[test]
    fn routes_by_device_and_by_router() {
        let header = |prefix, kind| [2, prefix, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
        let oif = 9u32.to_ne_bytes();
        let host = with(&header(32, RTN_UNICAST), &[(RTA_DST, &[10, 244, 0, 5]), (RTA_OIF, &oif)]);
        let ip: IpAddr = [10, 244, 0, 5].into();
        let way =
            |ifindex, destination, prefix, gateway, shared| Route { ifindex, destination, prefix, gateway, shared };
        assert_eq!(route(&host), [way(9, Some(ip), 32, false, false)]);
        let default = with(&header(0, RTN_UNICAST), &[(RTA_GATEWAY, &[192, 168, 99, 1]), (RTA_OIF, &oif)]);
        assert_eq!(route(&default), [way(9, None, 0, true, false)]);
        assert_eq!(route(&with(&header(32, 2), &[(RTA_OIF, &oif)])), [], "a local route");
        let hop = |ifindex: u8, attributes: &[(u16, &[u8])]| {
            let mut hop = with(&[0, 0, 0, 0, ifindex, 0, 0, 0], attributes);
            let len = hop.len() as u16;
            hop[..2].copy_from_slice(&len.to_ne_bytes());
            hop
        };
        let hops = [hop(7, &[(RTA_GATEWAY, &[192, 168, 99, 1])]), hop(8, &[])].concat();
        let several = with(&header(0, RTN_UNICAST), &[(RTA_MULTIPATH, &hops)]);
        assert_eq!(route(&several), [way(7, None, 0, true, true), way(8, None, 0, false, true)]);
        assert_eq!(route(&with(&header(24, RTN_UNICAST), &[(RTA_MULTIPATH, &[0; 8])])), [], "a way cut short");
    }

    #[test]
    fn neighbours_with_a_proven_mac() {
        let header = |family: u8, state: u16| {
            let mut h = vec![family, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
            h[8..10].copy_from_slice(&state.to_ne_bytes());
            h
        };
        let lladdr: (u16, &[u8]) = (NDA_LLADDR, &[2, 0, 0, 0, 0, 9]);
        let reachable = with(&header(2, 2), &[(NDA_DST, &[10, 244, 0, 5]), lladdr]);
        let want = Neighbour { ifindex: 4, ip: Some([10, 244, 0, 5].into()), mac: [2, 0, 0, 0, 0, 9] };
        assert_eq!(neighbour(&reachable), Some(want));
        assert_eq!(neighbour(&with(&header(2, NUD_FAILED), &[lladdr])), None);
        assert_eq!(neighbour(&with(&header(2, 2), &[(NDA_DST, &[10, 244, 0, 5])])), None, "no MAC");
        let bridge = libc::AF_BRIDGE as u8;
        assert_eq!(neighbour(&with(&header(bridge, 2), &[lladdr])).and_then(|n| n.ip), None);
        assert_eq!(neighbour(&with(&header(bridge, NUD_PERMANENT), &[lladdr])), None, "the port's own MAC");
    }
}
