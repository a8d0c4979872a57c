//! The row: one event as it is kept in the write-ahead log, carried by the broker and inserted into ClickHouse.
//!
//! An event is parsed once, at the front, and encoded once, into ClickHouse's own
//! [`RowBinary`](https://clickhouse.com/docs/interfaces/formats/RowBinary), so that on one node the sink copies bytes:
//! the row from the log, then its provenance. Through a broker the same bytes travel, or, where a topic is read by others
//! too, the row as JSON, which the sink turns back into RowBinary.
//!
//! ```text
//! in the log    layout (1 byte) | columns, RowBinary, in the order of EVENT_COLUMNS (1) or PARKED_COLUMNS (2)
//! in a topic    layout | columns | wal_id wal_seq wal_ordinal relayed_at; or one JSON object a line: event columns that are
//!               not empty, and the origin
//! in an insert  columns | wal_id wal_seq wal_ordinal relayed_at | topic partition offset
//! ```
//!
//! - There are two kinds of rows. An event goes into `events`. A parked event, one that could not be run through a plugin,
//!   goes into `parked_events` as it was sent, never into `events` and never into the topic that others read.
//! - The columns of fixed size stand first, the same ones in both kinds, so that the expiry of an encoded row is read
//!   without decoding it.
//! - A column is added at the end of its group, with a new layout number; the decoder keeps the old layouts.
//! - `context` and `properties` are JSON objects as text, without line breaks outside of strings, or empty.
//! - What this is not: a general serialisation. It knows two tables.

mod binary;
mod carried;
mod columns;
mod json;
mod line;
mod native;
mod parked;
mod sighted;

use binary::ColumnValue as _;
pub use binary::{BinaryError, Json, Text, write_bytes_binary, write_uuid_binary};
pub use carried::{Carried, carried_len, decode_carried, read_carried, write_carried};
pub use columns::{
    EVENT_COLUMNS, EventRow, ORIGIN_COLUMNS, Origin, PARKED_COLUMNS, POSITION_COLUMNS, ParkedRow, Place, Position,
};
pub use json::{JsonError, read_json, write_json};
pub use native::{Columns, Filler, Piece, by_column};
pub use parked::{read_parked_json, write_parked_json};
pub use sighted::{Sighted, sent_ids};

use crate::ids::{EventId, TenantId};

/// Number of the layout of events that this version writes; the first byte of a row in the log.
pub const LAYOUT: u8 = 1;

/// Number of the layout of parked events that this version writes.
pub const PARKED_LAYOUT: u8 = 2;

/// `expires_at` of a row that is kept for ever: the last second that ClickHouse's `DateTime` can hold.
pub const EXPIRES_NEVER: u32 = u32::MAX;

/// Appends `row` to `out` in the form in which the log keeps it.
pub fn encode(row: &EventRow<'_>, out: &mut Vec<u8>) {
    out.push(LAYOUT);
    row.write_binary(out);
}

/// Appends `row` to `out` in the form in which the log keeps it.
pub fn encode_parked(row: &ParkedRow<'_>, out: &mut Vec<u8>) {
    out.push(PARKED_LAYOUT);
    row.write_binary(out);
}

/// A row of either kind.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly every row is of the large kind, and none is kept")]
pub enum Row<'a> {
    /// Goes into `events`.
    Event(EventRow<'a>),
    /// Goes into `parked_events`.
    Parked(ParkedRow<'a>),
}

impl Row<'_> {
    /// Whose it is.
    pub fn tenant_id(&self) -> TenantId {
        match self {
            Self::Event(event) => event.tenant_id,
            Self::Parked(parked) => parked.tenant_id,
        }
    }

    /// Which event it is.
    pub fn event_id(&self) -> EventId {
        match self {
            Self::Event(event) => event.event_id,
            Self::Parked(parked) => parked.event_id,
        }
    }

    /// Unix seconds from which it may be dropped.
    pub fn expires_at(&self) -> u32 {
        match self {
            Self::Event(event) => event.expires_at,
            Self::Parked(parked) => parked.expires_at,
        }
    }
}

