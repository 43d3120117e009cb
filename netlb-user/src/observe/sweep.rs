//! The sweep: frees what the datapath already ignores, and finds out which removed backends no flow names any more.
//!
//! It also counts each backend's open flows anew: the datapath's own count (`BACKEND_LOAD`, for least connections) misses flows that expire.
//!
//! Nothing waits for it: the datapath treats an expired entry as absent, and tells a stale backend by its generation. A sweep walks `CT`, `CT_NEW`
//! and `SOCKETS` a few thousand entries a step, so that the agent's other work goes on in between.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlb_common::backend::{BackendValue, state};
use netlb_common::conntrack::{CtKey, CtValue, age, flags, is_over};
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::maps::name;
use netlb_common::proto;
use netlb_common::socket::{SocketKey, SocketValue};

use super::status::Conntrack;
use crate::bpf::clock::JiffiesClock;
use crate::bpf::pins::Pins;
use crate::bpf::table::{Position, Table, TableError};
use crate::model::Family;

/// The tables a sweep walks.
pub struct Sweeper {
    ct: Table<CtKey, CtValue>,
    ct_new: Table<CtKey, CtValue>,
    sockets: Table<SocketKey, SocketValue>,
    backends: Table<u32, BackendValue>,
    loads: Table<u32, u32>,
}

/// Service ports of UDP whose flows may be told to look for another backend: those that have one. As in kube-proxy, flows of a Service port
/// without any serving backend stay, and their packets are refused.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UdpPorts {
    serving: BTreeSet<u32>,
    frontends: BTreeMap<FrontendKey, u32>,
}

impl UdpPorts {
    /// From all frontends and backends there are.
    pub fn new<'a>(
        frontends: impl IntoIterator<Item = (&'a FrontendKey, &'a FrontendValue)>,
        backends: impl IntoIterator<Item = &'a BackendValue>,
    ) -> Self {
        let keeps = |b: &&BackendValue| b.proto == proto::UDP && matches!(b.state, state::ACTIVE | state::DRAINING);
        let udp = frontends.into_iter().filter(|(key, _)| key.proto() == proto::UDP);
        UdpPorts {
            serving: backends.into_iter().filter(keeps).map(|b| b.service).collect(),
            frontends: udp.map(|(key, value)| (*key, value.service)).collect(),
        }
    }

    /// The Service port a packet of this tuple is for.
    fn owner(&self, key: &CtKey) -> Option<u32> {
        let own = FrontendKey::new(key.dst, key.dport(), key.proto());
        let node_port = FrontendKey::node_port(key.dst.is_v4(), key.dport(), key.proto());
        self.frontends.get(&own).or_else(|| self.frontends.get(&node_port)).copied()
    }

    /// Whether an entry leaves because its backend serves no more and there is another one, or because it is older than the Service it is for. TCP
    /// and SCTP flows end by themselves.
    pub fn leaves(&self, key: &CtKey, value: &CtValue, backend: Option<&BackendValue>) -> bool {
        if key.proto() != proto::UDP {
            return false;
        }
        if value.backend != 0 {
            return self.serving.contains(&value.service) && !serves(backend, value.backend_generation);
        }
        let untranslated = value.flags & (flags::REPLY | flags::SNAT) == 0;
        untranslated && self.owner(key).is_some_and(|service| self.serving.contains(&service))
    }
}

