//! What is in the log, counted by reading it: for the ledger, which takes nobody's word for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use parking_lot::Mutex;

use super::{
    books::{Account, Opening},
    error::StoreError,
    generation::{Generation, read_range},
    shared::Shared,
};
use crate::ids::{TenantId, WalId};

/// How much is read at a time: it bounds memory.
const READ_RECORDS: usize = 4096;
const READ_BYTES: usize = 4 << 20;

/// The books at a cut, and what the log holds of them.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// What became of the events of each tenant.
    pub accounts: BTreeMap<TenantId, Account>,
    /// Which sequences these are, by id of the log.
    pub openings: Vec<Opening>,
    /// Records up to here are in the accounts.
    pub cut: u64,
    /// Records up to here have left the log for good.
    pub done: u64,
    /// Events in records behind `done`, up to the cut.
    pub events: BTreeMap<TenantId, u64>,
    /// Records that were lost before they were in the accounts.
    pub lost: u64,
    /// Records that were lost while they were in the accounts.
    pub missing: u64,
    /// When the books were begun, milliseconds since 1970.
    pub since_ms: i64,
}

impl Holdings {
    /// Whether a record is in the accounts and has left the log.
    pub fn has_left(&self, wal_id: WalId, seq: u64) -> bool {
        let holds = |opening: &Opening| opening.wal_id == wal_id && (opening.first..=opening.last).contains(&seq);
        seq <= self.done && self.openings.iter().any(holds)
    }
}

/// Keeps records behind `done` from going while it lives.
struct Pin<'a>(&'a Mutex<Option<u64>>);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

pub(super) fn count(shared: &Shared) -> Result<Holdings, StoreError> {
    let _one_at_a_time = shared.counting.lock();
    let done = {
        let mut pin = shared.pin.lock();
        let done = shared.done.load(Relaxed);
        *pin = Some(done);
        done
    };
    let _pin = Pin(&shared.pin);
    let mut holdings = {
        let books = shared.books.lock();
        Holdings {
            accounts: books.accounts.clone(),
            openings: books.openings.clone(),
            cut: books.through,
            done,
            lost: books.lost,
            missing: books.missing,
            since_ms: books.since_ms,
            ..Holdings::default()
        }
    };
    let generations: Vec<_> =
        shared.generations.read().iter().filter(|generation| generation.last() > done).cloned().collect();
    for generation in generations {
        add(shared, &generation, &mut holdings)?;
    }
    Ok(holdings)
}

fn add(shared: &Shared, generation: &Arc<Generation>, holdings: &mut Holdings) -> Result<(), StoreError> {
    let db = shared.database(generation)?;
    let mut next = generation.first.max(holdings.done + 1);
    let last = generation.last().min(holdings.cut);
    while next <= last {
        let range = read_range(&db, next, last, READ_RECORDS, READ_BYTES)?;
        for record in &range.records {
            *holdings.events.entry(record.tenant).or_default() += u64::from(record.event_count);
        }
        next = range.records.last().map_or(last, |record| record.seq.0) + 1;
    }
    drop(db);
    // As the reader leaves them: only what is read or written stays open.
    if generation.sealed.load(Relaxed) && shared.reading.load(Relaxed) != generation.ordinal {
        generation.close();
    }
    Ok(())
}
