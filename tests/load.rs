//! Every program loads through the real loader, with what it sets for the running kernel: the first question on a kernel not yet tried.

use std::process::ExitCode;

use netlb_common::maps::program;
use netlb_tests::harness::{self, Trial};
use netlb_tests::need::{Need, need};
use netlb_user::bpf::loader;
use netlb_user::bpf::pins::Capacities;
use netlb_user::bpf::probe::Features;
use netlb_user::runtime::preflight::kernel_version;

fn main() -> ExitCode {
    let trials = program::ALL.map(|name| Trial::new(format!("{name} loads"), move || load(name)));
    let mut trials: Vec<Trial<'_>> = trials.into();
    trials.push(Trial::new("what the kernel has is found out", features));
    harness::run(need(&[Need::Root, Need::Btf]), trials)
}

/// New kernels have everything, old ones lack what is said to come later. (Between the two, distributions patch.)
fn features() -> Result<(), String> {
    let version = kernel_version().ok_or("the kernel's version is not known")?;
    let found = Features::of_kernel();
    let right = (version < (6, 16) || found.csum_ipv6)
        && found.set_retval == (version >= (5, 18))
        && found.fib_mtu == (version >= (5, 12));
    if right { Ok(()) } else { Err(format!("kernel {version:?} has {found:?}")) }
}

fn load(name: &str) -> Result<(), String> {
    let mut loaded = loader::load_private(&Capacities::default()).map_err(|e| e.to_string())?;
    loaded.program(name).map(drop).map_err(|e| e.to_string())
}
