//! Room in `SLOTS`: blocks of a power of two, at least 4, at multiples of their size (a buddy allocator, Knowlton 1965). Lowest address first,
//! so equal histories give equal maps.

use std::collections::BTreeSet;

/// Log2 of the smallest block.
const MIN_ORDER: u32 = 2;
/// Log2 of the largest block.
const MAX_ORDER: u32 = 31;

/// The free room.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// Bases of free blocks, by order.
    free: Vec<BTreeSet<u32>>,
}

/// The order of the block for a list of this length.
pub fn order_of(len: u32) -> u32 {
    len.max(1).next_power_of_two().ilog2().max(MIN_ORDER)
}

impl Blocks {
    /// All of `0..capacity` is free.
    pub fn new(capacity: u32) -> Self {
        let mut free = vec![BTreeSet::new(); MAX_ORDER as usize + 1];
        let mut base = 0;
        for order in (MIN_ORDER..=MAX_ORDER).rev() {
            if capacity & (1 << order) != 0 {
                free[order as usize].insert(base);
                base += 1 << order;
            }
        }
        Blocks { free }
    }

    /// Takes a block of an order; `None`: no room.
    pub fn take(&mut self, order: u32) -> Option<u32> {
        let found = (order..=MAX_ORDER).find(|o| !self.free[*o as usize].is_empty())?;
        let base = self.free[found as usize].pop_first()?;
        for half in (order..found).rev() {
            self.free[half as usize].insert(base + (1 << half));
        }
        Some(base)
    }

    /// Takes one certain block, as a restarted agent does with those in use. False if it is not wholly free, or not at a multiple of its size.
    pub fn reserve(&mut self, base: u32, order: u32) -> bool {
        if !base.is_multiple_of(1 << order) {
            return false;
        }
        let holds = |o: u32| self.free[o as usize].contains(&(base & (u32::MAX << o)));
        let Some(found) = (order..=MAX_ORDER).find(|o| holds(*o)) else { return false };
        self.free[found as usize].remove(&(base & (u32::MAX << found)));
        for half in (order..found).rev() {
            let other = (base & (u32::MAX << half)) ^ (1 << half);
            self.free[half as usize].insert(other);
        }
        true
    }

    /// Gives a block back; neighbours grow together.
    pub fn give_back(&mut self, mut base: u32, order: u32) {
        let mut order = order;
        while order < MAX_ORDER && self.free[order as usize].remove(&(base ^ (1 << order))) {
            base &= !(1 << order);
            order += 1;
        }
        self.free[order as usize].insert(base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn orders_hold_their_lists() {
        let orders: Vec<_> = [0, 1, 4, 5, 8, 9, 1000].into_iter().map(order_of).collect();
        assert_eq!(orders, [2, 2, 2, 3, 3, 4, 10]);
    }

    #[test]
    fn what_is_given_back_grows_together_again() {
        let mut blocks = Blocks::new(24);
        let small: Vec<_> = std::iter::from_fn(|| blocks.take(2)).collect();
        assert_eq!(small, [16, 20, 0, 4, 8, 12]);
        assert_eq!(blocks.take(2), None);
        for base in small {
            blocks.give_back(base, 2);
        }
        assert_eq!([blocks.take(4), blocks.take(3), blocks.take(2)], [Some(0), Some(16), None]);
    }

    #[test]
    fn a_block_in_use_is_not_given() {
        let mut blocks = Blocks::new(16);
        assert!(blocks.reserve(4, 2));
        assert!(!blocks.reserve(4, 2) && !blocks.reserve(0, 3) && !blocks.reserve(2, 2) && !blocks.reserve(16, 2));
        assert_eq!([blocks.take(3), blocks.take(2), blocks.take(2)], [Some(8), Some(0), None]);
    }

    proptest! {
        #[test]
        fn blocks_never_overlap(steps in proptest::collection::vec((0u32..40, any::<prop::sample::Index>()), 1..200)) {
            let mut blocks = Blocks::new(236);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (len, pick) in steps {
                if len < 12 && !held.is_empty() {
                    let (base, order) = held.swap_remove(pick.index(held.len()));
                    blocks.give_back(base, order);
                } else if let Some(base) = blocks.take(order_of(len)) {
                    held.push((base, order_of(len)));
                }
                let mut spans: Vec<_> = held.iter().map(|(b, o)| (*b, b + (1 << o))).collect();
                spans.sort_unstable();
                prop_assert!(spans.windows(2).all(|w| w[0].1 <= w[1].0) && spans.iter().all(|s| s.1 <= 236));
            }
            for (base, order) in held {
                blocks.give_back(base, order);
            }
            prop_assert_eq!(blocks.free, Blocks::new(236).free);
        }
    }
}
