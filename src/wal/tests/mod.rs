//! Tests of the log as a whole, on the real storage engine and real files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod basics;
mod books;
mod counts;
mod crash;
mod damage;
mod faults;
mod find;
mod fixtures;
mod format;
mod model;
mod window;

use std::{path::Path, sync::Arc, time::Duration};

use uuid::Uuid;

use super::{disk::Device, *};
use crate::{health::Health, ids::TenantId, metrics::Metrics};

/// One log and what watches it.
pub(super) struct Rig {
    pub wal: Wal,
    pub reader: Reader,
    pub health: Health,
    pub metrics: Arc<Metrics>,
}

pub(super) fn settings(dir: &Path) -> Settings {
    Settings { min_free_bytes: 0, ..Settings::new(dir.join("wal")) }
}

pub(super) fn open(settings: Settings) -> Rig {
    try_open(settings, Arc::new(disk::System)).unwrap()
}

pub(super) fn try_open(settings: Settings, device: Arc<dyn Device>) -> Result<Rig, OpenError> {
    let (health, metrics) = (Health::default(), Arc::new(Metrics::new()));
    let (wal, reader) = Wal::open_on(settings, health.component("wal"), Arc::clone(&metrics), device)?;
    Ok(Rig { wal, reader, health, metrics })
}

/// One record with one row.
pub(super) fn append(row: &[u8]) -> Append {
    let mut packer = Packer::new(Codec::Lz4);
    packer.push(row);
    Append {
        tenant: TenantId(Uuid::from_u128(7)),
        received_at_ms: 1_700_000_000_000,
        chunks: packer.finish(),
        counted: false,
        answer: None,
        again: false,
    }
}

/// An append of `records` records; each has `len` incompressible bytes that begin with `tag` and its index.
pub(super) fn large(tag: u64, records: usize, len: usize) -> Append {
    let mut chunks = Vec::new();
    for index in 0..records {
        let mut packer = Packer::new(Codec::Lz4);
        packer.push(&noise(tag * 1000 + index as u64, len));
        chunks.append(&mut packer.finish());
    }
    Append {
        tenant: TenantId(Uuid::from_u128(7)),
        received_at_ms: 1_700_000_000_000,
        chunks,
        counted: false,
        answer: None,
        again: false,
    }
}

/// Bytes that do not compress: the number itself, then a xorshift stream seeded by it.
pub(super) fn noise(tag: u64, len: usize) -> Vec<u8> {
    let mut state = tag.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = tag.to_le_bytes().to_vec();
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len.max(8));
    bytes
}

/// The rows of a record.
pub(super) fn rows_of(record: &Record) -> Vec<Vec<u8>> {
    let mut raw = Vec::new();
    record.decompress_into(&mut raw).unwrap();
    rows(&raw).map(|row| row.unwrap().to_vec()).collect()
}

/// Reads `count` records, however many calls it takes.
pub(super) async fn read(reader: &mut Reader, count: usize) -> Vec<Arc<Record>> {
    let mut records = Vec::new();
    while records.len() < count {
        let more = reader.next(count - records.len(), 1 << 20);
        let more = tokio::time::timeout(Duration::from_mins(1), more).await.expect("records within a minute");
        records.extend(more.unwrap());
    }
    records
}

/// Waits until `holds` does.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn generations(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut folders: Vec<_> =
        std::fs::read_dir(dir.join("wal/log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}
