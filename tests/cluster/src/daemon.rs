//! A program that is to run as long as the cluster does: it can be stopped and started again, and what it prints is kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netlb_testnode::process::{Place, Process, Stop};

/// How long a program may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(10);
/// How often something that has no event of its own is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A program of the cluster.
pub struct Daemon {
    name: String,
    place: Place,
    command: Box<dyn Fn() -> Command + Send + Sync>,
    log: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Daemon {
    /// Starts `command` in `place`, with what it prints in `logs/NAME.log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(
        name: &str,
        place: &Place,
        logs: &Path,
        command: impl Fn() -> Command + Send + Sync + 'static,
    ) -> Result<Self> {
        let daemon = Self {
            name: name.to_owned(),
            place: place.clone(),
            command: Box::new(command),
            log: logs.join(format!("{name}.log")),
            process: Mutex::new(None),
        };
        daemon.restart()?;
        Ok(daemon)
    }

    /// What it is called, in messages and in its log's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(Process::pid)
    }

    /// Kills it with SIGKILL if it runs, and starts it again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&self) -> Result<()> {
        self.kill9()?;
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut command = (self.command)();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().with_context(|| format!("cannot share the log of {}", self.name))?)
            .stderr(log);
        *self.lock() = Some(self.place.spawn(&self.name, command)?);
        Ok(())
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill9(&self) -> Result<()> {
        match self.lock().take() {
            Some(mut process) => process.kill().map(drop),
            None => Ok(()),
        }
    }

    /// Asks it to end (SIGTERM), and kills it if it does not within ten seconds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn terminate(&self) -> Result<()> {
        match self.lock().take() {
            Some(mut process) => process.terminate(GRACE).map(drop),
            None => Ok(()),
        }
    }

    /// Fails if it has ended by itself, with the end of its log.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check(&self) -> Result<()> {
        let ended = match self.lock().as_mut() {
            Some(process) => process.try_wait()?,
            None => None,
        };
        match ended {
            Some(status) => bail!("{} ended ({status}); {}", self.name, self.log_tail(30)),
            None => Ok(()),
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        let tail = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
        format!("the end of {}:\n{}", self.log.display(), tail.join("\n"))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks `ready` until it says yes, as long as `daemons` run.
///
/// # Errors
/// When a daemon ends, when `patience` is over (with the ends of their logs), when somebody asked to stop.
pub fn wait_for(
    what: &str,
    patience: Duration,
    daemons: &[&Daemon],
    stop: &Stop,
    mut ready: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !ready()? {
        stop.check()?;
        for daemon in daemons {
            daemon.check()?;
        }
        if Instant::now() >= deadline {
            let logs: Vec<String> = daemons.iter().map(|daemon| daemon.log_tail(15)).collect();
            bail!("{what} is not ready after {} s\n{}", patience.as_secs(), logs.join("\n"));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
