//! Which way of attaching this kernel has, asked of the kernel itself; and what another way left behind.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::clsact::Filters;
use super::links::Links;
use super::{Attach, AttachError, Hook, Outcome};
use crate::bpf::pins::Pins;
use crate::bpf::sys;

/// How programs get onto devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Links, kernel 6.6 and newer
    Tcx,
    /// Filters of the clsact qdisc, any kernel
    Clsact,
}

impl Method {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Tcx => "tcx",
            Method::Clsact => "clsact",
        }
    }
}

/// [`Attach`] for every hook: devices by one method, socket calls by links.
pub struct Attachments {
    links: Links,
    filters: Filters,
    method: Method,
    /// Devices' hooks that have a program by the other method too, until theirs by this one is on.
    leftover: BTreeSet<Hook>,
}

impl Attachments {
    /// For pins, a cgroup whose sockets are translated, and the network namespace of the calling thread. `method`: instead of the best that the
    /// kernel has.
    ///
    /// # Errors
    /// If the kernel cannot be asked what it has, or which hooks are taken already.
    pub fn open(pins: Pins, cgroup: Option<PathBuf>, method: Option<Method>) -> io::Result<Self> {
        let method = match method {
            Some(method) => method,
            None if sys::has_tcx()? => Method::Tcx,
            None => Method::Clsact,
        };
        let (mut links, mut filters) = (Links::new(pins, cgroup), Filters::open()?);
        let other = match method {
            Method::Tcx => filters.hooks()?,
            Method::Clsact => links.hooks()?,
        };
        let leftover = other.into_iter().filter(|hook| hook.device().is_some()).collect();
        Ok(Attachments { links, filters, method, leftover })
    }

    /// How devices get their programs.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What serves a hook, and what else may have served it.
    fn of(&mut self, hook: Hook) -> (&mut dyn Attach, &mut dyn Attach) {
        match self.method {
            Method::Clsact if hook.device().is_some() => (&mut self.filters, &mut self.links),
            Method::Tcx | Method::Clsact => (&mut self.links, &mut self.filters),
        }
    }
}

impl Attach for Attachments {
    fn ensure(&mut self, hook: Hook, program: BorrowedFd<'_>) -> Result<Outcome, AttachError> {
        let was_there = self.leftover.contains(&hook);
        let (now, before) = self.of(hook);
        let outcome = now.ensure(hook, program)?;
        // The programs are idempotent: for a moment both ways run one.
        if was_there {
            before.remove(hook)?;
            self.leftover.remove(&hook);
        }
        Ok(outcome)
    }

    fn remove(&mut self, hook: Hook) -> Result<bool, AttachError> {
        let was_there = self.leftover.contains(&hook);
        let (now, before) = self.of(hook);
        let mut removed = now.remove(hook)?;
        if was_there {
            removed |= before.remove(hook)?;
            self.leftover.remove(&hook);
        }
        Ok(removed)
    }

    fn hooks(&mut self) -> io::Result<Vec<Hook>> {
        let mut hooks: BTreeSet<Hook> = self.links.hooks()?.into_iter().chain(self.leftover.iter().copied()).collect();
        if self.method == Method::Clsact {
            hooks.extend(self.filters.hooks()?);
        }
        Ok(hooks.into_iter().collect())
    }
}
