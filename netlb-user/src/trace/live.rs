//! The pinned maps, read only, and the kernel's clock.

use std::cell::RefCell;
use std::io;

use bytemuck::Pod;
use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::fragment::{FragmentKey, FragmentValue};
use netlb_common::maps::name;
use netlb_common::socket::{SocketKey, SocketValue};
use netlb_common::source_range::SourceRangeKey;
use netlb_ebpf::tables::Tier;

use super::overlay::Learnt;
use crate::bpf::pins::Pins;
use crate::bpf::table::{Table, TableError};

/// [`Learnt`] over the pins of an agent.
pub struct Maps {
    assured: Table<CtKey, CtValue>,
    new: Table<CtKey, CtValue>,
    sessions: Table<AffinityKey, AffinityValue>,
    sockets: Table<SocketKey, SocketValue>,
    fragments: Table<FragmentKey, FragmentValue>,
    turns: Table<u32, u32>,
    loads: Table<u32, u32>,
    ranges: Table<SourceRangeKey, u32>,
    failure: RefCell<Option<io::Error>>,
}

impl Maps {
    /// # Errors
    /// If a map is not pinned, or has another layout.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(Maps {
            assured: Table::open(pins, name::CT)?,
            new: Table::open(pins, name::CT_NEW)?,
            sessions: Table::open(pins, name::AFFINITY)?,
            sockets: Table::open(pins, name::SOCKETS)?,
            fragments: Table::open(pins, name::FRAGMENTS)?,
            turns: Table::open(pins, name::TURNS)?,
            loads: Table::open(pins, name::BACKEND_LOAD)?,
            ranges: Table::open(pins, name::SOURCE_RANGES)?,
            failure: RefCell::default(),
        })
    }

    /// The first look-up that failed, if one did: what was found since may be wrong.
    ///
    /// # Errors
    /// That one's.
    pub fn check(&self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    fn get<K: Pod, V: Pod>(&self, table: &Table<K, V>, key: &K) -> Option<V> {
        table.get(key).unwrap_or_else(|error| {
            self.failure
                .borrow_mut()
                .get_or_insert_with(|| io::Error::new(error.kind(), format!("{}: {error}", table.name())));
            None
        })
    }
}

impl Learnt for Maps {
    fn ct(&self, tier: Tier, key: &CtKey) -> Option<CtValue> {
        match tier {
            Tier::Assured => self.get(&self.assured, key),
            Tier::New => self.get(&self.new, key),
        }
    }

    fn session(&self, key: &AffinityKey) -> Option<AffinityValue> {
        self.get(&self.sessions, key)
    }

    fn socket(&self, key: &SocketKey) -> Option<SocketValue> {
        self.get(&self.sockets, key)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
        self.get(&self.fragments, key)
    }

    fn turn(&self, slots: u32) -> u32 {
        self.get(&self.turns, &slots).unwrap_or(0)
    }

    fn load(&self, backend: u32) -> u32 {
        self.get(&self.loads, &backend).unwrap_or(0)
    }

    fn in_source_range(&self, key: &SourceRangeKey) -> bool {
        self.get(&self.ranges, key).is_some()
    }
}
