//! Becoming root: the built program starts itself again by sudo. Never cargo under sudo, which would change HOME and leave
//! root's files in the target folder.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Result, bail};

use crate::sh;

/// Whether the caller is root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Returns if the caller is root; otherwise becomes this program with these arguments and `--built`, as root.
pub(crate) fn become_root(needs_built_flag: bool) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    if !sh::installed("sudo") {
        bail!("this needs root, and sudo is not installed; run the same command as root");
    }
    eprintln!("This needs root: starting again by sudo.");
    let mut command = Command::new("sudo");
    command.arg("--").arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    if needs_built_flag {
        command.arg("--built");
    }
    let error = command.exec();
    bail!("cannot start sudo: {error}")
}
