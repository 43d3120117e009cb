//! Formatting, clippy, and the rules that `tests/tidy.rs` checks.

use anyhow::Result;

use crate::setup::{self, Tools};
use crate::{build, sh};

/// Installs what is missing and checks everything.
pub(crate) fn lint() -> Result<()> {
    check(&setup::setup()?)
}

/// Checks everything.
pub(crate) fn check(tools: &Tools) -> Result<()> {
    sh::run(sh::cargo().args(["fmt", "--all", "--", "--check"]))?;
    sh::run(build::with(tools, sh::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])))?;
    sh::run(build::with(tools, sh::cargo().args(["test", "--quiet", "-p", "netlb-tests", "--test", "tidy"])))
}
