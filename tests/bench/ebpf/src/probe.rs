//! Probes of the kernel's hash maps: what a look-up or an insertion costs by key size, value size and kind of map. Run by BPF_PROG_TEST_RUN
//! in repeat mode, [`PROBE_UNROLL`] operations a run; the floors do all but the map call.
#![allow(unreachable_pub, reason = "the kernel reaches entry points by their section")]

use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use aya_ebpf::programs::XdpContext;
use netlb_bench_ebpf::{PROBE_UNROLL, Probe};

#[map]
static PROBE: Array<Probe> = Array::with_max_entries(1, 0);

/// BPF_F_NO_PREALLOC.
const NO_PREALLOC: u32 = 1;
const PASS: u32 = 2;

/// A tuple with addresses of 4 bytes: source, destination, ports, protocol.
type Key16 = [u64; 2];
/// netlb's `CtKey`: addresses of 16 bytes, ports, protocol.
type Key40 = [u64; 5];

trait Key {
    /// The tuple of an index: IPv4, one destination, source port and address from the index.
    fn of(index: u64) -> Self;
}

impl Key for Key16 {
    #[inline(always)]
    fn of(index: u64) -> Self {
        [0x0100_600a_0000_f40a + (index >> 14 << 16), 0x0011_5000_4000 + (index & 0x3fff)]
    }
}

impl Key for Key40 {
    #[inline(always)]
    fn of(index: u64) -> Self {
        let source = 0x0000_f40a + (index >> 14 << 16);
        [0, 0xffff_0000 | source << 32, 0, 0x0100_600a_ffff_0000, 0x0011_5000_4000 + (index & 0x3fff)]
    }
}

/// Runs `op` on the next indexes. `op` returns a word to keep, and whether it succeeded.
#[inline(always)]
fn each(mut op: impl FnMut(u64) -> (u64, bool)) -> u32 {
    let Some(probe) = PROBE.get_ptr_mut(0) else { return PASS };
    // SAFETY: the map's only value, which only this CPU uses.
    unsafe {
        let (mut state, factor, mask) = ((*probe).state, (*probe).factor, (*probe).mask);
        let (mut sum, mut hits) = (0u64, 0u64);
        let mut i = 0;
        while i < PROBE_UNROLL {
            state = state.wrapping_mul(factor).wrapping_add(1);
            let (word, hit) = op(state & mask);
            sum = sum.wrapping_add(word);
            hits += hit as u64;
            i += 1;
        }
        (*probe).state = state;
        (*probe).hits += hits;
        (*probe).sum = (*probe).sum.wrapping_add(sum);
    }
    PASS
}

macro_rules! floors {
    ($($name:ident $key:ty;)*) => { $(
        #[xdp]
        pub fn $name(_ctx: XdpContext) -> u32 {
            each(|index| {
                let key = <$key>::of(index);
                // SAFETY: a local. Volatile, so that the key is built in memory as for a look-up.
                let kept = unsafe { (&raw const key).read_volatile() };
                (kept[0] ^ kept[1], true)
            })
        }
    )* };
}

floors! {
    probe_floor_16 Key16;
    probe_floor_40 Key40;
}

/// An LRU map makes room by itself; a plain one is helped by deleting the key again.
macro_rules! churn {
    (Evict $map:ident $key:ident $inserted:ident) => {
        (0, $inserted)
    };
    (Delete $map:ident $key:ident $inserted:ident) => {
        (0, $inserted && $map.remove(&$key).is_ok())
    };
}

macro_rules! probes {
    ($($map:ident $kind:ident $key:ty, $words:literal, $flags:ident: $lookup:ident $fill:ident $clear:ident $churn:ident $churn_kind:ident;)*) => { $(
        #[map]
        static $map: $kind<$key, [u64; $words]> = $kind::with_max_entries(1, $flags);

        /// Finds the key and reads the first and the last word of its value.
        #[xdp]
        pub fn $lookup(_ctx: XdpContext) -> u32 {
            each(|index| {
                let key = <$key>::of(index);
                match $map.get_ptr(&key) {
                    // SAFETY: map values stay readable until the program ends (RCU).
                    Some(value) => unsafe {
                        let value = value.cast::<u64>();
                        (value.read_volatile() ^ value.add($words - 1).read_volatile(), true)
                    },
                    None => (0, false),
                }
            })
        }

        /// Inserts the key.
        #[xdp]
        pub fn $fill(_ctx: XdpContext) -> u32 {
            each(|index| {
                let key = <$key>::of(index);
                (0, $map.insert(&key, &[index; $words], 0).is_ok())
            })
        }

        /// Removes the key.
        #[xdp]
        pub fn $clear(_ctx: XdpContext) -> u32 {
            each(|index| {
                let key = <$key>::of(index);
                (0, $map.remove(&key).is_ok())
            })
        }

        /// Inserts a key that is not there, in a map whose size stays the same.
        #[xdp]
        pub fn $churn(_ctx: XdpContext) -> u32 {
            each(|index| {
                let key = <$key>::of(index);
                let inserted = $map.insert(&key, &[index; $words], 0).is_ok();
                churn!($churn_kind $map key inserted)
            })
        }
    )* };
}

const PREALLOC: u32 = 0;

probes! {
    HASH_P_16_96 HashMap Key16, 12, PREALLOC: lookup_hash_p_16_96 fill_hash_p_16_96 clear_hash_p_16_96 churn_hash_p_16_96 Delete;
    HASH_P_40_96 HashMap Key40, 12, PREALLOC: lookup_hash_p_40_96 fill_hash_p_40_96 clear_hash_p_40_96 churn_hash_p_40_96 Delete;
    HASH_N_16_96 HashMap Key16, 12, NO_PREALLOC: lookup_hash_n_16_96 fill_hash_n_16_96 clear_hash_n_16_96 churn_hash_n_16_96 Delete;
    HASH_N_40_64 HashMap Key40, 8, NO_PREALLOC: lookup_hash_n_40_64 fill_hash_n_40_64 clear_hash_n_40_64 churn_hash_n_40_64 Delete;
    HASH_N_40_96 HashMap Key40, 12, NO_PREALLOC: lookup_hash_n_40_96 fill_hash_n_40_96 clear_hash_n_40_96 churn_hash_n_40_96 Delete;
    HASH_N_40_128 HashMap Key40, 16, NO_PREALLOC: lookup_hash_n_40_128 fill_hash_n_40_128 clear_hash_n_40_128 churn_hash_n_40_128 Delete;
    LRU_16_96 LruHashMap Key16, 12, PREALLOC: lookup_lru_16_96 fill_lru_16_96 clear_lru_16_96 churn_lru_16_96 Evict;
    LRU_40_64 LruHashMap Key40, 8, PREALLOC: lookup_lru_40_64 fill_lru_40_64 clear_lru_40_64 churn_lru_40_64 Evict;
    LRU_40_96 LruHashMap Key40, 12, PREALLOC: lookup_lru_40_96 fill_lru_40_96 clear_lru_40_96 churn_lru_40_96 Evict;
    LRU_40_128 LruHashMap Key40, 16, PREALLOC: lookup_lru_40_128 fill_lru_40_128 clear_lru_40_128 churn_lru_40_128 Evict;
}
