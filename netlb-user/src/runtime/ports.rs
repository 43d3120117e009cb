//! Source ports for what netlb masquerades: out of the way of NodePorts and of the host's own connections.
//!
//! The host takes its ports from net.ipv4.ip_local_port_range (both families). Guides advise to open that to 1024–65535, which leaves nothing: then
//! netlb takes the range that is free by default, and keeps the host out of it by net.ipv4.ip_local_reserved_ports. Out of the NodePorts too: an
//! answer to one of the host's own UDP sockets there could not be told from a request.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::atomic_file;

const LOCAL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Ports that may be given away at all; those below belong to servers.
const ALL: Ports = Ports { first: 1024, last: 65_535 };
/// Reserved where tuning left no room: what lies above the kernel's default for the host's own.
const RESERVE: Ports = Ports { first: 61_000, last: 65_535 };
/// Fewer are no room.
const ENOUGH: u32 = 1_000;

/// Ports from first to last, both among them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    /// From `first-last`; `None` if it is not that.
    pub fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let ports = Ports { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? };
        (ports.first > 0 && ports.first <= ports.last).then_some(ports)
    }

    /// How many.
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// What is in both.
    fn common(self, other: Ports) -> Option<Ports> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (first <= last).then_some(Ports { first, last })
    }

    /// What is left of these without `other`: below it, and above it.
    fn without(self, other: Ports) -> impl Iterator<Item = Ports> {
        let below = Ports { first: self.first, last: self.last.min(other.first.saturating_sub(1)) };
        let above = Ports { first: self.first.max(other.last.saturating_add(1)), last: self.last };
        let below = (other.first > self.first && self.first <= below.last).then_some(below);
        let above = (other.last < self.last && above.first <= self.last).then_some(above);
        below.into_iter().chain(above)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Where masqueraded flows get their source ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    pub ports: Ports,
    /// They are the host's too, as it is tuned: they must be reserved.
    pub reserve: bool,
}

/// The largest range that is neither NodePorts nor the host's own, or a reserved one if there is too little.
pub fn choose(node_ports: Ports, local: Ports) -> Choice {
    let largest = |ranges: &mut dyn Iterator<Item = Ports>| ranges.max_by_key(|ports| ports.count());
    let free = largest(&mut ALL.without(node_ports).flat_map(|part| part.without(local)));
    match free.filter(|ports| ports.count() >= ENOUGH) {
        Some(ports) => Choice { ports, reserve: false },
        None => Choice { ports: largest(&mut RESERVE.without(node_ports)).unwrap_or(RESERVE), reserve: true },
    }
}

/// Sets of ports as the kernel writes them: `8080,30000-32767`; sorted, neither overlapping nor touching.
fn parse_list(text: &str) -> Option<Vec<Ports>> {
    let words = text.trim().split(',').map(str::trim).filter(|word| !word.is_empty());
    let ports = words.map(|word| Ports::parse(word).or_else(|| Ports::parse(&format!("{word}-{word}"))));
    ports.collect::<Option<Vec<_>>>().map(normal)
}

fn normal(mut list: Vec<Ports>) -> Vec<Ports> {
    list.sort();
    let mut merged: Vec<Ports> = Vec::new();
    for ports in list {
        match merged.last_mut() {
            Some(last) if u32::from(ports.first) <= u32::from(last.last) + 1 => last.last = last.last.max(ports.last),
            _ => merged.push(ports),
        }
    }
    merged
}

