//! The address plan: who has which address. The same in every run, for each run is a world of its own.
//!
//! | what | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | outside | 192.168.99.1/24 | fd00:99::1/64 |
//! | node *n* (1…200) | 192.168.99.(10+n)/24 | fd00:99::(10+n)/64 |
//! | pods of node *n* | 10.244.n.0/24 | fd00:244:0:n::/64 |
//! | all pods | 10.244.0.0/16 | fd00:244::/48 |
//! | Services | 10.96.0.0/16 | fd00:10:96::/112 |
//! | load balancers | 198.18.0.0/24 | fd00:198:18::/112 |
//! | external addresses, chosen by authors | 198.18.1.0/24 | fd00:198:18:1::/64 |
//! | a host beyond the outside | 192.168.98.2/24 | fd00:98::2/64 |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Most nodes that the plan has room for.
pub const MAX_NODES: u8 = 200;
/// All pods of all nodes, IPv4.
pub const CLUSTER_V4: &str = "10.244.0.0/16";
/// All pods of all nodes, IPv6.
pub const CLUSTER_V6: &str = "fd00:244::/48";
/// Service addresses, IPv4.
pub const SERVICES_V4: &str = "10.96.0.0/16";
/// Service addresses, IPv6.
pub const SERVICES_V6: &str = "fd00:10:96::/112";
/// What the outside routes to a node beside the nodes' own addresses: load balancers' and external addresses, IPv4.
pub const ROUTED_V4: &str = "198.18.0.0/16";
/// The same, IPv6.
pub const ROUTED_V6: &str = "fd00:198:18::/48";
/// The address routed pods have their default route by; it is nobody's, the node's veth answers for it (proxy ARP).
pub const ROUTED_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The hardware address of every routed pod's host-side veth, as Calico sets it.
pub const ROUTED_GATEWAY_MAC: [u8; 6] = [0xee; 6];
/// The link-local address that follows from [`ROUTED_GATEWAY_MAC`], and the routed pods' IPv6 gateway.
pub const ROUTED_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dual {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// The address of one family.
    #[must_use]
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => self.v4.into(),
            Family::Ipv6 => self.v6.into(),
        }
    }

    /// Both, IPv4 first.
    #[must_use]
    pub fn both(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// An address family, spelled as Kubernetes' `addressType` in [`Family::address_type`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Internet protocol version 4.
    Ipv4,
    /// Internet protocol version 6.
    Ipv6,
}

impl Family {
    /// Both, in the order in which lists show them.
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// As in an EndpointSlice and in `ipFamilies`: `IPv4` or `IPv6`.
    #[must_use]
    pub fn address_type(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    /// As in file names and reports: `ipv4` or `ipv6`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// The outside's end of the nodes' uplinks.
pub const OUTSIDE: Dual =
    Dual { v4: Ipv4Addr::new(192, 168, 99, 1), v6: Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1) };

/// A host behind the outside, in a network of its own.
pub const FAR: Dual = Dual { v4: Ipv4Addr::new(192, 168, 98, 2), v6: Ipv6Addr::new(0xfd00, 0x98, 0, 0, 0, 0, 0, 2) };

/// The outside's address in the far host's network.
pub const NEAR: Dual = Dual { v4: Ipv4Addr::new(192, 168, 98, 1), v6: Ipv6Addr::new(0xfd00, 0x98, 0, 0, 0, 0, 0, 1) };

/// Node `n`'s own addresses; nodes count from 1.
#[must_use]
pub fn node(n: u8) -> Dual {
    let host = n.saturating_add(10);
    Dual { v4: Ipv4Addr::new(192, 168, 99, host), v6: Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, u16::from(host)) }
}

/// Address number `host` of node `n`'s pod network: 0 is the network, 1 the bridge, pods have 2 and up.
#[must_use]
pub fn pod(n: u8, host: u8) -> Dual {
    Dual {
        v4: Ipv4Addr::new(10, 244, n, host),
        v6: Ipv6Addr::new(0xfd00, 0x244, 0, u16::from(n), 0, 0, 0, u16::from(host)),
    }
}

/// Node `n`'s pod networks, IPv4 first, as in a Node's `spec.podCIDRs`.
#[must_use]
pub fn pod_cidrs(n: u8) -> [String; 2] {
    let network = pod(n, 0);
    [format!("{}/24", network.v4), format!("{}/64", network.v6)]
}

/// A locally administered hardware address made from an IPv4 address, so that bridges keep theirs when ports come and go.
#[must_use]
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_is_as_documented() {
        assert_eq!(node(1), Dual { v4: "192.168.99.11".parse().unwrap(), v6: "fd00:99::b".parse().unwrap() });
        assert_eq!(pod(3, 7), Dual { v4: "10.244.3.7".parse().unwrap(), v6: "fd00:244:0:3::7".parse().unwrap() });
        assert_eq!(pod_cidrs(2), ["10.244.2.0/24", "fd00:244:0:2::/64"]);
        assert_eq!(ROUTED_GATEWAY_V6.to_string(), "fe80::ecee:eeff:feee:eeee");
    }
}
