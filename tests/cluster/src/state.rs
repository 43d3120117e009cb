//! By what other programs find a cluster, and `clean` finds what a dead one left.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use netlb_testnode::netns::{MountNs, NetNs};
use netlb_testnode::state::{Kind, StateDir};
use serde::{Deserialize, Serialize};

use crate::cgroup1;

/// Clusters.
pub const CLUSTERS: Kind = Kind { base: "/run/netlb-testcluster", group: "netlb-cluster-" };
/// The file in a cluster's folder that names its folder on the disk.
const DISK_FILE: &str = "disk";

/// What other programs need to know of a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The cluster's id.
    pub id: String,
    /// How many nodes it has; 0 if an older checkout keeps it, which did not say.
    #[serde(default)]
    pub nodes: u8,
    /// The process that keeps it.
    pub pid: u32,
    /// What serves Services.
    pub proxy: String,
    /// netlb's `--accel`.
    pub accel: String,
    /// The folder of the cluster's programs.
    pub bin: PathBuf,
    /// The agent's program.
    pub netlb: PathBuf,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The folder of the programs' logs.
    pub logs: PathBuf,
    /// Its hosts: the control plane, the nodes, the client.
    pub hosts: Vec<HostFile>,
}

/// How to get onto a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostFile {
    /// Its name.
    pub name: String,
    /// A path that opens its network namespace.
    pub net: PathBuf,
    /// A path that opens its mount namespace.
    pub mount: PathBuf,
    /// The cgroup for its programs.
    pub cgroup: PathBuf,
}

impl ClusterFile {
    /// The host of this name.
    ///
    /// # Errors
    /// When there is none, with those there are.
    pub fn host(&self, name: &str) -> Result<&HostFile> {
        match self.hosts.iter().find(|host| host.name == name) {
            Some(host) => Ok(host),
            None => {
                let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
                bail!("cluster {} has no host {name}; it has {}", self.id, names.join(", "))
            }
        }
    }
}

impl HostFile {
    /// Moves the calling process onto the host: its cgroup, its network and its mounts. The caller must have one thread
    /// only, and then becomes another program.
    ///
    /// # Errors
    /// When the cluster is gone.
    pub fn enter(&self) -> Result<()> {
        let procs = self.cgroup.join("cgroup.procs");
        fs::write(&procs, "0")
            .with_context(|| format!("cannot join {}; the cluster may be gone", self.cgroup.display()))?;
        let mounts = MountNs::open(&self.mount)?;
        NetNs::open(&self.net)?.enter()?;
        mounts.enter()
    }
}

/// A cluster's folder on the disk; removed on drop.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Makes the folder below `base`, and writes down where it is.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(base: &Path, state: &StateDir) -> Result<Self> {
        let folder = base.join(state.id());
        fs::write(state.path().join(DISK_FILE), folder.as_os_str().as_encoded_bytes())
            .context("cannot write to the cluster's folder")?;
        // A killed cluster whose process had our id may have left its own.
        remove(&folder)?;
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Removes what dead clusters left. Returns a line each.
///
/// # Errors
/// When something cannot be removed.
pub fn clean() -> Result<Vec<String>> {
    CLUSTERS.clean(|folder| {
        let mut removed = Vec::new();
        let id = folder.file_name().unwrap_or_default().to_string_lossy();
        let groups = cgroup1::remove(&format!("{}{id}", CLUSTERS.group))?;
        removed.extend(groups.iter().map(|group| format!("cgroup {}", group.display())));
        if let Ok(disk) = fs::read_to_string(folder.join(DISK_FILE)) {
            remove(Path::new(&disk))?;
            removed.push(format!("folder {disk}"));
        }
        Ok(removed)
    })
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