fn write_list(list: &[Ports]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn difference(from: &[Ports], without: &[Ports]) -> Vec<Ports> {
    let mut left = from.to_vec();
    for other in without {
        left = left.into_iter().flat_map(|ports| ports.without(*other)).collect();
    }
    left
}

/// Chooses by the tuning of the calling thread's network namespace, and reserves if need be. What was reserved is written into `run_dir`, so that
/// [`give_back`] can undo it. The note is for people: `None` if there is nothing to know.
pub fn take(node_ports: Ports, run_dir: &Path) -> (Choice, Option<String>) {
    let local = match read_local() {
        Ok(local) => local,
        Err(error) => {
            let note = format!("{LOCAL_RANGE} cannot be read: {error}; the kernel's default is assumed");
            return (choose(node_ports, Ports { first: 32_768, last: 60_999 }), Some(note));
        }
    };
    let choice = choose(node_ports, local);
    let mut wanted = Vec::new();
    let mut why = Vec::new();
    if choice.reserve {
        wanted.push(choice.ports);
        why.push(format!("masquerade has no ports beside NodePorts {node_ports}"));
    }
    if let Some(shared) = local.common(node_ports) {
        wanted.push(shared);
        why.push(format!("answers to the host's own sockets on {shared} would look like requests to NodePorts"));
    }
    if wanted.is_empty() {
        return (choice, None);
    }
    let (ports, why) = (write_list(&normal(wanted.clone())), why.join(", and "));
    let note = match reserve(&wanted, run_dir) {
        Ok(()) => format!(
            "with net.ipv4.ip_local_port_range {local} {why}: {ports} are reserved in net.ipv4.ip_local_reserved_ports, until `netlb cleanup`"
        ),
        Err(error) => format!(
            "with net.ipv4.ip_local_port_range {local} {why}, and {ports} cannot be reserved: {error}; add {ports} to net.ipv4.ip_local_reserved_ports"
        ),
    };
    (choice, Some(note))
}

fn read_local() -> io::Result<Ports> {
    let text = std::fs::read_to_string(LOCAL_RANGE)?;
    let mut words = text.split_whitespace();
    let range = format!("{}-{}", words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ports::parse(&range).ok_or_else(|| io::Error::other(format!("it reads {text:?}")))
}

fn read_reserved() -> io::Result<Vec<Ports>> {
    let text = std::fs::read_to_string(RESERVED)?;
    parse_list(&text).ok_or_else(|| io::Error::other(format!("{RESERVED} reads {text:?}")))
}

fn record(run_dir: &Path) -> PathBuf {
    run_dir.join("reserved-ports")
}

/// What an agent reserved and nobody gave back.
fn recorded(run_dir: &Path) -> io::Result<Vec<Ports>> {
    match std::fs::read_to_string(record(run_dir)) {
        Ok(text) => Ok(parse_list(&text).unwrap_or_default()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn reserve(ports: &[Ports], run_dir: &Path) -> io::Result<()> {
    let before = read_reserved()?;
    let new = difference(ports, &before);
    if new.is_empty() {
        return Ok(());
    }
    // The record first: it must not be missed should the agent die in between.
    let earlier = recorded(run_dir)?;
    let ours = normal([earlier.clone(), new.clone()].concat());
    atomic_file::write(&record(run_dir), write_list(&ours).as_bytes())?;
    let written = std::fs::write(RESERVED, write_list(&normal([before, new].concat())));
    if written.is_err() {
        atomic_file::write(&record(run_dir), write_list(&earlier).as_bytes())?;
    }
    written
}

/// Gives back what agents with this run directory reserved, and keeps everything else that is reserved. Returns what it was, if anything.
///
/// # Errors
/// If the record or the setting cannot be read or written.
pub fn give_back(run_dir: &Path) -> io::Result<Option<String>> {
    let ours = recorded(run_dir)?;
    if ours.is_empty() {
        return Ok(None);
    }
    let left = difference(&read_reserved()?, &ours);
    // An empty list is a line without anything.
    std::fs::write(RESERVED, write_list(&left) + "\n")?;
    std::fs::remove_file(record(run_dir))?;
    Ok(Some(write_list(&ours)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Ports {
        Ports::parse(text).expect("a range")
    }

    #[test]
    fn the_largest_gap_or_a_reserved_one() {
        for (node_ports, local, want, reserve) in [
            ("30000-32767", "32768-60999", "1024-29999", false),
            ("30000-32767", "1024-60999", "61000-65535", false),
            ("30000-32767", "1024-65535", "61000-65535", true),
            ("30000-32767", "1024-64999", "61000-65535", true),
            ("30000-32767", "1024-64536", "61000-65535", true),
            ("30000-32767", "1024-64535", "64536-65535", false),
            ("30000-32767", "10000-65535", "1024-9999", false),
            ("1024-29999", "32768-60999", "61000-65535", false),
            ("1024-62999", "1024-65535", "63000-65535", true),
            ("62000-65535", "1024-65535", "61000-61999", true),
            ("1-65535", "1-65535", "61000-65535", true),
            ("30000-32767", "33000-33000", "33001-65535", false),
        ] {
            let choice = choose(ports(node_ports), ports(local));
            assert_eq!((choice.ports, choice.reserve), (ports(want), reserve), "NodePorts {node_ports}, local {local}");
        }
    }

    #[test]
    fn what_two_ranges_share() {
        let common = |a, b| ports(a).common(ports(b)).map(|c| c.to_string());
        assert_eq!(common("30000-32767", "1024-65535").as_deref(), Some("30000-32767"));
        assert_eq!(common("30000-32767", "32767-60999").as_deref(), Some("32767"));
        assert_eq!(common("30000-32767", "32768-60999"), None);
    }

    #[test]
    fn ranges_as_people_and_the_kernel_write_them() {
        for bad in ["", "30000", "32767-30000", "0-5", "1-70000", "a-b"] {
            assert_eq!(Ports::parse(bad), None, "{bad}");
        }
        let list = parse_list("8080,30000-32767,32768,9000-9100\n").expect("a list");
        assert_eq!(write_list(&list), "8080,9000-9100,30000-32768");
        assert_eq!(parse_list("\n"), Some(Vec::new()));
        assert_eq!(parse_list("x"), None);
    }

    #[test]
    fn what_others_reserved_stays_theirs() {
        let before = parse_list("8080,62000-62010").expect("a list");
        let new = difference(&[ports("61000-65535")], &before);
        assert_eq!(write_list(&new), "61000-61999,62011-65535");
        let reserved = normal([before.clone(), new.clone()].concat());
        assert_eq!(write_list(&reserved), "8080,61000-65535");
        assert_eq!(difference(&reserved, &new), before);
    }
}
