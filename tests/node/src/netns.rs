//! Namespaces without names: made on a helper thread, held by a file descriptor.
//!
//! A network namespace lives as long as somebody holds a descriptor to it or a process runs in it. Nothing is mounted
//! and nothing is listed in `/run/netns`, so a run that dies, however it dies, takes its namespaces with it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. Clones share it; it goes when the last clone and the last process inside are gone.
#[derive(Clone, Debug)]
pub struct NetNs {
    file: Arc<File>,
}

impl NetNs {
    /// Makes a namespace whose only device is a loopback that is down.
    ///
    /// # Errors
    /// When the process may not make namespaces (it needs root).
    pub fn create() -> Result<Self> {
        on_thread("netns-create", || {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("cannot make a network namespace; run as root (or with CAP_SYS_ADMIN)")?;
            Self::current()
        })?
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not readable.
    pub fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("cannot open /proc/thread-self/ns/net")?;
        Ok(Self { file: Arc::new(file) })
    }

    /// The namespace that `path` names: `/proc/<pid>/ns/net` or `/proc/<pid>/fd/<n>`.
    ///
    /// # Errors
    /// When the path cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open namespace {}", path.display()))?;
        Ok(Self { file: Arc::new(file) })
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// When the caller is not root.
    pub fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace; run as root")
    }

    /// Runs `f` on a thread of its own inside the namespace and returns its result.
    ///
    /// Sockets that `f` makes belong to the namespace and may be returned. A panic of `f` continues in the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread("netns-run", || {
            self.enter()?;
            Ok(f())
        })?
    }

    /// The descriptor's number, under which other processes find it in `/proc/<pid>/fd`.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// The namespace's inode number, which tells two namespaces apart.
    ///
    /// # Errors
    /// When the descriptor cannot be examined.
    pub fn inode(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata().context("cannot stat the network namespace")?.ino())
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A mount namespace with a bpffs of its own on `/sys/fs/bpf`: pins made inside vanish with it.
#[derive(Clone, Debug)]
pub struct MountNs {
    file: Arc<File>,
}

impl MountNs {
    /// Makes a mount namespace from the caller's, cut off from it, with a fresh bpffs on `/sys/fs/bpf`.
    ///
    /// # Errors
    /// When the process is not root or the kernel has no bpffs.
    pub fn create() -> Result<Self> {
        on_thread("mntns-create", || {
            unshare_mounts()?;
            mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                .context("cannot mount a bpffs on /sys/fs/bpf; the kernel needs CONFIG_BPF_SYSCALL and sysfs")?;
            let file = File::open("/proc/thread-self/ns/mnt").context("cannot open /proc/thread-self/ns/mnt")?;
            Ok(Self { file: Arc::new(file) })
        })?
    }

    /// The mount namespace that `path` names, as in [`NetNs::open`].
    ///
    /// # Errors
    /// When the path cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open mount namespace {}", path.display()))?;
        Ok(Self { file: Arc::new(file) })
    }

    /// Moves the calling thread into the mount namespace, for good.
    ///
    /// # Errors
    /// When the caller is not root.
    pub fn enter(&self) -> Result<()> {
        // A thread shares its root and working directory with its process until told otherwise, and may not switch
        // mount namespaces while it does.
        unshare(CloneFlags::CLONE_FS).context("cannot stop sharing the working directory")?;
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNS).context("cannot enter the mount namespace; run as root")
    }

    /// Runs `f` on a thread of its own inside the mount namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread("mntns-run", || {
            self.enter()?;
            Ok(f())
        })?
    }

    /// The descriptor's number, under which other processes find it in `/proc/<pid>/fd`.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// Gives the calling thread a private copy of the mount table: nothing it mounts is seen elsewhere.
///
/// # Errors
/// When the caller is not root.
pub fn unshare_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace; run as root")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make the mounts private")
}

/// Runs `f` on a fresh thread and waits for it, so that what it does to its thread (namespaces) ends with it.
fn on_thread<T: Send>(name: &str, f: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, f)
            .map_err(|e| anyhow!("cannot start the thread {name}: {e}"))?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Writes a kernel setting of the calling thread's network namespace, e.g. `net/ipv4/ip_forward`.
///
/// # Errors
/// Names the setting when it does not exist or refuses the value.
pub fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    std::fs::write(&path, value).with_context(|| format!("cannot set {} to {value}", path.display()))
}
