//! Getting into a live run's pods and nodes from another process, by the paths in its file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use crate::netns::{MountNs, NetNs, unshare_mounts};
use crate::state::{HostEntry, NodeEntry, PodEntry, RunFile};

/// Finds a pod by `namespace/name`, by a name in `default`, or by its workload's name.
///
/// # Errors
/// When there is none, with those there are.
pub fn find_pod<'a>(run: &'a RunFile, name: &str) -> Result<&'a PodEntry> {
    let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
    let exact = run.pods.iter().find(|pod| pod.namespace == namespace && pod.name == short);
    let owned = || run.pods.iter().find(|pod| pod.namespace == namespace && pod.owner == short);
    // Without a namespace any will do, if `default` has none of that name.
    let anywhere = || run.pods.iter().find(|pod| !name.contains('/') && (pod.name == short || pod.owner == short));
    match exact.or_else(owned).or_else(anywhere) {
        Some(pod) => Ok(pod),
        None => {
            let names: Vec<_> = run.pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
            bail!("there is no pod {name} in run {}; there are: {}", run.id, names.join(", "))
        }
    }
}

/// Moves the calling process into a pod: its cgroup, its network, and a mount namespace where Service names resolve. The
/// caller must have one thread only, and then becomes another program.
///
/// # Errors
/// When the pod is gone.
pub fn enter_pod(pod: &PodEntry) -> Result<()> {
    join_cgroup(&pod.cgroup)?;
    NetNs::open(&pod.net)?.enter()?;
    unshare_mounts()?;
    bind(&pod.hosts, Path::new("/etc/hosts"))?;
    // What is not in the hosts file does not exist: no name server is within reach, and asking one would take seconds.
    if Path::new("/etc/resolv.conf").exists() {
        bind(Path::new("/dev/null"), Path::new("/etc/resolv.conf"))?;
    }
    Ok(())
}

/// Moves the calling process into a node: its cgroup, its network, and its mounts with the pins. As [`enter_pod`].
///
/// # Errors
/// When the node is gone.
pub fn enter_node(node: &NodeEntry) -> Result<()> {
    join_cgroup(&node.cgroup)?;
    let mount = MountNs::open(&node.mount)?;
    NetNs::open(&node.net)?.enter()?;
    mount.enter()
}

/// Moves the calling process onto a host outside: its cgroup and its network. As [`enter_pod`].
///
/// # Errors
/// When the run is gone.
pub fn enter_host(host: &HostEntry) -> Result<()> {
    join_cgroup(&host.cgroup)?;
    NetNs::open(&host.net)?.enter()
}

fn join_cgroup(group: &Path) -> Result<()> {
    let path = group.join("cgroup.procs");
    fs::write(&path, "0").with_context(|| format!("cannot join {}; the run may have ended", group.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot put {} over {}", from.display(), to.display()))
}