/// The table that an insert is into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `events`.
    Events,
    /// `parked_events`.
    Parked,
    /// `parked_events`, each row followed by its `released`.
    Released,
}

impl Table {
    /// As ClickHouse knows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Parked | Self::Released => "parked_events",
        }
    }

    /// Columns of its rows, before their origin and position.
    pub const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Events => EVENT_COLUMNS,
            Self::Parked | Self::Released => PARKED_COLUMNS,
        }
    }
}

/// Reads one complete row of an insert as [`write_insert_row`] wrote it, with where it entered and where it was read, moving
/// `input` past it.
///
/// # Errors
/// [`BinaryError`] when the bytes do not begin with such a row.
pub fn read_insert_row<'a>(table: Table, input: &mut &'a [u8]) -> Result<(Row<'a>, Origin, Position<'a>), BinaryError> {
    let row = match table {
        Table::Events => Row::Event(EventRow::read_binary(input)?),
        Table::Parked | Table::Released => Row::Parked(ParkedRow::read_binary(input)?),
    };
    let (origin, position) = (Origin::read_binary(input)?, Position::read_binary(input)?);
    if table == Table::Released {
        binary::take(input, 1, "released")?;
    }
    Ok((row, origin, position))
}

/// Decodes a row as [`encode`] or [`encode_parked`] wrote it, borrowing its texts.
///
/// # Errors
/// [`BinaryError`] when the layout is unknown or the bytes do not form exactly one row.
pub fn decode(encoded: &[u8]) -> Result<Row<'_>, BinaryError> {
    let (layout, mut input) = columns(encoded)?;
    let row = if layout == PARKED_LAYOUT {
        Row::Parked(ParkedRow::read_binary(&mut input)?)
    } else {
        Row::Event(EventRow::read_binary(&mut input)?)
    };
    if input.is_empty() { Ok(row) } else { Err(BinaryError::TrailingBytes { count: input.len() }) }
}

/// Whether these bytes are a row, as [`decode`] says, for a third of its cost; gives the table that it is for, and when it
/// expires.
///
/// # Errors
/// As [`decode`], with the names of the table's columns.
pub fn check(encoded: &[u8]) -> Result<(Table, u32), BinaryError> {
    let (layout, mut input) = columns(encoded)?;
    let (table, layouts) = match layout {
        PARKED_LAYOUT => (Table::Parked, ParkedRow::LAYOUTS),
        _ => (Table::Events, EventRow::LAYOUTS),
    };
    for (name, layout) in table.columns().iter().zip(layouts) {
        layout.check(&mut input, name)?;
    }
    if input.is_empty() {
        Ok((table, expires_at(encoded)?))
    } else {
        Err(BinaryError::TrailingBytes { count: input.len() })
    }
}

/// Tenant and event id, and where the row comes from, as a query of these columns in this order answers; moves `input` past
/// them.
///
/// # Errors
/// [`BinaryError`] when the bytes do not begin with them.
pub fn read_identity(input: &mut &[u8]) -> Result<((TenantId, EventId), Origin), BinaryError> {
    let tenant_id = TenantId::read_binary(input, "tenant_id")?;
    let event_id = EventId::read_binary(input, "event_id")?;
    Ok(((tenant_id, event_id), Origin::read_binary(input)?))
}

/// Which event a row of an insert is, when it was received and where it comes from, moving `input` past it.
///
/// # Errors
/// [`BinaryError`] when the bytes do not begin with a row as [`write_insert_row`] wrote it.
pub fn read_insert_origin(table: Table, input: &mut &[u8]) -> Result<((TenantId, EventId), i64, Origin), BinaryError> {
    let (event, received_at_ms) = match table {
        Table::Events => {
            let row = EventRow::read_binary(input)?;
            ((row.tenant_id, row.event_id), row.received_at_ms)
        }
        Table::Parked | Table::Released => {
            let row = ParkedRow::read_binary(input)?;
            ((row.tenant_id, row.event_id), row.received_at_ms)
        }
    };
    let origin = Origin::read_binary(input)?;
    Position::read_binary(input)?;
    if table == Table::Released {
        binary::take(input, 1, "released")?;
    }
    Ok((event, received_at_ms, origin))
}

