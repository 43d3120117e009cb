//! The cookies of pods' network namespaces: how socket hooks know whose socket it is (`--accel socket`).
//!
//! A veth names its peer's namespace by an id of ours; the cookie is told only to a socket inside. So a process inside is looked for in /proc, and a
//! thread goes there for one socket. A pod without a process that can be seen (another PID namespace) has no cookie: its packets are translated
//! instead of its sockets, which comes to the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};

use crate::bpf::sys;
use crate::netlink::{Netlink, Request, attributes};

const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;

/// `struct rtgenmsg`, aligned.
const HEADER: usize = 4;

/// Cookies by namespace id, of those ids that a process can be found for.
pub fn cookies(netlink: &mut Netlink, wanted: &BTreeSet<i32>) -> BTreeMap<i32, u64> {
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return found;
    }
    let mut seen: BTreeSet<u64> = inode(&PathBuf::from("/proc/thread-self/ns/net")).into_iter().collect();
    for pid in pids() {
        if found.len() == wanted.len() {
            break;
        }
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        // A process that ends meanwhile is none.
        let Some(number) = inode(&path) else { continue };
        if !seen.insert(number) {
            continue;
        }
        let Some(id) = id_of(netlink, pid).filter(|id| wanted.contains(id)) else { continue };
        if let Ok(cookie) = cookie_of(&path, number) {
            found.insert(id, cookie);
        }
    }
    found
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The number that tells namespaces apart while they live.
fn inode(path: &PathBuf) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

/// The id under which our namespace knows a process's, if it does.
fn id_of(netlink: &mut Netlink, pid: u32) -> Option<i32> {
    let request = Request::new(RTM_GETNSID, &[0; HEADER]).with(NETNSA_PID, &pid.to_ne_bytes());
    let payload = netlink.one(request).ok()??;
    attributes(&payload, HEADER).u32(NETNSA_NSID).map(|id| id as i32)
}

/// Asks inside. `number`: the process may have ended, and its id be another's by now.
fn cookie_of(path: &PathBuf, number: u64) -> io::Result<u64> {
    let namespace = File::open(path)?;
    if namespace.metadata()?.ino() != number {
        return Err(io::Error::other("the process has gone"));
    }
    let visit = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        sys::netns_cookie()
    };
    let visitor = std::thread::Builder::new().name("netns-cookie".to_owned()).spawn(visit)?;
    visitor.join().map_err(|_| io::Error::other("the thread that asked panicked"))?
}
