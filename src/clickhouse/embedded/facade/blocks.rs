//! ClickHouse's own compression: a sequence of blocks.
//!
//! ```text
//! 16 bytes  CityHash128 (1.0.2) of everything below, high half first, each half little-endian
//!  1 byte   method: 0x02 none, 0x82 lz4, 0x90 zstd
//!  4 bytes  compressed size, these nine bytes included
//!  4 bytes  size of the data
//!           the data
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use super::{super::engine::QueryError, chunks::Chunks};

const CHECKSUM: usize = 16;
const HEADER: usize = 9;
const NONE: u8 = 0x02;
const LZ4: u8 = 0x82;
const ZSTD: u8 = 0x90;

/// Clients send blocks of 1 MiB or less; a block is held in memory whole.
const MAX_BLOCK: usize = 128 << 20;

/// Size of the blocks that are made here, like a server's.
const BLOCK: usize = 1 << 20;

/// One block whose checksum is right.
pub(super) struct Block {
    method: u8,
    raw_size: usize,
    payload: Bytes,
}

/// Splits a body into blocks and checks all of them, so that an insert does not start with data that ends in damage.
pub(super) fn split(mut body: Chunks) -> Result<Vec<Block>, QueryError> {
    let mut blocks = Vec::new();
    while !body.is_empty() {
        let checksum = body.split_to(CHECKSUM);
        let (Some((high, low)), Some(header)) = (checksum_of(&checksum), body.peek::<HEADER>()) else {
            return Err(truncated());
        };
        let [method, s0, s1, s2, s3, r0, r1, r2, r3] = header;
        let (size, raw_size) = (number([s0, s1, s2, s3]), number([r0, r1, r2, r3]));
        if !(HEADER..=MAX_BLOCK).contains(&size) || raw_size > MAX_BLOCK {
            return Err(QueryError::new(
                271,
                "CANNOT_DECOMPRESS",
                format_args!("a compressed block of {size} bytes, {raw_size} decompressed: the limit is {MAX_BLOCK}"),
            ));
        }
        let mut payload = body.split_to(size);
        if payload.len() < size {
            return Err(truncated());
        }
        if cityhash_rs::cityhash_102_128(&payload) != (u128::from(high) << 64 | u128::from(low)) {
            return Err(QueryError::new(
                40,
                "CHECKSUM_DOESNT_MATCH",
                "Checksum doesn't match: corrupted data in a compressed block",
            ));
        }
        let payload = payload.split_off(HEADER);
        blocks.push(Block { method, raw_size, payload });
    }
    Ok(blocks)
}

impl Block {
    /// Gives the block's data; `scratch` is the memory for it, reused from block to block.
    pub(super) fn decode<'a>(&'a self, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], QueryError> {
        if self.method == NONE {
            return Ok(&self.payload);
        }
        scratch.resize(self.raw_size, 0);
        let size = match self.method {
            LZ4 => lz4_flex::block::decompress_into(&self.payload, scratch).map_err(|error| broken(&error))?,
            ZSTD => zstd::bulk::decompress_to_buffer(&self.payload, scratch).map_err(|error| broken(&error))?,
            other => {
                return Err(QueryError::new(
                    89,
                    "UNKNOWN_COMPRESSION_METHOD",
                    format_args!("Unknown compression method {other:#04x}"),
                ));
            }
        };
        if size != self.raw_size {
            return Err(broken(&"the block is shorter than it says"));
        }
        Ok(scratch)
    }
}

/// Compresses `data` with lz4 into blocks.
pub(super) fn compress(data: &[u8]) -> Result<Bytes, QueryError> {
    let mut blocks = BytesMut::with_capacity(data.len() / 2 + 64);
    for part in data.chunks(BLOCK) {
        let packed = lz4_flex::block::compress(part);
        let mut block = BytesMut::with_capacity(HEADER + packed.len());
        let size = |length: usize| u32::try_from(length).map_err(|error| broken(&error));
        block.put_u8(LZ4);
        block.put_u32_le(size(packed.len() + HEADER)?);
        block.put_u32_le(size(part.len())?);
        block.put_slice(&packed);
        let checksum = cityhash_rs::cityhash_102_128(&block);
        // High half first, as the layout says.
        blocks.put_u128_le(checksum.rotate_left(64));
        blocks.put_slice(&block);
    }
    Ok(blocks.freeze())
}

fn checksum_of(bytes: &[u8]) -> Option<(u64, u64)> {
    let (high, low) = bytes.split_at_checked(8)?;
    Some((u64::from_le_bytes(high.try_into().ok()?), u64::from_le_bytes(low.try_into().ok()?)))
}

/// A size; one that the machine cannot count is above every limit anyway.
fn number(bytes: [u8; 4]) -> usize {
    usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
}

fn truncated() -> QueryError {
    QueryError::new(33, "CANNOT_READ_ALL_DATA", "the body ends inside a compressed block")
}

fn broken(error: &dyn std::fmt::Display) -> QueryError {
    QueryError::new(271, "CANNOT_DECOMPRESS", format_args!("Cannot decompress a block: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn chunked(data: &[u8], size: usize) -> Chunks {
        let mut chunks = Chunks::default();
        for piece in data.chunks(size) {
            chunks.push(Bytes::copy_from_slice(piece));
        }
        chunks
    }

    fn raw(body: Chunks) -> Result<Vec<u8>, QueryError> {
        let mut scratch = Vec::new();
        let mut data = Vec::new();
        for block in split(body)? {
            data.extend_from_slice(block.decode(&mut scratch)?);
        }
        Ok(data)
    }

    #[test]
    fn blocks_survive_any_chunking() {
        let data: Vec<u8> = (0..3_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let packed = compress(&data).unwrap();
        for size in [7, 4096, packed.len()] {
            assert_eq!(raw(chunked(&packed, size)).unwrap(), data, "in pieces of {size}");
        }
    }

    #[test]
    fn damage_is_found_before_any_block_is_used() {
        let packed = compress(&vec![7; 3 << 20]).unwrap();
        for (at, code) in [(0, 40), (packed.len() - 1, 40)] {
            let mut damaged = packed.to_vec();
            *damaged.get_mut(at).unwrap() ^= 1;
            assert_eq!(split(chunked(&damaged, 999)).err().unwrap().code, code, "byte {at}");
        }
        let cut = packed.slice(..packed.len() - 1);
        assert_eq!(split(chunked(&cut, 999)).err().unwrap().code, 33);
        assert_eq!(split(chunked(b"too short", 999)).err().unwrap().code, 33);
    }
}
