//! The frozen formats: what is asserted here byte by byte must load for ever.

use sled::IVec;

use super::*;
use crate::{
    ids::{WalId, WalSeq},
    wal::{
        disk::System,
        record::{Stamp, encode, split_frame},
    },
};

/// A record of version 1, as the first release wrote it.
const VERSION_1: &str = concat!(
    "e757414c",
    "01",
    "00",
    "5000",
    "5c000000",
    "9895e854",
    "0b000000",
    "02000000",
    "0900000000000000",
    "2a00000000000000",
    "0068e5cf8b010000",
    "00000000000000000000000000000007",
    "0000000000000000000000000000000b",
    "b00300000061626300000000",
);

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn stamp() -> Stamp {
    Stamp {
        wal_id: WalId(Uuid::from_u128(11)),
        seq: 42,
        tenant: TenantId(Uuid::from_u128(7)),
        received_at_ms: 1_700_000_000_000,
        cumulative: 9,
    }
}

fn golden_chunk() -> Chunk {
    let mut packer = Packer::new(Codec::Lz4);
    packer.push(b"abc");
    packer.push(b"");
    packer.finish().remove(0)
}

#[test]
fn version_1_is_frozen() {
    let mut frame = Vec::new();
    encode(&stamp(), &golden_chunk(), &mut frame);
    assert_eq!(hex(&frame), VERSION_1);
    let frozen: Vec<u8> =
        (0..VERSION_1.len()).step_by(2).map(|at| u8::from_str_radix(&VERSION_1[at..at + 2], 16).unwrap()).collect();
    let records = split_frame(&IVec::from(frozen));
    let record = records[0].as_ref().unwrap();
    assert_eq!((record.seq, record.cumulative, record.event_count, record.raw_len), (WalSeq(42), 9, 2, 11));
    assert_eq!((record.tenant, record.wal_id), (TenantId(Uuid::from_u128(7)), WalId(Uuid::from_u128(11))));
    assert_eq!(rows_of(record), vec![b"abc".to_vec(), Vec::new()]);
}

#[test]
fn every_flipped_bit_of_a_record_is_noticed_and_its_neighbours_are_not() {
    let mut frame = Vec::new();
    let chunk = golden_chunk();
    for seq in 1..=3 {
        encode(&Stamp { seq, ..stamp() }, &chunk, &mut frame);
    }
    let len = frame.len() / 3;
    for bit in len * 8..2 * len * 8 {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let pieces = split_frame(&IVec::from(damaged));
        assert_eq!(pieces.len(), 3, "bit {bit}");
        assert_eq!(pieces[0].as_ref().unwrap().seq, WalSeq(1));
        assert_eq!(pieces[1].as_ref().unwrap_err().bytes.len(), len, "bit {bit}");
        assert_eq!(pieces[2].as_ref().unwrap().seq, WalSeq(3));
    }
}

#[test]
fn a_record_of_a_later_version_is_told_apart_from_damage() {
    let mut frame = Vec::new();
    encode(&stamp(), &golden_chunk(), &mut frame);
    frame[4] = 2;
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), &frame[16..]);
    frame[12..16].copy_from_slice(&checksum.to_le_bytes());
    let pieces = split_frame(&IVec::from(frame));
    assert_eq!(pieces[0].as_ref().unwrap_err().reason, DamagedRecord::Version(2));
}

#[test]
fn cut_rows_are_an_error_and_the_end() {
    let raw = [&3_u32.to_le_bytes()[..], b"abc", &9_u32.to_le_bytes()[..], b"cut"].concat();
    let got: Vec<_> = rows(&raw).collect();
    assert_eq!(got, vec![Ok(&b"abc"[..]), Err(DamagedRecord::Rows)]);
}

#[test]
fn the_packer_keeps_order_and_bounds() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let rows: Vec<Vec<u8>> = (0..400).map(|n| noise(n, 40 + usize::try_from(n).unwrap() * 7)).collect();
        let mut packer = Packer::new(codec);
        for row in &rows {
            packer.push(row);
        }
        let chunks = packer.finish();
        assert!(chunks.len() > 1);
        let mut got = Vec::new();
        for chunk in &chunks {
            assert!(chunk.compressed.len() <= packer::MAX_PAYLOAD, "{}", chunk.compressed.len());
            let mut frame = Vec::new();
            encode(&stamp(), chunk, &mut frame);
            let record = split_frame(&IVec::from(frame)).remove(0).unwrap();
            assert_eq!(record.encoded_len(), record::HEADER_LEN + chunk.compressed.len());
            let rows = rows_of(&record);
            assert_eq!(rows.len(), chunk.event_count as usize);
            got.extend(rows);
        }
        assert_eq!(got, rows);
    }
    assert!(Packer::new(Codec::Lz4).finish().is_empty());
}

#[test]
fn one_row_that_lz4_leaves_too_large_is_given_to_zstd() {
    // Digits: no repeats for LZ4 to find, and less than eight bits each for an entropy coder.
    let row: Vec<u8> = noise(3, 70_000).iter().map(|byte| b'0' + byte % 10).collect();
    let mut packer = Packer::new(Codec::Lz4);
    packer.push(b"small");
    packer.push(&row);
    let chunks = packer.finish();
    let last = chunks.last().unwrap();
    assert_eq!((last.codec, last.event_count), (Codec::Zstd, 1));
    assert!(last.compressed.len() <= packer::MAX_PAYLOAD);
}

#[tokio::test]
async fn marks_of_a_newer_engine_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(settings(dir.path())).wal.close().await.unwrap();
    let path = dir.path().join("wal/meta");
    let mut bytes = std::fs::read(&path).unwrap();
    for slot in [0, 4096] {
        bytes[slot + 4] = 9;
        let checksum = crc32c::crc32c(&bytes[slot..slot + 72]);
        bytes[slot + 72..slot + 76].copy_from_slice(&checksum.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(try_open(settings(dir.path()), Arc::new(System)), Err(OpenError::Version { found: 9, known: 1 })));
}
