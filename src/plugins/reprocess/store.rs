//! Parked events in ClickHouse: read, looked up, stored, released.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use serde::Deserialize;

use super::{
    ReprocessError,
    page::{Page, Parked, Place},
};
use crate::{
    clickhouse::{Client, QueryError, quote_identifier, quote_text},
    erasure::Erasures,
    ledger::{self, Gone, Reason},
    row::{BinaryError, EVENT_COLUMNS, ORIGIN_COLUMNS, Origin, PARKED_COLUMNS, POSITION_COLUMNS, Row, Table},
    sink::{insert_settings, insert_statement, rest, source::Block},
};

/// Most rows of a page: one insert, and few enough that their ids fit into the text of one query.
const PAGE_ROWS: usize = 1000;
/// Most bytes of a page's events, one event apart: pages of the largest events hold a hundred.
const PAGE_BYTES: u64 = 32 << 20;
/// Most expiries of a page: each is a partition of the table, hence a part of its own.
const PAGE_EXPIRIES: usize = 20;
/// How often an insert is tried, and the pause after the first failure; it doubles. Somebody waits for this command: an
/// outage that lasts longer than 6 s is theirs to see.
const INSERT_TRIES: u32 = 6;
const INSERT_PAUSE: Duration = Duration::from_millis(200);

/// What a row costs a page.
#[derive(clickhouse::Row, Deserialize)]
struct Cost {
    bytes: u64,
    expiry: u32,
}

pub(super) struct Store {
    client: Client,
    erasures: Erasures,
    database: String,
    into_events: String,
    into_parked: String,
}

impl Store {
    pub(super) fn new(client: Client, erasures: Erasures) -> Self {
        let database = quote_identifier(client.database());
        let into_events = insert_statement(client.database(), "events", EVENT_COLUMNS, &[]);
        let into_parked = insert_statement(client.database(), "parked_events", PARKED_COLUMNS, &["released"]);
        Self { client, erasures, database, into_events, into_parked }
    }

    /// How many events are parked for `plugin`: those whose retention is over, or the others.
    pub(super) async fn count(&self, plugin: &str, expired: bool) -> Result<u64, ReprocessError> {
        let (database, plugin) = (&self.database, quote_text(plugin));
        let which = if expired { "<=" } else { ">" };
        let sql = format!(
            "SELECT count() FROM {database}.parked_events FINAL \
             WHERE plugin = {plugin} AND released = 0 AND expires_at {which} now()"
        );
        let counts: Vec<u64> = self.client.fetch(&sql).await.map_err(failed("counting the parked events"))?;
        Ok(counts.first().copied().unwrap_or(0))
    }

    /// The next page of `plugin` behind `behind`; None when there is none.
    pub(super) async fn page(&self, plugin: &str, behind: Option<&Place>) -> Result<Option<Page>, ReprocessError> {
        let (database, plugin) = (&self.database, quote_text(plugin));
        let behind = behind.map_or_else(String::new, |place| {
            let Place { tenant_id, received_at_ms, wal_id, wal_seq, wal_ordinal } = place;
            let (tenant_id, received_at) =
                (format!("toUUID('{tenant_id}')"), format!("fromUnixTimestamp64Milli({received_at_ms}, 'UTC')"));
            // The first condition says less than the second; the table's index understands it.
            format!(
                " AND (tenant_id > {tenant_id} OR tenant_id = {tenant_id} AND received_at >= {received_at}) \
                 AND (tenant_id, received_at, wal_id, wal_seq, wal_ordinal) > \
                 ({tenant_id}, {received_at}, toUUID('{wal_id}'), {wal_seq}, {wal_ordinal})"
            )
        });
        let from = format!(
            "FROM {database}.parked_events FINAL \
             WHERE plugin = {plugin} AND released = 0 AND expires_at > now(){behind} \
             ORDER BY tenant_id, received_at, wal_id, wal_seq, wal_ordinal"
        );
        let sql = format!("SELECT length(raw) AS bytes, toUInt32(expires_at) AS expiry {from} LIMIT {PAGE_ROWS}");
        let costs: Vec<Cost> = self.client.fetch(&sql).await.map_err(failed("reading parked events"))?;
        let rows = page_rows(&costs);
        if rows == 0 {
            return Ok(None);
        }
        let columns: Vec<String> = PARKED_COLUMNS
            .iter()
            .chain(ORIGIN_COLUMNS)
            .chain(POSITION_COLUMNS)
            .map(|column| quote_identifier(column))
            .collect();
        let sql = format!("SELECT {} {from} LIMIT {rows}", columns.join(", "));
        let body = self.client.fetch_row_binary(&sql).await.map_err(failed("reading parked events"))?;
        Page::read(body.into()).map_err(|source| ReprocessError::Row { from: "ClickHouse", source })
    }

