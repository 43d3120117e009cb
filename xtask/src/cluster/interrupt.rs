//! Ctrl-C for commands that have others work for them: it is passed on.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Processes that are asked to end (SIGTERM) when this one is.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<Mutex<Processes>>);

#[derive(Default)]
struct Processes {
    asked: bool,
    pids: Vec<Pid>,
}

impl Interrupt {
    /// Begins to listen; once a process.
    pub(crate) fn listen() -> Result<Self> {
        let interrupt = Self::default();
        let shared = interrupt.clone();
        ctrlc::set_handler(move || {
            let mut processes = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            processes.asked = true;
            processes.pids.iter().for_each(|pid| end(*pid));
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    /// Passes the signal on to `pid`, until [`Interrupt::forget`].
    pub(crate) fn pass_to(&self, pid: u32) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(pid).context("process id out of range")?);
        let mut processes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if processes.asked {
            end(pid);
        }
        processes.pids.push(pid);
        Ok(())
    }

    /// A process has ended, and its id may be another's.
    pub(crate) fn forget(&self, pid: u32) {
        let mut processes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        processes.pids.retain(|known| u32::try_from(known.as_raw()).ok() != Some(pid));
    }

    /// Whether somebody asked.
    pub(crate) fn asked(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).asked
    }
}

/// Should it have ended by itself, all is as it should be.
fn end(pid: Pid) {
    kill(pid, Signal::SIGTERM).unwrap_or_default();
}
