//! The sweep: frees what the datapath already ignores, and finds out which removed backends no flow names any more.
//!
//! Nothing waits for it: the datapath treats an expired entry as absent, and tells a stale backend by its generation. A sweep walks `CT`, `CT_NEW`
//! and `SOCKETS` a few thousand entries a step, so that the agent's other work goes on in between.

use std::collections::BTreeSet;
use std::io;

use netlb_common::backend::{BackendValue, state};
use netlb_common::conntrack::{CtKey, CtValue, age};
use netlb_common::maps::name;
use netlb_common::proto;
use netlb_common::socket::{SocketKey, SocketValue};

use super::status::Conntrack;
use crate::bpf::clock::JiffiesClock;
use crate::bpf::pins::Pins;
use crate::bpf::table::{Position, Table, TableError};

/// The tables a sweep walks.
pub struct Sweeper {
    ct: Table<CtKey, CtValue>,
    ct_new: Table<CtKey, CtValue>,
    sockets: Table<SocketKey, SocketValue>,
    backends: Table<u32, BackendValue>,
}

/// A sweep under way.
pub struct Sweep {
    stage: Stage,
    at: Position,
    /// Removed backends that may be freed if no flow names them.
    candidates: BTreeSet<u32>,
    found: Swept,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Assured,
    New,
    Sockets,
    Done,
}

/// What a sweep found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    pub conntrack: Conntrack,
    /// Entries deleted.
    pub deleted: usize,
    /// Candidates that no flow names.
    pub unnamed: BTreeSet<u32>,
    named: BTreeSet<u32>,
}

impl Sweeper {
    /// # Errors
    /// If a map is not pinned, or has another layout.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Sweeper {
            ct: Table::open(pins, name::CT)?,
            ct_new: Table::open(pins, name::CT_NEW)?,
            sockets: Table::open(pins, name::SOCKETS)?,
            backends: Table::open(pins, name::BACKENDS)?,
        })
    }

    /// The table by which translated sockets are known.
    pub fn sockets(&self) -> &Table<SocketKey, SocketValue> {
        &self.sockets
    }

    /// Begins a sweep. `candidates` are removed backends that have been so since before this call.
    pub fn begin(&self, candidates: BTreeSet<u32>) -> Sweep {
        let conntrack =
            Conntrack { capacity: self.ct.capacity(), new_capacity: self.ct_new.capacity(), ..Conntrack::default() };
        Sweep {
            stage: Stage::Assured,
            at: Position::default(),
            candidates,
            found: Swept { conntrack, ..Swept::default() },
        }
    }

    /// Does a step; the result when that was the last.
    ///
    /// # Errors
    /// The kernel's: the sweep is then worthless, since it has not seen every flow.
    pub fn step(&self, sweep: &mut Sweep, clock: &JiffiesClock) -> io::Result<Option<Swept>> {
        let next = match sweep.stage {
            Stage::Assured => self.conntrack_step(&self.ct, sweep, clock)?.then_some(Stage::New),
            Stage::New => self.conntrack_step(&self.ct_new, sweep, clock)?.then_some(Stage::Sockets),
            Stage::Sockets => self.socket_step(sweep)?.then_some(Stage::Done),
            Stage::Done => None,
        };
        if let Some(next) = next {
            sweep.stage = next;
            sweep.at = Position::default();
        }
        if sweep.stage != Stage::Done {
            return Ok(None);
        }
        let mut found = std::mem::take(&mut sweep.found);
        found.unnamed = sweep.candidates.difference(&found.named).copied().collect();
        Ok(Some(found))
    }

    /// True when the map is through.
    fn conntrack_step(&self, map: &Table<CtKey, CtValue>, sweep: &mut Sweep, clock: &JiffiesClock) -> io::Result<bool> {
        let Some(batch) = map.next_batch(&mut sweep.at)? else { return Ok(true) };
        let now = clock.now()?;
        for (key, value) in batch {
            let backend = self.backends.get(&value.backend)?;
            let gone = leaves(&key, &value, backend.as_ref())
                || expired(&value, now) && self.partner(&key, &value)?.is_none_or(|other| expired(&other, now));
            if gone {
                // The other direction is judged by the same facts when the walk comes by.
                sweep.found.deleted += usize::from(map.delete(&key)?);
                continue;
            }
            match sweep.stage {
                Stage::Assured => sweep.found.conntrack.entries += 1,
                Stage::New | Stage::Sockets | Stage::Done => sweep.found.conntrack.new_entries += 1,
            }
            if backend.is_some_and(|b| b.generation == value.backend_generation) {
                sweep.found.named.insert(value.backend);
            }
        }
        Ok(false)
    }

    /// The entry of a flow's other direction, in whichever map.
    fn partner(&self, key: &CtKey, value: &CtValue) -> io::Result<Option<CtValue>> {
        let partner = CtKey::from_words(value.dst, value.src, value.ports.rotate_left(16), key.proto());
        match self.ct.get(&partner)? {
            Some(other) => Ok(Some(other)),
            None => self.ct_new.get(&partner),
        }
    }

    fn socket_step(&self, sweep: &mut Sweep) -> io::Result<bool> {
        let Some(batch) = self.sockets.next_batch(&mut sweep.at)? else { return Ok(true) };
        for (key, value) in batch {
            let backend = self.backends.get(&value.backend)?;
            let udp = (key.tail >> 16) as u8 == proto::UDP;
            if udp && !serves(backend.as_ref(), value.backend_generation) {
                sweep.found.deleted += usize::from(self.sockets.delete(&key)?);
            }
        }
        Ok(false)
    }
}

