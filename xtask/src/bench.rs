//! `bench`: builds the benchmark and what it measures, and starts it as root.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::build::{self, with};
use crate::{setup, sh, sudo};

/// Arguments of `bench`: all are the benchmark's, `--help` too.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Passed on to the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Ends as the benchmark ends.
pub(crate) fn bench(args: &Args) -> Result<ExitCode> {
    let tools = setup::setup()?;
    if needs_agent(&args.arguments) {
        build::agent(&tools)?;
    }
    sh::run(with(&tools, sh::cargo().args(["build", "--release", "-p", "netlb-bench"])))?;
    let program = sh::root().join("target/release/netlb-bench");
    let mut command = if sudo::is_root() {
        Command::new(program)
    } else if sh::installed("sudo") {
        eprintln!("This needs root: starting {} by sudo.", program.display());
        let mut command = Command::new("sudo");
        command.arg("--").arg(program);
        command
    } else {
        bail!("this needs root, and sudo is not installed; run the same command as root");
    };
    // First, so that one the user gives counts.
    command.arg("--agent").arg(sh::root().join("target/release/netlb")).args(&args.arguments);
    let text = sh::show(&command);
    let status = command.status().with_context(|| format!("cannot start `{text}`"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the run measures the agent too: always, unless `--only` leaves it out.
fn needs_agent(arguments: &[String]) -> bool {
    !arguments.iter().any(|a| a.starts_with("--only")) || arguments.iter().any(|a| a.contains("agent"))
}

#[cfg(test)]
mod tests {
    use super::needs_agent;

    #[test]
    fn the_agent_is_built_unless_it_is_left_out() {
        let needs = |line: &str| needs_agent(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert!(needs("--micro"));
        assert!(needs("--micro --only agent"));
        assert!(needs("--micro --only=maps,agent"));
        assert!(!needs("--micro --only packets,maps"));
    }
}
