//! The command line: one command a file. What is only asked (everything but `agent` and `cleanup`) reads pinned maps and the agent's files, and
//! needs no living agent.

mod agent;
mod backend;
mod cleanup;
mod ct;
mod drops;
mod dump;
mod output;
mod service;
mod status;
mod table;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::bpf::pins::Pins;
use crate::config::{PIN_PATH, RUN_DIR};
use crate::observe::names;
use crate::plan::Names;

const EXAMPLES: &str = "\
Examples:
  netlb agent --source /etc/netlb/objects --node-name node1   balance this node's Services
  netlb status                                                is it ready, and what is wrong
  netlb service list                                          Services, their addresses and backends
  netlb backend list -o json                                  backends with their flows, for programs
  netlb drops                                                 what was dropped or refused, and why
  netlb trace --from shop/cart --to web:http                  what would happen to this packet, and why
  netlb cleanup                                               remove everything netlb left in the kernel";

#[derive(Parser)]
#[command(name = "netlb", version, about = "Kubernetes service load balancer in eBPF", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Balance this node's Services until told to end; what it put into the kernel goes on without it
    Agent(Box<agent::AgentArgs>),
    /// Services: addresses, ports, how many backends
    Service(service::ServiceArgs),
    /// Backends: state, and how many flows each was given
    Backend(backend::BackendArgs),
    /// Connections netlb tracks
    Ct(ct::CtArgs),
    /// Packets and connections that were dropped or refused, and other counters
    Drops(drops::DropsArgs),
    /// Every map as stable text, ids replaced by what they mean
    Dump(dump::DumpArgs),
    /// Is this node ready, which road do packets take, what is wrong with the objects
    Status(status::StatusArgs),
    /// What would happen to this packet, here, now, step by step
    Trace(trace::TraceArgs),
    /// Remove netlb's programs, maps and links from the kernel, and its files
    Cleanup(cleanup::CleanupArgs),
}

/// Where an agent keeps its things.
#[derive(Args, Clone, Debug)]
struct Paths {
    /// Folder of the agent's pins
    #[arg(long, value_name = "DIR", default_value = PIN_PATH)]
    pin_path: PathBuf,

    /// Folder of the agent's files
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
}

impl Paths {
    fn pins(&self) -> Pins {
        Pins::new(&self.pin_path)
    }

    fn names(&self) -> Names {
        names::read(&self.run_dir)
    }
}

/// Runs the command of this process. Errors are one line on standard error, and exit code 1.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Agent(args) => agent::run(*args),
        Command::Service(args) => service::run(&args),
        Command::Backend(args) => backend::run(&args),
        Command::Ct(args) => ct::run(&args),
        Command::Drops(args) => drops::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netlb: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn paths_may_follow_the_command() {
        let cli =
            Cli::try_parse_from(["netlb", "backend", "list", "-o", "json", "--pin-path", "/a", "--run-dir", "/b"]);
        assert!(cli.is_ok(), "{:?}", cli.err());
        assert!(
            Cli::try_parse_from(["netlb", "agent", "--accel", "socket", "--detached", "--delivery", "stack"]).is_ok()
        );
    }
}
