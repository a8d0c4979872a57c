//! A page of parked events, as it was read from ClickHouse. No I/O.

use std::{collections::BTreeSet, ops::RangeInclusive};

use sha2::{Digest, Sha256};

use super::{Batch, Event, ReprocessError};
use crate::{
    dead_letters::About,
    ids::{EventId, TenantId, WalId},
    row::{self, BinaryError, EventRow, Origin, ParkedRow, Position},
};

/// The place of a row in the sort key of the table, the plugin apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tenant_id: TenantId,
    pub(super) received_at_ms: i64,
    pub(super) wal_id: WalId,
    pub(super) wal_seq: u64,
    pub(super) wal_ordinal: u32,
}

/// Rows that are read, run, stored and released together; at least one.
pub(super) struct Page {
    /// As ClickHouse sent it: rows borrow from it when they are looked at.
    body: Vec<u8>,
    /// Where each row begins, and the end of the last.
    starts: Vec<usize>,
}

/// A row with where it entered.
pub(super) type Parked<'a> = (ParkedRow<'a>, Origin, Position<'a>);

impl Page {
    /// Reads rows as [`row::write_insert_row`] writes them; None when there are none.
    pub(super) fn read(body: Vec<u8>) -> Result<Option<Self>, BinaryError> {
        let mut starts = Vec::new();
        let mut input = body.as_slice();
        while !input.is_empty() {
            starts.push(body.len() - input.len());
            read_row(&mut input)?;
        }
        starts.push(body.len());
        Ok((starts.len() > 1).then_some(Self { body, starts }))
    }

    /// The rows, in the order of the sort key.
    pub(super) fn rows(&self) -> impl Iterator<Item = Parked<'_>> {
        // They were read once: they can be read again.
        (0..self.len()).filter_map(|place| self.row(place))
    }

    pub(super) fn row(&self, place: usize) -> Option<Parked<'_>> {
        let mut input = self.body.get(*self.starts.get(place)?..*self.starts.get(place + 1)?)?;
        read_row(&mut input).ok()
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Where the next page begins.
    pub(super) fn last(&self) -> Option<Place> {
        let (row, origin, _) = self.row(self.len().checked_sub(1)?)?;
        Some(Place {
            tenant_id: row.tenant_id,
            received_at_ms: row.received_at_ms,
            wal_id: origin.wal_id,
            wal_seq: origin.wal_seq,
            wal_ordinal: origin.wal_ordinal,
        })
    }

    /// When its rows were received, Unix milliseconds.
    pub(super) fn received(&self) -> RangeInclusive<i64> {
        let (mut first, mut last) = (i64::MAX, i64::MIN);
        for (row, ..) in self.rows() {
            first = first.min(row.received_at_ms);
            last = last.max(row.received_at_ms);
        }
        first..=last
    }

    /// Which rows are stored, when events that entered at the places in `found` are. Of two rows with one id that were stored
    /// together, ClickHouse may have kept one.
    pub(super) fn stored(&self, found: &BTreeSet<row::Place>) -> BTreeSet<usize> {
        let stored: BTreeSet<(TenantId, EventId)> = self
            .rows()
            .filter(|(_, origin, _)| found.contains(&origin.place()))
            .map(|(row, ..)| (row.tenant_id, row.event_id))
            .collect();
        let is_stored = |(_, (row, ..)): &(usize, Parked<'_>)| stored.contains(&(row.tenant_id, row.event_id));
        self.rows().enumerate().filter(is_stored).map(|(place, _)| place).collect()
    }

    /// The rows without those in `stored`, those together that were accepted together: their places, and what plugins get.
    pub(super) fn batches(&self, stored: &BTreeSet<usize>) -> Vec<(Vec<usize>, Batch)> {
        let mut batches: Vec<(Vec<usize>, Batch)> = Vec::new();
        for (place, (row, ..)) in self.rows().enumerate().filter(|(place, _)| !stored.contains(place)) {
            let event = Event { event_id: row.event_id, raw: row.raw.0.into_owned() };
            let ParkedRow { tenant_id, received_at_ms, expires_at, .. } = row;
            match batches.last_mut() {
                Some((places, batch))
                    if (batch.tenant_id, batch.received_at_ms, batch.expires_at)
                        == (tenant_id, received_at_ms, expires_at) =>
                {
                    places.push(place);
                    batch.events.push(event);
                }
                _ => batches.push((vec![place], Batch { tenant_id, received_at_ms, expires_at, events: vec![event] })),
            }
        }
        batches
    }

    /// What names these rows of the page, for a token.
    pub(super) fn digest(&self, places: impl Iterator<Item = usize>) -> String {
        let mut hash = Sha256::new();
        for (_, origin, _) in places.filter_map(|place| self.row(place)) {
            hash.update(origin.wal_id.0.as_bytes());
            hash.update(origin.wal_seq.to_le_bytes());
            hash.update(origin.wal_ordinal.to_le_bytes());
        }
        format!("{:x}", hash.finalize())
    }

    /// The accepted rows as an insert into `events`: what the plugins made of each, under the identity that it has had since
    /// it was accepted.
    pub(super) fn accepted(&self, accepted: &[(usize, Vec<u8>)]) -> Result<Vec<u8>, ReprocessError> {
        let from_plugin = |source| ReprocessError::Row { from: "a plugin", source };
        let (mut body, mut encoded) = (Vec::new(), Vec::new());
        for (place, row) in accepted {
            let Some((parked, origin, position)) = self.row(*place) else { continue };
            let event = EventRow {
                tenant_id: parked.tenant_id,
                event_id: parked.event_id,
                received_at_ms: parked.received_at_ms,
                expires_at: parked.expires_at,
                ..super::event_row(row)?
            };
            encoded.clear();
            row::encode(&event, &mut encoded);
            row::write_insert_row(&encoded, &origin, &position, &mut body).map_err(from_plugin)?;
        }
        Ok(body)
    }

    /// The rows as an insert into `parked_events` that marks them as released: the column `released` stands last.
    pub(super) fn released(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (row, origin, position) in self.rows() {
            let row = ParkedRow { raw: "".into(), ..row };
            row.write_binary(&mut body);
            origin.write_binary(&mut body);
            position.write_binary(&mut body);
            body.push(1);
        }
        body
    }

    /// Whose a row is, and where it entered.
    pub(super) fn about(&self, place: usize) -> Option<About> {
        let (row, origin, _) = self.row(place)?;
        Some(About::parked(&row, Some(&origin)))
    }

    /// A row's event as it was sent.
    pub(super) fn raw(&self, place: usize) -> Option<String> {
        self.row(place).map(|(row, ..)| row.raw.0.into_owned())
    }
}

fn read_row<'a>(input: &mut &'a [u8]) -> Result<Parked<'a>, BinaryError> {
    Ok((ParkedRow::read_binary(input)?, Origin::read_binary(input)?, Position::read_binary(input)?))
}
