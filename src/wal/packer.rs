//! Rows into chunks: the compressed payloads that become records.

use super::record::DamagedRecord;
use crate::{ids::EventId, row};

/// Rows are gathered up to this many raw bytes before they are compressed. Events compress five- to tenfold, so a
/// record comes out at 15 to 25 KiB: small records keep the memory of the storage engine low in an outage (2 GB in
/// records of 4 kB took 72 MB of memory, in records of 60 kB 394 MB), and larger ones hardly compress better.
const RAW_TARGET: usize = 128 << 10;

/// The most that a chunk of several rows has, compressed. A single row that compresses to more stays whole.
pub(super) const MAX_PAYLOAD: usize = 64 << 10;

/// Fast levels: the disk is not the bottleneck, the processor is.
const ZSTD_LEVEL: i32 = 1;

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// LZ4 block format: the fastest.
    Lz4,
    /// Zstandard, level 1: about a third smaller, several times the processor time.
    Zstd,
}

impl Codec {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Lz4 => 0,
            Self::Zstd => 1,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Result<Self, DamagedRecord> {
        match byte {
            0 => Ok(Self::Lz4),
            1 => Ok(Self::Zstd),
            other => Err(DamagedRecord::Codec(other)),
        }
    }

    /// Fills `target`, which is as long as the payload decompressed.
    pub(super) fn decompress(self, payload: &[u8], target: &mut [u8]) -> Result<(), DamagedRecord> {
        let written = match self {
            Self::Lz4 => lz4_flex::block::decompress_into(payload, target).ok(),
            Self::Zstd => zstd::bulk::decompress_to_buffer(payload, target).ok(),
        };
        if written == Some(target.len()) { Ok(()) } else { Err(DamagedRecord::Decompress) }
    }
}

/// One record's payload.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The compressed rows.
    pub compressed: Vec<u8>,
    /// How many rows.
    pub event_count: u32,
    /// Bytes before compression.
    pub raw_len: u32,
    /// How it is compressed; not always what the packer was asked for.
    pub codec: Codec,
    /// The rows' event ids, in order; the nil id for what is no row of an event.
    pub ids: Vec<EventId>,
}

impl Chunk {
    /// The rows; read them with [`super::rows`].
    pub(super) fn decompress(&self) -> Result<Vec<u8>, DamagedRecord> {
        let mut raw = vec![0; usize::try_from(self.raw_len).map_err(|_| DamagedRecord::Length)?];
        self.codec.decompress(&self.compressed, &mut raw)?;
        Ok(raw)
    }
}

/// Packs rows into chunks, in order. Compression runs in `push` and `finish`, on the caller's thread.
pub struct Packer {
    codec: Codec,
    raw: Vec<u8>,
    /// Where each row of `raw` ends.
    ends: Vec<usize>,
    ids: Vec<EventId>,
    done: Vec<Chunk>,
}

impl Packer {
    /// An empty packer.
    pub fn new(codec: Codec) -> Self {
        Self { codec, raw: Vec::new(), ends: Vec::new(), ids: Vec::new(), done: Vec::new() }
    }

    /// Adds a row. Rows of up to 100,000 bytes are what the log is made for; longer ones work, but make the storage
    /// engine write them to files of their own.
    pub fn push(&mut self, row: &[u8]) {
        self.push_with(|raw| raw.extend_from_slice(row));
    }

    /// Adds the row that `write` appends.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let begins = self.raw.len();
        self.raw.extend_from_slice(&[0; 4]);
        write(&mut self.raw);
        let row = self.raw.get(begins + 4..).unwrap_or_default();
        let id = row::event_id(row);
        // A row of 4 GiB cannot be: requests are bounded far below.
        let length = u32::try_from(row.len()).unwrap_or(u32::MAX).to_le_bytes();
        if let Some(place) = self.raw.get_mut(begins..begins + 4) {
            place.copy_from_slice(&length);
        }
        if begins > 0 && self.raw.len() > RAW_TARGET {
            self.seal();
            self.raw.drain(..begins);
        }
        self.ends.push(self.raw.len());
        self.ids.push(id);
    }

    /// The chunks of all rows, in order; none when no row was pushed.
    pub fn finish(mut self) -> Vec<Chunk> {
        self.seal();
        self.done
    }

    /// Makes chunks of the rows that are there.
    fn seal(&mut self) {
        compress(self.codec, &self.raw, 0, &self.ends, &self.ids, &mut self.done);
        self.ends.clear();
        self.ids.clear();
    }
}

/// Compresses the rows that end at `ends` (the first begins at `start`), in halves when they come out too large.
fn compress(codec: Codec, raw: &[u8], start: usize, ends: &[usize], ids: &[EventId], out: &mut Vec<Chunk>) {
    let Some(&end) = ends.last() else { return };
    let bytes = raw.get(start..end).unwrap_or_default();
    let chunk = compress_one(codec, bytes, ids);
    if chunk.compressed.len() <= MAX_PAYLOAD {
        out.push(chunk);
    } else if ends.len() > 1 {
        let half = ends.len() / 2;
        let ((left, right), (left_ids, right_ids)) = (ends.split_at(half), ids.split_at(half));
        compress(codec, raw, start, left, left_ids, out);
        compress(codec, raw, left.last().copied().unwrap_or(start), right, right_ids, out);
    } else {
        // One large row: the stronger codec may do, and if not, it is not much more than the row.
        let stronger = compress_one(Codec::Zstd, bytes, ids);
        out.push(if stronger.compressed.len() < chunk.compressed.len() { stronger } else { chunk });
    }
}

fn compress_one(codec: Codec, raw: &[u8], ids: &[EventId]) -> Chunk {
    let (codec, compressed) = match codec {
        Codec::Lz4 => (Codec::Lz4, lz4_flex::block::compress(raw)),
        // Compressing into memory fails only without memory; LZ4 then is as good.
        Codec::Zstd => match zstd::bulk::compress(raw, ZSTD_LEVEL) {
            Ok(compressed) => (Codec::Zstd, compressed),
            Err(_) => (Codec::Lz4, lz4_flex::block::compress(raw)),
        },
    };
    let bound = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Chunk { compressed, event_count: bound(ids.len()), raw_len: bound(raw.len()), codec, ids: ids.to_vec() }
}
