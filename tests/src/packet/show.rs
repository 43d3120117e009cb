//! A frame for people: one line a layer.

use super::dissect::{Ip, be16, be32, byte, dissect, ip, slice};
use super::{ICMP, ICMPV6, SCTP, TCP, UDP, verify};

/// One line a layer, the last one saying what [`verify`] finds wrong, if anything.
pub fn show(frame: &[u8]) -> String {
    let mut lines = Vec::new();
    if let Err(e) = layers(frame, &mut lines) {
        lines.push(e);
    }
    if let Err(e) = verify(frame) {
        lines.push(format!("wrong: {e}"));
    }
    lines.join("\n")
}

fn layers(frame: &[u8], lines: &mut Vec<String>) -> Result<(), String> {
    let found = dissect(frame)?;
    let name = match found.ether_type {
        0x0800 => "ipv4".into(),
        0x86dd => "ipv6".into(),
        other => format!("{other:04x}"),
    };
    lines.push(format!("eth {} > {} {name}, {} bytes", mac(frame, 6)?, mac(frame, 0)?, frame.len()));
    match found.ip {
        Some(ip) => {
            packet(frame, &ip, "", lines)?;
            if ip.end < frame.len() {
                lines.push(format!("padding {} bytes", frame.len() - ip.end));
            }
        }
        None => lines.push(data(frame.get(14..).unwrap_or_default())),
    }
    Ok(())
}

/// `indent` goes before each line: a quoted packet stands further in.
fn packet(bytes: &[u8], ip: &Ip, indent: &str, lines: &mut Vec<String>) -> Result<(), String> {
    let mut line = format!("{indent}ip {} > {} ttl {} len {}", ip.src, ip.dst, ip.ttl, ip.end - ip.start);
    if ip.src.is_ipv4() {
        line += &format!(" id {:04x} sum {:04x}", be16(bytes, ip.start + 4)?, be16(bytes, ip.start + 10)?);
        if ip.l4 > ip.start + 20 {
            line += &format!(" options {}", ip.l4 - ip.start - 20);
        }
    }
    if !ip.extensions.is_empty() {
        line += &format!(" extensions {:?}", ip.extensions.iter().map(|(number, _)| *number).collect::<Vec<_>>());
    }
    if ip.is_fragment() {
        line += &format!(" fragment {}{}", ip.fragment.0, if ip.fragment.1 { "+" } else { "" });
    }
    lines.push(line);
    let rest = bytes.get(ip.l4..ip.end.min(bytes.len())).unwrap_or_default();
    if ip.fragment.0 != 0 {
        lines.push(format!("{indent}{}", data(rest)));
        return Ok(());
    }
    let header = match ip.proto {
        TCP => {
            let ports = format!("{indent}tcp {} > {}", be16(rest, 0)?, be16(rest, 2)?);
            if rest.len() < 20 {
                lines.push(ports + " cut short");
                return Ok(());
            }
            let flags: Vec<&str> = [(2, "SYN"), (16, "ACK"), (1, "FIN"), (4, "RST"), (8, "PSH")]
                .into_iter()
                .filter(|(bit, _)| rest[13] & bit != 0)
                .map(|(_, name)| name)
                .collect();
            lines.push(format!(
                "{ports} {} seq {} ack {} win {} sum {:04x}",
                flags.join("+"),
                be32(rest, 4)?,
                be32(rest, 8)?,
                be16(rest, 14)?,
                be16(rest, 16)?
            ));
            usize::from(byte(rest, 12)? >> 4) * 4
        }
        UDP => {
            let (sport, dport, len, sum) = (be16(rest, 0)?, be16(rest, 2)?, be16(rest, 4)?, be16(rest, 6)?);
            lines.push(format!("{indent}udp {sport} > {dport} len {len} sum {sum:04x}"));
            8
        }
        SCTP => {
            let (sport, dport, sum) = (be16(rest, 0)?, be16(rest, 2)?, be32(rest, 8)?);
            lines.push(format!("{indent}sctp {sport} > {dport} chunk {} sum {sum:08x}", byte(rest, 12)?));
            12
        }
        ICMP | ICMPV6 => {
            let (kind, code) = (byte(rest, 0)?, byte(rest, 1)?);
            let name = if ip.proto == ICMP { "icmp" } else { "icmp6" };
            lines.push(format!(
                "{indent}{name} type {kind} code {code} rest {:08x} sum {:04x}",
                be32(rest, 4)?,
                be16(rest, 2)?
            ));
            let error = if ip.proto == ICMP { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { matches!(kind, 1..=4) };
            if error && let Ok(quoted) = self::ip(bytes, ip.l4 + 8) {
                return packet(bytes, &quoted, &format!("{indent}  quoted "), lines);
            }
            8
        }
        other => {
            lines.push(format!("{indent}protocol {other}"));
            0
        }
    };
    let payload = rest.get(header..).unwrap_or_default();
    if !payload.is_empty() {
        lines.push(format!("{indent}{}", data(payload)));
    }
    Ok(())
}

fn mac(frame: &[u8], at: usize) -> Result<String, String> {
    Ok(slice(frame, at, 6)?.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"))
}

fn data(bytes: &[u8]) -> String {
    const SHOWN: usize = 24;
    let shown = bytes.get(..SHOWN).unwrap_or(bytes);
    format!("data {} bytes \"{}{}\"", bytes.len(), shown.escape_ascii(), if bytes.len() > SHOWN { "…" } else { "" })
}
