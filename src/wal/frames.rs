//! Turns what waits into one batch for the storage engine.

use std::{mem, sync::Arc};

use sled::IVec;

use super::{
    Append, Appended,
    generation::FRAME_RECORDS,
    record::{HEADER_LEN, Record, Stamp, encode, split_frame},
};
use crate::ids::{WalId, WalSeq};

/// Small records are put together into values of about this size: the storage engine's cost is per value, and with
/// values up to here its memory stays low.
const FRAME_TARGET: usize = 16 << 10;

/// One commit in the making.
pub(super) struct Frames {
    wal_id: WalId,
    next: u64,
    cumulative: u64,
    frame: Vec<u8>,
    frame_first: u64,
    frame_records: usize,
    /// What is written: keys and values.
    values: Vec<(IVec, IVec)>,
    /// Every record in them, in order.
    pub records: Vec<Arc<Record>>,
    pub payload_bytes: u64,
    pub events: u64,
}

impl Frames {
    /// A commit whose first record gets the sequence `next`, after `cumulative` events.
    pub(super) fn new(wal_id: WalId, next: u64, cumulative: u64) -> Self {
        Self {
            wal_id,
            next,
            cumulative,
            frame: Vec::with_capacity(2 * FRAME_TARGET),
            frame_first: next,
            frame_records: 0,
            values: Vec::new(),
            records: Vec::new(),
            payload_bytes: 0,
            events: 0,
        }
    }

    /// Adds an append; its sequences are contiguous. One without chunks takes none, and names the one before.
    pub(super) fn add(&mut self, append: &Append) -> Appended {
        let before = WalSeq(self.next - 1);
        let first = if append.chunks.is_empty() { before } else { WalSeq(self.next) };
        for chunk in &append.chunks {
            let len = HEADER_LEN + chunk.compressed.len();
            if self.frame_records == FRAME_RECORDS || (!self.frame.is_empty() && self.frame.len() + len > FRAME_TARGET)
            {
                self.seal();
            }
            self.cumulative += u64::from(chunk.event_count);
            let stamp = Stamp {
                wal_id: self.wal_id,
                seq: self.next,
                tenant: append.tenant,
                received_at_ms: append.received_at_ms,
                cumulative: self.cumulative,
            };
            encode(&stamp, chunk, &mut self.frame);
            self.frame_records += 1;
            self.next += 1;
            self.payload_bytes += chunk.compressed.len() as u64;
            self.events += u64::from(chunk.event_count);
        }
        Appended { wal_id: self.wal_id, first, last: WalSeq(self.next - 1), duplicates: 0 }
    }

    /// Adds an answer to be kept beside the records.
    pub(super) fn add_answer(&mut self, key: &[u8], value: Vec<u8>) {
        self.values.push((key.into(), value.into()));
    }

    /// Whether there is nothing to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Ends the last frame.
    pub(super) fn finish(&mut self) {
        self.seal();
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn cumulative(&self) -> u64 {
        self.cumulative
    }

    /// Puts everything into `db`, all or nothing.
    pub(super) fn write_to(&mut self, db: &sled::Db) -> sled::Result<()> {
        let mut values = mem::take(&mut self.values);
        if values.len() <= 1 {
            // A value is all or nothing by itself. The manifest of a batch would be written, and waited for, apart from it.
            return values.pop().map_or(Ok(()), |(key, value)| db.insert(key, value).map(drop));
        }
        let mut batch = sled::Batch::default();
        for (key, value) in values {
            batch.insert(key, value);
        }
        db.apply_batch(batch)
    }

    fn seal(&mut self) {
        if self.frame.is_empty() {
            return;
        }
        let frame = IVec::from(self.frame.as_slice());
        self.frame.clear();
        // Reading the frame back checks it before anything depends on it.
        self.records.extend(split_frame(&frame).into_iter().flatten());
        self.values.push((IVec::from(&self.frame_first.to_be_bytes()), frame));
        self.frame_first = self.next;
        self.frame_records = 0;
    }
}
