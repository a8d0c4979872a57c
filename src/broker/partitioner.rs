//! Which partition a key belongs to, computed as Kafka's Java producer does, so that any other producer that uses the
//! default partitioner with the same key puts it into the same partition.
//!
//! Source: `org.apache.kafka.common.utils.Utils::murmur2` and `toPositive`.

const SEED: u32 = 0x9747_b28c;
const M: u32 = 0x5bd1_e995;
const R: u32 = 24;

/// The partition of `key` among `partitions`; 0 when there are none.
pub fn partition(key: &[u8], partitions: u32) -> u32 {
    // Kafka's toPositive clears the sign bit; it does not negate.
    (murmur2(key) & 0x7fff_ffff).checked_rem(partitions).unwrap_or(0)
}

/// Kafka's murmur2 (32 bits).
pub fn murmur2(data: &[u8]) -> u32 {
    // Only the low 32 bits of the length enter the hash, as in the original.
    let length = u32::try_from(data.len() & 0xffff_ffff).unwrap_or(u32::MAX);
    let mut hash = SEED ^ length;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (byte, shift) in tail.iter().zip([0, 8, 16]) {
            hash ^= u32::from(*byte) << shift;
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn golden_vectors() {
        let cases: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, expected) in cases {
            assert_eq!(murmur2(key).cast_signed(), expected, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn the_sign_bit_is_cleared_before_the_modulo() {
        // -973932308 & 0x7fffffff = 1173551340
        assert_eq!(partition(b"21", 12), 1_173_551_340 % 12);
        assert_eq!(partition(b"abc", 7), 479_470_107 % 7);
        assert_eq!(partition(b"21", 1), 0);
        assert_eq!(partition(b"21", 0), 0);
    }
}
