//! Is a frame right? Lengths, the IP header sum, the L4 sum, and the header sum of a quoted packet, all recomputed from the bytes.

use std::net::IpAddr;

use super::bytes::{crc32c, fold, pseudo4, pseudo6, sum};
use super::dissect::{Ip, be16, byte, dissect, ip, slice};
use super::{ICMP, ICMPV6, SCTP, TCP, UDP};

/// Shortest Ethernet frame without its check sequence: below it, bytes behind the IP packet are padding.
const MIN_FRAME: usize = 60;

/// Checks a whole frame; what is not IP is right by definition. An error says which field is wrong, and by how much.
pub fn verify(frame: &[u8]) -> Result<(), String> {
    let Some(ip) = dissect(frame)?.ip else { return Ok(()) };
    if ip.end != frame.len() && frame.len() > MIN_FRAME {
        return Err(format!("{} bytes behind the IP packet", frame.len() - ip.end));
    }
    header_sum(frame, &ip)?;
    if ip.is_fragment() {
        return Ok(());
    }
    let l4 = slice(frame, ip.l4, ip.end.checked_sub(ip.l4).ok_or("the IP packet ends before its headers")?)?;
    match ip.proto {
        TCP => {
            let header = usize::from(byte(l4, 12)? >> 4) * 4;
            if header < 20 || header > l4.len() {
                return Err(format!("TCP header of {header} bytes in {}", l4.len()));
            }
            l4_sum(&ip, l4, "TCP")
        }
        UDP => {
            let said = usize::from(be16(l4, 4)?);
            if said != l4.len() {
                return Err(format!("UDP length {said}, there are {} bytes", l4.len()));
            }
            if be16(l4, 6)? == 0 {
                return if ip.src.is_ipv4() { Ok(()) } else { Err("UDP over IPv6 without a checksum".into()) };
            }
            l4_sum(&ip, l4, "UDP")
        }
        SCTP => {
            let field = slice(l4, 8, 4)?;
            // Zero: the device fills it in.
            if field == [0; 4] || field == crc32c(l4) {
                Ok(())
            } else {
                Err(format!("SCTP checksum {field:02x?}, should be {:02x?}", crc32c(l4)))
            }
        }
        ICMP if ip.src.is_ipv4() => {
            slice(l4, 0, 8)?;
            l4_sum(&ip, l4, "ICMP")?;
            quote(frame, &ip, matches!(l4[0], 3 | 4 | 5 | 11 | 12))
        }
        ICMPV6 if ip.src.is_ipv6() => {
            slice(l4, 0, 8)?;
            l4_sum(&ip, l4, "ICMPv6")?;
            quote(frame, &ip, matches!(l4[0], 1..=4))
        }
        _ => Ok(()),
    }
}

fn header_sum(bytes: &[u8], ip: &Ip) -> Result<(), String> {
    if ip.src.is_ipv6() {
        return Ok(());
    }
    match fold(sum(slice(bytes, ip.start, ip.l4 - ip.start)?)) {
        0xffff => Ok(()),
        other => Err(format!("IPv4 header sum at {}: words add up to {other:04x}, not ffff", ip.start)),
    }
}

fn l4_sum(ip: &Ip, l4: &[u8], name: &str) -> Result<(), String> {
    let pseudo = match (ip.src, ip.dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) if ip.proto == ICMP => 0,
        (IpAddr::V4(src), IpAddr::V4(dst)) => pseudo4(src, dst) + l4.len() as u32 + u32::from(ip.proto),
        (IpAddr::V6(src), IpAddr::V6(dst)) => pseudo6(src, dst) + l4.len() as u32 + u32::from(ip.proto),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Err("two families".into()),
    };
    match fold(pseudo + u32::from(fold(sum(l4)))) {
        0xffff => Ok(()),
        other => Err(format!("{name} checksum: words add up to {other:04x}, not ffff")),
    }
}

/// The header of a quoted packet, if the message is an error and quotes one whole.
fn quote(frame: &[u8], outer: &Ip, is_error: bool) -> Result<(), String> {
    if !is_error {
        return Ok(());
    }
    match ip(frame, outer.l4 + 8) {
        Ok(quoted) if quoted.l4 <= outer.end => header_sum(frame, &quoted).map_err(|e| format!("quoted {e}")),
        _ => Ok(()),
    }
}
