//! Programs onto hooks, so that they outlive the agent and are replaced between two packets.
//!
//! [`Attach`] is the one interface. Devices: TCX links from kernel 6.6 on ([`links`]), before that filters of clsact ([`clsact`]). Socket calls:
//! cgroup links. [`Attachments`] puts the right ones together.

mod chosen;
mod clsact;
mod links;

use std::io;
use std::os::fd::BorrowedFd;

use netlb_common::maps::program;

use super::sys::AttachType;

pub use chosen::{Attachments, Method};
pub use links::Links;

/// A place where one of netlb's programs runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hook {
    /// Ingress of the host side of a pod's veth: what the pod sends.
    FromPod { ifindex: u32 },
    /// Egress of the host side of a pod's veth: what the pod is sent.
    ToPod { ifindex: u32 },
    /// Ingress of an uplink: what comes from outside.
    FromOutside { ifindex: u32 },
    /// Egress of an uplink: what leaves.
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

    pub(super) fn attach_type(self) -> AttachType {
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
        Hook::of_device(ifindex).into_iter().find(|hook| hook.program() == program)
    }

    /// The hooks that a device can have.
    pub fn of_device(ifindex: u32) -> [Hook; 4] {
        [Hook::FromPod { ifindex }, Hook::ToPod { ifindex }, Hook::FromOutside { ifindex }, Hook::ToOutside { ifindex }]
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

impl AttachError {
    fn new(hook: Hook, what: &'static str, cause: io::Error) -> Self {
        AttachError { hook: hook.pin_name(), what, remedy: remedy(&cause), cause }
    }
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
    /// If the kernel refuses.
    fn remove(&mut self, hook: Hook) -> Result<bool, AttachError>;

    /// Every hook netlb's programs are on, those of other versions and of agents before this one too, sorted.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    fn hooks(&mut self) -> io::Result<Vec<Hook>>;
}

/// Takes every filter of netlb off the devices of the calling thread's network namespace, and says how many there were. (Links go with their pins.)
///
/// # Errors
/// If the kernel refuses.
pub fn take_off_filters() -> io::Result<usize> {
    let mut filters = clsact::Filters::open()?;
    let hooks = filters.hooks()?;
    for hook in &hooks {
        filters.remove(*hook).map_err(io::Error::other)?;
    }
    Ok(hooks.len())
}

/// ENODEV and ENOLINK: the device or cgroup went away between two calls.
fn target_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOLINK))
}

fn remedy(e: &io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run netlb as root, with CAP_BPF and CAP_NET_ADMIN",
        Some(libc::EOPNOTSUPP) => {
            "the kernel lacks clsact or its bpf filters: load or build in sch_ingress and cls_bpf"
        }
        Some(libc::ENOENT) => "check --cgroup and --pin-path",
        Some(libc::ENOMEM) => "free memory; netlb tries again",
        _ => "netlb tries again",
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
