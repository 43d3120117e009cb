//! /proc/self/mountinfo: where cgroup2 and the bpf file system are in this mount namespace.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Mount points of a file system type, in the order of mounting.
///
/// # Errors
/// If /proc is not mounted.
pub fn of_type(fs_type: &str) -> io::Result<Vec<PathBuf>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?, fs_type))
}

/// The folder under which all cgroups (version 2) are, if mounted.
///
/// # Errors
/// If /proc is not mounted.
pub fn cgroup2() -> io::Result<Option<PathBuf>> {
    Ok(of_type("cgroup2")?.into_iter().next_back())
}

/// Lines of proc(5) mountinfo: `36 35 98:0 / /mnt rw,noatime shared:1 - ext4 /dev/root rw`: the mount point is the fifth field, the type
/// follows the lone dash.
fn parse(mountinfo: &str, fs_type: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            (filesystem.split(' ').next()? == fs_type).then(|| unescape(point))
        })
        .collect()
}

/// Blank, tab, newline and backslash stand as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.filter(|_| first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw
60 31 0:50 / /mnt/with\\040blank rw - bpf bpf rw,mode=700
";

    #[test]
    fn finds_mount_points_by_type() {
        assert_eq!(parse(SAMPLE, "cgroup2"), [PathBuf::from("/sys/fs/cgroup/unified")]);
        assert_eq!(parse(SAMPLE, "bpf"), [PathBuf::from("/mnt/with blank")]);
        assert!(parse(SAMPLE, "cpu").is_empty());
        assert!(parse("nonsense\n- -\n", "bpf").is_empty());
    }

    #[test]
    fn escapes_cut_short_stand_for_themselves() {
        assert_eq!(unescape("a\\04"), PathBuf::from("a\\04"));
        assert_eq!(unescape("a\\999b"), PathBuf::from("a\\999b"));
        assert_eq!(unescape("\\134"), PathBuf::from("\\"));
    }
}
