//! What netlb leaves on the bpf file system, and whether it may be taken over.
//!
//! ```text
//! <pin-path>/v<ABI>/maps/<NAME>       maps of one version of the contract
//! <pin-path>/links/<program>-<ifindex>  TCX links of pods' devices
//! <pin-path>/links/<program>            cgroup links
//! ```
//! Links stand beside the versions: a new version's programs take the place of the old ones in the same links, between two packets.
//!
//! aya takes whatever it finds at a map's pin without a look (0.14): every pin is compared here first.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use netlb_common::abi::ABI_VERSION;
use netlb_common::maps::{self, MapSpec};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::sys::{self, MapInfo, ObjectKind};

/// The pin path of one agent.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// The pin path cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "pin path {path} is not on a bpf file system; mount one (`mount -t bpf bpf /sys/fs/bpf`) or name another with --pin-path"
    )]
    NoBpffs { path: String },
    #[error("pin path {path}: {cause}; check that its bpf file system is mounted writable and that netlb runs as root")]
    Directory { path: String, cause: io::Error },
    #[error("pin {path} cannot be read: {cause}; run `netlb cleanup` to start anew")]
    Unreadable { path: String, cause: io::Error },
    #[error(
        "pin {path} is not a map of this netlb: {what}; another program or another build of netlb made it. Run that build's `netlb cleanup`, or remove the file"
    )]
    Incompatible { path: String, what: String },
}

/// How many entries each map shall have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capacities(BTreeMap<&'static str, u32>);

impl Default for Capacities {
    fn default() -> Self {
        Capacities(maps::ALL.iter().map(|spec| (spec.name, spec.capacity)).collect())
    }
}

impl Capacities {
    /// The contract's defaults with those that people set: frontends, backends and answered flows. What depends on them grows with them.
    pub fn new(frontends: u32, backends: u32, conntrack: u32) -> Self {
        use maps::name;
        let mut all = Capacities::default();
        for (name, capacity) in [
            (name::FRONTENDS, frontends),
            (name::BACKENDS, backends),
            (name::BACKEND_FLOWS, backends),
            (name::BACKEND_LOAD, backends),
            // Blocks are rounded up to powers of two, and a changed one stands beside its predecessor for a while.
            (name::SLOTS, backends.saturating_mul(2)),
            (name::TURNS, backends.saturating_mul(2)),
            (name::CT, conntrack),
            (name::CT_NEW, (conntrack / 4).max(1024)),
        ] {
            all.0.insert(name, capacity);
        }
        all
    }

    /// Entries of a map; 0 for a name outside the contract.
    pub fn get(&self, name: &str) -> u32 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Every map with its entries, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        self.0.iter().map(|(name, capacity)| (*name, *capacity))
    }
}

/// A pinned map keeps another capacity than the one wished for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptCapacity {
    pub map: &'static str,
    pub kept: u32,
    pub wished: u32,
}

impl Pins {
    /// For `--pin-path`; looks at nothing yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Pins { root: root.into() }
    }

    /// The pin path itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of this version's maps.
    pub fn maps_dir(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}")).join("maps")
    }

    /// Pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps_dir().join(name)
    }

    /// Folder of the links of all versions.
    pub fn links_dir(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Makes the folders.
    ///
    /// # Errors
    /// If the pin path is on no bpf file system, or on one that cannot be written.
    pub fn prepare(&self) -> Result<(), PinError> {
        let on_bpffs = self.root.ancestors().find(|dir| dir.is_dir()).is_some_and(is_bpffs);
        if !on_bpffs {
            return Err(PinError::NoBpffs { path: self.root.display().to_string() });
        }
        for dir in [self.maps_dir(), self.links_dir()] {
            fs::create_dir_all(&dir).map_err(|cause| PinError::Directory { path: dir.display().to_string(), cause })?;
        }
        Ok(())
    }

    /// Compares every pinned map with the contract. Returns the capacities to load with (those of existing pins win: entries are worth more
    /// than a number) and what they differ in.
    ///
    /// # Errors
    /// If something else is pinned under a map's name.
    pub fn check(&self, wished: &Capacities) -> Result<(Capacities, Vec<KeptCapacity>), PinError> {
        let mut capacities = wished.clone();
        let mut kept = Vec::new();
        for spec in maps::ALL {
            let pin = self.map(spec.name);
            let path = || pin.display().to_string();
            let fd = match sys::obj_get(&pin) {
                Ok(fd) => fd,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(cause) => return Err(PinError::Unreadable { path: path(), cause }),
            };
            let unreadable = |cause| PinError::Unreadable { path: path(), cause };
            let kind = sys::kind(fd.as_fd()).map_err(unreadable)?;
            if kind != ObjectKind::Map {
                return Err(PinError::Incompatible { path: path(), what: format!("it is a {kind:?}").to_lowercase() });
            }
            let info = sys::map_info(fd.as_fd()).map_err(unreadable)?;
            if let Some(what) = difference(spec, &info) {
                return Err(PinError::Incompatible { path: path(), what });
            }
            if info.max_entries != wished.get(spec.name) {
                kept.push(KeptCapacity { map: spec.name, kept: info.max_entries, wished: wished.get(spec.name) });
                capacities.0.insert(spec.name, info.max_entries);
            }
        }
        Ok((capacities, kept))
    }

    /// Names of the links pinned here, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read; a folder that is not there has no links.
    pub fn link_names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.links_dir()) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

/// Is the directory on a bpf file system?
pub fn is_bpffs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// What makes an existing map unfit for the contract, in words; capacity aside.
fn difference(spec: &MapSpec, info: &MapInfo) -> Option<String> {
    let fields = [
        ("type", info.kind, spec.kind as u32),
        ("key size", info.key, spec.key),
        ("value size", info.value, spec.value),
        ("flags", info.flags, spec.flags),
    ];
    let (field, found, want) = fields.into_iter().find(|(_, found, want)| found != want)?;
    Some(format!("{field} {found} where {want} belongs"))
}

#[cfg(test)]
mod tests {
    use netlb_common::maps::{Kind, name};

    use super::*;

    #[test]
    fn only_capacity_may_differ() {
        let spec = MapSpec { name: "M", kind: Kind::Hash, key: 40, value: 96, capacity: 10, flags: 1 };
        let good = MapInfo { kind: 1, id: 7, key: 40, value: 96, max_entries: 20, flags: 1 };
        assert_eq!(difference(&spec, &good), None);
        let say = |info: MapInfo| difference(&spec, &info).expect("differs");
        assert_eq!(say(MapInfo { key: 16, ..good }), "key size 16 where 40 belongs");
        assert_eq!(say(MapInfo { value: 8, ..good }), "value size 8 where 96 belongs");
        assert_eq!(say(MapInfo { kind: 9, ..good }), "type 9 where 1 belongs");
        assert_eq!(say(MapInfo { flags: 0, ..good }), "flags 0 where 1 belongs");
    }

    #[test]
    fn what_depends_on_backends_grows_with_them() {
        let c = Capacities::new(10, 20, 30);
        assert_eq!(
            [c.get(name::FRONTENDS), c.get(name::BACKENDS), c.get(name::BACKEND_FLOWS), c.get(name::SLOTS)],
            [10, 20, 20, 40]
        );
        assert_eq!([c.get(name::CT), c.get(name::CT_NEW), c.get(name::CONFIG)], [30, 1024, 1]);
        assert_eq!(c.iter().count(), maps::ALL.len());
    }

    #[test]
    fn a_path_off_bpffs_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let error = Pins::new(dir.path().join("pins")).prepare().expect_err("not a bpf file system").to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
    }
}
