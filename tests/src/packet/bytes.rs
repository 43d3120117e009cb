//! From layers to bytes: lengths and checksums, by the RFCs' plain definitions.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Ext, Frame, ICMP, ICMPV6, L4, Net, Payload, SCTP, TCP, UDP};

impl Frame {
    /// The finished frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.dst_mac);
        out.extend(self.src_mac);
        let natural = match &self.net {
            Net::None => 0x0806,
            Net::V4 { .. } => 0x0800,
            Net::V6 { .. } => 0x86dd,
        };
        out.extend(self.ether_type.unwrap_or(natural).to_be_bytes());
        let payload = self.payload_bytes();
        match &self.net {
            Net::None => out.extend(payload),
            Net::V4 { src, dst, tos, id, fragment, ttl, options, len } => {
                let l4 = self.l4_bytes(pseudo4(*src, *dst), &payload);
                let header = 20 + options.len();
                let total = len.unwrap_or((header + l4.len()) as u16);
                let mut ip = vec![0x40 | (header / 4) as u8, *tos];
                ip.extend(total.to_be_bytes());
                ip.extend(id.to_be_bytes());
                ip.extend(fragment.to_be_bytes());
                ip.extend([*ttl, self.proto(), 0, 0]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(options);
                let sum = !fold(sum(&ip));
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                out.extend(ip);
                out.extend(l4);
            }
            Net::V6 { src, dst, first, hops, ext, len } => {
                let l4 = self.l4_bytes(pseudo6(*src, *dst), &payload);
                let (next, chain) = chain(ext, self.proto());
                out.extend(first.to_be_bytes());
                out.extend(len.unwrap_or((chain.len() + l4.len()) as u16).to_be_bytes());
                out.extend([next, *hops]);
                out.extend(src.octets());
                out.extend(dst.octets());
                out.extend(chain);
                out.extend(l4);
            }
        }
        out.extend(std::iter::repeat_n(0xaa, self.padding));
        for (offset, bytes) in &self.pokes {
            let end = offset + bytes.len();
            assert!(end <= out.len(), "poke at {offset} is outside the frame of {} bytes", out.len());
            out[*offset..end].copy_from_slice(bytes);
        }
        out.truncate(self.cut.unwrap_or(out.len()));
        out
    }

    fn proto(&self) -> u8 {
        match &self.l4 {
            L4::Raw(proto) => *proto,
            L4::Tcp { .. } => TCP,
            L4::Udp { .. } => UDP,
            L4::Sctp { .. } => SCTP,
            L4::Icmp { .. } if self.is_v6() => ICMPV6,
            L4::Icmp { .. } => ICMP,
        }
    }

    fn payload_bytes(&self) -> Vec<u8> {
        match &self.payload {
            Payload::Bytes(bytes) => bytes.clone(),
            Payload::Quote { frame, len, settled } => {
                let mut packet = frame.bytes().split_off(14);
                packet.truncate(*len);
                if *settled {
                    let (header, field) = if matches!(frame.l4, L4::Tcp { .. }) { (20, 16) } else { (8, 6) };
                    let at = packet.len() - header;
                    packet[at + field..at + field + 2].fill(0);
                    let others = sum(&packet[at..]);
                    let value = (0..=u16::MAX)
                        .find(|c| fold(others + 2 * u32::from(*c)) == 0xffff)
                        .expect("two has an inverse modulo 65535");
                    packet[at + field..at + field + 2].copy_from_slice(&value.to_be_bytes());
                }
                packet
            }
        }
    }

