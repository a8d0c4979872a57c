//! A parked row as a line of JSON, as it stands in the topic of parked rows. Every column is there; `raw` is a string, so
//! that the sender's bytes come out as they went in.

use serde::Deserialize;

use super::{
    binary::Text,
    columns::{Origin, ParkedRow},
    json::{JsonError, milliseconds, write_identity, write_origin, write_value},
};
use crate::ids::{EventId, TenantId, WalId};

/// Columns and origin as one flat object. Unknown names are refused: they would be columns that a newer version wrote
/// and this one would lose.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "'de: 'a"))]
struct Wire<'a> {
    tenant_id: TenantId,
    event_id: EventId,
    #[serde(deserialize_with = "milliseconds")]
    timestamp: i64,
    #[serde(deserialize_with = "milliseconds")]
    received_at: i64,
    expires_at: u32,
    plugin: Text<'a>,
    #[serde(rename = "type")]
    kind: Text<'a>,
    reason: Text<'a>,
    raw: Text<'a>,
    wal_id: WalId,
    wal_seq: u64,
    wal_ordinal: u32,
    #[serde(deserialize_with = "milliseconds")]
    relayed_at: i64,
}

/// Appends `row` and `origin` to `out` as one JSON object, without a line break.
pub fn write_parked_json(row: &ParkedRow<'_>, origin: &Origin, out: &mut Vec<u8>) {
    write_identity(row.tenant_id, row.event_id, [row.timestamp_ms, row.received_at_ms], row.expires_at, out);
    for (name, text) in [
        (&b",\"plugin\":"[..], &row.plugin),
        (b",\"type\":", &row.kind),
        (b",\"reason\":", &row.reason),
        (b",\"raw\":", &row.raw),
    ] {
        out.extend_from_slice(name);
        write_value::<str>(text, out);
    }
    write_origin(origin, out);
}

/// Reads one line as [`write_parked_json`] wrote it.
///
/// # Errors
/// [`JsonError`] when the line is not JSON, misses a column, or has one that no parked row has.
pub fn read_parked_json(line: &[u8]) -> Result<(ParkedRow<'_>, Origin), JsonError> {
    let wire: Wire<'_> = serde_json::from_slice(line)?;
    let row = ParkedRow {
        tenant_id: wire.tenant_id,
        event_id: wire.event_id,
        timestamp_ms: wire.timestamp,
        received_at_ms: wire.received_at,
        expires_at: wire.expires_at,
        plugin: wire.plugin,
        kind: wire.kind,
        reason: wire.reason,
        raw: wire.raw,
    };
    let origin = Origin {
        wal_id: wire.wal_id,
        wal_seq: wire.wal_seq,
        wal_ordinal: wire.wal_ordinal,
        relayed_at_ms: wire.relayed_at,
    };
    Ok((row, origin))
}
