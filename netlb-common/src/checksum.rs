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

/// CRC32c's polynomial, bits reversed (RFC 9260 appendix A).
const CRC32C: u32 = 0x82f6_3b78;

/// `x^8`, by which a CRC register is multiplied for a byte of zeros; bit 31 stands for `x^0`.
const ZERO_BYTE: u32 = 0x0080_0000;

/// Product of two polynomials modulo CRC32c's, bits reversed.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, 0);
    while bit < 32 {
        // Without branches: the kernel's verifier would walk each way.
        product ^= b & 0u32.wrapping_sub(a >> (31 - bit) & 1);
        b = b >> 1 ^ CRC32C & 0u32.wrapping_sub(b & 1);
        bit += 1;
    }
    product
}

/// What becomes of the checksum of an SCTP packet of `len` bytes when its first word changes by `delta` (exclusive or; words native, holding
/// wire-order bytes, as is the checksum): the exclusive or of old and new field. CRCs are linear, so the rest of the packet need not be read.
#[inline(always)]
pub const fn sctp_ports(delta: u32, len: u32) -> u32 {
    let (mut change, mut zeros) = (delta, ZERO_BYTE);
    let mut bit = 0;
    while bit < 16 {
        // Not a branch either.
        let taken = 0u32.wrapping_sub(len >> bit & 1);
        change = multiply(change, zeros) & taken | change & !taken;
        zeros = multiply(zeros, zeros);
        bit += 1;
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(words: &[u16]) -> u16 {
        !fold(words.iter().fold(0, |sum, w| fold(sum) as u32 + *w as u32))
    }

    /// Bit by bit, as RFC 9260 appendix A defines it.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { CRC32C } else { 0 })
        })
    }

    #[test]
    fn the_crc_of_nine_digits() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
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
        fn a_change_of_sctp_ports_gives_what_a_full_crc_gives(mut packet in proptest::collection::vec(any::<u8>(), 12..600), ports in any::<u32>()) {
            packet[8..12].fill(0);
            let before = crc32c(&packet);
            let old = u32::from_ne_bytes(packet[..4].try_into().unwrap());
            packet[..4].copy_from_slice(&ports.to_ne_bytes());
            prop_assert_eq!(before ^ sctp_ports(old ^ ports, packet.len() as u32), crc32c(&packet));
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