    /// The L4 header and payload. `pseudo`: sum of the addresses.
    fn l4_bytes(&self, pseudo: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let field = match &self.l4 {
            L4::Raw(_) => None,
            L4::Tcp { sport, dport, seq, ack, flags, window, options } => {
                out.extend(sport.to_be_bytes());
                out.extend(dport.to_be_bytes());
                out.extend(seq.to_be_bytes());
                out.extend(ack.to_be_bytes());
                out.extend([(((20 + options.len()) / 4) << 4) as u8, *flags]);
                out.extend(window.to_be_bytes());
                out.extend([0; 4]);
                out.extend(options);
                Some(16)
            }
            L4::Udp { sport, dport, sum, len } => {
                out.extend(sport.to_be_bytes());
                out.extend(dport.to_be_bytes());
                out.extend(len.unwrap_or(8 + payload.len() as u16).to_be_bytes());
                out.extend([0; 2]);
                sum.then_some(6)
            }
            L4::Sctp { sport, dport, chunk, sum: _ } => {
                out.extend(sport.to_be_bytes());
                out.extend(dport.to_be_bytes());
                // Verification tag, and room for the checksum.
                out.extend([0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0]);
                out.extend([*chunk, 0]);
                out.extend((4 + payload.len() as u16).to_be_bytes());
                None
            }
            L4::Icmp { kind, code, rest } => {
                out.extend([*kind, *code, 0, 0]);
                out.extend(rest);
                Some(2)
            }
        };
        out.extend(payload);
        if let L4::Sctp { sum: true, .. } = &self.l4 {
            let value = crc32c(&out);
            out[8..12].copy_from_slice(&value);
        }
        if let Some(field) = field {
            let pseudo = if self.proto() == ICMP { 0 } else { pseudo + out.len() as u32 + u32::from(self.proto()) };
            let mut value = !fold(pseudo + u32::from(fold(sum(&out))));
            if self.proto() == UDP && value == 0 {
                value = 0xffff;
            }
            out[field..field + 2].copy_from_slice(&value.to_be_bytes());
        }
        out
    }
}

/// First next-header number and the bytes of a chain that ends in `last`.
fn chain(ext: &[Ext], last: u8) -> (u8, Vec<u8>) {
    let number = |e: &Ext| match e {
        Ext::HopByHop(_) => 0,
        Ext::Routing(_) => 43,
        Ext::Fragment { .. } => 44,
        Ext::Auth(_) => 51,
        Ext::Destination(_) => 60,
    };
    let mut out = Vec::new();
    for (i, header) in ext.iter().enumerate() {
        let next = ext.get(i + 1).map_or(last, number);
        match header {
            Ext::Fragment { offset, more, id } => {
                out.extend([next, 0]);
                out.extend((offset << 3 | u16::from(*more)).to_be_bytes());
                out.extend(id.to_be_bytes());
            }
            Ext::Auth(units) => {
                out.extend([next, units + 1]);
                out.extend(std::iter::repeat_n(0, 10 + usize::from(*units) * 4));
            }
            Ext::HopByHop(units) | Ext::Destination(units) => {
                // One PadN option over the whole header.
                let rest = 6 + usize::from(*units) * 8;
                out.extend([next, *units, 1, (rest - 2) as u8]);
                out.extend(std::iter::repeat_n(0, rest - 2));
            }
            Ext::Routing(units) => {
                out.extend([next, *units]);
                out.extend(std::iter::repeat_n(0, 6 + usize::from(*units) * 8));
            }
        }
    }
    (ext.first().map_or(last, number), out)
}

/// SCTP's checksum as it stands in a packet, bit by bit (RFC 9260 appendix A); the field itself counts as zero.
pub(super) fn crc32c(packet: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for (i, byte) in packet.iter().enumerate() {
        crc ^= if (8..12).contains(&i) { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).to_le_bytes()
}

/// Sum of big-endian 16-bit words, an odd last byte padded with zero (RFC 1071).
pub(super) fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum()
}

pub(super) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(super) fn pseudo4(src: Ipv4Addr, dst: Ipv4Addr) -> u32 {
    sum(&src.octets()) + sum(&dst.octets())
}

pub(super) fn pseudo6(src: Ipv6Addr, dst: Ipv6Addr) -> u32 {
    sum(&src.octets()) + sum(&dst.octets())
}
