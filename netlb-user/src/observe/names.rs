//! names.json: names for the numbers in the maps, written by the agent for the command line, which outlives it.

use std::io;
use std::path::{Path, PathBuf};

use crate::plan::Names;
use crate::runtime::atomic_file;

/// Where the agent writes it.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("names.json")
}

/// # Errors
/// If the run directory cannot be written.
pub fn write(run_dir: &Path, names: &Names) -> io::Result<()> {
    let json = serde_json::to_vec(names).map_err(io::Error::other)?;
    atomic_file::write(&path(run_dir), &json)
}

/// The names last written; none if there is no file, or one of another version: numbers are then shown instead.
pub fn read(run_dir: &Path) -> Names {
    let json = std::fs::read(path(run_dir)).unwrap_or_default();
    serde_json::from_slice(&json).unwrap_or_default()
}
