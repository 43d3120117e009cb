//! The order of a list's slots: each backend as often as its weight asks, and spread.
//!
//! Weights are divided by their greatest common divisor. Where they still ask for more than [`most`] slots they are rounded by the method of
//! largest remainders (Hamilton), and nobody with a weight is left without a slot. The order is smooth weighted round robin, over groups of
//! backends that have equally many slots: a heavy one comes often rather than long.

use std::collections::BTreeMap;

/// Slots a list of this many backends has at most, whatever its weights: a share is then right to an eighth of a backend, or to 1/256.
pub fn most(backends: usize) -> usize {
    (8 * backends).max(256)
}

/// Backends in slot order. Weights are not 0.
pub fn slots<T: Copy>(weighted: &[(T, u32)]) -> Vec<T> {
    let counts = counts(&weighted.iter().map(|(_, weight)| u64::from(*weight)).collect::<Vec<_>>());
    let mut groups: BTreeMap<u64, Vec<T>> = BTreeMap::new();
    for ((backend, _), count) in weighted.iter().zip(counts) {
        groups.entry(count).or_default().push(*backend);
    }
    // Heaviest backends first: they come first among equals.
    let mut groups: Vec<Group<T>> =
        groups.into_iter().rev().map(|(count, members)| Group::new(count, members)).collect();
    let all: i64 = groups.iter().map(|group| group.weight).sum();
    let mut order = Vec::new();
    for _ in 0..all {
        for group in &mut groups {
            group.credit += group.weight;
        }
        // `max_by_key` gives the last of equals.
        if let Some(group) = groups.iter_mut().rev().max_by_key(|group| group.credit) {
            group.credit -= all;
            order.push(group.members[group.turn % group.members.len()]);
            group.turn += 1;
        }
    }
    order
}

/// Backends with equally many slots, which take turns.
struct Group<T> {
    members: Vec<T>,
    /// Slots of all its members.
    weight: i64,
    credit: i64,
    turn: usize,
}

impl<T> Group<T> {
    fn new(count: u64, members: Vec<T>) -> Self {
        Group { weight: count as i64 * members.len() as i64, members, credit: 0, turn: 0 }
    }
}

/// How many slots each weight gets.
fn counts(weights: &[u64]) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let weights: Vec<u64> = weights.iter().map(|weight| weight / divisor).collect();
    let mut sum: u64 = weights.iter().sum();
    let mut room = most(weights.len()) as u64;
    if sum <= room {
        return weights;
    }
    let mut lightest: Vec<usize> = (0..weights.len()).collect();
    lightest.sort_by_key(|index| weights[*index]);
    let mut counts = vec![0; weights.len()];
    let mut remainders = Vec::new();
    for index in lightest {
        let weight = weights[index];
        // Too light for a slot of its own right: it gets one, and the others share what is left.
        if remainders.is_empty() && weight * room < sum {
            counts[index] = 1;
            (room, sum) = (room - 1, sum - weight);
        } else {
            counts[index] = weight * room / sum;
            remainders.push((weight * room % sum, index));
        }
    }
    let given: u64 = remainders.iter().map(|(_, index)| counts[*index]).sum();
    remainders.sort_by_key(|(remainder, index)| (std::cmp::Reverse(*remainder), *index));
    for (_, index) in remainders.iter().take((room - given) as usize) {
        counts[*index] += 1;
    }
    counts
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(weights: &[u32]) -> Vec<usize> {
        slots(&weights.iter().copied().enumerate().collect::<Vec<_>>())
    }

    #[test]
    fn equal_weights_are_one_slot_each_in_order() {
        assert_eq!(order(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(order(&[100, 100]), [0, 1]);
        assert_eq!(order(&[]), [0usize; 0]);
    }

    #[test]
    fn heavy_backends_come_often_rather_than_long() {
        assert_eq!(order(&[4, 1, 1]), [0, 1, 0, 0, 2, 0]);
        assert_eq!(order(&[3, 6, 9]), [2, 1, 2, 0, 1, 2]);
        assert_eq!(order(&[4, 1, 1, 1, 1]), [0, 1, 0, 2, 0, 3, 0, 4]);
    }

    #[test]
    fn the_lightest_keeps_a_slot() {
        let order = order(&[65_535, 1, 65_535]);
        assert_eq!(order.len(), most(3));
        let count = |backend| order.iter().filter(|b| **b == backend).count();
        assert_eq!((count(0), count(1), count(2)), (128, 1, 127));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn slots_are_in_proportion(weights in prop::collection::vec(prop_oneof![1u32..20, 1u32..=65_535], 1..80)) {
            let order = order(&weights);
            let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            let counts: Vec<u64> = (0..weights.len()).map(|b| order.iter().filter(|o| **o == b).count() as u64).collect();
            prop_assert!(order.len() <= most(weights.len()));
            let shares = || weights.iter().map(|w| u64::from(*w) * order.len() as u64);
            if shares().all(|share| share % sum == 0) {
                prop_assert!(shares().zip(&counts).all(|(share, count)| share / sum == *count));
            }
            // Those below one slot take their one from the others.
            let lifted = shares().filter(|share| *share < sum).count() as u64;
            for ((weight, count), share) in weights.iter().zip(&counts).zip(shares()) {
                prop_assert!(*count >= 1);
                let share = share as f64 / sum as f64;
                prop_assert!((*count as f64) < share + 1.0 || *count == 1);
                let least = share * (1.0 - lifted as f64 / order.len() as f64) - 1.0;
                prop_assert!(*count as f64 > least, "{count} slots for a share of {share}");
                for (other, others) in weights.iter().zip(&counts) {
                    prop_assert!(weight <= other || count >= others);
                }
            }
            // Nobody waits twice as long as on average.
            for (backend, count) in counts.iter().enumerate() {
                let places: Vec<usize> = (0..2 * order.len()).filter(|at| order[at % order.len()] == backend).collect();
                let longest = places.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
                prop_assert!(longest * (*count as usize) <= 2 * order.len(), "{backend} in {order:?}");
            }
        }
    }
}
