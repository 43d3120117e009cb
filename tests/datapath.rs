//! The table of cases through the core on the host: no root, no kernel.

use std::process::ExitCode;

use netlb_tests::cases;
use netlb_tests::harness::{self, Trial};
use netlb_tests::host::HostTables;

fn main() -> ExitCode {
    let cases = cases::all();
    let trials = cases
        .iter()
        .map(|case| Trial::new(&case.name, || case.run(&mut HostTables::new(case.world.clone()))))
        .collect();
    harness::run(Ok(()), trials)
}
