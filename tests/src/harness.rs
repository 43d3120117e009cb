//! Runs tests that are data, or that need what a machine may lack, and reports them as libtest does.
//!
//! libtest cannot ignore a test at run time; this can, with a reason. `NAME` as an argument runs the tests whose name contains it, `--list` lists.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// One test.
pub struct Trial<'a> {
    pub name: String,
    /// What only this one needs, see [`need`](crate::need::need).
    pub need: Result<(), String>,
    pub run: Box<dyn FnOnce() -> Result<(), String> + 'a>,
}

impl<'a> Trial<'a> {
    pub fn new(name: impl Into<String>, run: impl FnOnce() -> Result<(), String> + 'a) -> Self {
        Trial { name: name.into(), need: Ok(()), run: Box::new(run) }
    }

    /// Ignored, with the reason, unless `need` is Ok.
    pub fn if_met(mut self, need: Result<(), String>) -> Self {
        self.need = need;
        self
    }
}

/// Runs them in order, unless `need` says what is missing: then all of them are ignored, with that as the reason.
pub fn run(need: Result<(), String>, trials: Vec<Trial<'_>>) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let exact = args.iter().any(|arg| arg == "--exact");
    let all = trials.len();
    let chosen: Vec<Trial<'_>> = trials
        .into_iter()
        .filter(|t| {
            filters.is_empty()
                || filters.iter().any(|f| if exact { t.name == **f } else { t.name.contains(f.as_str()) })
        })
        .collect();
    let filtered = all - chosen.len();
    if args.iter().any(|arg| arg == "--list") {
        chosen.iter().for_each(|t| println!("{}: test", t.name));
        return ExitCode::SUCCESS;
    }

    println!("\nrunning {} tests", chosen.len());
    let (mut passed, mut ignored, mut failures) = (0, 0, Vec::new());
    for Trial { name, need: own, run } in chosen {
        if let Err(reason) = need.as_ref().and(own.as_ref()) {
            println!("test {name} ... ignored, {reason}");
            ignored += 1;
            continue;
        }
        // A panic leaves only this test's own state behind: nothing of it is used again.
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("panicked, see above".into()));
        match result {
            Ok(()) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Err(e) => {
                // The reason at once: a run that is cut short has no end to say it at.
                println!("test {name} ... FAILED\n{e}\n");
                failures.push(name);
            }
        }
    }
    if !failures.is_empty() {
        println!("\nfailures:");
        failures.iter().for_each(|name| println!("    {name}"));
    }
    let verdict = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; {ignored} ignored; 0 measured; {filtered} filtered out\n",
        failures.len()
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