    /// Which rows of `page` are in `events`, by their place in the page.
    pub(super) async fn stored(&self, page: &Page) -> Result<BTreeSet<usize>, ReprocessError> {
        // Tenant, type and id find the rows in the table, receipt and expiry its partitions; where they entered decides.
        let list = |texts: BTreeSet<String>| texts.into_iter().collect::<Vec<_>>().join(", ");
        let tenants = list(page.rows().map(|(row, ..)| format!("'{}'", row.tenant_id)).collect());
        let kinds = list(page.rows().map(|(row, ..)| quote_text(&row.kind)).collect());
        let events = list(page.rows().map(|(row, ..)| format!("'{}'", row.event_id)).collect());
        let expiries = list(page.rows().map(|(row, ..)| row.expires_at.to_string()).collect());
        let received = page.received();
        let columns: Vec<String> = ORIGIN_COLUMNS.iter().map(|column| quote_identifier(column)).collect();
        let sql = format!(
            "SELECT {} FROM {}.events WHERE tenant_id IN ({tenants}) AND type IN ({kinds}) \
             AND event_id IN ({events}) AND expires_at IN ({expiries}) \
             AND received_at BETWEEN fromUnixTimestamp64Milli({}, 'UTC') AND fromUnixTimestamp64Milli({}, 'UTC')",
            columns.join(", "),
            self.database,
            received.start(),
            received.end(),
        );
        let body = self.client.fetch_row_binary(&sql).await.map_err(failed("looking for stored events"))?;
        let mut input = &body[..];
        let mut found = BTreeSet::new();
        while !input.is_empty() {
            let origin = Origin::read_binary(&mut input);
            let origin = origin.map_err(|source| ReprocessError::Row { from: "ClickHouse", source })?;
            found.insert(origin.place());
        }
        Ok(page.stored(&found))
    }

    /// Inserts the accepted rows of `page` into `events`, but for those that were erased on request; returns how many these
    /// were.
    pub(super) async fn insert(&self, page: &Page, accepted: &[(usize, Vec<u8>)]) -> Result<usize, ReprocessError> {
        let block = Block { rows: accepted.len(), body: Bytes::from(page.accepted(accepted)?).into() };
        let token = format!("reprocess:{}", page.digest(accepted.iter().map(|(place, _)| *place)));
        let stored = self.store(&self.into_events, Table::Events, &token, &block);
        stored.await.map_err(|error| error.doing("storing reprocessed events"))
    }

    /// Tells the ledger of events that a plugin did not want.
    pub(super) async fn say_dropped(&self, page: &Page, places: &[usize]) -> Result<(), ReprocessError> {
        let gone =
            |(row, origin, position): Parked<'_>| Gone::new(&Row::Parked(row), &origin, &position, Reason::Dropped);
        let gone: Vec<Gone> = places.iter().filter_map(|place| page.row(*place).map(gone)).collect();
        ledger::record(&self.client, &gone).await.map_err(failed("noting what a plugin dropped"))
    }

