//! Reads the storage engine's file as bytes, before the storage engine does.
//!
//! sled treats a damaged message in the middle of a segment as the segment's end and goes on; what stood behind it is
//! gone without a word, and segments that then look unused are overwritten with zeros while it opens. So the file is
//! walked first, as sled's recovery would, and when a message that must be whole is not, sled never sees the file.
//!
//! ```text
//! file     segments of one size, each a link of the log in log-sequence order (not file order)
//! segment  crc32 | log sequence | highest stable log sequence, then messages, then a cap or fewer than 32 bytes
//! message  crc32 | kind | length | segment number | page     (lengths as variable integers), then the body
//! ```
//! Only the last segments (those at and above the highest stable log sequence that any header names) may end torn, as a
//! crash leaves them. Anywhere else, and in a segment header that is neither right nor empty, it is damage. A crash can
//! in rare cases leave such a trace without loss; then the salvage that follows finds every record and changes nothing.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use super::{
    record::{self, MAGIC},
    seqset::SeqSet,
};

const SEGMENT_HEADER: usize = 20;
/// No message begins in the last bytes of a segment.
const RED_ZONE: usize = 32;
const KIND_CAP: u8 = 2;
const KIND_MAX: u8 = 11;
const SIGN: u64 = 0x7FFF_FFFF_FFFF_FFFF;

/// What the bytes say.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Sequences of records in messages that sled's recovery will reach.
    pub valid: SeqSet,
    /// The first damage found, for the operator.
    pub damage: Option<String>,
}

struct Segment {
    base: u64,
    lsn: u64,
}

/// Walks the file `db`, whose segments have `segment` bytes, holding one segment in memory.
pub(super) fn walk(db: &Path, segment: usize) -> io::Result<Walk> {
    let file = File::open(db)?;
    let len = file.metadata()?.len();
    let size = segment as u64;
    let mut walk = Walk::default();
    let mut segments = Vec::new();
    let mut stable = 0;
    let mut base = 0;
    while base + SEGMENT_HEADER as u64 <= len {
        let mut header = [0; SEGMENT_HEADER];
        file.read_exact_at(&mut header, base)?;
        match parse_header(&header) {
            Some((lsn, max_stable)) => {
                stable = stable.max(max_stable);
                segments.push(Segment { base, lsn });
            }
            None if header == [0; SEGMENT_HEADER] => {}
            None => walk.note(format!("the header of the segment at byte {base} is damaged")),
        }
        base += size;
    }
    segments.sort_unstable_by_key(|segment| segment.lsn);

    let tail = stable / size * size;
    let mut expected = tail;
    let mut buffer = vec![0; segment];
    for Segment { base, lsn } in segments {
        if lsn >= tail {
            if lsn != expected {
                // Recovery ends at the first segment that is missing.
                break;
            }
            expected += size;
        }
        let have = read_up_to(&file, &mut buffer, base)?;
        let bytes = buffer.get(..have).unwrap_or_default();
        if let Some(at) = walk_segment(bytes, segment, lsn / size, &mut walk.valid) {
            if lsn >= tail {
                break;
            }
            walk.note(format!("the message at byte {} is damaged", base + at as u64));
        }
    }
    Ok(walk)
}

impl Walk {
    fn note(&mut self, damage: String) {
        self.damage.get_or_insert(damage);
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut have = 0;
    while let Some(rest) = buffer.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + have as u64) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// Log sequence and highest stable log sequence of a segment whose header is right.
fn parse_header(header: &[u8; SEGMENT_HEADER]) -> Option<(u64, u64)> {
    let stored = u32::from_le_bytes(*header.first_chunk()?);
    if stored != !crc32(&[header.get(4..)?]) {
        return None;
    }
    let lsn = u64::from_le_bytes(*header.get(4..)?.first_chunk()?) ^ SIGN;
    let stable = u64::from_le_bytes(*header.get(12..)?.first_chunk()?) ^ SIGN;
    // A log sequence is not negative, but for the -1 of a log that has nothing stable yet.
    let plain = |value: u64| i64::try_from(value).ok().map_or(0, i64::cast_unsigned);
    Some((plain(lsn), plain(stable)))
}

fn crc32(parts: &[&[u8]]) -> u32 {
    let mut crc = flate2::Crc::new();
    for part in parts {
        crc.update(part);
    }
    crc.sum()
}

/// Walks one segment's messages; gives the offset of the first that is not whole.
fn walk_segment(bytes: &[u8], size: usize, number: u64, valid: &mut SeqSet) -> Option<usize> {
    let mut at = SEGMENT_HEADER;
    while at + RED_ZONE <= size {
        let Some((kind, body, len)) = bytes.get(at..).and_then(|rest| message(rest, number)) else { return Some(at) };
        if kind == KIND_CAP {
            return None;
        }
        collect(body, valid);
        at += len;
    }
    None
}

/// Kind, body and whole length of the message at the start of `bytes`, when it is whole and of segment `number`.
fn message(bytes: &[u8], number: u64) -> Option<(u8, &[u8], usize)> {
    let stored = u32::from_le_bytes(*bytes.first_chunk()?);
    let kind = *bytes.get(4)?;
    if kind == 0 || kind > KIND_MAX {
        return None;
    }
    let mut rest = bytes.get(5..)?;
    let len = usize::try_from(varint(&mut rest)?).ok()?;
    let segment = varint(&mut rest)?;
    varint(&mut rest)?;
    let header = bytes.get(4..bytes.len() - rest.len())?;
    let body = rest.get(..len)?;
    (segment == number && stored == !crc32(&[body, header])).then_some((kind, body, 4 + header.len() + len))
}

/// sled's variable-length integers.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = bytes.split_first()?;
    let (value, used) = match first {
        0..=240 => (u64::from(first), 0),
        241..=248 => (240 + 256 * (u64::from(first) - 241) + u64::from(*rest.first()?), 1),
        249 => (2288 + 256 * u64::from(*rest.first()?) + u64::from(*rest.get(1)?), 2),
        _ => {
            let used = usize::from(first) - 247;
            let mut value = [0; 8];
            value.get_mut(..used)?.copy_from_slice(rest.get(..used)?);
            (u64::from_le_bytes(value), used)
        }
    };
    *bytes = rest.get(used..)?;
    Some(value)
}

/// Adds the sequences of all records in `body`, which is whole.
fn collect(body: &[u8], valid: &mut SeqSet) {
    let mut from = 0;
    while let Some(found) = body.get(from..).and_then(|rest| memchr::memmem::find(rest, &MAGIC)) {
        let at = from + found;
        match body.get(at..).map(record::check) {
            Some(Ok((seq, len))) => {
                valid.insert(seq);
                from = at + len;
            }
            _ => from = at + 1,
        }
    }
}
