//! Building the agent, and the benchmark.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::setup::{self, Tools};
use crate::sh;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// Passed on to the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Installs what is missing and builds the agent.
pub(crate) fn build() -> Result<()> {
    agent(&setup::setup()?)
}

/// Builds target/release/netlb.
pub(crate) fn agent(tools: &Tools) -> Result<()> {
    sh::run(with(tools, sh::cargo().args(["build", "--release", "-p", "netlb-user"])))
}

/// Tells build scripts which toolchain builds the kernel objects.
pub(crate) fn with<'a>(tools: &Tools, command: &'a mut Command) -> &'a mut Command {
    command.env("NETLB_NIGHTLY", &tools.nightly)
}

/// Builds and starts the benchmark.
pub(crate) fn bench(args: &BenchArgs) -> Result<ExitCode> {
    let tools = setup::setup()?;
    agent(&tools)?;
    sh::run(with(&tools, sh::cargo().args(["build", "--release", "-p", "netlb-bench"])))?;
    let mut command = Command::new(sh::root().join("target/release/netlb-bench"));
    command.args(&args.arguments);
    sh::run(&mut command)?;
    Ok(ExitCode::SUCCESS)
}
