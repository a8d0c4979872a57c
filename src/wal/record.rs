//! The record format, frozen: what version 1 wrote loads for ever.
//!
//! ```text
//!  0  magic        e7 57 41 4c          40  received at   i64, ms since 1970
//!  4  version      u8, 1                48  tenant        16 bytes
//!  5  codec        u8: 0 lz4, 1 zstd    64  wal id        16 bytes
//!  6  header len   u16, 80              80  payload       compressed rows
//!  8  total len    u32
//! 12  checksum     u32, CRC32C of every other byte
//! 16  raw len      u32, payload decompressed
//! 20  event count  u32
//! 24  cumulative   u64, events of this folder up to and with this record
//! 32  sequence     u64
//! ```
//! Integers are little-endian. The first 16 bytes keep their place in every later version, so that an older engine can
//! step over a record that it does not know. Decompressed, a payload is rows of `u32 length | bytes`.
//!
//! A *frame* is one or more records, one after the other; it is one value in the storage engine. Small requests that
//! commit together share a frame, because the storage engine's cost is per value.

use std::sync::Arc;

use sled::IVec;
use uuid::Uuid;

use super::packer::{Chunk, Codec};
use crate::ids::{TenantId, WalId, WalSeq};

pub(super) const MAGIC: [u8; 4] = [0xe7, b'W', b'A', b'L'];
const VERSION: u8 = 1;
pub(super) const HEADER_LEN: usize = 80;
const HEADER_LEN_U16: u16 = 80;
/// No record is near this; a longer one is a damaged length.
const MAX_RECORD: usize = 64 << 20;

/// Why bytes are not a record, or a record's payload not rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DamagedRecord {
    /// Fewer bytes than the header or the stated length.
    #[error("record is cut short: {have} of {need} bytes")]
    Short {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// No record begins here.
    #[error("record does not begin with its magic bytes")]
    Magic,
    /// Written by another engine version.
    #[error("record has format version {0}, this engine knows version 1")]
    Version(u8),
    /// A length field contradicts another.
    #[error("record has an impossible length")]
    Length,
    /// A bit changed.
    #[error("record fails its checksum")]
    Checksum,
    /// A codec that this engine does not have.
    #[error("record has unknown codec {0}")]
    Codec(u8),
    /// The payload does not decompress to its stated length.
    #[error("record does not decompress")]
    Decompress,
    /// The decompressed payload is not a sequence of rows.
    #[error("record is not a sequence of rows")]
    Rows,
}

/// One committed record. Cheap to share; its payload lives in the frame it was committed with.
#[derive(Clone, Debug)]
pub struct Record {
    /// The opening of the log that wrote it (not necessarily the present one).
    pub wal_id: WalId,
    /// Its position.
    pub seq: WalSeq,
    /// Whose events these are.
    pub tenant: TenantId,
    /// When the request was received, milliseconds since 1970.
    pub received_at_ms: i64,
    /// Events in it.
    pub event_count: u32,
    /// Events accepted into this folder up to and with this record.
    pub cumulative: u64,
    /// Decompressed size in bytes.
    pub raw_len: u32,
    /// How it is compressed.
    pub codec: Codec,
    payload: IVec,
}

impl Record {
    /// The compressed payload.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Appends the decompressed rows to `out`; read them with [`rows`]. On error `out` is as it was.
    pub fn decompress_into(&self, out: &mut Vec<u8>) -> Result<(), DamagedRecord> {
        let raw = usize::try_from(self.raw_len).map_err(|_| DamagedRecord::Length)?;
        let start = out.len();
        out.resize(start + raw, 0);
        let target = out.get_mut(start..).unwrap_or_default();
        self.codec.decompress(&self.payload, target).inspect_err(|_| out.truncate(start))
    }

    /// Size in the log, in bytes.
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }
}

/// The rows of a decompressed payload. After an error it ends.
pub fn rows(raw: &[u8]) -> impl Iterator<Item = Result<&[u8], DamagedRecord>> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let row = rest.split_first_chunk::<4>().and_then(|(len, after)| {
            let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
            after.split_at_checked(len)
        });
        rest = row.map_or(&[], |(_, after)| after);
        Some(row.map(|(row, _)| row).ok_or(DamagedRecord::Rows))
    })
}

/// What the writer knows of a record besides its chunk.
pub(super) struct Stamp {
    pub wal_id: WalId,
    pub seq: u64,
    pub tenant: TenantId,
    pub received_at_ms: i64,
    pub cumulative: u64,
}

/// Appends the encoded record to `frame`.
pub(super) fn encode(stamp: &Stamp, chunk: &Chunk, frame: &mut Vec<u8>) {
    let start = frame.len();
    // A chunk is at most some ten kilobytes; one of 4 GiB cannot be made.
    let total = u32::try_from(HEADER_LEN + chunk.compressed.len()).unwrap_or(u32::MAX);
    frame.reserve(HEADER_LEN + chunk.compressed.len());
    frame.extend_from_slice(&MAGIC);
    frame.push(VERSION);
    frame.push(chunk.codec.byte());
    frame.extend_from_slice(&HEADER_LEN_U16.to_le_bytes());
    frame.extend_from_slice(&total.to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&chunk.raw_len.to_le_bytes());
    frame.extend_from_slice(&chunk.event_count.to_le_bytes());
    frame.extend_from_slice(&stamp.cumulative.to_le_bytes());
    frame.extend_from_slice(&stamp.seq.to_le_bytes());
    frame.extend_from_slice(&stamp.received_at_ms.to_le_bytes());
    frame.extend_from_slice(stamp.tenant.0.as_bytes());
    frame.extend_from_slice(stamp.wal_id.0.as_bytes());
    frame.extend_from_slice(&chunk.compressed);
    let checksum = frame.get(start..).map_or(0, checksum);
    if let Some(place) = frame.get_mut(start + 12..start + 16) {
        place.copy_from_slice(&checksum.to_le_bytes());
    }
}

