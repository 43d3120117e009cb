//! Control groups: one a run, below it one a node and one a pod, so that socket hooks see their processes only.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A cgroup2 directory that is emptied and removed, with all below it, when the value is dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group; its parent must exist.
    ///
    /// # Errors
    /// When the directory cannot be made, because it is there already or the caller is not root.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| {
            format!("cannot make the cgroup {}; run as root, or `cargo xtask clean`", path.display())
        })?;
        Ok(Self { path })
    }

    /// Makes a group below this one.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.path.join(name))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = destroy(&self.path) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Where cgroup2 is mounted, from `/proc/self/mountinfo`.
///
/// # Errors
/// When it is not mounted, with what to do.
pub fn mount_point() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    match find_mount(&table) {
        Some(path) => Ok(path),
        None => bail!("cgroup2 is not mounted; do `mount -t cgroup2 none /sys/fs/cgroup` (or boot with systemd)"),
    }
}

/// The first cgroup2 mount of the whole tree in a mountinfo table. Field 4 is the mounted root, 5 the mount point; the
/// file system's type follows the lone dash.
fn find_mount(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        (right.split(' ').next()? == "cgroup2" && root == "/").then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

/// Kills all processes in the group and below, then removes the directories, deepest first.
///
/// # Errors
/// When a directory is still there after ten seconds.
pub fn destroy(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // One write kills all, also what forks meanwhile (kernel 5.14 and newer). Without it removal below fails and says so.
    if fs::write(path.join("cgroup.kill"), "1").is_err() {
        tracing::debug!("{} has no cgroup.kill", path.display());
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match remove_tree(path) {
            Ok(()) => return Ok(()),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove the cgroup {}", path.display()));
            }
        }
    }
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_beside_version_one() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                     32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(table), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find_mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn a_part_of_the_tree_is_not_the_tree() {
        assert_eq!(find_mount("41 31 0:38 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), None);
    }
}
