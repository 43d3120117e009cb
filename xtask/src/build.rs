//! Building the agent.

use std::process::Command;

use anyhow::Result;

use crate::setup::{self, Tools};
use crate::sh;

/// Installs what is missing and builds the agent.
pub(crate) fn build() -> Result<()> {
    agent(&setup::setup()?)
}

/// Builds target/release/netlb.
pub(crate) fn agent(tools: &Tools) -> Result<()> {
    sh::run(with(tools, sh::cargo().args(["build", "--release", "-p", "netlb-user"])))
}

/// Tells build scripts which toolchain builds the kernel objects. Their default stays unsaid: a variable that comes and
/// goes, between `cargo xtask` and plain `cargo`, would make them build everything again each time.
pub(crate) fn with<'a>(tools: &Tools, command: &'a mut Command) -> &'a mut Command {
    if tools.nightly != setup::DEFAULT_NIGHTLY {
        command.env("NETLB_NIGHTLY", &tools.nightly);
    }
    command
}
