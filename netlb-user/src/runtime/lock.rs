//! One agent a folder: two that wrote the same maps would undo each other's work.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held as long as the value lives; the kernel lets go when the process ends, however it ends.
#[derive(Debug)]
pub struct DirLock {
    _lock: Flock<File>,
}

/// The folder could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "{folder} is in use by another netlb agent; end that one first, or give this one its own --pin-path and --run-dir"
    )]
    Taken { folder: String },
    #[error("{folder}: {cause}; check that the folder exists and that netlb runs as root")]
    Folder { folder: String, cause: io::Error },
}

impl DirLock {
    /// Locks a folder; on a bpf file system too.
    ///
    /// # Errors
    /// If another process holds it, or it cannot be opened.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let name = || folder.display().to_string();
        let file = fs::File::open(folder).map_err(|cause| LockError::Folder { folder: name(), cause })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(DirLock { _lock: lock }),
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Taken { folder: name() }),
            Err((_, errno)) => Err(LockError::Folder { folder: name(), cause: errno.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = DirLock::take(dir.path()).expect("free");
        let error = DirLock::take(dir.path()).expect_err("taken").to_string();
        assert!(error.contains("in use by another netlb agent"), "{error}");
        drop(first);
        DirLock::take(dir.path()).expect("free again");
    }
}
