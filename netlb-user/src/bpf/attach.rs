//! Programs onto hooks, so that they outlive the agent and are replaced between two packets.
//!
//! [`Attach`] is the one interface; [`Links`] serves it with pinned BPF links (TCX from kernel 6.6, cgroup hooks). Kernels without TCX will be
//! served by clsact filters behind the same interface.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use netlb_common::maps::program;

use super::pins::Pins;
use super::sys::{self, AttachType, ObjectKind};

/// A place where one of netlb's programs runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hook {
    /// TCX ingress of the host side of a pod's veth: what the pod sends.
    FromPod { ifindex: u32 },
    /// TCX egress of the host side of a pod's veth: what the pod is sent.
    ToPod { ifindex: u32 },
    /// TCX ingress of an uplink: what comes from outside.
    FromOutside { ifindex: u32 },
    /// TCX egress of an uplink: what leaves.
    ToOutside { ifindex: u32 },
    /// A socket call in the agent's cgroup.
    Socket(SocketHook),
}

/// The socket calls netlb translates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SocketHook {
    Connect4,
    Connect6,
    Sendmsg4,
    Sendmsg6,
    Recvmsg4,
    Recvmsg6,
    Getpeername4,
    Getpeername6,
}

impl SocketHook {
    /// In the order of attaching: the way back is there before the way out.
    pub const ALL: [SocketHook; 8] = [
        SocketHook::Recvmsg4,
        SocketHook::Recvmsg6,
        SocketHook::Getpeername4,
        SocketHook::Getpeername6,
        SocketHook::Sendmsg4,
        SocketHook::Sendmsg6,
        SocketHook::Connect4,
        SocketHook::Connect6,
    ];
}

impl Hook {
    /// Name of the program that belongs here.
    pub fn program(self) -> &'static str {
        match self {
            Hook::FromPod { .. } => program::FROM_POD,
            Hook::ToPod { .. } => program::TO_POD,
            Hook::FromOutside { .. } => program::FROM_OUTSIDE,
            Hook::ToOutside { .. } => program::TO_OUTSIDE,
            Hook::Socket(SocketHook::Connect4) => program::CONNECT4,
            Hook::Socket(SocketHook::Connect6) => program::CONNECT6,
            Hook::Socket(SocketHook::Sendmsg4) => program::SENDMSG4,
            Hook::Socket(SocketHook::Sendmsg6) => program::SENDMSG6,
            Hook::Socket(SocketHook::Recvmsg4) => program::RECVMSG4,
            Hook::Socket(SocketHook::Recvmsg6) => program::RECVMSG6,
            Hook::Socket(SocketHook::Getpeername4) => program::GETPEERNAME4,
            Hook::Socket(SocketHook::Getpeername6) => program::GETPEERNAME6,
        }
    }

    fn attach_type(self) -> AttachType {
        match self {
            Hook::FromPod { .. } | Hook::FromOutside { .. } => AttachType::TcxIngress,
            Hook::ToPod { .. } | Hook::ToOutside { .. } => AttachType::TcxEgress,
            Hook::Socket(SocketHook::Connect4) => AttachType::Connect4,
            Hook::Socket(SocketHook::Connect6) => AttachType::Connect6,
            Hook::Socket(SocketHook::Sendmsg4) => AttachType::Sendmsg4,
            Hook::Socket(SocketHook::Sendmsg6) => AttachType::Sendmsg6,
            Hook::Socket(SocketHook::Recvmsg4) => AttachType::Recvmsg4,
            Hook::Socket(SocketHook::Recvmsg6) => AttachType::Recvmsg6,
            Hook::Socket(SocketHook::Getpeername4) => AttachType::Getpeername4,
            Hook::Socket(SocketHook::Getpeername6) => AttachType::Getpeername6,
        }
    }

    /// Interface index of the device it is on; `None` for a socket call.
    pub fn device(self) -> Option<u32> {
        match self {
            Hook::FromPod { ifindex }
            | Hook::ToPod { ifindex }
            | Hook::FromOutside { ifindex }
            | Hook::ToOutside { ifindex } => Some(ifindex),
            Hook::Socket(_) => None,
        }
    }

    /// File name of the link's pin.
    pub fn pin_name(self) -> String {
        match self.device() {
            Some(ifindex) => format!("{}-{ifindex}", self.program()),
            None => self.program().to_owned(),
        }
    }

    /// The hook a pin's file name stands for.
    pub fn from_pin_name(name: &str) -> Option<Hook> {
        if let Some(socket) = SocketHook::ALL.into_iter().map(Hook::Socket).find(|hook| hook.pin_name() == name) {
            return Some(socket);
        }
        let (program, ifindex) = name.rsplit_once('-')?;
        let ifindex = ifindex.parse().ok()?;
        [Hook::FromPod { ifindex }, Hook::ToPod { ifindex }, Hook::FromOutside { ifindex }, Hook::ToOutside { ifindex }]
            .into_iter()
            .find(|hook| hook.program() == program)
    }
}

