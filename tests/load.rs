//! Every program loads through the real loader, with what it sets for the running kernel: the first question on a kernel not yet tried.

use std::process::ExitCode;

use netlb_common::maps::program;
use netlb_tests::harness::{self, Trial};
use netlb_tests::need::{Need, need};
use netlb_user::bpf::loader;
use netlb_user::bpf::pins::Capacities;

fn main() -> ExitCode {
    let trials = program::ALL.map(|name| Trial::new(format!("{name} loads"), move || load(name)));
    harness::run(need(&[Need::Root, Need::Btf]), trials.into())
}

fn load(name: &str) -> Result<(), String> {
    let mut loaded = loader::load_private(&Capacities::default()).map_err(|e| e.to_string())?;
    loaded.program(name).map(drop).map_err(|e| e.to_string())
}