    /// Marks all rows of `page` as released.
    pub(super) async fn release(&self, page: &Page) -> Result<(), ReprocessError> {
        let token = format!("released:{}", page.digest(0..page.len()));
        let block = Block { rows: page.len(), body: Bytes::from(page.released()).into() };
        let released = self.store(&self.into_parked, Table::Released, &token, &block);
        released.await.map_err(|error| error.doing("marking parked events as released")).map(drop)
    }

    /// Inserts what was not erased of `block`, under tombstones that are held until the insert has ended; returns how many
    /// rows were left out.
    async fn store(&self, statement: &str, table: Table, token: &String, block: &Block) -> Result<usize, StoreError> {
        let erased = self.erasures.lease().await?;
        let mut gone = Vec::new();
        let rest = if erased.is_empty() {
            block.clone()
        } else {
            rest(block, table, |row, origin, position| {
                if !erased.names(row) {
                    return true;
                }
                // What is only marked as released is where it was before.
                if table == Table::Events {
                    gone.push(Gone::new(row, origin, position, Reason::Erased));
                }
                false
            })?
        };
        ledger::record(&self.client, &gone).await?;
        self.repeat(statement, token, rest.rows, rest.body.by_row()).await?;
        Ok(block.rows - rest.rows)
    }

    /// One insert, repeated under its token for as long as it may help.
    async fn repeat(&self, statement: &str, token: &String, rows: usize, body: Bytes) -> Result<(), QueryError> {
        if rows == 0 {
            return Ok(());
        }
        let settings = insert_settings(token, rows);
        let mut pause = INSERT_PAUSE;
        for _ in 1..INSERT_TRIES {
            match self.client.insert(statement, &settings, body.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(token, %error, "an insert failed and is repeated"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.client.insert(statement, &settings, body).await
    }
}

/// Why a block was not stored.
enum StoreError {
    Query(QueryError),
    Row(BinaryError),
}

impl StoreError {
    fn doing(self, doing: &'static str) -> ReprocessError {
        match self {
            Self::Query(source) => ReprocessError::ClickHouse { doing, source },
            Self::Row(source) => ReprocessError::Row { from: "this engine", source },
        }
    }
}

impl From<QueryError> for StoreError {
    fn from(error: QueryError) -> Self {
        Self::Query(error)
    }
}

impl From<BinaryError> for StoreError {
    fn from(error: BinaryError) -> Self {
        Self::Row(error)
    }
}

/// How many of these rows make a page.
fn page_rows(costs: &[Cost]) -> usize {
    let (mut bytes, mut expiries) = (0_u64, BTreeSet::new());
    let fits = |cost: &&Cost| {
        let first = bytes == 0 && expiries.is_empty();
        bytes = bytes.saturating_add(cost.bytes);
        expiries.insert(cost.expiry);
        first || (bytes <= PAGE_BYTES && expiries.len() <= PAGE_EXPIRIES)
    };
    costs.iter().take_while(fits).count()
}

fn failed(doing: &'static str) -> impl FnOnce(QueryError) -> ReprocessError {
    move |source| ReprocessError::ClickHouse { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_to_bytes_and_expiries_and_never_is_empty() {
        let cost = |bytes, expiry| Cost { bytes, expiry };
        let many = |count, bytes| (0..count).map(|_| cost(bytes, 1)).collect::<Vec<_>>();
        assert_eq!(page_rows(&[]), 0);
        assert_eq!(page_rows(&[cost(PAGE_BYTES + 1, 1), cost(1, 1)]), 1);
        assert_eq!(page_rows(&many(10, PAGE_BYTES / 4)), 4);
        assert_eq!(page_rows(&many(10, 0)), 10);
        let expiries: Vec<_> = (0..50).map(|expiry| cost(1, expiry)).collect();
        assert_eq!(page_rows(&expiries), PAGE_EXPIRIES);
    }
}
