//! Dense ids: the lowest free one is given, a freed one rests before it is given again.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::QUARANTINE;

/// Ids from 1 up to an end.
#[derive(Clone, Debug)]
pub struct IdPool {
    /// First id that does not exist.
    end: u32,
    /// First id never given.
    next: u32,
    free: BTreeSet<u32>,
    /// Freed ids in order; the time is set by the first tick after.
    resting: VecDeque<(u32, Option<Duration>)>,
}

impl IdPool {
    /// Ids `1..end`; those in `used` are given already (after a restart), others below them are free at once.
    pub fn new(end: u32, used: impl IntoIterator<Item = u32>) -> Self {
        let used: BTreeSet<u32> = used.into_iter().filter(|id| (1..end).contains(id)).collect();
        let next = used.last().map_or(1, |last| last + 1);
        let free = (1..next).filter(|id| !used.contains(id)).collect();
        IdPool { end, next, free, resting: VecDeque::new() }
    }

    /// The lowest free id.
    pub fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        (self.next < self.end).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Ids that could be taken now.
    pub fn available(&self) -> usize {
        self.free.len() + (self.end.saturating_sub(self.next)) as usize
    }

    /// Gives back an id that nothing outside ever saw: free at once.
    pub fn give_back(&mut self, id: u32) {
        self.free.insert(id);
    }

    /// Frees an id that was seen: it rests from the next tick on.
    pub fn release(&mut self, id: u32) {
        self.resting.push_back((id, None));
    }

    /// Time passes.
    pub fn tick(&mut self, now: Duration) {
        for (_, since) in self.resting.iter_mut().rev().take_while(|(_, since)| since.is_none()) {
            *since = Some(now);
        }
        while let Some((id, Some(since))) = self.resting.front().copied() {
            if now.saturating_sub(since) < QUARANTINE {
                break;
            }
            self.free.insert(id);
            self.resting.pop_front();
        }
    }

    /// When the next id has rested.
    pub fn due(&self) -> Option<Duration> {
        self.resting.front().map(|(_, since)| since.unwrap_or_default() + QUARANTINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_freed_id_rests_and_the_lowest_comes_first() {
        let mut pool = IdPool::new(5, []);
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(1), Some(2), Some(3)]);
        pool.release(1);
        pool.tick(S(100));
        assert_eq!((pool.available(), pool.due()), (1, Some(S(130))));
        assert_eq!([pool.take(), pool.take()], [Some(4), None]);
        pool.tick(S(129));
        assert_eq!(pool.take(), None);
        pool.tick(S(130));
        assert_eq!([pool.take(), pool.take()], [Some(1), None]);
    }

    #[test]
    fn restored_ids_are_not_given_and_gaps_are() {
        let mut pool = IdPool::new(8, [0, 2, 5, 900]);
        assert_eq!(pool.available(), 5);
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all, [1, 3, 4, 6, 7]);
        pool.give_back(3);
        assert_eq!(pool.take(), Some(3));
    }
}
