//! The flow hash: which slot a new flow takes, and where the search for a free source port begins. The same number in the kernel and on the host.
//!
//! A multiply-xorshift mix of the tuple's words (the finaliser of splitmix64, Steele et al. 2014), chained word by word.

use crate::conntrack::CtKey;

#[inline(always)]
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hash of words under a seed.
#[inline(always)]
pub const fn words(seed: u32, a: u64, b: u64) -> u64 {
    mix(mix(a ^ (seed as u64) << 17).wrapping_add(b))
}

/// Hash of a flow's tuple.
#[inline(always)]
pub const fn flow(seed: u32, key: &CtKey) -> u32 {
    let src = words(seed, key.src.hi, key.src.lo);
    let dst = words(seed, key.dst.hi, key.dst.lo);
    (words(seed, src.wrapping_add(key.tail), dst.rotate_left(21)) >> 32) as u32
}

/// Maps a hash to `0..n` without division: the high half of the product.
#[inline(always)]
pub const fn scale(hash: u32, n: u32) -> u32 {
    ((hash as u64 * n as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Addr, Port, proto};

    fn key(sport: u16) -> CtKey {
        let ip = |s: &str| Addr::from_ip(s.parse().unwrap());
        CtKey::new(ip("10.0.0.2"), ip("10.96.0.1"), Port::new(sport), Port::new(80), proto::TCP)
    }

    #[test]
    fn test_vectors() {
        assert_eq!(
            [flow(0, &key(40000)), flow(0, &key(40001)), flow(7, &key(40000))],
            [3950148646, 3591761925, 1432796414]
        );
    }

    #[test]
    fn consecutive_source_ports_spread_evenly() {
        let mut hits = [0u32; 7];
        for sport in 0..7000 {
            hits[scale(flow(1, &key(sport)), 7) as usize] += 1;
        }
        assert!(hits.iter().all(|n| (850..1150).contains(n)), "{hits:?}");
    }
}
