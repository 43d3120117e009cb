//! Makes the checksums of finished bytes right again, after something in them was changed on purpose.

use super::bytes::{crc32c, fold, pseudo4, pseudo6, sum};
use super::dissect::{Ip, dissect};
use super::{ICMP, ICMPV6, SCTP, TCP, UDP};
use std::net::IpAddr;

/// Recomputes the IPv4 header sum and the L4 sum. A UDP or SCTP checksum of zero stays; what is no whole IP packet, or a fragment, keeps its L4 bytes.
pub fn reseal(frame: &mut [u8]) {
    let Ok(found) = dissect(frame) else { return };
    let Some(ip) = found.ip else { return };
    if ip.src.is_ipv4() {
        frame[ip.start + 10..ip.start + 12].fill(0);
        let value = !fold(sum(&frame[ip.start..ip.l4.min(ip.end)]));
        frame[ip.start + 10..ip.start + 12].copy_from_slice(&value.to_be_bytes());
    }
    if ip.is_fragment() || ip.l4 > ip.end {
        return;
    }
    if ip.proto == SCTP {
        let packet = &mut frame[ip.l4..ip.end];
        if packet.len() >= 12 && packet[8..12] != [0; 4] {
            let value = crc32c(packet);
            packet[8..12].copy_from_slice(&value);
        }
        return;
    }
    let field = match ip.proto {
        TCP => 16,
        UDP => 6,
        ICMP | ICMPV6 => 2,
        _ => return,
    };
    let end = ip.end;
    let pseudo = pseudo(&ip, end - ip.l4);
    let l4 = &mut frame[ip.l4..end];
    if l4.len() < field + 2 || ip.proto == UDP && l4[6..8] == [0, 0] {
        return;
    }
    l4[field..field + 2].fill(0);
    let mut value = !fold(pseudo + u32::from(fold(sum(l4))));
    if ip.proto == UDP && value == 0 {
        value = 0xffff;
    }
    l4[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

fn pseudo(ip: &Ip, len: usize) -> u32 {
    match (ip.src, ip.dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) if ip.proto == ICMP => 0,
        (IpAddr::V4(src), IpAddr::V4(dst)) => pseudo4(src, dst) + len as u32 + u32::from(ip.proto),
        (IpAddr::V6(src), IpAddr::V6(dst)) => pseudo6(src, dst) + len as u32 + u32::from(ip.proto),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    }
}
