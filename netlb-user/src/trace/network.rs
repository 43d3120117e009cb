//! The node's network, as far as a packet's way needs it: links, and the FIB over netlink.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netlb_common::Addr;
use netlb_ebpf::packet::Hop;

use crate::devices::parse::{Link, ip};
use crate::devices::scan;
use crate::netlink::{Netlink, Request, attributes};

/// Where a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// To the node itself.
    pub local: bool,
    /// The device it leaves by.
    pub ifindex: u32,
    /// The router it goes to next; `None`: straight to its destination.
    pub gateway: Option<IpAddr>,
    /// The address the node itself would send from.
    pub source: Option<IpAddr>,
    /// Bytes of IP packet; 0: not known.
    pub mtu: u32,
}

/// Why a packet goes nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// No route, or one that says so, or forwarding is switched off.
    NoRoute,
    /// The kernel does not believe that such a source comes by that device.
    Martian,
}

/// What is asked of the network.
pub trait Network {
    /// The way of a packet that came in by a device.
    ///
    /// # Errors
    /// If it has none.
    fn input(&self, ifindex: u32, src: IpAddr, dst: IpAddr) -> Result<Way, Lost>;
    /// The way of a packet that the node sends itself; `src`: from this address of its own.
    ///
    /// # Errors
    /// If it has none.
    fn output(&self, src: Option<IpAddr>, dst: IpAddr) -> Result<Way, Lost>;
    fn link(&self, ifindex: u32) -> Option<&Link>;
    fn links(&self) -> Box<dyn Iterator<Item = &Link> + '_>;

    /// A device's name.
    fn name(&self, ifindex: u32) -> String {
        self.link(ifindex).map_or_else(|| format!("device#{ifindex}"), |link| link.name.clone())
    }

    /// What `bpf_fib_lookup` answers at a hook of a device: it asks for packets that came in, but does not doubt their source.
    fn hop(&self, ifindex: u32, src: Addr, dst: Addr, len: u32) -> (Hop, Option<Way>) {
        let (src, dst) = (src.to_ip(), dst.to_ip());
        let found = match self.input(ifindex, src, dst) {
            Err(Lost::Martian) => self.output(Some(src), dst).or_else(|_| self.output(None, dst)),
            found => found,
        };
        let hop = match found {
            Err(_) => Hop::Nowhere,
            Ok(way) if way.local => Hop::Local,
            Ok(way) if way.mtu != 0 && len > way.mtu => Hop::TooBig(way.mtu),
            Ok(way) => Hop::To(way.ifindex),
        };
        (hop, found.ok())
    }
}

/// The network of the calling thread's namespace.
pub struct Live {
    netlink: std::cell::RefCell<Netlink>,
    links: BTreeMap<u32, Link>,
}

const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
/// Bytes of `struct rtmsg`, and where its type stands.
const HEADER: usize = 12;
const TYPE: usize = 7;
const RTN_UNICAST: u8 = 1;
/// Blackhole, unreachable, prohibit, throw.
const RTN_NOWHERE: std::ops::RangeInclusive<u8> = 6..=9;
/// Bytes of the family before the address in RTA_VIA (`struct rtvia`).
const VIA_FAMILY: usize = 2;

impl Live {
    /// Reads the links.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let mut netlink = Netlink::open(libc::NETLINK_ROUTE)?;
        let links = scan::links(&mut netlink)?.into_iter().map(|link| (link.ifindex, link)).collect();
        Ok(Live { netlink: netlink.into(), links })
    }

    fn ask(&self, iif: Option<u32>, src: Option<IpAddr>, dst: IpAddr) -> Result<Way, Lost> {
        let answer = self.netlink.borrow_mut().one(request(iif, src, dst));
        let way = match answer {
            Ok(Some(payload)) => way(&payload).ok_or(Lost::NoRoute)?,
            Ok(None) => return Err(Lost::NoRoute),
            // What the kernel says of a source it does not believe, with and without a reverse path filter.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EXDEV)) => return Err(Lost::Martian),
            Err(_) => return Err(Lost::NoRoute),
        };
        let device = self.links.get(&way.ifindex).map_or(0, |link| link.mtu);
        Ok(Way { mtu: if way.mtu == 0 { device } else { way.mtu }, ..way })
    }

    /// Whether IPv6 packets from a device are forwarded; of IPv4 ones the FIB itself says so.
    fn forwards_v6(&self, ifindex: u32) -> bool {
        let path = format!("/proc/sys/net/ipv6/conf/{}/forwarding", self.name(ifindex).replace('.', "/"));
        std::fs::read_to_string(path).map_or(true, |word| word.trim() != "0")
    }
}