/// UDP does not outlive its backend; TCP ends by itself.
fn leaves(key: &CtKey, value: &CtValue, backend: Option<&BackendValue>) -> bool {
    key.proto() == proto::UDP && value.backend != 0 && !serves(backend, value.backend_generation)
}

/// Is the backend still the one that was meant, and keeps its flows?
fn serves(backend: Option<&BackendValue>, generation: u32) -> bool {
    backend.is_some_and(|b| b.generation == generation && matches!(b.state, state::ACTIVE | state::DRAINING))
}

fn expired(value: &CtValue, now: u32) -> bool {
    age(now, value.seen) > value.timeout
}

#[cfg(test)]
mod tests {
    use netlb_common::{Addr, Port};

    use super::*;

    fn entry(seen: u32, timeout: u32, backend: u32, generation: u32) -> CtValue {
        CtValue { seen, timeout, backend, backend_generation: generation, ..bytemuck::Zeroable::zeroed() }
    }

    fn backend(state: u8, generation: u32) -> BackendValue {
        BackendValue { state, generation, ..bytemuck::Zeroable::zeroed() }
    }

    fn key(proto: u8) -> CtKey {
        CtKey::new(Addr::v4(1), Addr::v4(2), Port::new(1), Port::new(2), proto)
    }

    #[test]
    fn expiry_is_by_wrapping_time_and_forgives_a_fresh_stamp() {
        assert!(!expired(&entry(100, 10, 0, 0), 110));
        assert!(expired(&entry(100, 10, 0, 0), 111));
        assert!(!expired(&entry(100, 10, 0, 0), 99), "stamped after the clock was read");
        assert!(expired(&entry(u32::MAX - 4, 10, 0, 0), 6));
        assert!(!expired(&entry(u32::MAX - 4, 10, 0, 0), 5));
    }

    #[test]
    fn udp_leaves_with_its_backend_and_tcp_stays() {
        for (state, generation, gone) in [
            (state::ACTIVE, 3, false),
            (state::DRAINING, 3, false),
            (state::REMOVED, 3, true),
            (state::FREE, 3, true),
            (state::ACTIVE, 4, true),
        ] {
            let value = entry(0, 1, 9, 3);
            let b = backend(state, generation);
            assert_eq!(leaves(&key(proto::UDP), &value, Some(&b)), gone, "{state} {generation}");
            assert!(!leaves(&key(proto::TCP), &value, Some(&b)));
        }
        assert!(leaves(&key(proto::UDP), &entry(0, 1, 9, 3), None));
        assert!(!leaves(&key(proto::UDP), &entry(0, 1, 0, 0), None), "a flow without a Service");
    }
}
