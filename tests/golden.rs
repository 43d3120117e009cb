//! From YAML to map dumps: `cases/services`, in calm weather, over writes that fail, and with a restart before every step.

use std::path::Path;
use std::process::ExitCode;

use netlb_tests::golden::{Golden, Weather, load};
use netlb_tests::harness::{self, Trial};

fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/services");
    let cases = match load(&folder) {
        Ok(cases) => cases,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let bless = std::env::var_os("UPDATE_EXPECT").is_some_and(|value| value == "1");
    let text = |error: anyhow::Error| format!("{error:#}");
    let mut trials = Vec::new();
    for case in &cases {
        if bless {
            trials.push(Trial::new(format!("{}: blessed", case.name), move || case.bless().map_err(text)));
            continue;
        }
        let check = move |weather| case.check(weather).map(drop).map_err(text);
        trials.push(Trial::new(format!("{}: calm", case.name), move || check(Weather::Calm)));
        trials.push(Trial::new(format!("{}: writes fail", case.name), move || faulty(case).map_err(text)));
        trials.push(Trial::new(format!("{}: restarts", case.name), move || check(Weather::Restarts)));
    }
    harness::run(Ok(()), trials)
}

/// Another pattern of faults in each of a few runs.
fn faulty(case: &Golden) -> anyhow::Result<()> {
    let mut failed = 0;
    for seed in 1..=5 {
        failed += case.check(Weather::Faulty(seed * 7919))?;
    }
    anyhow::ensure!(failed > 0, "{}: no write failed: the test shows nothing", case.name);
    Ok(())
}