impl Network for Live {
    fn input(&self, ifindex: u32, src: IpAddr, dst: IpAddr) -> Result<Way, Lost> {
        let way = self.ask(Some(ifindex), Some(src), dst)?;
        if dst.is_ipv6() && !way.local && !self.forwards_v6(ifindex) { Err(Lost::NoRoute) } else { Ok(way) }
    }

    fn output(&self, src: Option<IpAddr>, dst: IpAddr) -> Result<Way, Lost> {
        self.ask(None, src, dst)
    }

    fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    fn links(&self) -> Box<dyn Iterator<Item = &Link> + '_> {
        Box::new(self.links.values())
    }
}

fn request(iif: Option<u32>, src: Option<IpAddr>, dst: IpAddr) -> Request {
    let (family, bits) = if dst.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    let mut header = [0; HEADER];
    (header[0], header[1]) = (family as u8, bits);
    if src.is_some() {
        header[2] = bits;
    }
    let mut request = Request::new(RTM_GETROUTE, &header).with(RTA_DST, &octets(dst));
    if let Some(src) = src {
        request = request.with(RTA_SRC, &octets(src));
    }
    match iif {
        Some(ifindex) => request.with(RTA_IIF, &ifindex.to_ne_bytes()),
        None => request,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RTM_NEWROUTE as the answer to a question; `None` for a route that leads nowhere. The MTU is the route's own.
fn way(payload: &[u8]) -> Option<Way> {
    let kind = *payload.get(TYPE)?;
    if RTN_NOWHERE.contains(&kind) {
        return None;
    }
    let attributes = attributes(payload, HEADER);
    let via = attributes.get(RTA_VIA).and_then(|via| via.get(VIA_FAMILY..));
    let metrics = attributes.get(RTA_METRICS).map(|metrics| crate::netlink::attributes(metrics, 0));
    Some(Way {
        local: kind != RTN_UNICAST,
        ifindex: attributes.u32(RTA_OIF)?,
        gateway: attributes.get(RTA_GATEWAY).or(via).and_then(ip),
        source: attributes.get(RTA_PREFSRC).and_then(ip),
        mtu: metrics.and_then(|metrics| metrics.u32(RTAX_MTU)).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RTM_NEWROUTE of a type with attributes, as the kernel lays them out.
    fn answer(kind: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[TYPE] = kind;
        for (number, value) in attributes {
            bytes.extend((4 + value.len() as u16).to_ne_bytes());
            bytes.extend(number.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn answers_of_the_fib() {
        let mut mtu = vec![8, 0, 2, 0];
        mtu.extend(1400u32.to_ne_bytes());
        let oif = 3u32.to_ne_bytes();
        let routed = answer(
            RTN_UNICAST,
            &[(RTA_OIF, &oif), (RTA_GATEWAY, &[10, 0, 0, 1]), (RTA_PREFSRC, &[10, 0, 0, 2]), (RTA_METRICS, &mtu)],
        );
        let ip = |last| Some(IpAddr::from([10, 0, 0, last]));
        assert_eq!(way(&routed), Some(Way { local: false, ifindex: 3, gateway: ip(1), source: ip(2), mtu: 1400 }));
        let own = way(&answer(2, &[(RTA_OIF, &oif)])).expect("a route");
        assert!(own.local && own.gateway.is_none() && own.mtu == 0);
        let mut via = vec![10, 0];
        via.extend([0xfd; 16]);
        let over_v6 = way(&answer(RTN_UNICAST, &[(RTA_OIF, &oif), (RTA_VIA, &via)])).expect("a route");
        assert_eq!(over_v6.gateway, Some(IpAddr::from([0xfd; 16])));
        for kind in RTN_NOWHERE {
            assert_eq!(way(&answer(kind, &[(RTA_OIF, &oif)])), None);
        }
        assert_eq!(way(&answer(RTN_UNICAST, &[])), None);
    }
}
