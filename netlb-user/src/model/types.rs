//! Small types that several objects share.

use std::fmt;
use std::net::IpAddr;
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

    /// The word in reports: `ipv4` or `ipv6`.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
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
    /// From `address/length`; `None` if it is not that.
    pub fn parse(text: &str) -> Option<Self> {
        let (addr, len) = text.split_once('/')?;
        let addr: IpAddr = addr.parse().ok()?;
        let len: u8 = len.parse().ok()?;
        (len <= if addr.is_ipv4() { 32 } else { 128 }).then_some(Cidr { addr, len })
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
