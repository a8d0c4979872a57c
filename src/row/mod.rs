//! The row: one event as it is kept in the write-ahead log, carried by the broker and inserted into ClickHouse.
//!
//! An event is parsed once, at the front, and encoded once, into ClickHouse's own
//! [`RowBinary`](https://clickhouse.com/docs/interfaces/formats/RowBinary), so that on one node the sink copies bytes:
//! the row from the log, then its provenance. Through a broker the same row travels as JSON, because a topic is also
//! read by others; the sink turns it back into RowBinary.
//!
//! ```text
//! in the log    layout (1 byte) | event columns, RowBinary, in the order of EVENT_COLUMNS
//! in a topic    one JSON object a line: event columns that are not empty, and the origin
//! in an insert  event columns | wal_id wal_seq wal_ordinal relayed_at | topic partition offset
//! ```
//!
//! - The columns of fixed size stand first, so that the expiry of an encoded row is read without decoding it.
//! - A column is added at the end of its group, with a new layout number; the decoder keeps the old layouts.
//! - `context` and `properties` are JSON objects as text, without line breaks outside of strings, or empty.
//! - What this is not: a general serialisation. It knows one table.

mod binary;
mod columns;
mod json;

pub use binary::{BinaryError, Json, Text};
pub use columns::{EVENT_COLUMNS, EventRow, ORIGIN_COLUMNS, Origin, POSITION_COLUMNS, Position};
pub use json::{JsonError, read_json, write_json};

/// Number of the layout that this version writes; the first byte of every row in the log.
pub const LAYOUT: u8 = 1;

/// `expires_at` of a row that is kept for ever: the last second that ClickHouse's `DateTime` can hold.
pub const EXPIRES_NEVER: u32 = u32::MAX;

/// Appends `row` to `out` in the form in which the log keeps it.
pub fn encode(row: &EventRow<'_>, out: &mut Vec<u8>) {
    out.push(LAYOUT);
    row.write_binary(out);
}

/// Decodes a row as [`encode`] wrote it, borrowing its texts.
///
/// # Errors
/// [`BinaryError`] when the layout is unknown or the bytes do not form exactly one row.
pub fn decode(encoded: &[u8]) -> Result<EventRow<'_>, BinaryError> {
    let mut input = event_columns(encoded)?;
    let row = EventRow::read_binary(&mut input)?;
    if input.is_empty() { Ok(row) } else { Err(BinaryError::TrailingBytes { count: input.len() }) }
}

/// The event columns of an encoded row, ready to be copied into an insert: the row without its layout byte.
///
/// # Errors
/// [`BinaryError`] when the layout is unknown.
pub fn event_columns(encoded: &[u8]) -> Result<&[u8], BinaryError> {
    match encoded.split_first() {
        Some((&LAYOUT, columns)) => Ok(columns),
        Some((&layout, _)) => Err(BinaryError::UnknownLayout { layout }),
        None => Err(BinaryError::Truncated { column: "layout" }),
    }
}

/// The expiry of an encoded row, in Unix seconds ([`EXPIRES_NEVER`] for none), without decoding the rest.
///
/// # Errors
/// [`BinaryError`] when the layout is unknown or the row is shorter than its fixed columns.
pub fn expires_at(encoded: &[u8]) -> Result<u32, BinaryError> {
    // tenant_id 16, event_id 16, timestamp 8, received_at 8
    const OFFSET: usize = 48;
    let columns = event_columns(encoded)?;
    columns
        .get(OFFSET..OFFSET + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes)
        .ok_or(BinaryError::Truncated { column: "expires_at" })
}

/// Appends one complete row of an insert to `out`: event columns, origin, position.
///
/// # Errors
/// [`BinaryError`] when the layout of `encoded` is unknown; `out` is unchanged then.
pub fn write_insert_row(
    encoded: &[u8],
    origin: &Origin,
    position: &Position<'_>,
    out: &mut Vec<u8>,
) -> Result<(), BinaryError> {
    out.extend_from_slice(event_columns(encoded)?);
    origin.write_binary(out);
    position.write_binary(out);
    Ok(())
}

/// Writes the key that decides an event's partition: `tenant:session`, else the user, else the anonymous id, else the
/// event's own id, so that everything of one session stays in order in one partition.
pub fn write_partition_key(row: &EventRow<'_>, key: &mut Vec<u8>) {
    write_uuid(row.tenant_id.0, key);
    key.push(b':');
    let owner = [&row.session_id, &row.user_id, &row.anonymous_id].into_iter().find(|id| !id.is_empty());
    match owner {
        Some(id) => key.extend_from_slice(id.as_bytes()),
        None => write_uuid(row.event_id.0, key),
    }
}

fn write_uuid(id: uuid::Uuid, out: &mut Vec<u8>) {
    out.extend_from_slice(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).as_bytes());
}

#[cfg(test)]
mod tests;
