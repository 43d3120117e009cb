//! The clients: a program in a pod's network, and one outside.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlb_testnode::Helper;
use netlb_testnode::load::{Plan, Progress};
use netlb_testnode::process::{Place, Process, Stop};
use serde_json::to_string;

use super::{LOOK, Trial, World};

/// How often each open connection is used, in milliseconds.
const TURN_MS: u64 = 2000;
/// Threads of each program, for either kind of connection.
const THREADS: usize = 4;

/// All clients.
pub(super) struct Clients {
    programs: Vec<Program>,
    started: Instant,
}

/// What they have done in the end.
pub(super) struct Total {
    pub(super) opened: u64,
    pub(super) asked: u64,
    pub(super) slowest_us: u64,
    pub(super) seconds: u64,
}

struct Program {
    name: &'static str,
    process: Process,
    input: Option<ChildStdin>,
    last: Arc<Mutex<Progress>>,
    reader: JoinHandle<()>,
}

impl Clients {
    pub(super) fn start(world: &World<'_>, helper: &Helper, trial: &Trial) -> Result<Self> {
        let plan = |targets: &[std::net::SocketAddr], half: usize| Plan {
            targets: targets.to_vec(),
            open: (trial.open + half) / 2,
            turn_ms: TURN_MS,
            a_second: trial.a_second.div_ceil(2),
            threads: THREADS,
        };
        let programs = vec![
            Program::start("clients in a pod", &world.pod, helper, &plan(&world.inside, 0))?,
            Program::start("clients outside", world.client(), helper, &plan(&world.outside, 1))?,
        ];
        Ok(Self { programs, started: Instant::now() })
    }

    /// Waits until so many connections have been opened.
    pub(super) fn wait_until_open(&self, count: usize, patience: Duration) -> Result<()> {
        let stop = Stop::default();
        self.endure_until(patience, &stop, "all connections are open", || {
            Ok(self.programs.iter().map(|program| program.progress().done.opened).sum::<u64>() >= count as u64 * 2)
        })
    }

    /// Fails if a client has noticed anything.
    fn check(&self) -> Result<()> {
        self.programs.iter().try_for_each(Program::check)
    }

    /// Lets the load go on for so long.
    pub(super) fn endure(&self, time: Duration, stop: &Stop) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.check()?;
            stop.check()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Lets the load go on until something is.
    pub(super) fn endure_until(
        &self,
        patience: Duration,
        stop: &Stop,
        what: &str,
        mut ready: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !ready()? {
            self.check()?;
            stop.check()?;
            ensure!(Instant::now() < deadline, "in vain waited {} s until {what}", patience.as_secs());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// TCP segments that were sent again by the clients so far.
    pub(super) fn sent_again(&self) -> u64 {
        self.programs.iter().map(|program| program.progress().sent_again).sum()
    }

    /// Ends the load.
    pub(super) fn end(self) -> Result<Total> {
        let seconds = self.started.elapsed().as_secs();
        let ends = self.programs.into_iter().map(Program::end).collect::<Result<Vec<Progress>>>()?;
        Ok(Total {
            opened: ends.iter().map(|end| end.done.opened).sum(),
            asked: ends.iter().map(|end| end.done.asked).sum(),
            slowest_us: ends.iter().map(|end| end.done.slowest_us).max().unwrap_or_default(),
            seconds,
        })
    }
}

impl Program {
    fn start(name: &'static str, place: &Place, helper: &Helper, plan: &Plan) -> Result<Self> {
        let mut command: Command = helper.command("load");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = place.spawn(name, command)?;
        let mut input = process.pipes().stdin.take().context("a program without input")?;
        let output = process.pipes().stdout.take().context("a program without output")?;
        writeln!(input, "{}", to_string(plan)?).with_context(|| format!("the {name} are dead"))?;
        let last = Arc::new(Mutex::new(Progress::default()));
        let shared = Arc::clone(&last);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let progress = serde_json::from_str(&line).unwrap_or_else(|error| Progress {
                    errors: vec![format!("it says {line:?}: {error}")],
                    ..Progress::default()
                });
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = progress;
            }
        });
        Ok(Self { name, process, input: Some(input), last, reader })
    }

    fn progress(&self) -> Progress {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check(&self) -> Result<()> {
        let errors = self.progress().errors;
        ensure!(errors.is_empty(), "{} noticed: {}", self.name, errors.join("; "));
        ensure!(!self.reader.is_finished(), "the {} are dead", self.name);
        Ok(())
    }

    fn end(mut self) -> Result<Progress> {
        self.check()?;
        drop(self.input.take());
        // What it says last, it says when all its clients have ended.
        self.reader.join().map_err(|_| anyhow!("the thread that reads from the {} died", self.name))?;
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !last.errors.is_empty() {
            bail!("{} noticed: {}", self.name, last.errors.join("; "));
        }
        self.process.kill()?;
        Ok(last)
    }
}
