//! The agent's programs: loaded once, kept on every hook they belong to.
//!
//! All or none: if one program does not load, none is attached, and those of the agent before this one go on as they are.
//!
//! A new TCX link costs the kernel an RCU grace period (tcx_entry_sync, under the lock of all links: about 13 ms, seen on 6.18), so that a node
//! of 200 pods takes seconds on its very first start. Attaching therefore goes on in slices, with the agent's other work in between.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use netlb_common::config::Config;
use netlb_common::maps::{name, program};

use crate::bpf::attach::{Attach, Attachments, Hook, Method, Outcome, SocketHook};
use crate::bpf::clock::JiffiesClock;
use crate::bpf::loader::{self, LoadError, Loaded};
use crate::bpf::pins::{Capacities, KeptCapacity, Pins};
use crate::bpf::table::Table;
use crate::devices::{Picture, uplinks};

/// Programs of the agent's hooks.
const ATTACHED: [&str; 12] = [
    program::TO_POD,
    program::FROM_POD,
    program::TO_OUTSIDE,
    program::FROM_OUTSIDE,
    program::RECVMSG4,
    program::RECVMSG6,
    program::GETPEERNAME4,
    program::GETPEERNAME6,
    program::SENDMSG4,
    program::SENDMSG6,
    program::CONNECT4,
    program::CONNECT6,
];

/// How long a slice of attaching may take.
const SLICE: Duration = Duration::from_millis(30);

/// Loaded programs and the hooks they are on.
pub struct Programs {
    loaded: Loaded,
    attachments: Attachments,
    clock: Option<JiffiesClock>,
    /// Nothing shall be attached.
    detached: bool,
    /// Why no program of this agent is attached.
    failure: Option<String>,
    /// Links of an agent before this one were there at the start.
    attached_before: bool,
    /// Hooks our programs belong on, in the order of attaching.
    wanted: Vec<Hook>,
    /// Those of them that are still to be looked at.
    pending: BTreeSet<Hook>,
    /// Hooks our programs were put on, or found on, by this agent.
    on: BTreeSet<Hook>,
    /// What could not be attached, by hook.
    errors: BTreeMap<Hook, String>,
}

impl Programs {
    /// Makes or takes over the maps, and loads the programs.
    ///
    /// # Errors
    /// If there are no maps to work with. A program that does not load is not an error but a [`failure`](Self::failure): the agent goes on
    /// without.
    pub fn load(
        pins: &Pins,
        capacities: &Capacities,
        cgroup: &std::path::Path,
        method: Option<Method>,
        detached: bool,
    ) -> Result<(Self, Vec<KeptCapacity>), LoadError> {
        let (mut loaded, kept) = loader::load(pins, capacities)?;
        let mut attachments =
            Attachments::open(pins.clone(), Some(cgroup.to_owned()), method).map_err(LoadError::Attachments)?;
        let attached_before = attachments.hooks().is_ok_and(|hooks| !hooks.is_empty());
        let hz = known_hz(pins);
        let clock: Result<JiffiesClock, String> = loaded
            .program(program::CLOCK)
            .map_err(|e| e.to_string())
            .and_then(|program| JiffiesClock::new(program, hz).map_err(|e| format!("the kernel's clock: {e}")));
        let (clock, mut failure) = match clock {
            Ok(clock) => (Some(clock), None),
            Err(reason) => (None, Some(reason)),
        };
        for name in ATTACHED {
            if let Err(e) = loaded.program(name) {
                failure.get_or_insert(e.to_string());
            }
        }
        if let Some(reason) = &failure {
            let stay =
                if attached_before { "those of the agent before this one stay in place" } else { "none is attached" };
            tracing::error!("this netlb's programs cannot be used, {stay}: {reason}");
        }
        let programs = Programs {
            loaded,
            attachments,
            clock,
            detached,
            failure,
            attached_before,
            wanted: Vec::new(),
            pending: BTreeSet::new(),
            on: BTreeSet::new(),
            errors: BTreeMap::new(),
        };
        Ok((programs, kept))
    }

    /// The kernel's jiffies; `None` if its program did not load.
    pub fn clock(&self) -> Option<&JiffiesClock> {
        self.clock.as_ref()
    }

    /// How devices get their programs.
    pub fn method(&self) -> Method {
        self.attachments.method()
    }

    /// Why this agent's programs are not attached.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The agent was told to attach nothing.
    pub fn is_detached(&self) -> bool {
        self.detached
    }

    /// An agent before this one attached programs that are still there.
    pub fn attached_before(&self) -> bool {
        self.attached_before
    }

    /// Our programs are on both sides of a pod's device.
    pub fn is_on_pod(&self, ifindex: u32) -> bool {
        sides_of_pod(ifindex).iter().all(|hook| self.on.contains(hook))
    }