/// Layout and columns of an encoded row. The columns are ready to be copied into an insert.
fn columns(encoded: &[u8]) -> Result<(u8, &[u8]), BinaryError> {
    match encoded.split_first() {
        Some((&layout @ (LAYOUT | PARKED_LAYOUT), columns)) => Ok((layout, columns)),
        Some((&layout, _)) => Err(BinaryError::UnknownLayout { layout }),
        None => Err(BinaryError::Truncated { column: "layout" }),
    }
}

/// The event id of an encoded row, without decoding the rest; the nil id of bytes that are no row.
pub fn event_id(encoded: &[u8]) -> EventId {
    let id = columns(encoded).ok().and_then(|(_, mut columns)| {
        TenantId::read_binary(&mut columns, "tenant_id").ok()?;
        EventId::read_binary(&mut columns, "event_id").ok()
    });
    id.unwrap_or(EventId(uuid::Uuid::nil()))
}

/// The expiry of an encoded row, in Unix seconds ([`EXPIRES_NEVER`] for none), without decoding the rest.
///
/// # Errors
/// [`BinaryError`] when the layout is unknown or the row is shorter than its fixed columns.
pub fn expires_at(encoded: &[u8]) -> Result<u32, BinaryError> {
    // tenant_id 16, event_id 16, timestamp 8, received_at 8
    const OFFSET: usize = 48;
    let (_, columns) = columns(encoded)?;
    columns
        .get(OFFSET..OFFSET + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes)
        .ok_or(BinaryError::Truncated { column: "expires_at" })
}

/// Appends one complete row of an insert to `out`: its columns, origin, position. The insert is into the table of the row's
/// kind.
///
/// # Errors
/// [`BinaryError`] when the layout of `encoded` is unknown; `out` is unchanged then.
pub fn write_insert_row(
    encoded: &[u8],
    origin: &Origin,
    position: &Position<'_>,
    out: &mut Vec<u8>,
) -> Result<(), BinaryError> {
    out.extend_from_slice(columns(encoded)?.1);
    origin.write_binary(out);
    position.write_binary(out);
    Ok(())
}

/// Writes the key that decides an encoded event's partition: `tenant:session`, else the user, else the anonymous id, else the
/// event's own id, so that everything of one session stays in order in one partition. Gives the table that the row is for;
/// a parked one has no key. Looks no further than it must.
///
/// # Errors
/// [`BinaryError`] when the layout is unknown or the bytes do not begin with the columns that are looked at.
pub fn write_partition_key(encoded: &[u8], key: &mut Vec<u8>) -> Result<Table, BinaryError> {
    let (layout, mut input) = columns(encoded)?;
    if layout == PARKED_LAYOUT {
        return Ok(Table::Parked);
    }
    let tenant_id = TenantId::read_binary(&mut input, "tenant_id")?;
    let event_id = EventId::read_binary(&mut input, "event_id")?;
    i64::read_binary(&mut input, "timestamp")?;
    i64::read_binary(&mut input, "received_at")?;
    u32::read_binary(&mut input, "expires_at")?;
    binary::take_string(&mut input, "type")?;
    let mut text = |column| Text::read_binary(&mut input, column);
    let owners = [text("session_id")?, text("user_id")?, text("anonymous_id")?];
    write_uuid(tenant_id.0, key);
    key.push(b':');
    match owners.iter().find(|id| !id.is_empty()) {
        Some(id) => key.extend_from_slice(id.as_bytes()),
        None => write_uuid(event_id.0, key),
    }
    Ok(Table::Events)
}

fn write_uuid(id: uuid::Uuid, out: &mut Vec<u8>) {
    out.extend_from_slice(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).as_bytes());
}

#[cfg(test)]
mod tests;