/// CRC32C of a whole record but its checksum field.
fn checksum(record: &[u8]) -> u32 {
    let head = crc32c::crc32c(record.get(..12).unwrap_or_default());
    crc32c::crc32c_append(head, record.get(16..).unwrap_or_default())
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).unwrap_or([0; N])
}

/// The length of the record at the start of `bytes`, when magic and length are plausible.
pub(super) fn stated_len(bytes: &[u8]) -> Result<usize, DamagedRecord> {
    if bytes.get(..4) != Some(&MAGIC[..]) {
        return Err(DamagedRecord::Magic);
    }
    if bytes.len() < HEADER_LEN {
        return Err(DamagedRecord::Short { have: bytes.len(), need: HEADER_LEN });
    }
    let total = usize::try_from(u32::from_le_bytes(field(bytes, 8))).map_err(|_| DamagedRecord::Length)?;
    if !(HEADER_LEN..=MAX_RECORD).contains(&total) {
        return Err(DamagedRecord::Length);
    }
    if bytes.len() < total {
        return Err(DamagedRecord::Short { have: bytes.len(), need: total });
    }
    Ok(total)
}

/// Checks the record at the start of `bytes`; gives its sequence and its length.
pub(super) fn check(bytes: &[u8]) -> Result<(u64, usize), DamagedRecord> {
    let total = stated_len(bytes)?;
    let record = bytes.get(..total).unwrap_or_default();
    if checksum(record) != u32::from_le_bytes(field(record, 12)) {
        return Err(DamagedRecord::Checksum);
    }
    // The version is judged after the checksum, so that a flipped bit is damage and not a newer engine.
    let version = record.get(4).copied().unwrap_or_default();
    if version != VERSION {
        return Err(DamagedRecord::Version(version));
    }
    if u16::from_le_bytes(field(record, 6)) != HEADER_LEN_U16 {
        return Err(DamagedRecord::Length);
    }
    Ok((u64::from_le_bytes(field(record, 32)), total))
}

/// Reads the record at `offset` of `frame`; gives it and the offset after it.
fn decode(frame: &IVec, offset: usize) -> Result<(Record, usize), DamagedRecord> {
    let bytes = frame.get(offset..).unwrap_or_default();
    let (seq, total) = check(bytes)?;
    let codec = Codec::from_byte(field::<1>(bytes, 5)[0])?;
    let record = Record {
        wal_id: WalId(Uuid::from_bytes(field(bytes, 64))),
        seq: WalSeq(seq),
        tenant: TenantId(Uuid::from_bytes(field(bytes, 48))),
        received_at_ms: i64::from_le_bytes(field(bytes, 40)),
        event_count: u32::from_le_bytes(field(bytes, 20)),
        cumulative: u64::from_le_bytes(field(bytes, 24)),
        raw_len: u32::from_le_bytes(field(bytes, 16)),
        codec,
        payload: frame.subslice(offset + HEADER_LEN, total - HEADER_LEN),
    };
    Ok((record, offset + total))
}

/// What the header of a damaged record says of it. Any of it may be what is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub seq: u64,
    pub events: u64,
    pub cumulative: u64,
    pub tenant: TenantId,
    pub wal_id: WalId,
}

impl Claim {
    /// Whether it goes on where the record before it ends, which has `cumulative`. Number and sum then vouch for each other.
    pub(super) fn follows(&self, cumulative: u64) -> bool {
        cumulative.checked_add(self.events) == Some(self.cumulative)
    }
}

/// The header at the start of `bytes`, intact or not.
pub(super) fn claimed(bytes: &[u8]) -> Option<Claim> {
    (bytes.len() >= HEADER_LEN && bytes.starts_with(&MAGIC)).then(|| Claim {
        seq: u64::from_le_bytes(field(bytes, 32)),
        events: u32::from_le_bytes(field(bytes, 20)).into(),
        cumulative: u64::from_le_bytes(field(bytes, 24)),
        tenant: TenantId(Uuid::from_bytes(field(bytes, 48))),
        wal_id: WalId(Uuid::from_bytes(field(bytes, 64))),
    })
}

/// A piece of a frame that is no record.
#[derive(Debug)]
pub(super) struct Damage {
    /// Where it begins in the frame.
    pub offset: usize,
    /// The bytes.
    pub bytes: IVec,
    /// Why.
    pub reason: DamagedRecord,
}

/// Splits a frame into its records; what is damaged comes out as such, and what follows it is found again.
pub(super) fn split_frame(frame: &IVec) -> Vec<Result<Arc<Record>, Damage>> {
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < frame.len() {
        match decode(frame, offset) {
            Ok((record, next)) => {
                found.push(Ok(Arc::new(record)));
                offset = next;
            }
            Err(reason) => {
                let rest = frame.get(offset..).unwrap_or_default();
                // The next intact record, or the end: a length from damaged bytes is worth nothing.
                let skip = (1..rest.len())
                    .find(|at| rest.get(*at..).is_some_and(|bytes| bytes.starts_with(&MAGIC) && check(bytes).is_ok()))
                    .unwrap_or(rest.len());
                found.push(Err(Damage { offset, bytes: frame.subslice(offset, skip), reason }));
                offset += skip;
            }
        }
    }
    found
}
