//! Where the layers of a frame are: the reader behind [`show`](super::show) and [`verify`](super::verify).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Offsets count from the start of what was given to [`dissect`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dissected {
    pub ether_type: u16,
    /// The IP layer, if there is one.
    pub ip: Option<Ip>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// Start of the IP header.
    pub start: usize,
    /// End of the IP packet as its length field says.
    pub end: usize,
    /// The IPv6 extension headers stepped over, by number and offset.
    pub extensions: Vec<(u8, usize)>,
    pub proto: u8,
    pub l4: usize,
    /// Fragment offset in bytes, and "more fragments".
    pub fragment: (usize, bool),
}

impl Ip {
    pub fn is_fragment(&self) -> bool {
        self.fragment != (0, false)
    }
}

/// Finds the layers of a whole frame. An error names the first thing that cannot be.
pub fn dissect(frame: &[u8]) -> Result<Dissected, String> {
    if frame.len() < 14 {
        return Err(format!("{} bytes are no Ethernet frame", frame.len()));
    }
    let ether_type = be16(frame, 12)?;
    let ip = match ether_type {
        0x0800 | 0x86dd => {
            let ip = ip(frame, 14)?;
            if ip.src.is_ipv6() != (ether_type == 0x86dd) {
                return Err(format!("EtherType {ether_type:04x} on an IP header of the other version"));
            }
            if ip.end > frame.len() {
                return Err(format!("the IP packet ends at {}, the frame at {}", ip.end, frame.len()));
            }
            Some(ip)
        }
        _ => None,
    };
    Ok(Dissected { ether_type, ip })
}

/// Reads an IP header at an offset; the packet may go on past the bytes there are (a quote).
pub(super) fn ip(bytes: &[u8], start: usize) -> Result<Ip, String> {
    match byte(bytes, start)? >> 4 {
        4 => ip4(bytes, start),
        6 => ip6(bytes, start),
        version => Err(format!("IP version {version}")),
    }
}

fn ip4(bytes: &[u8], start: usize) -> Result<Ip, String> {
    let header = usize::from(byte(bytes, start)? & 0xf) * 4;
    let total = usize::from(be16(bytes, start + 2)?);
    if header < 20 || total < header {
        return Err(format!("IPv4 header of {header} bytes in a packet of {total}"));
    }
    let frag = be16(bytes, start + 6)?;
    let at = |offset: usize| -> Result<Ipv4Addr, String> {
        let b = slice(bytes, start + offset, 4)?;
        Ok(Ipv4Addr::new(b[0], b[1], b[2], b[3]))
    };
    slice(bytes, start, header)?;
    Ok(Ip {
        src: at(12)?.into(),
        dst: at(16)?.into(),
        ttl: byte(bytes, start + 8)?,
        start,
        end: start + total,
        extensions: Vec::new(),
        proto: byte(bytes, start + 9)?,
        l4: start + header,
        fragment: (usize::from(frag & 0x1fff) * 8, frag & 0x2000 != 0),
    })
}

fn ip6(bytes: &[u8], start: usize) -> Result<Ip, String> {
    let at = |offset: usize| -> Result<Ipv6Addr, String> {
        let mut octets = [0; 16];
        octets.copy_from_slice(slice(bytes, start + offset, 16)?);
        Ok(octets.into())
    };
    let mut found = Ip {
        src: at(8)?.into(),
        dst: at(24)?.into(),
        ttl: byte(bytes, start + 7)?,
        start,
        end: start + 40 + usize::from(be16(bytes, start + 4)?),
        extensions: Vec::new(),
        proto: byte(bytes, start + 6)?,
        l4: start + 40,
        fragment: (0, false),
    };
    while matches!(found.proto, 0 | 43 | 44 | 51 | 60) && found.fragment.0 == 0 {
        let size = match found.proto {
            44 => 8,
            51 => (usize::from(byte(bytes, found.l4 + 1)?) + 2) * 4,
            _ => (usize::from(byte(bytes, found.l4 + 1)?) + 1) * 8,
        };
        if found.proto == 44 {
            let word = be16(bytes, found.l4 + 2)?;
            found.fragment = (usize::from(word & 0xfff8), word & 1 != 0);
        }
        found.extensions.push((found.proto, found.l4));
        found.proto = byte(bytes, found.l4)?;
        found.l4 += size;
        if found.l4 > found.end {
            return Err(format!("extension headers end at {}, the packet at {}", found.l4, found.end));
        }
    }
    Ok(found)
}

pub(super) fn byte(bytes: &[u8], at: usize) -> Result<u8, String> {
    bytes.get(at).copied().ok_or_else(|| format!("cut short at byte {}", bytes.len()))
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Result<u16, String> {
    Ok(u16::from_be_bytes([byte(bytes, at)?, byte(bytes, at + 1)?]))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Result<u32, String> {
    Ok(u32::from(be16(bytes, at)?) << 16 | u32::from(be16(bytes, at + 2)?))
}

pub(super) fn slice(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], String> {
    bytes.get(at..at + len).ok_or_else(|| format!("cut short at byte {}", bytes.len()))
}