/// A sweep under way.
pub struct Sweep {
    stage: Stage,
    at: Position,
    /// Removed backends that may be freed if no flow names them.
    candidates: BTreeSet<u32>,
    udp: UdpPorts,
    /// The datapath's count of open flows as the sweep began, by backend id; what is 0 is left out.
    loads: Option<BTreeMap<u32, u32>>,
    /// The sweep's own.
    open: BTreeMap<u32, u32>,
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
    /// Those of them whose backend serves no more, by family.
    pub removed: BTreeMap<Family, usize>,
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
            loads: Table::open(pins, name::BACKEND_LOAD)?,
        })
    }

    /// The table by which translated sockets are known.
    pub fn sockets(&self) -> &Table<SocketKey, SocketValue> {
        &self.sockets
    }

    /// Begins a sweep. `candidates` are removed backends that have been so since before this call.
    pub fn begin(&self, candidates: BTreeSet<u32>, udp: UdpPorts) -> Sweep {
        let conntrack =
            Conntrack { capacity: self.ct.capacity(), new_capacity: self.ct_new.capacity(), ..Conntrack::default() };
        Sweep {
            stage: Stage::Assured,
            at: Position::default(),
            candidates,
            udp,
            loads: None,
            open: BTreeMap::new(),
            found: Swept { conntrack, ..Swept::default() },
        }
    }

    /// Does a step; the result when that was the last.
    ///
    /// # Errors
    /// The kernel's: the sweep is then worthless, since it has not seen every flow.
    pub fn step(&self, sweep: &mut Sweep, clock: &JiffiesClock) -> io::Result<Option<Swept>> {
        if sweep.loads.is_none() {
            sweep.loads = Some(self.loads()?);
        }
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
        self.set_loads(sweep)?;
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
            let leaves = sweep.udp.leaves(&key, &value, backend.as_ref());
            let gone =
                leaves || expired(&value, now) && self.partner(&key, &value)?.is_none_or(|other| expired(&other, now));
            if gone {
                // The other direction is judged by the same facts when the walk comes by.
                // A batch ages while it is judged; a new flow may have taken the tuple, and keeps it.
                let deleted = usize::from(map.delete_unchanged(&key, &value)?);
                sweep.found.deleted += deleted;
                if leaves {
                    let family = if key.dst.is_v4() { Family::V4 } else { Family::V6 };
                    *sweep.found.removed.entry(family).or_default() += deleted;
                }
                continue;
            }
            match sweep.stage {
                Stage::Assured => sweep.found.conntrack.entries += 1,
                Stage::New | Stage::Sockets | Stage::Done => sweep.found.conntrack.new_entries += 1,
            }
            if backend.is_some_and(|b| b.generation == value.backend_generation) {
                sweep.found.named.insert(value.backend);
                if is_open(&value) {
                    *sweep.open.entry(value.backend).or_default() += 1;
                }
            }
        }
        Ok(false)
    }

    /// The entry of a flow's other direction, in whichever map. One whose own other direction is another belongs to a flow that came later.
    fn partner(&self, key: &CtKey, value: &CtValue) -> io::Result<Option<CtValue>> {
        let partner = partner_key(key, value);
        let other = match self.ct.get(&partner)? {
            Some(other) => Some(other),
            None => self.ct_new.get(&partner)?,
        };
        Ok(other.filter(|other| partner_key(&partner, other) == *key))
    }

    fn loads(&self) -> io::Result<BTreeMap<u32, u32>> {
        Ok(self.loads.entries()?.into_iter().filter(|(_, load)| *load != 0).collect())
    }

    /// Sets the datapath's count of open flows right where it is wrong.
    fn set_loads(&self, sweep: &Sweep) -> io::Result<()> {
        let (before, after) = (sweep.loads.clone().unwrap_or_default(), self.loads()?);
        let of = |loads: &BTreeMap<u32, u32>, id: &u32| loads.get(id).copied().unwrap_or(0);
        let ids: BTreeSet<u32> = after.keys().chain(sweep.open.keys()).copied().collect();
        for id in ids {
            if let Some(right) = corrected(of(&before, &id), of(&after, &id), of(&sweep.open, &id)) {
                self.loads.put(&id, &right)?;
            }
        }
        Ok(())
    }

    fn socket_step(&self, sweep: &mut Sweep) -> io::Result<bool> {
        let Some(batch) = self.sockets.next_batch(&mut sweep.at)? else { return Ok(true) };
        for (key, value) in batch {
            let backend = self.backends.get(&value.backend)?;
            let udp = (key.tail >> 16) as u8 == proto::UDP;
            if udp && !serves(backend.as_ref(), value.backend_generation) {
                sweep.found.deleted += usize::from(self.sockets.delete_unchanged(&key, &value)?);
            }
        }
        Ok(false)
    }
}

