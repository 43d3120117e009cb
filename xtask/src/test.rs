//! `cargo xtask test`: set-up, lint, builds, then every test program, tier by tier, and the sum.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::setup::Tools;
use crate::vm::{self, Kernel};
use crate::{build, cluster, lint, setup, sh, show, sudo};

/// The tier that needs a real API server.
const CONTROL_PLANE: &str = "cluster_api";

/// Arguments of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `unit`, or the name of a file of integration tests; all if none is named
    tiers: Vec<String>,
    /// Boot Debian's kernel of this version under emulation, and run the tiers there that say whether netlb works on it
    #[arg(long, value_name = "VERSION")]
    kernel: Option<Kernel>,
}

/// A test program.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Program {
    pub(crate) tier: String,
    pub(crate) name: String,
    pub(crate) package: PathBuf,
    pub(crate) executable: PathBuf,
}

/// What became of one program's tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Tests that did not run, with the reason they print.
    ignored: Vec<String>,
    /// Whether the program said how it ended.
    pub(crate) finished: bool,
}

/// Runs everything and sums up.
pub(crate) fn test(args: &Args) -> Result<ExitCode> {
    let mut phases = Phases::default();
    let tools = phases.time("set-up", setup::setup)?;
    if args.tiers.is_empty() && args.kernel.is_none() {
        phases.time("lint", || lint::check(&tools))?;
    }
    phases.time("build the agent", || build::agent(&tools))?;
    let targets: Vec<&str> = match args.kernel {
        Some(_) => ["-p", "netlb-tests"].into_iter().chain(vm::tiers().flat_map(|tier| ["--test", tier])).collect(),
        None => vec!["--workspace"],
    };
    let programs = phases.time("build the tests", || programs(&tools, &targets))?;
    let known: Vec<&str> = match args.kernel {
        Some(_) => vm::tiers().collect(),
        None => programs.iter().map(|program| program.tier.as_str()).collect(),
    };
    if let Some(unknown) = args.tiers.iter().find(|tier| !known.contains(&tier.as_str())) {
        let mut known = known.clone();
        known.dedup();
        bail!("there is no tier {unknown}; there are: {}", known.join(", "));
    }
    let chosen: Vec<&Program> =
        programs.iter().filter(|program| args.tiers.is_empty() || args.tiers.contains(&program.tier)).collect();
    let lacks = std::fs::read_to_string(sh::root().join("tests/lacks.txt")).context("cannot read tests/lacks.txt")?;
    if let Some(kernel) = args.kernel {
        let tiers = phases.time(&format!("kernel {kernel}"), || vm::run(kernel, &chosen))?;
        return Ok(conclude(&phases, &tiers, &lacks));
    }
    if !sudo::is_root() && !sh::installed("sudo") {
        bail!("most tests need root, and sudo is not installed; run the same command as root");
    }

    if chosen.iter().any(|program| program.tier == CONTROL_PLANE) {
        phases.time("build the control plane", || cluster::build(Some(cluster::Part::ControlPlane)))?;
    }
    let mut tiers: BTreeMap<String, Outcome> = BTreeMap::new();
    for program in chosen {
        println!("\n== {}: {}", program.tier, program.name);
        let outcome = phases.time(&format!("tests: {}", program.tier), || run(program))?;
        tiers.entry(program.tier.clone()).or_default().add(outcome);
    }
    if args.tiers.is_empty() {
        println!("\n== doc");
        let outcome = phases.time("tests: doc", || documentation(&tools))?;
        tiers.entry("doc".to_owned()).or_default().add(outcome);
    }

    Ok(conclude(&phases, &tiers, &lacks))
}

