//! Hooks by pinned BPF links: TCX for devices, from kernel 6.6 on, and cgroup hooks.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Attach, AttachError, Hook, Outcome, target_gone};
use crate::bpf::pins::Pins;
use crate::bpf::sys::{self, ObjectKind};

/// [`Attach`] by pinned links.
pub struct Links {
    pins: Pins,
    /// Directory of the cgroup whose sockets are translated.
    cgroup: Option<PathBuf>,
}

impl Links {
    pub fn new(pins: Pins, cgroup: Option<PathBuf>) -> Self {
        Links { pins, cgroup }
    }

    fn pin(&self, hook: Hook) -> PathBuf {
        self.pins.links_dir().join(hook.pin_name())
    }

    /// Puts `program` into the link pinned at `pin`, if that is alive and of this very target.
    fn reuse(&self, pin: &Path, hook: Hook, program: BorrowedFd<'_>) -> io::Result<Option<Outcome>> {
        let link = match sys::obj_get(pin) {
            Ok(link) => link,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if sys::kind(link.as_fd())? != ObjectKind::Link {
            return Ok(None);
        }
        let info = sys::link_info(link.as_fd())?;
        if !self.is_target(hook, info.target)? {
            return Ok(None);
        }
        if sys::program_info(program)?.id == info.program {
            return Ok(Some(Outcome::Kept));
        }
        match sys::link_update(link.as_fd(), program) {
            Ok(()) => Ok(Some(Outcome::Replaced)),
            Err(e) if target_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Does a link's target (see [`sys::LinkInfo::target`]) belong to this hook? A dead link's is 0, and belongs to none.
    fn is_target(&self, hook: Hook, target: u64) -> io::Result<bool> {
        match hook.device() {
            Some(ifindex) => Ok(target as u32 == ifindex),
            None => Ok(fs::metadata(self.cgroup()?)?.ino() == target),
        }
    }

    fn cgroup(&self) -> io::Result<&Path> {
        self.cgroup.as_deref().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup was given"))
    }

    fn create(&self, pin: &Path, hook: Hook, program: BorrowedFd<'_>) -> io::Result<Outcome> {
        let link = match hook.device() {
            Some(ifindex) => sys::link_create(program, ifindex, hook.attach_type(), sys::FIRST),
            None => {
                let cgroup = fs::File::open(self.cgroup()?)?;
                // A cgroup link always stands beside others (flags 0; BPF_F_ALLOW_MULTI is refused).
                sys::link_create(program, cgroup.as_raw_fd() as u32, hook.attach_type(), 0)
            }
        };
        let link = match link {
            Ok(link) => link,
            Err(e) if target_gone(&e) => return Ok(Outcome::Gone),
            Err(e) => return Err(e),
        };
        // Our program runs beside the old link's for a moment (programs are idempotent), never none.
        remove_file(pin)?;
        sys::obj_pin(link.as_fd(), pin)?;
        Ok(Outcome::Created)
    }
}

impl Attach for Links {
    fn ensure(&mut self, hook: Hook, program: BorrowedFd<'_>) -> Result<Outcome, AttachError> {
        let pin = self.pin(hook);
        match self.reuse(&pin, hook, program) {
            Ok(Some(outcome)) => Ok(outcome),
            Ok(None) => self.create(&pin, hook, program).map_err(|e| AttachError::new(hook, "attaching", e)),
            Err(e) => Err(AttachError::new(hook, "replacing the program in the pinned link", e)),
        }
    }

    fn remove(&mut self, hook: Hook) -> Result<bool, AttachError> {
        remove_file(&self.pin(hook)).map_err(|e| AttachError::new(hook, "removing the link's pin", e))
    }

    fn hooks(&mut self) -> io::Result<Vec<Hook>> {
        let mut hooks: Vec<Hook> =
            self.pins.link_names()?.iter().filter_map(|name| Hook::from_pin_name(name)).collect();
        hooks.sort();
        Ok(hooks)
    }
}

fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
