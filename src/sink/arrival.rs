//! What is left out of an insert: rows whose time was over when they arrived, and rows that were erased on request.
//!
//! Looked at when the insert begins, and not when the range is formed: a range may wait for hours for ClickHouse to come
//! back. Whether there is anything to look for is known without looking at a row: a range says when the first of its rows
//! expires, and mostly there is no tombstone.
//!
//! A repeat may leave out more than the attempt before it; it has the same token, and ClickHouse drops whichever comes
//! second as a whole. What the first one has stored leaves with its part, or with the erasure's deletion.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;

use super::source::{Block, Range};
use crate::{
    erasure::Set,
    ledger::{Gone, Reason},
    row::{self, BinaryError, Origin, Place, Position, Table},
};

/// What may be inserted of a range.
#[derive(Debug)]
pub(super) struct Arrival {
    /// Rows of `events`.
    pub(super) events: Block,
    /// Rows of `parked_events`.
    pub(super) parked: Block,
    /// Rows that were left out because their time is over.
    pub(super) expired: usize,
    /// Rows that were left out because they were erased.
    pub(super) erased: usize,
    /// Rows that were left out because their event was sent to another node as well.
    pub(super) duplicate: usize,
    /// All three, for the ledger.
    pub(super) gone: Vec<Gone>,
    /// Rows that were left out because another process has stored them: of `events`, and of `parked_events`.
    pub(super) stored: [usize; 2],
}

impl Arrival {
    /// Its blocks, each with the table that it is for.
    pub(super) fn blocks(&self) -> [(Table, &Block); 2] {
        [(Table::Events, &self.events), (Table::Parked, &self.parked)]
    }

    /// Leaves out the rows that entered at `places` and are dead letters.
    pub(super) fn leave_out_refused(&mut self, places: &HashSet<Place>) -> Result<(), BinaryError> {
        if places.is_empty() {
            return Ok(());
        }
        for (block, table) in [(&mut self.events, Table::Events), (&mut self.parked, Table::Parked)] {
            *block = rest(block, table, |_, origin, _| !places.contains(&origin.place()))?;
        }
        Ok(())
    }

    /// Leaves out the rows that entered at `places` and whose event is stored from another place.
    pub(super) fn leave_out_duplicates(&mut self, places: &HashSet<Place>) -> Result<(), BinaryError> {
        if places.is_empty() {
            return Ok(());
        }
        let before = self.gone.len();
        for (block, table) in [(&mut self.events, Table::Events), (&mut self.parked, Table::Parked)] {
            *block = rest(block, table, |row, origin, position| {
                let stays = !places.contains(&origin.place());
                if !stays {
                    self.gone.push(Gone::new(row, origin, position, Reason::Duplicate));
                }
                stays
            })?;
        }
        self.duplicate = self.gone.len() - before;
        Ok(())
    }

    /// Leaves out the rows that entered at `places` and are stored.
    pub(super) fn leave_out_stored(&mut self, places: &HashSet<Place>) -> Result<(), BinaryError> {
        let before = (self.events.rows, self.parked.rows);
        self.leave_out_refused(places)?;
        self.stored = [before.0 - self.events.rows, before.1 - self.parked.rows];
        Ok(())
    }
}

/// The token of the insert of `block`. What is left of a range without rows that are stored is another block than the whole.
pub(super) fn token(range: &Range, block: &Block, stored: usize) -> String {
    match stored {
        0 => range.id.to_string(),
        _ => format!("{}#rest-{:08x}", range.id, crc32c::crc32c(&block.body.by_row())),
    }
}

/// What of `range` may be inserted at `now` (Unix seconds) under the tombstones of `erased`.
///
/// # Errors
/// A row that cannot be read, which this process has written itself.
pub(super) async fn sort(range: &Range, erased: Arc<Set>, now: u32) -> Result<Arrival, BinaryError> {
    let events = Block { rows: range.rows, body: range.body.clone() };
    let whole = Arrival {
        events,
        parked: range.parked.clone(),
        expired: 0,
        erased: 0,
        duplicate: 0,
        gone: Vec::new(),
        stored: [0; 2],
    };
    if erased.is_empty() && range.first_expiry > now {
        return Ok(whole);
    }
    // Decoding every row of a large range would hold an async thread for many milliseconds.
    let looked = tokio::task::spawn_blocking(move || look(whole, &erased, now));
    looked.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn look(mut arrival: Arrival, erased: &Set, now: u32) -> Result<Arrival, BinaryError> {
    let (mut expired, mut erasures, mut gone) = (0, 0, Vec::new());
    for (block, table) in [(&mut arrival.events, Table::Events), (&mut arrival.parked, Table::Parked)] {
        *block = rest(block, table, |row, origin, position| {
            let reason = if row.expires_at() <= now {
                expired += 1;
                Reason::Expired
            } else if erased.names(row) {
                erasures += 1;
                Reason::Erased
            } else {
                return true;
            };
            gone.push(Gone::new(row, origin, position, reason));
            false
        })?;
    }
    (arrival.expired, arrival.erased, arrival.gone) = (expired, erasures, gone);
    Ok(arrival)
}

/// The rows of `block` that `stays` wants.
pub(crate) fn rest(
    block: &Block,
    table: Table,
    mut stays: impl FnMut(&row::Row<'_>, &Origin, &Position<'_>) -> bool,
) -> Result<Block, BinaryError> {
    let body = block.body.by_row();
    let mut kept = Vec::with_capacity(body.len());
    let mut rows = 0;
    let mut input = &body[..];
    while !input.is_empty() {
        let before = input;
        let (row, origin, position) = row::read_insert_row(table, &mut input)?;
        if stays(&row, &origin, &position) {
            kept.extend_from_slice(before.get(..before.len() - input.len()).unwrap_or_default());
            rows += 1;
        }
    }
    // Mostly all of them stay, and the bytes that were there are as good.
    if rows == block.rows { Ok(block.clone()) } else { Ok(Block { rows, body: Bytes::from(kept).into() }) }
}