fn conclude(phases: &Phases, tiers: &BTreeMap<String, Outcome>, lacks: &str) -> ExitCode {
    println!("\n{}", phases.show());
    let mut rows = vec![["TIER", "PASSED", "FAILED", "IGNORED"].map(str::to_owned).to_vec()];
    let mut total = Outcome::default();
    for (tier, outcome) in tiers {
        rows.push(vec![
            tier.clone(),
            outcome.passed.to_string(),
            outcome.failed.to_string(),
            outcome.ignored.len().to_string(),
        ]);
        total.add(outcome.clone());
    }
    println!("{}", show::table(&rows));
    let unlisted: Vec<&String> = total.ignored.iter().filter(|line| !is_listed(line, lacks)).collect();
    for line in &total.ignored {
        println!("ignored: {line}");
    }
    for line in &unlisted {
        println!("error: ignored without being listed in tests/lacks.txt: {line}");
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed == 0 && total.passed > 0 && unlisted.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Builds the test programs that cargo's arguments name and the program that plays pods, and says where they are.
fn programs(tools: &Tools, targets: &[&str]) -> Result<Vec<Program>> {
    sh::run(build::with(tools, sh::cargo().args(["build", "-p", "netlb-testnode", "--bins"])))?;
    let mut command = sh::cargo();
    command.arg("test").args(targets).args(["--no-run", "--message-format=json-render-diagnostics"]);
    let mut child = build::with(tools, &mut command).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut programs = Vec::new();
    for line in BufReader::new(child.stdout.take().context("cargo has no output")?).lines() {
        let line = line.context("cannot read cargo's output")?;
        if let Ok(message) = serde_json::from_str(&line) {
            programs.extend(program(&message));
        }
    }
    if !child.wait().context("cannot wait for cargo")?.success() {
        bail!("the tests do not build");
    }
    // Unit tests first: the cheapest say most.
    programs.sort_by_key(|program| (program.tier != "unit", program.tier.clone(), program.name.clone()));
    Ok(programs)
}

/// The test program that one of cargo's messages tells of.
fn program(message: &Value) -> Option<Program> {
    let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
    if text("/reason")? != "compiler-artifact" || message.pointer("/profile/test")? != &Value::Bool(true) {
        return None;
    }
    let executable = PathBuf::from(text("/executable")?);
    let package = Path::new(text("/manifest_path")?).parent()?.to_owned();
    let target = text("/target/name")?.to_owned();
    let tier = if text("/target/kind/0")? == "test" { target.clone() } else { "unit".to_owned() };
    let name = format!("{} ({target})", package.strip_prefix(sh::root()).unwrap_or(&package).display());
    Some(Program { tier, name, package, executable })
}

/// Runs a test program as cargo would, as root if it is more than unit tests.
fn run(program: &Program) -> Result<Outcome> {
    let mut command = if sudo::is_root() || program.tier == "unit" {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("--").arg("env");
        sudo
    };
    command.arg("NETLB_REQUIRE=all");
    command.arg(format!("CARGO_MANIFEST_DIR={}", program.package.display()));
    command.arg(&program.executable).current_dir(&program.package);
    watch(&mut command, &program.name)
}

fn documentation(tools: &Tools) -> Result<Outcome> {
    let mut command = sh::cargo();
    command.args(["test", "--workspace", "--doc"]);
    watch(build::with(tools, &mut command), "documentation")
}

/// Runs to the end, shows everything, and counts.
fn watch(command: &mut Command, name: &str) -> Result<Outcome> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {name}"))?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(child.stdout.take().context("a child without output")?).lines() {
        let line = line.with_context(|| format!("cannot read from {name}"))?;
        println!("{line}");
        outcome.read(name, &line);
    }
    let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
    // A program that crashed, or whose failure no summary tells of, is a failure of its own.
    if (!status.success() && outcome.failed == 0) || !outcome.finished {
        println!(
            "error: {name} ended with {status} and {}",
            if outcome.finished { "no failed test" } else { "no summary" }
        );
        outcome.failed += 1;
    }
    Ok(outcome)
}

impl Outcome {
    /// Takes in one line of a test program's output.
    pub(crate) fn read(&mut self, name: &str, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.finished = true;
            self.passed += count(summary, " passed");
            self.failed += count(summary, " failed");
        } else if let Some((test, rest)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ignored")) {
            self.ignored.push(format!("{name}: {test}{rest}"));
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored.extend(other.ignored);
        self.finished |= other.finished;
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; …`.
fn count(summary: &str, word: &str) -> u64 {
    let part = summary.split(['.', ';']).find_map(|part| part.trim().strip_suffix(word));
    part.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// Whether an ignored test's line names something that the committed list of lacks has: one `name: reason` a line.
fn is_listed(ignored: &str, lacks: &str) -> bool {
    let names = lacks.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(':'));
    let words: Vec<&str> = ignored.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_')).collect();
    names.into_iter().any(|(name, _)| words.contains(&name.trim()))
}

/// How long each phase took; phases of one name together.
#[derive(Default)]
struct Phases(Vec<(String, Duration)>);

impl Phases {
    fn time<T>(&mut self, name: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = body();
        let spent = started.elapsed();
        match self.0.iter_mut().find(|(other, _)| other == name) {
            Some((_, total)) => *total += spent,
            None => self.0.push((name.to_owned(), spent)),
        }
        result
    }

    fn show(&self) -> String {
        let mut rows = vec![["PHASE", "SECONDS"].map(str::to_owned).to_vec()];
        rows.extend(self.0.iter().map(|(name, spent)| vec![name.clone(), format!("{:.1}", spent.as_secs_f64())]));
        let total: Duration = self.0.iter().map(|(_, spent)| *spent).sum();
        rows.push(vec!["all".to_owned(), format!("{:.1}", total.as_secs_f64())]);
        show::table(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_is_understood() {
        let mut outcome = Outcome::default();
        for line in [
            "running 4 tests",
            "test a::b ... ok",
            "test a::c ... ignored, needs sctp: no such sockets",
            "test a::d ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 30 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            outcome.read("x", line);
        }
        let ignored = vec!["x: a::c, needs sctp: no such sockets".to_owned()];
        assert_eq!(outcome, Outcome { passed: 32, failed: 1, ignored: ignored.clone(), finished: true });
        assert!(is_listed(&ignored[0], "# comment\nsctp: the kernel has no such sockets\n"));
        assert!(!is_listed(&ignored[0], "# sctp: comment\nsct: another\n"));
    }

    #[test]
    fn cargo_is_understood() {
        let message = serde_json::json!({
            "reason": "compiler-artifact",
            "manifest_path": sh::root().join("tests/Cargo.toml"),
            "target": {"name": "golden", "kind": ["test"]},
            "profile": {"test": true},
            "executable": "/target/debug/deps/golden-1",
        });
        let program = program(&message).unwrap();
        assert_eq!((program.tier.as_str(), program.name.as_str()), ("golden", "tests (golden)"));
        let mut library = message;
        library["target"]["kind"] = serde_json::json!(["lib"]);
        assert_eq!(super::program(&library).unwrap().tier, "unit");
        library["profile"]["test"] = serde_json::json!(false);
        assert_eq!(super::program(&library), None);
    }
}
