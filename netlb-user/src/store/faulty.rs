//! A store that fails: on chosen calls or on random ones, the same for the same seed.

use super::{Capacity, MapStore, StoreError, Tables};
use crate::plan::MapOp;

/// Wraps a store; some calls of `apply` fail and change nothing, save that a failing [`MapOp::SetSlots`] leaves half of its slots written, as
/// the kernel's array would.
pub struct FaultyStore<S> {
    pub inner: S,
    faults: Faults,
    calls: u64,
    failed: u64,
}

/// Which calls fail.
#[derive(Clone, Debug)]
pub enum Faults {
    /// None.
    Never,
    /// Those with these numbers; the first call is number 0.
    Calls(Vec<u64>),
    /// `percent` of all, chosen by a generator that starts at `seed`.
    Random { seed: u64, percent: u8 },
}

impl<S: MapStore> FaultyStore<S> {
    pub fn new(inner: S, faults: Faults) -> Self {
        FaultyStore { inner, faults, calls: 0, failed: 0 }
    }

    /// Changes which calls fail; numbers go on counting.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Calls that failed so far: a test that wants faults must see some.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    fn fails(&mut self) -> bool {
        let call = self.calls;
        self.calls += 1;
        match &mut self.faults {
            Faults::Never => false,
            Faults::Calls(calls) => calls.contains(&call),
            Faults::Random { seed, percent } => {
                // splitmix64 (Steele et al. 2014).
                *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut x = *seed;
                x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                x ^= x >> 31;
                (x >> 32) % 100 < u64::from(*percent)
            }
        }
    }
}

impl<S: MapStore> MapStore for FaultyStore<S> {
    fn apply(&mut self, op: &MapOp) -> Result<(), StoreError> {
        if !self.fails() {
            return self.inner.apply(op);
        }
        self.failed += 1;
        if let MapOp::SetSlots { base, backends } = op {
            let half = backends.iter().take(backends.len() / 2).copied().collect();
            self.inner.apply(&MapOp::SetSlots { base: *base, backends: half })?;
        }
        Err(StoreError::Busy { map: "faulty", cause: format!("injected fault on call {}", self.calls - 1) })
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }

    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }
}
