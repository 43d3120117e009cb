//! The folder of plain YAML that the agent reads: each file replaced whole, the revision last.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::state::write_whole;

/// The number of a state of the source folder; it only grows.
pub type Revision = u64;

/// The folder.
#[derive(Debug)]
pub struct SourceDir {
    path: PathBuf,
    written: BTreeMap<String, String>,
    extra: BTreeMap<String, String>,
    revision: Revision,
}

impl SourceDir {
    /// Makes the folder.
    ///
    /// # Errors
    /// When it is there already.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, written: BTreeMap::new(), extra: BTreeMap::new(), revision: 0 })
    }

    /// The folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last revision that was written; 0 before the first.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Sets (or with `None` removes) a file beside those of the control plane, for input that no control plane would write.
    /// It takes effect with the next [`SourceDir::publish`].
    pub fn set_extra(&mut self, name: &str, text: Option<&str>) {
        match text {
            Some(text) => self.extra.insert(name.to_owned(), text.to_owned()),
            None => self.extra.remove(name),
        };
    }

    /// Makes the folder hold exactly `files` and the extra ones, then writes a new revision if anything changed.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn publish(&mut self, mut files: BTreeMap<String, String>) -> Result<Revision> {
        files.extend(self.extra.clone());
        if self.revision > 0 && files == self.written {
            return Ok(self.revision);
        }
        for (name, text) in &files {
            if self.written.get(name) != Some(text) {
                write_whole(&self.path.join(name), text)?;
            }
        }
        for name in self.written.keys().filter(|name| !files.contains_key(*name)) {
            let path = self.path.join(name);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        self.written = files;
        self.revision += 1;
        write_whole(&self.path.join("revision"), &format!("{}\n", self.revision))?;
        Ok(self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_folder_follows_and_the_revision_counts_changes() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = SourceDir::create(folder.path().join("source")).unwrap();
        let files = |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(source.publish(files(&[("a.yaml", "1"), ("b.yaml", "2")])).unwrap(), 1);
        assert_eq!(source.publish(files(&[("a.yaml", "1"), ("b.yaml", "2")])).unwrap(), 1);
        source.set_extra("bad.yaml", Some("{"));
        assert_eq!(source.publish(files(&[("a.yaml", "3")])).unwrap(), 2);
        assert_eq!(names(source.path()), ["a.yaml", "bad.yaml", "revision"]);
        assert_eq!(fs::read_to_string(source.path().join("revision")).unwrap(), "2\n");
        source.set_extra("bad.yaml", None);
        assert_eq!(source.publish(files(&[])).unwrap(), 3);
        assert_eq!(names(source.path()), ["revision"]);
    }
}
