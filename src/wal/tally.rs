//! Events by tenant and month (UTC, by the time of receipt), of the appends that ask to be counted: exact through every
//! crash, and nothing is paid for the others.
//!
//! # How
//! The records are the count: each says whose it is, when it was received and how many events it holds. But a generation
//! is deleted when its records are done. So the counts are saved as of a sequence, in one small file (`state/months`,
//! replaced whole and synced), before a generation with later records goes, whenever one is full, and at the end. An open
//! reads that file and adds the records behind its sequence: whatever was committed is counted, and once.
//!
//! ```text
//! "IWT1" | through: u64 | tenant: 16 bytes, month: u32, events: u64 | ...      (within the frame of `state`)
//! ```
//!
//! The file comes into being, on disk, before the first append that is counted. Without it nothing is counted at an open,
//! so a log without such tenants never reads a record for this. The writer's thread makes all changes.
//!
//! # What an open counts
//! Every record behind the saved sequence, of all tenants: a record does not say whether it was to be counted. A tenant
//! that is given an allowance later can so find some events of its month counted already: events that it did send.
//!
//! # Damage
//! Records that are lost are not counted when they were not yet: the count is too low by what the log says is lost. When
//! the file itself is damaged, the count begins anew with the records that are still there, and the log says so. A full
//! disk keeps generations until the file can be saved.

use std::collections::HashMap;

use uuid::Uuid;

use super::record::Record;
use crate::{ids::TenantId, month::Month};

/// The name under which the counts are saved.
pub(super) const NAME: &str = "months";
const MAGIC: &[u8; 4] = b"IWT1";
const ENTRY: usize = 16 + 4 + 8;

/// The counts, and how far they are on disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    counts: HashMap<(TenantId, Month), u64>,
    /// The sequence through which the file on disk counts; nothing while nothing was ever to be counted.
    through: Option<u64>,
}

impl Tally {
    pub(super) fn count(&self, tenant: TenantId, month: Month) -> u64 {
        self.counts.get(&(tenant, month)).copied().unwrap_or(0)
    }

    /// Whether anything was ever to be counted.
    pub(super) fn is_begun(&self) -> bool {
        self.through.is_some()
    }

    /// Whether the file counts through `seq`, or needs not.
    pub(super) fn is_saved_through(&self, seq: u64) -> bool {
        self.through.is_none_or(|through| through >= seq)
    }

    /// The sequence behind which an open has to count.
    pub(super) fn through(&self) -> u64 {
        self.through.unwrap_or(u64::MAX)
    }

    pub(super) fn add(&mut self, tenant: TenantId, received_at_ms: i64, events: u64) {
        *self.counts.entry((tenant, Month::of(received_at_ms))).or_default() += events;
    }

    pub(super) fn add_record(&mut self, record: &Record) {
        self.add(record.tenant, record.received_at_ms, u64::from(record.event_count));
    }

    /// The file's content as of `through`. Months before the one before `now` are forgotten: nobody asks for them.
    pub(super) fn encode(&mut self, through: u64, now: Month) -> Vec<u8> {
        self.counts.retain(|(_, month), _| *month >= now.before());
        let mut bytes = Vec::with_capacity(12 + self.counts.len() * ENTRY);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&through.to_le_bytes());
        for ((tenant, month), events) in &self.counts {
            bytes.extend_from_slice(tenant.0.as_bytes());
            bytes.extend_from_slice(&month.number().to_le_bytes());
            bytes.extend_from_slice(&events.to_le_bytes());
        }
        bytes
    }

    /// The content is on disk.
    pub(super) fn saved(&mut self, through: u64) {
        self.through = Some(through);
    }

    /// What a file says; nothing when it says nothing that this engine knows.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (through, entries) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        let counts = entries.iter().map(|entry| {
            let (tenant, rest) = entry.split_first_chunk::<16>()?;
            let (month, events) = rest.split_first_chunk::<4>()?;
            let tenant = TenantId(Uuid::from_bytes(*tenant));
            let month = Month::from_number(u32::from_le_bytes(*month));
            Some(((tenant, month), u64::from_le_bytes(events.try_into().ok()?)))
        });
        let counts = counts.collect::<Option<_>>()?;
        rest.is_empty().then_some(Self { counts, through: Some(u64::from_le_bytes(*through)) })
    }

    /// Counts that begin anew behind a damaged file: with every record that there is.
    pub(super) fn anew() -> Self {
        Self { counts: HashMap::new(), through: Some(0) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_saved_reads_back_without_old_months() {
        let tenant = |n: u128| TenantId(Uuid::from_u128(n));
        let now = Month::of(1_795_000_000_000);
        let mut tally = Tally::default();
        assert!(!tally.is_begun() && tally.is_saved_through(u64::MAX));
        tally.add(tenant(1), now.starts_at_ms(), 5);
        tally.add(tenant(1), now.ends_at_ms() - 1, 2);
        tally.add(tenant(1), now.before().starts_at_ms(), 1);
        tally.add(tenant(2), now.before().starts_at_ms() - 1, 9);
        let bytes = tally.encode(77, now);
        tally.saved(77);
        assert!(tally.is_saved_through(77) && !tally.is_saved_through(78));
        let read = Tally::decode(&bytes).unwrap();
        assert_eq!(read, tally);
        assert_eq!((read.count(tenant(1), now), read.count(tenant(1), now.before())), (7, 1));
        assert_eq!(read.count(tenant(2), now.before().before()), 0);
        for wrong in [&bytes[..bytes.len() - 1], &bytes[1..], b"", b"IWT1"] {
            assert_eq!(Tally::decode(wrong), None);
        }
    }
}
