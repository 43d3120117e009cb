//! The project's commands: `cargo xtask run`, `test`, and what belongs to them. A thin command line over the test node and
//! over cargo; each command that needs something installs it first.

mod bench;
mod build;
mod cluster;
mod conformance;
mod exec;
mod lint;
mod preflight;
mod run;
mod setup;
mod sh;
mod show;
mod sudo;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The word behind which this program plays pods and probes.
const HELPER: &str = "helper";

#[derive(Parser)]
#[command(name = "cargo xtask", about = "netlb's commands", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a node with pods from manifests, run the agent on it, and prove that every Service answers
    Run(run::Args),
    /// Run a program in a pod of a live run: `cargo xtask exec client -- curl http://web/`
    Exec(exec::ExecArgs),
    /// Run netlb on a node of a live run: `cargo xtask netlb service list`
    Netlb(exec::NetlbArgs),
    /// Change the number of a Deployment's or StatefulSet's pods in a live run
    Scale(exec::ScaleArgs),
    /// Kill a pod's process in a live run, and see it replaced
    Kill(exec::KillArgs),
    /// A real Kubernetes cluster in network namespaces
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Run upstream's own end-to-end tests on a real cluster
    Conformance(conformance::Args),
    /// Remove what killed runs left: empty cgroups and folders, never those of live runs
    Clean,
    /// Install what is missing: nightly toolchain, rust-src, bpf-linker, Debian packages
    Setup,
    /// Build the agent: target/release/netlb
    Build,
    /// Check formatting, clippy and the project's own rules
    Lint,
    /// Run all tests, or the named tiers, and sum up
    Test(test::Args),
    /// Measure what netlb costs on this machine: `cargo xtask bench --micro`
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == HELPER) {
        return netlb_testnode::helper::main(arguments);
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Exec(args) => exec::exec(&args),
        Command::Netlb(args) => exec::netlb(&args),
        Command::Scale(args) => exec::scale(&args),
        Command::Kill(args) => exec::kill(&args),
        Command::Cluster(command) => cluster::cluster(command),
        Command::Conformance(args) => conformance::conformance(&args),
        Command::Clean => exec::clean(),
        Command::Setup => setup::setup().map(|_| ExitCode::SUCCESS),
        Command::Build => build::build().map(|()| ExitCode::SUCCESS),
        Command::Lint => lint::lint().map(|()| ExitCode::SUCCESS),
        Command::Test(args) => test::test(&args),
        Command::Bench(args) => bench::bench(&args),
    }
}
