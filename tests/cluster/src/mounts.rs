//! What a host of the cluster sees of the machine's files: all of them, but with folders of its own where Kubernetes' programs
//! write. They vanish with the host, and hosts do not see each other's.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use netlb_testnode::netns::MountNs;
use nix::mount::{MsFlags, mount};

/// Kernel settings of the whole machine that kubelet insists on. It finds these values, and leaves the machine's alone.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Where a host finds its own cgroup2 directory, whichever host it is.
pub const CGROUP: &str = "/run/cgroup2";

/// Makes a mount namespace where `/run`, `/var/log` and additions to `/var/lib` are the host's own, in memory, `run` stays
/// where it is, `cgroup` is also at [`CGROUP`], and `/var/lib/NAME` is `disk/NAME` for each of `on_disk`.
///
/// # Errors
/// Names the mount that failed.
pub fn host(run: &Path, cgroup: &Path, disk: &Path, on_disk: &[&str]) -> Result<MountNs> {
    let mounts = MountNs::create()?;
    mounts.run(|| -> Result<()> {
        let kept = open(run)?;
        tmpfs("/run")?;
        fs::create_dir_all(run).with_context(|| format!("cannot make {}", run.display()))?;
        bind(&format!("/proc/self/fd/{}", kept.as_raw_fd()), run)?;
        for folder in ["/run/lib", "/run/lib.work", "/run/tunables", CGROUP] {
            fs::create_dir(folder).with_context(|| format!("cannot make {folder}"))?;
        }
        bind(&cgroup.display().to_string(), Path::new(CGROUP))?;
        // What Debian keeps in /var/lib stays visible.
        let layers = "lowerdir=/var/lib,upperdir=/run/lib,workdir=/run/lib.work";
        mount(Some("overlay"), "/var/lib", Some("overlay"), MsFlags::empty(), Some(layers))
            .context("cannot lay an overlay over /var/lib; the kernel needs CONFIG_OVERLAY_FS")?;
        for name in on_disk {
            let (from, to) = (disk.join(name), Path::new("/var/lib").join(name));
            for folder in [&from, &to] {
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            }
            bind(&from.display().to_string(), &to)?;
        }
        tmpfs("/var/log")?;
        for (name, value) in TUNABLES {
            let (file, setting) =
                (Path::new("/run/tunables").join(name.replace('/', ".")), Path::new("/proc/sys").join(name));
            fs::write(&file, value).with_context(|| format!("cannot write {}", file.display()))?;
            if setting.exists() {
                bind(&file.display().to_string(), &setting)?;
            }
        }
        // Volumes of pods are mounted after their pods have started: pods see what the host mounts.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
            .context("cannot make the host's mounts shared among its pods")
    })??;
    Ok(mounts)
}

/// A folder that stays reachable by its descriptor when its path is covered.
fn open(folder: &Path) -> Result<File> {
    File::options()
        .read(true)
        .custom_flags(nix::libc::O_PATH)
        .open(folder)
        .with_context(|| format!("cannot open {}", folder.display()))
}

fn tmpfs(folder: &str) -> Result<()> {
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .with_context(|| format!("cannot mount a tmpfs on {folder}"))
}

fn bind(from: &str, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot put {from} over {}", to.display()))
}