/// What [`Attach::ensure`] found and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The program runs there already.
    Kept,
    /// It took another program's place between two packets.
    Replaced,
    /// It is new on this hook.
    Created,
    /// The device or cgroup went away meanwhile.
    Gone,
}

/// A program could not be attached.
#[derive(Debug, thiserror::Error)]
#[error("{hook}: {what}: {cause}; {remedy}")]
pub struct AttachError {
    hook: String,
    what: &'static str,
    cause: io::Error,
    remedy: &'static str,
}

/// Attaches programs so that they stay without the agent.
pub trait Attach {
    /// Makes `program` run on `hook`, in front of other people's programs, without a packet in between that meets neither the old one nor the
    /// new one. Doing it again changes nothing; a hook from which somebody took ours is put right.
    ///
    /// # Errors
    /// If the kernel refuses; a target that is gone is no error.
    fn ensure(&mut self, hook: Hook, program: BorrowedFd<'_>) -> Result<Outcome, AttachError>;

    /// Takes netlb's program off the hook; false if there was none.
    ///
    /// # Errors
    /// If the pin cannot be removed.
    fn remove(&mut self, hook: Hook) -> Result<bool, AttachError>;

    /// Every hook netlb's programs are on, as far as pins tell, sorted.
    ///
    /// # Errors
    /// If the pins cannot be read.
    fn hooks(&self) -> io::Result<Vec<Hook>>;
}

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
        let refused =
            |what, cause: io::Error| AttachError { hook: hook.pin_name(), what, remedy: remedy(&cause), cause };
        match self.reuse(&pin, hook, program) {
            Ok(Some(outcome)) => Ok(outcome),
            Ok(None) => self.create(&pin, hook, program).map_err(|e| refused("attaching", e)),
            Err(e) => Err(refused("replacing the program in the pinned link", e)),
        }
    }

    fn remove(&mut self, hook: Hook) -> Result<bool, AttachError> {
        remove_file(&self.pin(hook)).map_err(|cause| AttachError {
            hook: hook.pin_name(),
            what: "removing the link's pin",
            remedy: remedy(&cause),
            cause,
        })
    }

    fn hooks(&self) -> io::Result<Vec<Hook>> {
        let mut hooks: Vec<Hook> =
            self.pins.link_names()?.iter().filter_map(|name| Hook::from_pin_name(name)).collect();
        hooks.sort();
        Ok(hooks)
    }
}

/// ENODEV and ENOLINK: the device or cgroup went away between two calls.
fn target_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOLINK))
}

fn remedy(e: &io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run netlb as root, with CAP_BPF and CAP_NET_ADMIN",
        Some(libc::EINVAL) => "TCX needs kernel 6.6 or newer",
        Some(libc::ENOENT) => "check --cgroup and --pin-path",
        Some(libc::ENOMEM) => "free memory; netlb tries again",
        _ => "netlb tries again",
    }
}

fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names_lead_back_to_their_hooks() {
        let devices = [
            Hook::FromPod { ifindex: 7 },
            Hook::ToPod { ifindex: 4_000_000_000 },
            Hook::FromOutside { ifindex: 7 },
            Hook::ToOutside { ifindex: 2 },
        ];
        for hook in devices.into_iter().chain(SocketHook::ALL.into_iter().map(Hook::Socket)) {
            assert_eq!(Hook::from_pin_name(&hook.pin_name()), Some(hook));
        }
        for name in ["from_pod-", "from_pod-x", "from_pod", "xdp_from_pod-7", "connect5", ""] {
            assert_eq!(Hook::from_pin_name(name), None, "{name}");
        }
    }
}
