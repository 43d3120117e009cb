//! Files that others read at any moment: whole, old or new.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// Writes `contents` beside `path` and renames it there.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().map(std::ffi::OsStr::to_owned).unwrap_or_default();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = fs::File::create(&temporary)?;
    file.write_all(contents)?;
    drop(file);
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    #[test]
    fn replaces_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("status.json");
        for text in ["one", "two"] {
            super::write(&path, text.as_bytes()).expect("writable");
            assert_eq!(std::fs::read_to_string(&path).expect("readable"), text);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
    }
}