/// The key of a flow's other direction.
fn partner_key(key: &CtKey, value: &CtValue) -> CtKey {
    CtKey::from_words(value.dst, value.src, value.ports.rotate_left(16), key.proto())
}

/// Counts as an open flow of its backend: once, by the client's direction.
fn is_open(value: &CtValue) -> bool {
    value.flags & flags::REPLY == 0 && !is_over(value.state)
}

/// What a count of open flows is to be, if it is wrong: `before` and `after` are the datapath's as the sweep began and ended. A difference no greater
/// than the movement meanwhile says nothing.
fn corrected(before: u32, after: u32, counted: u32) -> Option<u32> {
    (counted.abs_diff(after) > before.abs_diff(after)).then_some(counted)
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

    const SERVICE: u32 = 7;

    fn serving(ids: &[u32]) -> UdpPorts {
        UdpPorts { serving: ids.iter().copied().collect(), frontends: BTreeMap::new() }
    }

    #[test]
    fn udp_leaves_with_its_backend_if_there_is_another_and_tcp_stays() {
        for (state, generation, gone) in [
            (state::ACTIVE, 3, false),
            (state::DRAINING, 3, false),
            (state::REMOVED, 3, true),
            (state::FREE, 3, true),
            (state::ACTIVE, 4, true),
        ] {
            let value = CtValue { service: SERVICE, ..entry(0, 1, 9, 3) };
            let b = backend(state, generation);
            let leaves = |ports: &UdpPorts, proto| ports.leaves(&key(proto), &value, Some(&b));
            assert_eq!(leaves(&serving(&[SERVICE]), proto::UDP), gone, "{state} {generation}");
            assert!(!leaves(&serving(&[SERVICE + 1]), proto::UDP), "no backend is left to go to");
            assert!(!leaves(&serving(&[SERVICE]), proto::TCP) && !leaves(&serving(&[SERVICE]), proto::SCTP));
        }
        let value = CtValue { service: SERVICE, ..entry(0, 1, 9, 3) };
        assert!(serving(&[SERVICE]).leaves(&key(proto::UDP), &value, None));
        assert!(!serving(&[SERVICE]).leaves(&key(proto::UDP), &entry(0, 1, 0, 0), None), "a flow without a Service");
    }

    #[test]
    fn masquerade_pairs_have_no_backend_and_stay_until_they_expire() {
        let mut ports = serving(&[SERVICE]);
        ports.frontends.insert(FrontendKey::new(Addr::v4(2), Port::new(2), proto::UDP), SERVICE);
        let plain = entry(0, 1, 0, 0);
        assert!(ports.leaves(&key(proto::UDP), &plain, None), "older than its Service");
        for kind in [flags::SNAT, flags::REPLY] {
            assert!(!ports.leaves(&key(proto::UDP), &CtValue { flags: kind, ..plain }, None));
        }
    }

    #[test]
    fn open_flows_are_counted_once_and_only_sure_counts_are_set() {
        use netlb_common::conntrack::state as ct;
        let of = |state, flags| is_open(&CtValue { state, flags, ..entry(0, 1, 9, 3) });
        assert!(of(ct::SYN_SENT, 0) && of(ct::ESTABLISHED, 0) && of(ct::UDP_NEW, flags::MASQUERADE));
        assert!(!of(ct::ESTABLISHED, flags::REPLY) && !of(ct::TIME_WAIT, 0) && !of(ct::CLOSE, 0));
        for (before, after, counted, want) in [
            (5, 5, 5, None),
            (5, 5, 3, Some(3)),
            (5, 5, 0, Some(0)),
            (0, 0, 2, Some(2)),
            (5, 8, 6, None),
            (5, 8, 11, None),
            (5, 8, 12, Some(12)),
            (100, 98, 10, Some(10)),
        ] {
            assert_eq!(corrected(before, after, counted), want, "{before} {after} {counted}");
        }
    }
}
