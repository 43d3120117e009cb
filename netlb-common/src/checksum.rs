//! Internet checksums by difference (RFC 1071, RFC 1624).
//!
//! 1. The checksum field holds the complement of the one's complement sum of all 16-bit words.
//! 2. In one's complement arithmetic, subtracting a word is adding its complement, and a carry out of bit 15 is added at bit 0.
//! 3. So if words change by `delta = new - old`, the new field is `~(~field + delta)`: the rest of the packet need not be read.
//!
//! Words are native-order halves of the wire bytes throughout: the sum is the same up to a byte swap, which cancels when the result is
//! stored the same way. A delta of 0 and of 0xffff mean the same: nothing changed.

/// Folds carries until the sum fits 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// `new - old` for unfolded sums.
#[inline(always)]
pub const fn delta(old: u32, new: u32) -> u16 {
    fold(fold(new) as u32 + !fold(old) as u32)
}

/// Sum of two deltas.
#[inline(always)]
pub const fn add(a: u16, b: u16) -> u16 {
    fold(a as u32 + b as u32)
}

/// The checksum field after the summed words changed by `delta`.
#[inline(always)]
pub const fn apply(field: u16, delta: u16) -> u16 {
    !fold(!field as u32 + delta as u32)
}

/// The two 16-bit words of a native word, added.
#[inline(always)]
pub const fn sum32(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(words: &[u16]) -> u16 {
        !fold(words.iter().fold(0, |sum, w| fold(sum) as u32 + *w as u32))
    }

    proptest! {
        #[test]
        fn a_difference_gives_what_a_full_sum_gives(mut words in proptest::collection::vec(any::<u16>(), 2..40), at in any::<prop::sample::Index>(), new in any::<u16>()) {
            let before = full(&words);
            let i = at.index(words.len());
            let d = delta(words[i] as u32, new as u32);
            words[i] = new;
            let after = full(&words);
            let got = apply(before, d);
            // Minus zero and plus zero are one number.
            prop_assert!(got == after || (got ^ after) == 0xffff && (got == 0 || after == 0));
        }

        #[test]
        fn there_and_back_is_identity(field in any::<u16>(), old in any::<u32>(), new in any::<u32>()) {
            let (old, new) = (sum32(old), sum32(new));
            let back = apply(apply(field, delta(old, new)), delta(new, old));
            prop_assert!(back == field || (back ^ field) == 0xffff);
            prop_assert_eq!(fold(delta(old, new) as u32 + !delta(old, new) as u32), 0xffff);
        }
    }
}
