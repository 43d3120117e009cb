//! What the machine must have, asked before anything is touched: one line each, with the remedy.

use std::path::Path;

/// Bits of /proc/self/status CapEff (capability(7)).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// `bpf_redirect_peer` and `bpf_redirect_neigh` came with this kernel.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// Why netlb cannot run here, all reasons at once; empty when it can. The bpf file system and the cgroup are checked where they are used.
pub fn problems() -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(missing) = missing_capabilities() {
        problems.push(format!("netlb lacks {missing}: run it as root, or with those capabilities"));
    }
    match kernel_version() {
        Some(version) if version < OLDEST_KERNEL => problems.push(format!(
            "kernel {}.{} cannot redirect packets into a pod (bpf_redirect_peer) nor to a neighbour (bpf_redirect_neigh): use kernel {}.{} or newer",
            version.0, version.1, OLDEST_KERNEL.0, OLDEST_KERNEL.1
        )),
        Some(_) => {}
        None => problems.push("the kernel's version cannot be read from /proc/sys/kernel/osrelease: mount /proc".to_owned()),
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        problems.push(
            "the kernel has no BTF at /sys/kernel/btf/vmlinux: use one built with CONFIG_DEBUG_INFO_BTF, and mount /sys".to_owned(),
        );
    }
    problems
}

/// Version of the running kernel: major, minor.
pub fn kernel_version() -> Option<(u32, u32)> {
    parse_release(&kernel_release()?)
}

/// The running kernel's name, as `uname -r` prints it.
pub fn kernel_release() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(text.trim().to_owned())
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn missing_capabilities() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    missing_in(effective(&status).unwrap_or(0))
}

fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn missing_in(effective: u64) -> Option<String> {
    let has = |cap: u32| effective & 1 << cap != 0;
    let missing: Vec<&str> = [(CAP_BPF, "CAP_BPF"), (CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN")]
        .into_iter()
        .filter(|(cap, _)| !has(*cap))
        .map(|(_, name)| name)
        .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_as_distributions_write_them() {
        assert_eq!(parse_release("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(parse_release("5.10.0-33-amd64"), Some((5, 10)));
        assert_eq!(parse_release("6.6"), Some((6, 6)));
        assert_eq!(parse_release("next"), None);
    }

    #[test]
    fn capabilities_from_proc_status() {
        let root = effective("Name:\tnetlb\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n").expect("has the line");
        assert_eq!(missing_in(root), None);
        assert_eq!(missing_in(0).as_deref(), Some("CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN"));
        assert_eq!(missing_in(root & !(1 << CAP_BPF)).as_deref(), Some("CAP_BPF"));
        assert_eq!(effective("Name: x\n"), None);
    }
}
