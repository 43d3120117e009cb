//! Addresses and ports as they stand in packets and maps.
//!
//! One address type serves both families: 16 bytes, IPv4 as v4-mapped IPv6 (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2). A packet that carries a
//! v4-mapped address *as IPv6* is dropped in parsing, so the mapping is unambiguous.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol numbers (IANA).
pub mod proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;

    /// The name Kubernetes gives the protocol, `"?"` for others.
    pub fn name(proto: u8) -> &'static str {
        match proto {
            ICMP => "ICMP",
            TCP => "TCP",
            UDP => "UDP",
            ICMPV6 => "ICMPv6",
            SCTP => "SCTP",
            _ => "?",
        }
    }
}

/// An IP address: its 16 wire-order bytes as two native words. Ordering is by word, not by address: sort [`IpAddr`]s for people.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Addr {
    pub hi: u64,
    pub lo: u64,
}

// SAFETY: two u64, repr(C): no padding, every bit pattern valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Addr {}

/// Low half of a v4-mapped address before the IPv4 word is added: bytes `00 00 ff ff` in front.
const MAPPED: u64 = 0xffff_0000;

impl Addr {
    pub const UNSPECIFIED: Addr = Addr { hi: 0, lo: 0 };

    /// From an IPv4 address as a native word holding wire-order bytes (as read from a packet).
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Addr { hi: 0, lo: MAPPED | (word as u64) << 32 }
    }

    /// From the two halves of an IPv6 address as native words holding wire-order bytes.
    #[inline(always)]
    pub const fn v6(hi: u64, lo: u64) -> Self {
        Addr { hi, lo }
    }

    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.hi == 0 && self.lo as u32 == MAPPED as u32
    }

    /// The IPv4 word, wire-order bytes. Meaningful only if [`is_v4`](Self::is_v4).
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        (self.lo >> 32) as u32
    }

    /// One's complement sum of the eight 16-bit words, native order, not folded. A v4-mapped address adds the constant 0xffff, which is zero
    /// in one's complement: differences and pseudo headers come out right for both families.
    #[inline(always)]
    pub const fn sum(self) -> u32 {
        words(self.hi) + words(self.lo)
    }

    pub fn from_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(a) => Addr::v4(u32::from_ne_bytes(a.octets())),
            IpAddr::V6(a) => Addr::from_wire(a.to_bits()),
        }
    }

    /// From a 128-bit number in host order (as `Ipv6Addr::to_bits` gives).
    fn from_wire(bits: u128) -> Self {
        let wire = bits.to_be();
        Addr { hi: wire as u64, lo: (wire >> 64) as u64 }
    }

    /// Back to a standard address; v4-mapped becomes IPv4.
    pub fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from(self.v4_word().to_ne_bytes()))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(u128::from_be(u128::from(self.lo) << 64 | u128::from(self.hi))))
        }
    }

    /// The address with all bits behind the first `len` cleared; `len` counts in the address's own family.
    pub fn masked(self, len: u8) -> Self {
        let mask = Addr::mask(len, self.is_v4());
        Addr { hi: self.hi & mask.hi, lo: self.lo & mask.lo }
    }

    /// The netmask of a prefix of `len` bits, wire-order bytes; an IPv4 mask keeps the 96 mapped bits set.
    pub fn mask(len: u8, v4: bool) -> Self {
        let bits = u32::from(len) + if v4 { 96 } else { 0 };
        let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits.min(128)) };
        Addr::from_wire(mask)
    }
}

const fn words(w: u64) -> u32 {
    (w & 0xffff) as u32 + (w >> 16 & 0xffff) as u32 + (w >> 32 & 0xffff) as u32 + (w >> 48) as u32
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_ip(), f)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_ip(), f)
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        Addr::from_ip(ip)
    }
}

/// A port: a native u16 that holds wire-order bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Port(pub u16);

impl Port {
    /// From a port number in host order.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Port(number.to_be())
    }

    /// The port number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.get(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_round_trip_and_keeps_its_wire_bytes() {
        for text in ["10.96.0.1", "0.0.0.0", "255.255.255.255", "fd00:10:96::1", "::", "2001:db8::ff00:42:8329"] {
            let ip: IpAddr = text.parse().unwrap();
            let addr = Addr::from_ip(ip);
            assert_eq!(addr.to_ip(), ip);
            assert_eq!(addr.is_v4(), ip.is_ipv4());
            let wire = match ip {
                IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                IpAddr::V6(a) => a.octets(),
            };
            assert_eq!(bytemuck::bytes_of(&addr), wire);
        }
    }

    #[test]
    fn masks_clear_the_host_bits() {
        let check = |addr: &str, len, net: &str| {
            let masked = Addr::from_ip(addr.parse().unwrap()).masked(len);
            assert_eq!(masked.to_ip(), net.parse::<IpAddr>().unwrap());
        };
        check("10.96.3.7", 16, "10.96.0.0");
        check("10.96.3.7", 32, "10.96.3.7");
        check("10.96.3.7", 0, "0.0.0.0");
        check("fd00:10:96::7:1", 112, "fd00:10:96::7:0");
        check("fd00:10:96::7", 0, "::");
    }

    #[test]
    fn a_port_holds_wire_bytes() {
        assert_eq!(bytemuck::bytes_of(&Port::new(0x1234)), [0x12, 0x34]);
        assert_eq!(Port::new(8080).get(), 8080);
    }
}
