//! Control groups of version one, which kubelet and runc use beside cgroup2 where a machine has both.
//!
//! kubelet makes groups below its `cgroupRoot` in every hierarchy and expects that one to be there.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What a group takes over from its parent before anything may run in it.
const INHERITED: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// One group in every hierarchy of version one; removed, with all below, on drop. Its processes are in a cgroup2 group
/// too, which has to be gone by then.
#[derive(Debug)]
pub struct Groups {
    name: String,
}

impl Groups {
    /// Makes `name` and its `children` in every hierarchy; none, where the machine has cgroup2 alone.
    ///
    /// # Errors
    /// When a directory cannot be made or set up.
    pub fn create(name: &str, children: &[&str]) -> Result<Self> {
        let groups = Self { name: name.to_owned() };
        for hierarchy in hierarchies()? {
            make(&hierarchy, name)?;
            for child in children {
                make(&hierarchy.join(name), child)?;
            }
        }
        Ok(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Removes `name` from every hierarchy. Returns what was there.
///
/// # Errors
/// When a group still has processes.
pub fn remove(name: &str) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        if group.is_dir() {
            remove_tree(&group).with_context(|| format!("cannot remove the cgroup {}", group.display()))?;
            removed.push(group);
        }
    }
    Ok(removed)
}

fn make(parent: &Path, name: &str) -> Result<()> {
    let group = parent.join(name);
    fs::create_dir(&group).with_context(|| format!("cannot make the cgroup {}; run as root", group.display()))?;
    for file in INHERITED {
        match fs::read(parent.join(file)) {
            Ok(value) => {
                fs::write(group.join(file), value)
                    .with_context(|| format!("cannot set {file} of {}", group.display()))?;
            }
            // Another hierarchy than that of cpusets.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {file} of {}", parent.display())),
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Where the hierarchies of version one are mounted.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(find_mounts(&table))
}

/// Mounts of whole hierarchies in a mountinfo table: see proc(5).
fn find_mounts(table: &str) -> Vec<PathBuf> {
    table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, point) = (left.next()?, left.next()?);
            (right.split(' ').next()? == "cgroup" && root == "/").then(|| PathBuf::from(point))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_hierarchy_of_version_one() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                     32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                     33 31 0:30 /docker/1 /mnt rw - cgroup cgroup rw,memory\n\
                     40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mounts(table), [Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup/systemd")]);
    }

    #[test]
    fn a_group_takes_over_the_cpus_of_its_parent() {
        let hierarchy = tempfile::tempdir().unwrap();
        fs::write(hierarchy.path().join("cpuset.cpus"), "0-1\n").unwrap();
        make(hierarchy.path(), "cluster").unwrap();
        make(&hierarchy.path().join("cluster"), "node1").unwrap();
        assert_eq!(fs::read_to_string(hierarchy.path().join("cluster/node1/cpuset.cpus")).unwrap(), "0-1\n");
        assert!(!hierarchy.path().join("cluster/cpuset.mems").exists(), "no such file in the parent");
    }
}
