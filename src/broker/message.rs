//! What stands in a message's value: rows, in binary or as lines of JSON. No I/O.
//!
//! ```text
//! binary  0x01 | row | row ...   row: length (4 bytes, the low one first) | the row as row::write_carried has it
//! json    line | \n | line ...   line: one JSON object, JSONEachRow
//! ```
//!
//! Which of the two it is, the first byte says: a reader takes both, so a relay may change from one to the other at any time.
//! A row has its length before it, so that one that cannot be read costs no other.

use super::Carries;
use crate::row::{self, Origin, Row};

/// The first byte of a message in binary; no line of JSON begins with it.
const BINARY: u8 = 0x01;

/// How the rows of a topic of events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As the log keeps them, which costs the least.
    #[default]
    Binary,
    /// As JSON, for whoever else reads the topic.
    Json,
}

/// A row of a message, not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// [`row::write_carried`]'s.
    Row(&'a [u8]),
    /// Of JSON.
    Line(&'a [u8]),
    /// The rest of a message in binary, from the first row on whose length does not add up.
    Rest(&'a [u8]),
}

/// Appends a row to a message that consists of rows that this function appended.
pub fn append_row(message: &mut Vec<u8>, encoded: &[u8], origin: &Origin) {
    if message.is_empty() {
        message.push(BINARY);
    }
    let at = message.len();
    message.extend_from_slice(&[0; 4]);
    row::write_carried(encoded, origin, message);
    // A row is at most as long as the largest message that librdkafka takes, which is less than 4 GiB.
    let length = u32::try_from(message.len() - at - 4).unwrap_or(u32::MAX);
    if let Some(place) = message.get_mut(at..at + 4) {
        place.copy_from_slice(&length.to_le_bytes());
    }
}

/// Bytes that a row takes in a message.
pub const fn row_len(encoded: &[u8]) -> usize {
    4 + row::carried_len(encoded)
}

/// Appends a line to a message that consists of lines that this function appended.
pub fn append_line(message: &mut Vec<u8>, line: &[u8]) {
    if !message.is_empty() {
        message.push(b'\n');
    }
    message.extend_from_slice(line);
}

/// The rows of a message in their order, with their numbers from 0 on; empty lines are none, and have a number.
pub fn entries(message: &[u8]) -> impl Iterator<Item = (usize, Entry<'_>)> {
    let (mut rows, lines) = match message.split_first() {
        Some((&BINARY, rows)) => (rows, None),
        _ => (&[][..], Some(message)),
    };
    let rows = std::iter::from_fn(move || {
        if rows.is_empty() {
            return None;
        }
        let row = rows.split_first_chunk::<4>().and_then(|(length, after)| {
            // None is empty: what says so is no message of rows, and not as many letters as it has bytes.
            let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length > 0)?;
            after.split_at_checked(length)
        });
        let entry = row.map_or(Entry::Rest(rows), |(row, _)| Entry::Row(row));
        rows = row.map_or(&[], |(_, after)| after);
        Some(entry)
    });
    let lines = lines.into_iter().flat_map(|message| message.split(|byte| *byte == b'\n')).map(Entry::Line);
    rows.chain(lines).enumerate().filter(|(_, entry)| *entry != Entry::Line(&[]))
}

/// About how many bytes the rows of a message take in an insert, each with a position of `position` bytes. Exact for
/// rows in binary; one as JSON is about as long as its columns' values.
pub fn insert_len(message: &[u8], position: usize) -> usize {
    if message.first() != Some(&BINARY) {
        return message.len();
    }
    // Without its layout.
    entries(message)
        .map(|(_, entry)| if let Entry::Row(row) = entry { row.len().saturating_sub(1) + position } else { 0 })
        .sum()
}

impl<'a> Entry<'a> {
    /// The row and where it entered; nothing for what is none of this engine.
    pub fn decode(self, carries: Carries) -> Option<(Row<'a>, Origin)> {
        match (self, carries) {
            (Self::Row(bytes), Carries::Events) => row::decode_carried(bytes).ok(),
            (Self::Line(line), Carries::Events) => {
                row::read_json(line).ok().map(|(event, origin)| (Row::Event(event), origin))
            }
            (Self::Line(line), Carries::Parked) => {
                row::read_parked_json(line).ok().map(|(parked, origin)| (Row::Parked(parked), origin))
            }
            (Self::Row(_), Carries::Parked) | (Self::Rest(_), _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use uuid::Uuid;

    use super::*;
    use crate::{
        ids::{EventId, TenantId, WalId},
        row::EventRow,
    };

    fn origin(wal_ordinal: u32) -> Origin {
        Origin { wal_id: WalId(Uuid::from_u128(9)), wal_seq: 42, wal_ordinal, relayed_at_ms: 7 }
    }

    fn event(id: u128) -> EventRow<'static> {
        EventRow::new(TenantId(Uuid::from_u128(1)), EventId(Uuid::from_u128(id)), "custom")
    }

    fn binary(rows: u32) -> Vec<u8> {
        let mut message = Vec::new();
        for ordinal in 0..rows {
            let mut encoded = Vec::new();
            row::encode(&event(u128::from(ordinal)), &mut encoded);
            append_row(&mut message, &encoded, &origin(ordinal));
        }
        message
    }

    fn decoded(message: &[u8]) -> Vec<(usize, Option<(Row<'_>, Origin)>)> {
        entries(message).map(|(number, entry)| (number, entry.decode(Carries::Events))).collect()
    }

    #[test]
    fn both_formats_give_back_what_was_appended() {
        let mut json = Vec::new();
        for ordinal in 0..3 {
            let mut line = Vec::new();
            row::write_json(&event(u128::from(ordinal)), &origin(ordinal), &mut line);
            append_line(&mut json, &line);
        }
        let expected: Vec<_> =
            (0..3_u32).map(|n| (n as usize, Some((Row::Event(event(u128::from(n))), origin(n))))).collect();
        assert_eq!(decoded(&binary(3)), expected);
        assert_eq!(decoded(&json), expected);
        assert!(decoded(&[]).is_empty() && decoded(&[BINARY]).is_empty());
    }

    #[test]
    fn whatever_byte_is_changed_or_missing_no_row_is_made_up() {
        let message = binary(2);
        let whole = decoded(&message);
        for at in 0..message.len() {
            let cut = decoded(&message[..at]);
            let read = cut.iter().filter(|(_, row)| row.is_some()).count();
            assert_eq!(cut[..read], whole[..read], "cut at {at}");
            assert!(read < 2 && cut.len() <= read + 1, "cut at {at}: {cut:?}");
        }
        // The length of the first row: the rest cannot be told apart, and is kept as it is.
        let mut long = message.clone();
        long[4] = 0xff;
        assert_eq!(entries(&long).collect::<Vec<_>>(), [(0, Entry::Rest(&long[1..]))]);
        assert_eq!(entries(&[BINARY, 0, 0, 0, 0, 7]).collect::<Vec<_>>(), [(0, Entry::Rest(&[0, 0, 0, 0, 7]))]);
        // Its layout: the second row is read.
        let mut foreign = message.clone();
        foreign[5] = 99;
        assert_eq!(decoded(&foreign), [(0, None), whole[1].clone()]);
    }

    #[test]
    fn an_empty_line_is_no_row() {
        let entries: Vec<_> = entries(b"\n{}\n\n[]\n").collect();
        assert_eq!(entries, [(1, Entry::Line(b"{}")), (3, Entry::Line(b"[]"))]);
    }
}
