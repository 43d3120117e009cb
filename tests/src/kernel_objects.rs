//! What the kernel itself says about programs, links and maps: by pin, by device, by cgroup.
//!
//! Asked by the bpf system call, not by netlb's own code, which is what is tested.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use netlb_testnode::link::Links;
use netlb_testnode::process::Stop;
use netlb_testnode::topology::Node;
use serde_json::Value;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;

/// Attach types of a pod device's two programs (uapi/linux/bpf.h: BPF_TCX_INGRESS, BPF_TCX_EGRESS).
pub const TCX: [u32; 2] = [46, 47];
/// Attach types of netlb's socket hooks: connect, sendmsg, recvmsg, getpeername, each for IPv4 and IPv6.
pub const SOCKET_HOOKS: [u32; 8] = [10, 11, 14, 15, 19, 20, 29, 30];

/// A pinned object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pinned {
    Map { id: u32 },
    Program { id: u32 },
    Link { id: u32, program: u32 },
}

/// Everything pinned below a folder of a node's bpffs, by path.
///
/// # Errors
/// When a pin cannot be opened.
pub fn pins(node: &Node, folder: &Path) -> Result<BTreeMap<PathBuf, Pinned>> {
    node.mount.run(|| {
        let mut found = BTreeMap::new();
        let mut open = vec![folder.to_owned()];
        while let Some(path) = open.pop() {
            let entries = match fs::read_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.with_context(|| format!("cannot list {}", path.display()))?,
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    open.push(entry.path());
                } else {
                    let path = entry.path();
                    let pinned = pinned(&path).with_context(|| format!("cannot open the pin {}", path.display()))?;
                    found.insert(path, pinned);
                }
            }
        }
        Ok(found)
    })?
}

/// Ids of the programs on a node's device, in both directions.
///
/// # Errors
/// When there is no such device.
pub fn on_device(node: &Node, device: &str) -> Result<[Vec<u32>; 2]> {
    let index = Links::open(node.net())?.index(device)?;
    let [ingress, egress] = node.net().run(|| TCX.map(|attach| query(index, attach)))?;
    Ok([ingress.context("query TCX ingress")?, egress.context("query TCX egress")?])
}

/// Whether the kernel has TCX (6.6).
#[must_use]
pub fn has_tcx() -> bool {
    const LOOPBACK: u32 = 1;
    query(LOOPBACK, TCX[0]).is_ok()
}

/// The filters of a node's device, ingress and egress, as `tc` lists them; none without clsact.
///
/// # Errors
/// When `tc` is missing or fails.
pub fn filters(node: &Node, device: &str) -> Result<[Vec<Value>; 2]> {
    let [ingress, egress] = ["ingress", "egress"].map(|side| -> Result<Vec<Value>> {
        let rows = tc(node, &format!("-j filter show dev {device} {side}"))?;
        let rows: Vec<Value> = serde_json::from_str(&rows).context("cannot understand tc")?;
        // Each kind comes with a line of its own, without options, before its filters.
        Ok(rows
            .into_iter()
            .filter(|row| row["options"]["handle"].is_string() || row["options"]["fh"].is_string())
            .collect())
    });
    Ok([ingress?, egress?])
}

/// Runs `tc` with these arguments in a node's network namespace, and returns what it prints.
///
/// # Errors
/// When it fails, with what it said.
pub fn tc(node: &Node, arguments: &str) -> Result<String> {
    let mut command = Command::new("tc");
    command.args(arguments.split(' '));
    let output = node.place.output("tc", command, b"", &Stop::default())?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "tc {arguments}: {said}");
    String::from_utf8(output.stdout).context("tc printed something that is not text")
}

/// Ids of the programs attached to a cgroup itself, by attach type; types without programs are left out.
///
/// # Errors
/// When the directory is no cgroup.
pub fn on_cgroup(path: &Path) -> Result<BTreeMap<u32, Vec<u32>>> {
    let directory = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut found = BTreeMap::new();
    for attach in SOCKET_HOOKS {
        let target = directory.as_raw_fd().cast_unsigned();
        let programs =
            query(target, attach).with_context(|| format!("query attach type {attach} of {}", path.display()))?;
        if !programs.is_empty() {
            found.insert(attach, programs);
        }
    }
    Ok(found)
}

/// The bpf system call. The attribute is zero-padded words, as the kernel's union allows.
fn bpf(command: libc::c_long, attribute: &mut [u32; 32]) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is a live array of the length that is passed; pointers in it are the callers' live buffers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(attribute)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A pointer as two words of an attribute.
fn words<T>(pointer: *const T) -> [u32; 2] {
    let address = pointer as usize as u64;
    let [a, b, c, d, e, f, g, h] = address.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

fn pinned(path: &Path) -> Result<Pinned> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = [0; 32];
    attribute[..2].copy_from_slice(&words(name.as_ptr()));
    let descriptor = i32::try_from(bpf(BPF_OBJ_GET, &mut attribute)?)?;
    // SAFETY: the kernel just made this descriptor for us.
    let object = unsafe { OwnedFd::from_raw_fd(descriptor) };

    let mut info = [0_u32; 64];
    let mut attribute = [0; 32];
    attribute[0] = object.as_raw_fd().cast_unsigned();
    attribute[1] = u32::try_from(size_of_val(&info))?;
    attribute[2..4].copy_from_slice(&words(info.as_mut_ptr()));
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    // What an object is stands in the target of its descriptor's link. Ids: bpf_map_info and bpf_prog_info have theirs in
    // the second word; bpf_link_info too, with the program's in the third.
    let kind = fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    match kind.to_string_lossy().as_ref() {
        "anon_inode:bpf-map" => Ok(Pinned::Map { id: info[1] }),
        "anon_inode:bpf-prog" => Ok(Pinned::Program { id: info[1] }),
        "anon_inode:bpf_link" | "anon_inode:bpf-link" => Ok(Pinned::Link { id: info[1], program: info[2] }),
        other => anyhow::bail!("{other} is no map, program or link"),
    }
}

fn query(target: u32, attach: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut attribute = [0; 32];
    attribute[0] = target;
    attribute[1] = attach;
    attribute[4..6].copy_from_slice(&words(ids.as_mut_ptr()));
    attribute[6] = ids.len() as u32;
    bpf(BPF_PROG_QUERY, &mut attribute)?;
    Ok(ids.into_iter().take(attribute[6] as usize).collect())
}
