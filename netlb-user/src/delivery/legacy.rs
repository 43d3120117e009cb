//! Chain names of legacy iptables: tables that nfnetlink does not show, read as iptables(8) does, by getsockopt() on a raw socket.
//!
//! The kernel hands out a table as one blob of rules, in which a user's chain begins with a rule whose target is `ERROR` and holds the chain's
//! name. Names are found by looking for known beginnings of names in the blob: all that is asked is whether one is there.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// IPT_SO_GET_INFO and IP6T_SO_GET_INFO; GET_ENTRIES is one more.
const SO_GET_INFO: i32 = 64;
const SO_GET_ENTRIES: i32 = 65;
/// XT_TABLE_MAXNAMELEN.
const NAME: usize = 32;
/// XT_EXTENSION_MAXNAMELEN: room for a chain's name.
const CHAIN: usize = 29;

struct Family {
    tables: &'static str,
    domain: AddressFamily,
    level: i32,
}

const FAMILIES: [Family; 2] = [
    Family { tables: "/proc/net/ip_tables_names", domain: AddressFamily::Inet, level: libc::IPPROTO_IP },
    Family { tables: "/proc/net/ip6_tables_names", domain: AddressFamily::Inet6, level: libc::IPPROTO_IPV6 },
];

/// Chains with names that policy engines use, of both families. A kernel without legacy iptables has none.
///
/// # Errors
/// The kernel's, for a table that is there and cannot be read.
pub fn names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for family in &FAMILIES {
        // Lists the tables in use in this namespace; reading one makes it exist, so no other is asked for.
        let Ok(tables) = std::fs::read_to_string(family.tables) else { continue };
        for table in tables.split_whitespace() {
            names.extend(engine_names(&rules(family, table)?));
        }
    }
    Ok(names)
}

/// `struct ipt_getinfo`, the same for both families.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Info {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// `struct ipt_get_entries` without its entries: name, size, padding to 8.
const ENTRIES_HEADER: usize = NAME + 8;

fn rules(family: &Family, table: &str) -> io::Result<Vec<u8>> {
    let raw = socket(family.domain, SockType::Raw, SockFlag::SOCK_CLOEXEC, RAW)?;
    let mut name = [0u8; NAME];
    for (to, from) in name.iter_mut().take(NAME - 1).zip(table.bytes()) {
        *to = from;
    }
    let ask = || {
        let mut info = Info { name, ..bytemuck::Zeroable::zeroed() };
        get(&raw, family.level, SO_GET_INFO, bytemuck::bytes_of_mut(&mut info))?;
        let mut blob = vec![0u8; ENTRIES_HEADER + info.size as usize];
        blob[..NAME].copy_from_slice(&name);
        blob[NAME..NAME + 4].copy_from_slice(&info.size.to_ne_bytes());
        get(&raw, family.level, SO_GET_ENTRIES, &mut blob)?;
        Ok::<_, io::Error>(blob.split_off(ENTRIES_HEADER))
    };
    match ask() {
        // It grew between the two questions.
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => ask(),
        result => result,
    }
}

/// IPPROTO_RAW: a socket that receives nothing.
const RAW: SockProtocol = SockProtocol::Raw;

fn get(socket: &OwnedFd, level: i32, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut len = buffer.len() as libc::socklen_t;
    // SAFETY: `buffer` is live and writable for `len` bytes.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Names in a blob of rules that belong to policy engines.
fn engine_names(blob: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = blob;
    while let Some(start) = rest.iter().position(|b| is_name(*b)) {
        let word = &rest[start..];
        let end = word.iter().position(|b| !is_name(*b)).unwrap_or(word.len());
        let text = String::from_utf8_lossy(&word[..end.min(CHAIN)]).into_owned();
        if super::engine(&text).is_some() && !names.contains(&text) {
            names.push(text);
        }
        rest = &word[end..];
    }
    names
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_engines_are_found_in_a_blob() {
        let mut blob = vec![0u8; 100];
        blob.extend(b"ERROR\0\0\0cali-FORWARD\0\0\0");
        blob.extend([0xff; 40]);
        blob.extend(b"ERROR\0\0\0CNI-FORWARD\0\0ERROR\0KUBE-NWPLCY-X\0");
        blob.extend(b"cali-FORWARD");
        assert_eq!(engine_names(&blob), ["cali-FORWARD", "KUBE-NWPLCY-X"]);
        assert!(engine_names(&[]).is_empty());
        assert!(engine_names(b"notcali-x\0").is_empty());
    }

    #[test]
    fn the_record_is_the_kernels() {
        assert_eq!(size_of::<Info>(), 84);
    }
}
