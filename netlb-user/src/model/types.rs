//! Small types that several objects share.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use netlb_common::proto;

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The unspecified address: what NodePorts are claimed on.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// The word in reports: `ipv4` or `ipv6`.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }

    /// The word Kubernetes has for it: `IPv4` or `IPv6`.
    pub fn kubernetes(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// The protocol of a Service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The IANA number, as it stands in packets and maps.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => proto::TCP,
            Protocol::Udp => proto::UDP,
            Protocol::Sctp => proto::SCTP,
        }
    }

    /// The name Kubernetes gives it.
    pub fn name(self) -> &'static str {
        proto::name(self.number())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A range of addresses; host bits are kept as written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cidr {
    pub addr: IpAddr,
    /// Bits of the network, at most 32 or 128.
    pub len: u8,
}

impl Cidr {
    /// From `address/length`; `None` if it is not that, or an IPv4 range written as IPv6.
    pub fn parse(text: &str) -> Option<Self> {
        let (addr, len) = text.split_once('/')?;
        let addr: IpAddr = addr.parse().ok()?;
        let len: u8 = len.parse().ok()?;
        let most = match addr {
            IpAddr::V4(_) => 32,
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return None,
            IpAddr::V6(_) => 128,
        };
        (len <= most).then_some(Cidr { addr, len })
    }
}

impl Cidr {
    /// Whether an address is inside. Another family is not.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0);
                net.to_bits() & mask == addr.to_bits() & mask
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
                net.to_bits() & mask == addr.to_bits() & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// What every object carries beside its name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// File the object was read from, for messages.
    pub file: Option<Arc<str>>,
    /// Seconds since 1970 (UTC) of its creation, if it says so.
    pub created: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::Cidr;

    #[test]
    fn a_range_holds_its_own_addresses() {
        for (range, addr, inside) in [
            ("10.96.3.7/16", "10.96.255.1", true),
            ("10.96.0.0/16", "10.97.0.0", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("1.2.3.4/32", "1.2.3.4", true),
            ("1.2.3.4/32", "1.2.3.5", false),
            ("::/0", "fd00::1", true),
            ("::/0", "1.2.3.4", false),
            ("fd00::/64", "fd00::ffff:0:0:1", true),
            ("fd00::1/128", "fd00::2", false),
        ] {
            let contains = Cidr::parse(range).unwrap().contains(addr.parse().unwrap());
            assert_eq!(contains, inside, "{addr} in {range}");
        }
    }
}
