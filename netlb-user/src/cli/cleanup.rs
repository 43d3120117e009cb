//! `netlb cleanup`: takes everything of netlb out of the kernel, and its files away. Doing it twice is fine.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;

use super::Paths;
use super::output::print;
use crate::bpf::attach::take_off_filters;
use crate::bpf::pins::is_bpffs;
use crate::observe::{names, status};
use crate::runtime::lock::{DirLock, LockError};
use crate::runtime::ports;

#[derive(Args, Debug)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    paths: Paths,
}

pub(super) fn run(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let root = &args.paths.pin_path;
    let mut removed = Removed::default();
    if root.is_dir() {
        if !is_bpffs(root) {
            bail!("--pin-path {} is not on a bpf file system; netlb keeps nothing there", root.display());
        }
        let lock = DirLock::take(root);
        if let Err(e @ LockError::Taken { .. }) = lock {
            return Err(e.into());
        }
        // Programs first: none may look for a map that is gone.
        removed.filters = take_off_filters().context("filters of clsact")?;
        remove(&root.join("links"), &mut removed.links)?;
        for version in versions(root)? {
            remove(&version, &mut removed.maps)?;
        }
        drop(lock);
        match fs::remove_dir(root) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(e) => return Err(e).with_context(|| root.display().to_string()),
        }
    }
    for file in [status::path(&args.paths.run_dir), names::path(&args.paths.run_dir)] {
        match fs::remove_file(&file) {
            Ok(()) => removed.files += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| file.display().to_string()),
        }
    }
    let reserved = ports::give_back(&args.paths.run_dir).context("net.ipv4.ip_local_reserved_ports")?;
    print(&removed.text(root))?;
    if let Some(reserved) = reserved {
        print(&format!("Ports {reserved} are no longer reserved (net.ipv4.ip_local_reserved_ports).\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How many of each.
#[derive(Default)]
struct Removed {
    links: usize,
    filters: usize,
    maps: usize,
    files: usize,
}

impl Removed {
    fn text(&self, root: &Path) -> String {
        if self.links + self.filters + self.maps + self.files == 0 {
            return format!("Nothing of netlb under {}.\n", root.display());
        }
        let filters = if self.filters > 0 { format!(", {} filters of clsact", self.filters) } else { String::new() };
        format!(
            "Removed {} links (with their programs){filters} and {} maps under {}, and {} files.\n",
            self.links,
            self.maps,
            root.display(),
            self.files
        )
    }
}

/// Folders `v<number>` under the pin path: maps of every version.
fn versions(root: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a folder of pins with what is in it, and counts the pins.
fn remove(folder: &Path, count: &mut usize) -> anyhow::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| folder.display().to_string()),
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            remove(&path, count)?;
        } else {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
            *count += 1;
        }
    }
    fs::remove_dir(folder).with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_versions_are_emptied_and_others_left() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for folder in ["v1/maps", "v12/maps", "links", "vault"] {
            fs::create_dir_all(dir.path().join(folder)).expect("writable");
        }
        fs::write(dir.path().join("v1/maps/CT"), "").expect("writable");
        fs::write(dir.path().join("v12/maps/CT"), "").expect("writable");
        let versions = versions(dir.path()).expect("readable");
        assert_eq!(versions, [dir.path().join("v1"), dir.path().join("v12")]);
        let mut count = 0;
        for version in versions {
            remove(&version, &mut count).expect("removable");
        }
        remove(&dir.path().join("v1"), &mut count).expect("twice is fine");
        assert_eq!(count, 2);
        assert!(dir.path().join("vault").exists() && !dir.path().join("v1").exists());
    }

    #[test]
    fn says_what_it_removed() {
        let root = Path::new("/sys/fs/bpf/netlb");
        assert_eq!(Removed::default().text(root), "Nothing of netlb under /sys/fs/bpf/netlb.\n");
        let some = Removed { links: 10, maps: 13, files: 2, ..Removed::default() };
        assert_eq!(
            some.text(root),
            "Removed 10 links (with their programs) and 13 maps under /sys/fs/bpf/netlb, and 2 files.\n"
        );
        assert_eq!(
            Removed { filters: 4, ..some }.text(root),
            "Removed 10 links (with their programs), 4 filters of clsact and 13 maps under /sys/fs/bpf/netlb, and 2 files.\n"
        );
    }
}
