//! Lists of backends, each in a block of its own in `SLOTS`: which blocks are seen by frontends, which are on their way in or out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use netlb_common::frontend::FrontendValue;

use super::GRACE;
use super::blocks::{Blocks, order_of};
use crate::store::Tables;

/// All lists, by the first slot of their block.
#[derive(Clone, Debug)]
pub struct Lists {
    room: Blocks,
    lists: BTreeMap<u32, List>,
    /// Blocks that lost their last frontend, in that order; the time is set by the first tick after.
    retired: VecDeque<(u32, Option<Duration>)>,
    serial: u64,
}

/// The first slots of a frontend's two lists, for clients inside and outside; `None`: an empty one.
pub fn blocks(frontend: &FrontendValue) -> [Option<u32>; 2] {
    let block = |base, count| (count > 0).then_some(base);
    [block(frontend.slots, frontend.count), block(frontend.outside_slots, frontend.outside_count)]
}

/// A list. Not the same as one that later has the same block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListId {
    /// First slot.
    pub base: u32,
    serial: u64,
}

#[derive(Clone, Debug)]
struct List {
    serial: u64,
    order: u32,
    backends: Vec<u32>,
    /// Frontends that point here, as far as the store accepted; one that does so for both its lists counts twice.
    refs: u32,
    /// The store has the content.
    written: bool,
    /// The last frontend has left.
    retired: bool,
}

impl Lists {
    /// Slots of all blocks that are taken.
    pub fn slots_in_use(&self) -> usize {
        self.lists.values().map(|list| 1 << list.order).sum()
    }

    /// Takes the lists of a restarted agent's maps: every block a frontend points at. The rest of `SLOTS` is free at once: no program that
    /// began before the restart still runs.
    pub fn new(capacity: u32, tables: &Tables) -> Self {
        let mut lists =
            Lists { room: Blocks::new(capacity), lists: BTreeMap::new(), retired: VecDeque::new(), serial: 0 };
        for (base, backends) in tables.frontends.values().flat_map(|frontend| {
            blocks(frontend).into_iter().zip([tables.list(frontend), tables.outside_list(frontend)])
        }) {
            let Some(base) = base else { continue };
            let order = order_of(backends.len() as u32);
            match lists.lists.get_mut(&base) {
                Some(list) => list.refs += 1,
                None if lists.room.reserve(base, order) => {
                    lists.insert(base, order, backends.clone());
                    lists.accept(base, &backends);
                    lists.link(base);
                }
                // A block that cannot be ours: its frontend will not match, and gets a fresh one.
                None => {}
            }
        }
        lists
    }

    /// The backends of a list that is still in use.
    pub fn get(&self, id: ListId) -> Option<&[u32]> {
        self.live(id).map(|list| list.backends.as_slice())
    }

    /// The list whose block begins here.
    pub fn at(&self, base: u32) -> Option<ListId> {
        self.lists.get(&base).map(|list| ListId { base, serial: list.serial })
    }

    /// Whether the store has the list's content.
    pub fn is_written(&self, id: ListId) -> bool {
        self.live(id).is_some_and(|list| list.written)
    }

    /// A fresh block for a list; `None`: no room.
    pub fn add(&mut self, backends: Vec<u32>) -> Option<ListId> {
        let order = order_of(backends.len() as u32);
        let base = self.room.take(order)?;
        Some(self.insert(base, order, backends))
    }

    /// Nobody wants the list any more. If no frontend points at it nobody ever saw it, and its block is free at once; else it is freed
    /// some time after the last one left.
    pub fn abandon(&mut self, id: ListId) {
        if self.live(id).is_some_and(|list| list.refs == 0) {
            self.free(id.base);
        }
    }

    /// The store accepted a block's content.
    pub fn accept(&mut self, base: u32, backends: &[u32]) {
        if let Some(list) = self.lists.get_mut(&base) {
            list.written = list.backends == backends;
        }
    }

    /// The store accepted a frontend that points here.
    pub fn link(&mut self, base: u32) {
        if let Some(list) = self.lists.get_mut(&base) {
            list.refs += 1;
        }
    }

    /// The store accepted that a frontend no longer points here.
    pub fn unlink(&mut self, base: u32) {
        if let Some(list) = self.lists.get_mut(&base).filter(|list| list.refs > 0) {
            list.refs -= 1;
            if list.refs == 0 {
                list.retired = true;
                self.retired.push_back((base, None));
            }
        }
    }

    /// Time passes: blocks whose grace is over are free.
    pub fn tick(&mut self, now: Duration) {
        for (_, since) in self.retired.iter_mut().rev().take_while(|(_, since)| since.is_none()) {
            *since = Some(now);
        }
        while let Some((base, Some(since))) = self.retired.front().copied() {
            if now.saturating_sub(since) < GRACE {
                break;
            }
            self.retired.pop_front();
            self.free(base);
        }
    }

    /// When the next grace is over.
    pub fn due(&self) -> Option<Duration> {
        self.retired.front().map(|(_, since)| since.unwrap_or_default() + GRACE)
    }

    fn live(&self, id: ListId) -> Option<&List> {
        self.lists.get(&id.base).filter(|list| list.serial == id.serial && !list.retired)
    }

    fn insert(&mut self, base: u32, order: u32, backends: Vec<u32>) -> ListId {
        self.serial += 1;
        let list = List { serial: self.serial, order, backends, refs: 0, written: false, retired: false };
        self.lists.insert(base, list);
        ListId { base, serial: self.serial }
    }

    fn free(&mut self, base: u32) {
        if let Some(list) = self.lists.remove(&base) {
            self.room.give_back(base, list.order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_block_is_free_only_some_time_after_its_last_frontend_left() {
        let mut lists = Lists::new(8, &Tables::default());
        let old = lists.add(vec![1, 2]).unwrap();
        lists.accept(old.base, &[1, 2]);
        lists.link(old.base);
        let new = lists.add(vec![2]).unwrap();
        lists.link(new.base);
        lists.unlink(old.base);
        lists.abandon(old);
        assert_eq!((lists.get(old), lists.get(new)), (None, Some(&[2][..])));
        lists.tick(S(5));
        assert_eq!((lists.add(vec![3]), lists.due()), (None, Some(S(5) + GRACE)));
        lists.tick(S(5) + GRACE);
        let next = lists.add(vec![3]).unwrap();
        assert_eq!((next.base, next == old, lists.get(old)), (old.base, false, None));
    }

    #[test]
    fn a_block_nobody_saw_is_free_at_once() {
        let mut lists = Lists::new(4, &Tables::default());
        let id = lists.add(vec![1]).unwrap();
        lists.abandon(id);
        assert!(lists.add(vec![2]).is_some());
    }
}