    /// Our programs are on both sides of an uplink.
    pub fn is_on_uplink(&self, ifindex: u32) -> bool {
        sides_of_uplink(ifindex).iter().all(|hook| self.on.contains(hook))
    }

    /// Programs are on every hook that is known, or cannot be.
    pub fn is_settled(&self) -> bool {
        self.is_idle() || !self.wanted.is_empty() && self.pending.iter().all(|hook| self.on.contains(hook))
    }

    /// Hooks that have our programs, and those that should and have not.
    pub fn count(&self) -> (usize, usize) {
        (self.on.len(), self.wanted.iter().filter(|hook| !self.on.contains(hook)).count())
    }

    /// Hooks wait to be looked at: call [`attach_some`](Self::attach_some).
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Nothing is attached by this agent, whatever is there.
    fn is_idle(&self) -> bool {
        self.detached || self.failure.is_some()
    }

    /// What could not be attached, in words.
    pub fn errors(&self) -> impl Iterator<Item = &str> {
        self.errors.values().map(String::as_str)
    }

    /// Says where programs belong: on the node's sockets, and on both sides of each pod's device and uplink (`None`: not known yet). Takes them off
    /// devices that are neither any more. `again`: hooks that have them are to be looked at too, since somebody may have taken them off.
    pub fn want(&mut self, devices: Option<&Picture>, again: bool) {
        if self.is_idle() {
            return;
        }
        // What an uplink brings is answered by pods, whose devices come first.
        let pods = devices.into_iter().flat_map(|seen| seen.pods.keys()).flat_map(|i| sides_of_pod(*i));
        let uplinks = devices.into_iter().flat_map(|seen| uplinks::uplinks(&seen.others));
        let uplinks = uplinks.flat_map(|(ifindex, _)| sides_of_uplink(ifindex));
        self.wanted = SocketHook::ALL.into_iter().map(Hook::Socket).chain(pods).chain(uplinks).collect();
        let all: BTreeSet<Hook> = self.wanted.iter().copied().collect();
        self.pending = all.iter().copied().filter(|hook| again || !self.on.contains(hook)).collect();
        if devices.is_some() {
            self.remove_others(&all);
        }
    }

    /// Puts programs on hooks that wait for them, as many as a slice of time allows, at least one. True if that changed
    /// anything.
    pub fn attach_some(&mut self) -> bool {
        let began = Instant::now();
        let (mut created, mut replaced) = (0, 0);
        let before = (self.on.len(), self.errors.clone(), self.is_settled());
        for hook in self.wanted.clone() {
            if !self.pending.remove(&hook) {
                continue;
            }
            match self.ensure(hook) {
                Ok(Outcome::Kept) => {}
                Ok(Outcome::Replaced) => replaced += 1,
                Ok(Outcome::Created) => created += 1,
                Ok(Outcome::Gone) => {
                    self.on.remove(&hook);
                    continue;
                }
                Err(reason) => {
                    self.on.remove(&hook);
                    if self.errors.insert(hook, reason.clone()).is_none() {
                        tracing::warn!("{reason}");
                    }
                    continue;
                }
            }
            self.on.insert(hook);
            self.errors.remove(&hook);
            if began.elapsed() > SLICE {
                break;
            }
        }
        if created + replaced > 0 {
            tracing::debug!(created, replaced, left = self.pending.len(), "programs attached");
        }
        created + replaced > 0 || before != (self.on.len(), self.errors.clone(), self.is_settled())
    }

    fn ensure(&mut self, hook: Hook) -> Result<Outcome, String> {
        let program = self.loaded.program(hook.program()).map_err(|e| e.to_string())?;
        self.attachments.ensure(hook, program).map_err(|e| e.to_string())
    }

    fn remove_others(&mut self, wanted: &BTreeSet<Hook>) {
        self.errors.retain(|hook, _| wanted.contains(hook));
        self.on.retain(|hook| wanted.contains(hook));
        for hook in self.attachments.hooks().unwrap_or_default() {
            if !wanted.contains(&hook)
                && let Err(e) = self.attachments.remove(hook)
            {
                tracing::warn!("{e}");
            }
        }
    }
}

/// In the order of attaching: the way back stands before the way out.
fn sides_of_pod(ifindex: u32) -> [Hook; 2] {
    [Hook::ToPod { ifindex }, Hook::FromPod { ifindex }]
}

/// In the order of attaching, as for pods.
fn sides_of_uplink(ifindex: u32) -> [Hook; 2] {
    [Hook::ToOutside { ifindex }, Hook::FromOutside { ifindex }]
}

/// HZ as an agent before this one found it: maps do not outlive the kernel they were made in.
fn known_hz(pins: &Pins) -> Option<u32> {
    let config = Table::<u32, Config>::open(pins, name::CONFIG).ok()?.get(&0).ok()??;
    Some(config.hz).filter(|hz| *hz != 0)
}
