//! How long to wait before the next attempt: longer each time, and never quite as long as the other nodes.

use std::time::Duration;

use crate::runtime::random;

/// Before the second attempt.
const FIRST: Duration = Duration::from_millis(250);
/// Between two attempts in the end. Nodes that all lost the same API server come to it one by one.
const LONGEST: Duration = Duration::from_secs(10);

/// The waits of one sequence of attempts.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Backoff(FIRST)
    }

    /// The next wait: half to all of what is due, which doubles each time up to [`LONGEST`].
    pub(super) fn next(&mut self) -> Duration {
        let due = self.0;
        self.0 = (due * 2).min(LONGEST);
        let share = (random::number() >> 11) as f64 / (1_u64 << 53) as f64;
        due.mul_f64(0.5 + share / 2.0)
    }

    /// An attempt was a success.
    pub(super) fn reset(&mut self) {
        self.0 = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_differ() {
        let mut backoff = Backoff::new();
        let waits: Vec<Duration> = (0..12).map(|_| backoff.next()).collect();
        let mut due = FIRST;
        for wait in &waits {
            assert!(*wait >= due / 2 && *wait <= due, "{waits:?}");
            due = (due * 2).min(LONGEST);
        }
        // Twelve draws that agree would be no draws.
        let shares: std::collections::BTreeSet<u64> = waits[6..].iter().map(|w| w.as_nanos() as u64).collect();
        assert!(shares.len() > 1, "{waits:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
