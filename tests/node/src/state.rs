//! The run's folder under `/run`, by which other commands find a live run and `clean` finds a dead one.
//!
//! A run holds a lock on its folder as long as it lives, however it ends: whether it is alive is never guessed from a pid.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::address::Dual;
use crate::cgroup;

/// Something that runs: where its runs have their folders, and what their cgroups are called.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The folder of all runs' folders.
    pub base: &'static str,
    /// What a run's cgroup is called: this and the run's id.
    pub group: &'static str,
}

/// Test nodes.
pub const TEST_NODES: Kind = Kind { base: "/run/netlb-testnode", group: "netlb-run-" };

const LOCK: &str = "lock";
const RUN_FILE: &str = "run.json";

/// A live run's folder; removed on drop.
#[derive(Debug)]
pub struct StateDir {
    id: String,
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder, named by the process id (and a number, if the process has several).
    ///
    /// # Errors
    /// When `/run` is not writable.
    pub fn create(kind: Kind) -> Result<Self> {
        let _all = kind.lock()?;
        let pid = std::process::id();
        for turn in 0..1000 {
            let id = if turn == 0 { pid.to_string() } else { format!("{pid}-{turn}") };
            let path = Path::new(kind.base).join(&id);
            match fs::create_dir(&path) {
                Ok(()) => {
                    let lock = File::create(path.join(LOCK)).context("cannot make the run's lock file")?;
                    lock.try_lock().context("cannot lock the run's folder")?;
                    return Ok(Self { id, path, _lock: lock });
                }
                // Another of this process, or one that a dead process with our id left: both are somebody else's.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
            }
        }
        bail!("{} is full of folders of process {pid}; do `cargo xtask clean`", kind.base)
    }

    /// What the run is called.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what other commands need to know, at once and whole.
    ///
    /// # Errors
    /// When the folder is gone.
    pub fn save(&self, run: &impl Serialize) -> Result<()> {
        write_whole(&self.path.join(RUN_FILE), &serde_json::to_string_pretty(run)?)
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// What other commands need to know of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunFile {
    /// The run's id.
    pub id: String,
    /// The run's process.
    pub pid: u32,
    /// Its nodes, in order.
    pub nodes: Vec<NodeEntry>,
    /// Its pods, by name.
    pub pods: Vec<PodEntry>,
    /// The hosts outside.
    pub hosts: Vec<HostEntry>,
}

/// How to get onto a host outside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostEntry {
    /// `outside` or `far`.
    pub name: String,
    /// A path that opens its network namespace.
    pub net: PathBuf,
    /// The cgroup for its processes.
    pub cgroup: PathBuf,
}

/// How to get into a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Counts from 1.
    pub number: u8,
    /// A path that opens its network namespace.
    pub net: PathBuf,
    /// A path that opens its mount namespace.
    pub mount: PathBuf,
    /// The cgroup for its processes.
    pub cgroup: PathBuf,
    /// The agent's run folder.
    pub run_dir: PathBuf,
    /// The agent's program.
    pub netlb: PathBuf,
}

/// How to get into a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodEntry {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What made it, without its kind.
    pub owner: String,
    /// The node it runs on.
    pub node: u8,
    /// Its addresses.
    pub addresses: Dual,
    /// A path that opens its network namespace.
    pub net: PathBuf,
    /// The cgroup for its processes.
    pub cgroup: PathBuf,
    /// The hosts file that its processes see.
    pub hosts: PathBuf,
}

impl Kind {
    /// The cgroup of the run `id`, among all those of the machine.
    ///
    /// # Errors
    /// When cgroup2 is not mounted.
    pub fn cgroup(&self, id: &str) -> Result<PathBuf> {
        Ok(cgroup::mount_point()?.join(format!("{}{id}", self.group)))
    }

    /// The runs that are alive, oldest first, with the files they have saved.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn live<T: DeserializeOwned>(&self) -> Result<Vec<(PathBuf, T)>> {
        let mut runs = Vec::new();
        for path in self.folders()? {
            if dead(&path).is_some() {
                continue;
            }
            // A run that is just starting has no file yet.
            if let Ok(text) = fs::read_to_string(path.join(RUN_FILE)) {
                let run = serde_json::from_str(&text)
                    .with_context(|| format!("cannot understand {}", path.join(RUN_FILE).display()))?;
                let started = fs::metadata(path.join(LOCK)).and_then(|lock| lock.modified()).ok();
                runs.push((started, path, run));
            }
        }
        runs.sort_by(|a: &(_, PathBuf, T), b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        Ok(runs.into_iter().map(|(_, path, run)| (path, run)).collect())
    }

    /// Removes what dead runs left: cgroups with processes that somebody else had put there, what `further` knows of a
    /// dead run by its folder and returns as lines, and folders. Returns a line each.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn clean(&self, mut further: impl FnMut(&Path) -> Result<Vec<String>>) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        let _all = self.lock()?;
        let groups = cgroup::mount_point()?;
        let (mut alive, mut gone) = (Vec::new(), Vec::new());
        for path in self.folders()? {
            match dead(&path) {
                Some(lock) => gone.push((path, lock)),
                None => alive.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned()),
            }
        }
        for entry in fs::read_dir(&groups).with_context(|| format!("cannot read {}", groups.display()))? {
            let entry = entry.with_context(|| format!("cannot read {}", groups.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_prefix(self.group) else { continue };
            if !alive.iter().any(|live| live == id) {
                cgroup::destroy(&entry.path())?;
                removed.push(format!("cgroup {}", entry.path().display()));
            }
        }
        for (path, _lock) in gone {
            removed.extend(further(&path)?);
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            removed.push(format!("folder {}", path.display()));
        }
        Ok(removed)
    }

    /// Held while folders are made or judged.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(self.base).with_context(|| format!("cannot make {}; run as root", self.base))?;
        let path = Path::new(self.base).join(".lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    fn folders(&self) -> Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        match fs::read_dir(self.base) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry.with_context(|| format!("cannot read {}", self.base))?.path();
                    if path.is_dir() {
                        folders.push(path);
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.base)),
        }
        folders.sort();
        Ok(folders)
    }
}

/// Writes a file so that readers see the old text or the new one.
///
/// # Errors
/// When the folder is not writable.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file without a folder")?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{:08x}.tmp", crate::topology::short_hash(&name)));
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The lock of a folder whose run is dead; `None` if it is alive.
fn dead(folder: &Path) -> Option<File> {
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK)).ok()?;
    lock.try_lock().is_ok().then_some(lock)
}
