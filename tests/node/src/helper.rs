//! The program that plays the pods and the probes, and how to find it.
//!
//! Pods are processes. Whoever links this library has a program that can be one: `xtask` has a hidden subcommand, tests
//! use the package's own binary `netlb-testnode`. Both call [`main`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

/// A program and its first arguments; a role follows.
#[derive(Clone, Debug)]
pub struct Helper {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Helper {
    /// The calling program itself, behind a subcommand.
    ///
    /// # Errors
    /// When the kernel does not say which program this is.
    pub fn own(subcommand: &str) -> Result<Self> {
        // The link, not its target: it leads to the running program even when a new build has replaced the file.
        let program = std::env::current_exe().context("cannot find the running program")?;
        Ok(Self { program, arguments: vec![subcommand.into()] })
    }

    /// A given binary of this package, as tests of the package know it at compile time.
    #[must_use]
    pub fn binary(program: PathBuf) -> Self {
        Self { program, arguments: Vec::new() }
    }

    /// The binary `netlb-testnode` beside the calling program or in the folder above, where cargo puts both.
    ///
    /// # Errors
    /// When it was not built.
    pub fn find() -> Result<Self> {
        let own = std::env::current_exe().context("cannot find the running program")?;
        for folder in own.ancestors().skip(1).take(2) {
            let program = folder.join("netlb-testnode");
            if program.is_file() {
                return Ok(Self::binary(program));
            }
        }
        bail!("there is no netlb-testnode beside {}; do `cargo build -p netlb-testnode`", own.display())
    }

    /// A command that plays `role`.
    #[must_use]
    pub fn command(&self, role: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(role);
        command
    }
}

/// Plays the role that the arguments name: `serve` (a pod), `probe` or `load`.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let role = arguments.into_iter().next();
    let result = match role.as_ref().and_then(|role| role.to_str()) {
        Some("serve") => crate::server::serve(),
        Some("probe") => crate::probe::probe(),
        Some("load") => crate::load::main(),
        _ => Err(anyhow::anyhow!(
            "this program plays pods and probes for the test node; it is started by `cargo xtask run`"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("netlb-testnode: {error:#}");
            ExitCode::FAILURE
        }
    }
}
