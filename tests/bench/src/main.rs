//! `netlb-bench`: what netlb costs on this machine. Started by `cargo xtask bench`, as root.
//!
//! Everything happens in network namespaces that the run makes and holds by file descriptors; they end with it. [`world`] builds one (client pod,
//! node, server pod), [`production`] loads the programs under test into it, [`cases`] lists what is measured, [`rounds`] measures, interleaved.
//! [`maps`] compares kinds of maps, [`agent`] times a change on its way into the datapath. [`report`] prints.

mod agent;
mod cases;
mod conntrack;
mod flows;
mod frame;
mod machine;
mod maps;
mod object;
mod production;
mod report;
mod rounds;
mod stats;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use crate::report::Report;

/// Measures what netlb costs on this machine, in network namespaces of its own.
#[derive(Parser)]
#[command(name = "netlb-bench", version)]
struct Options {
    /// ns per packet (floors, plain forwarding, netlb), ns per map operation, and the time from a changed file to the changed map.
    #[arg(long, required = true)]
    micro: bool,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Packets, Part::Maps, Part::Agent])]
    only: Vec<Part>,
    /// Rounds kept of the packet measurements; each runs all cases once.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(4..=200))]
    rounds: u32,
    /// Writes all figures and samples to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measures this kernel object in place of the one that the agent embeds: to compare two builds of the datapath.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Lets disturbed rounds count: for tests of this program. The figures are then worth little, and the report says so.
    #[arg(long)]
    keep_disturbed: bool,
    /// Loads netlb's programs but puts them nowhere: proof that the run can fail.
    #[arg(long)]
    detached: bool,
    /// The agent to measure.
    #[arg(long, value_name = "FILE", default_value = "target/release/netlb", overrides_with = "agent")]
    agent: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Packets,
    Maps,
    Agent,
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("netlb-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// False: something was measured that does not count, and the report says what.
fn measure(options: &Options) -> Result<bool> {
    if !options.micro {
        bail!("nothing to measure; add --micro");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "loading programs and making namespaces needs root; run `cargo xtask bench`, which asks for it, or use sudo"
        );
    }
    machine::stop_on_signal()?;
    let mut report = Report::new(machine::describe()?);
    report.print_machine();
    // A part that fails does not keep the others from being measured.
    for part in [Part::Packets, Part::Maps, Part::Agent] {
        if options.only.contains(&part)
            && let Err(error) = measure_part(part, options, &mut report)
        {
            report.fault(format!("{error:#}"));
        }
        machine::check_stop()?;
    }
    if let Some(path) = &options.json {
        std::fs::write(path, report.json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    report.print_faults();
    Ok(report.faultless())
}

fn measure_part(part: Part, options: &Options, report: &mut Report) -> Result<()> {
    match part {
        Part::Packets => {
            let object = match &options.object {
                Some(path) => std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
                None => netlb_user::bpf::object::bytes()?.to_vec(),
            };
            let programs = production::Programs { object, detached: options.detached };
            let keep_disturbed = options.keep_disturbed;
            report.packets(rounds::measure(&rounds::Plan { programs, rounds: options.rounds, keep_disturbed })?);
        }
        Part::Maps => report.maps(maps::measure()?),
        Part::Agent => report.agent(agent::measure(&options.agent)?),
    }
    Ok(())
}
