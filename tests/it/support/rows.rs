//! Rows and ranges as a source makes them.

use bytes::Bytes;
use ingestion_engine::{
    ids::{EventId, TenantId, WalId},
    row::{self, EventRow, Origin, Position},
    sink::source::{Block, Range, RangeId},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A time in 2026, and an expiry in 2100 that no test lives to see.
pub const NOW_MS: i64 = 1_790_000_000_000;
pub const FAR: u32 = 4_102_444_800;

/// The `number`th event of a test: types take turns, ids never repeat.
pub fn event(number: u64) -> EventRow<'static> {
    let kind = ["pageview", "click", "performance", "custom"][(number % 4) as usize];
    let id = EventId(Uuid::from_u128(0x7000_8000_0000_0000_0000 + u128::from(number)));
    let mut row = EventRow::new(TenantId(Uuid::from_u128(u128::from(number % 3) + 1)), id, kind);
    row.timestamp_ms = NOW_MS + i64::try_from(number).unwrap();
    row.received_at_ms = NOW_MS;
    row.expires_at = FAR;
    row.path = "/pricing".into();
    row.session_id = row::Text(format!("session-{}", number % 10).into());
    row.properties = row::Json::from(r#"{"campaign":"spring","price":12.5}"#);
    if kind == "performance" {
        row.lcp = Some(1000.0 + f64::from(u32::try_from(number % 1000).unwrap()));
    }
    row
}

/// A range of partition `partition` whose offsets are one per row, from `first`.
pub fn range<'a>(partition: u32, first: u64, events: impl IntoIterator<Item = EventRow<'a>>) -> Range {
    let mut body = Vec::new();
    let mut offset = first;
    for event in events {
        let mut encoded = Vec::new();
        row::encode(&event, &mut encoded);
        let wal_id = WalId(Uuid::from_u128(7));
        let origin = Origin { wal_id, wal_seq: offset, wal_ordinal: 0, relayed_at_ms: NOW_MS };
        let position = Position { topic: "events".into(), partition, offset };
        row::write_insert_row(&encoded, &origin, &position, &mut body).unwrap();
        offset += 1;
    }
    Range {
        id: RangeId { topic: "events".into(), partition, first, last: offset - 1, mark: None },
        rows: usize::try_from(offset - first).unwrap(),
        body: Bytes::from(body).into(),
        parked: Block::default(),
        oldest_received_at_ms: NOW_MS,
        first_expiry: row::EXPIRES_NEVER,
        replayed: false,
        of_earlier_opening: false,
        beside: None,
        generation: 0,
        revoked: CancellationToken::new(),
    }
}
