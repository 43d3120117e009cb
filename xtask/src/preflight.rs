//! What a run needs of the machine: one line for each thing that is missing, with what to do.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use netlb_testnode::cgroup;

use crate::sudo;

/// The oldest kernel that netlb runs on.
const KERNEL: (u32, u32) = (5, 10);

/// Fails with all that is missing.
pub(crate) fn check() -> Result<()> {
    let mut missing = Vec::new();
    if !sudo::is_root() {
        missing.push("no rights: run as root".to_owned());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match version(&release) {
        Some(found) if found < KERNEL => missing.push(format!(
            "kernel {} is too old: netlb needs {}.{} or newer; boot one",
            release.trim(),
            KERNEL.0,
            KERNEL.1
        )),
        Some(_) => {}
        None => {
            missing.push(format!("kernel release {:?} is not understood: boot Linux 5.10 or newer", release.trim()))
        }
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing
            .push("no BTF: /sys/kernel/btf/vmlinux is missing; boot a kernel with CONFIG_DEBUG_INFO_BTF=y".to_owned());
    }
    if let Err(error) = cgroup::mount_point() {
        missing.push(format!("no cgroup2: {error}"));
    }
    let types = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !types.lines().any(|line| line.split_whitespace().last() == Some("bpf")) || !Path::new("/sys/fs/bpf").is_dir() {
        missing.push("no bpffs: mount sysfs on /sys, and boot a kernel with CONFIG_BPF_SYSCALL=y".to_owned());
    }
    if !missing.is_empty() {
        bail!("this machine cannot run a node:\n  {}", missing.join("\n  "));
    }
    Ok(())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn kernel_releases_are_compared_by_number() {
        assert_eq!(version("6.18.44\n"), Some((6, 18)));
        assert_eq!(version("6.1.0-42-amd64"), Some((6, 1)));
        assert!(version("6.18.44") > version("6.6.0-rc1"));
        assert_eq!(version("unknown"), None);
    }
}
