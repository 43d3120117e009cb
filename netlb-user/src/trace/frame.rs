//! A frame in memory: built for the question, changed by the datapath as at its hooks, and read for the answer.

use std::net::SocketAddr;

use netlb_common::conntrack::{CtKey, pack_ports};
use netlb_common::{Addr, Port, checksum, proto};
use netlb_ebpf::detour::Detour;
use netlb_ebpf::packet::{ETH_LEN, Half, Hop, L4, Packet, Wire};

/// Bits of the TCP flag byte (RFC 9293), by their names.
pub const TCP_FLAGS: [(&str, u8); 5] = [("SYN", 2), ("ACK", 16), ("FIN", 1), ("RST", 4), ("PSH", 8)];
pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const RST: u8 = 4;

/// TTL of what this host sends (RFC 1700).
const TTL: u8 = 64;

/// What a frame is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Both of one family.
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// TCP, UDP or SCTP.
    pub proto: u8,
    /// Of TCP; SCTP's chunks are named by the flags they stand for.
    pub flags: u8,
    /// Bytes of the IP packet; less than its headers: just those.
    pub size: u16,
    /// Destination, then source; wire order.
    pub macs: [[u8; 6]; 2],
}

impl Shape {
    /// The finished frame, "don't fragment" set as path MTU discovery does.
    pub fn bytes(&self) -> Vec<u8> {
        let (src, dst) = (Addr::from_ip(self.src.ip()), Addr::from_ip(self.dst.ip()));
        let v4 = src.is_v4();
        let mut l4 = self.l4();
        let header = if v4 { 20 } else { 40 };
        l4.resize(l4.len().max(usize::from(self.size).saturating_sub(header)), 0);
        let field = match self.proto {
            proto::TCP => Some(16),
            proto::UDP => {
                let len = (l4.len() as u16).to_be_bytes();
                l4[4..6].copy_from_slice(&len);
                Some(6)
            }
            // SCTP's sum is left to the device.
            _ => None,
        };
        if let Some(at) = field {
            let pseudo =
                src.sum() + dst.sum() + u32::from((l4.len() as u16).to_be()) + u32::from(u16::from(self.proto).to_be());
            let value = !checksum::fold(u32::from(checksum::fold(pseudo)) + sum(&l4));
            let value = if self.proto == proto::UDP && value == 0 { 0xffff } else { value };
            l4[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        let [to, from] = self.macs;
        let mut out = [to, from].concat();
        if v4 {
            out.extend([0x08, 0x00]);
            let mut ip = vec![0x45, 0];
            ip.extend(((header + l4.len()) as u16).to_be_bytes());
            ip.extend([0, 0, 0x40, 0, TTL, self.proto, 0, 0]);
            ip.extend(src.v4_word().to_ne_bytes());
            ip.extend(dst.v4_word().to_ne_bytes());
            let value = !checksum::fold(sum(&ip));
            ip[10..12].copy_from_slice(&value.to_ne_bytes());
            out.extend(ip);
        } else {
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            out.extend((l4.len() as u16).to_be_bytes());
            out.extend([self.proto, TTL]);
            out.extend([src.hi, src.lo, dst.hi, dst.lo].into_iter().flat_map(u64::to_ne_bytes));
        }
        out.extend(l4);
        out
    }

    fn l4(&self) -> Vec<u8> {
        let mut out = pack_ports(Port::new(self.src.port()), Port::new(self.dst.port())).to_ne_bytes().to_vec();
        match self.proto {
            proto::TCP => {
                out.extend([0; 8]);
                out.extend([5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
            proto::SCTP => {
                out.extend([0; 8]);
                out.extend([chunk(self.flags), 0, 0, 4]);
            }
            _ => out.extend([0; 4]),
        }
        out
    }
}

/// The SCTP chunk (RFC 9260 section 3.2) that means what these TCP flags do.
fn chunk(flags: u8) -> u8 {
    match flags {
        f if f & RST != 0 => 6,
        f if f & (SYN | ACK) == SYN | ACK => 2,
        f if f & SYN != 0 => 1,
        f if f & 1 != 0 => 7,
        _ => 0,
    }
}

/// Sum of native 16-bit words, not folded; of at most 64 KiB.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

/// A frame at a hook. `route` is the node's FIB: source, destination, protocol, bytes of the packet.
pub struct Frame<R> {
    pub bytes: Vec<u8>,
    /// Payload bytes of each segment of a GSO frame, else 0.
    pub gso: u32,
    /// The node sent it.
    pub sent_here: bool,
    pub route: R,
}

impl<R: FnMut(Addr, Addr, u8, u32) -> Hop> Packet for Frame<R> {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn gso_size(&self) -> u32 {
        self.gso
    }

    fn pull(&mut self, _len: u32) -> bool {
        true
    }

    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        let bytes = self.bytes.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the slice has the type's size; `Wire` types are packed (alignment 1) and take any bytes.
        Some(unsafe { &*bytes.as_ptr().cast() })
    }

    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        let bytes = self.bytes.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: as in `at`; the exclusive borrow is handed on.
        Some(unsafe { &mut *bytes.as_mut_ptr().cast() })
    }

    fn fix_l4(&mut self, offset: usize, addr: u16, content: u16, l4: L4) -> bool {
        let Some(field) = self.at_mut::<Half>(offset) else { return false };
        let old = field.value;
        if !(l4.zero_is_none && old == 0) {
            let sum = checksum::apply(old, checksum::add(addr, content));
            field.value = if l4.zero_is_none && sum == 0 { 0xffff } else { sum };
        }
        true
    }

    fn set_l4(&mut self, offset: usize, pseudo: u16, content: u16) -> bool {
        let Some(field) = self.at_mut::<Half>(offset) else { return false };
        field.value = !checksum::add(pseudo, content);
        true
    }

    fn trim(&mut self, len: u32) -> bool {
        let len = len as usize;
        if len < ETH_LEN || len > self.bytes.len() {
            return false;
        }
        self.bytes.truncate(len);
        true
    }

    fn route(&mut self, src: Addr, dst: Addr, proto: u8, len: u32) -> Hop {
        (self.route)(src, dst, proto, len)
    }

    fn sent_here(&self) -> bool {
        self.sent_here
    }

    fn has_socket(&mut self, _tuple: &CtKey) -> bool {
        // Asked of ports that are tried: which of them a flow gets is left to chance, and told as one of those it may get.
        false
    }

    fn insert_after_eth(&mut self, room: u32) -> bool {
        if self.bytes.len() < ETH_LEN {
            return false;
        }
        self.bytes.splice(ETH_LEN..ETH_LEN, std::iter::repeat_n(0, room as usize));
        true
    }
}

impl<R: FnMut(Addr, Addr, u8, u32) -> Hop> Detour for Frame<R> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of a packet's words with its checksum among them is minus zero (RFC 1071).
    fn settled(pseudo: u32, bytes: &[u8]) -> bool {
        checksum::fold(pseudo + u32::from(checksum::fold(sum(bytes)))) == 0xffff
    }

    #[test]
    fn lengths_and_checksums_are_right() {
        for (src, dst) in [("10.0.0.1:40000", "10.96.0.1:80"), ("[fd00::1]:40000", "[fd00:10:96::1]:80")] {
            for proto in [proto::TCP, proto::UDP] {
                for size in [0, 61, 1500, 65_535] {
                    let (src, dst): (SocketAddr, SocketAddr) =
                        (src.parse().expect("an address"), dst.parse().expect("an address"));
                    let macs = [[1; 6], [2; 6]];
                    let bytes = Shape { src, dst, proto, flags: SYN, size, macs }.bytes();
                    let header = if src.is_ipv4() { 20 } else { 40 };
                    let l4 = &bytes[ETH_LEN + header..];
                    let least = header + if proto == proto::TCP { 20 } else { 8 };
                    assert_eq!(bytes.len(), ETH_LEN + least.max(size.into()), "{src} {proto} {size}");
                    let addresses = Addr::from_ip(src.ip()).sum() + Addr::from_ip(dst.ip()).sum();
                    let rest = u32::from((l4.len() as u16).to_be()) + u32::from(u16::from(proto).to_be());
                    assert!(settled(addresses + rest, l4), "{src} {proto} {size}");
                    if src.is_ipv4() {
                        assert!(settled(0, &bytes[ETH_LEN..ETH_LEN + 20]), "{src} {proto} {size}");
                    }
                }
            }
        }
    }

    #[test]
    fn sctp_chunks_by_the_flags_they_stand_for() {
        assert_eq!([SYN, SYN | ACK, RST, 1, ACK].map(chunk), [1, 2, 6, 7, 0]);
    }
}
