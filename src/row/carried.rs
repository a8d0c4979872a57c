//! The row in binary as a message of a topic carries it: as the log keeps it, followed by its origin.
//!
//! ```text
//! layout (1 byte) | columns, RowBinary | wal_id wal_seq wal_ordinal relayed_at, RowBinary (36 bytes)
//! ```
//!
//! Columns and origin stand as they stand in an insert, so that the sink copies them. Only events are carried so; parked
//! ones are few and travel as JSON.

use super::{BinaryError, LAYOUT, Origin, Row, binary::ColumnValue as _, check, columns, decode};

/// `wal_id` 16, `wal_seq` 8, `wal_ordinal` 4, `relayed_at` 8.
const ORIGIN_BYTES: usize = 36;

/// An event that a message carries, checked and not decoded.
#[derive(Debug, PartialEq)]
pub struct Carried<'a> {
    /// Columns and origin, as an insert has them.
    pub columns: &'a [u8],
    /// When this engine accepted it, Unix milliseconds.
    pub received_at_ms: i64,
    /// Unix seconds from which it may be dropped.
    pub expires_at: u32,
    /// Where it entered.
    pub origin: Origin,
}

/// Appends an encoded event as a message carries it.
pub fn write_carried(encoded: &[u8], origin: &Origin, out: &mut Vec<u8>) {
    out.extend_from_slice(encoded);
    origin.write_binary(out);
}

/// Bytes that [`write_carried`] appends.
pub const fn carried_len(encoded: &[u8]) -> usize {
    encoded.len() + ORIGIN_BYTES
}

/// Checks what [`write_carried`] wrote.
///
/// # Errors
/// [`BinaryError`] when the layout is not one of events, or the bytes do not form exactly one row and its origin.
pub fn read_carried(bytes: &[u8]) -> Result<Carried<'_>, BinaryError> {
    // tenant_id 16, event_id 16, timestamp 8
    const RECEIVED_AT: usize = 40;
    let (encoded, origin) = split(bytes)?;
    let (_, expires_at) = check(encoded)?;
    let (_, columns_and_origin) = columns(bytes)?;
    let mut received_at = columns_and_origin.get(RECEIVED_AT..).unwrap_or_default();
    let received_at_ms = i64::read_binary(&mut received_at, "received_at")?;
    Ok(Carried { columns: columns_and_origin, received_at_ms, expires_at, origin })
}

/// Decodes what [`write_carried`] wrote, borrowing its texts.
///
/// # Errors
/// As [`read_carried`].
pub fn decode_carried(bytes: &[u8]) -> Result<(Row<'_>, Origin), BinaryError> {
    let (encoded, origin) = split(bytes)?;
    Ok((decode(encoded)?, origin))
}

/// The event as the log keeps it, and its origin.
fn split(bytes: &[u8]) -> Result<(&[u8], Origin), BinaryError> {
    if let Some(&layout) = bytes.first().filter(|layout| **layout != LAYOUT) {
        return Err(BinaryError::UnknownLayout { layout });
    }
    let at = bytes.len().checked_sub(ORIGIN_BYTES).ok_or(BinaryError::Truncated { column: "wal_id" })?;
    let (encoded, mut origin) = bytes.split_at(at);
    Ok((encoded, Origin::read_binary(&mut origin)?))
}
