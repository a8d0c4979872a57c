//! Giving the rows of a tenant another `expires_at`, table by table.
//!
//! ```text
//! 1  create   retention_<tenant>_<table>: like the table; no view reads it
//! 2  copy     every row whose expiry is to change and whose new one is still to come, with the new one
//! 3  rename   to retention_ready_<tenant>_<table>: the copy is complete; its comment has the cut and the retention
//! 4  delete   from the table: what was copied, and what is past its time (a mutation, at the operator's word); the ledger
//!             is told before
//! 5  move     the copy's partitions into the table, whole parts, so that no view counts them again
//! 6  drop     the copy, empty now
//! ```
//!
//! - A crash before 3 leaves the table as it was; the next run drops the copy and begins anew. After 3 the next run goes
//!   on at 4, which does nothing a second time: what has been moved has the new expiry, and only others are deleted.
//! - Only what was copied is deleted, row by row: a row that was received before the cut may reach the table at any time
//!   later, out of the log or the broker. It keeps its old expiry until the next run.
//! - From 4 until the end of 5 queries miss the tenant's copied rows.

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Done;
use crate::{
    clickhouse::{Client, REWRITE_TIMEOUT, quote_identifier, quote_text},
    event::Retention,
    ledger,
    row::EXPIRES_NEVER,
};

/// The version of a row, where a table has one: of those of one sort key the highest stays.
const VERSION: &str = "released";

/// Exit code of a process that was told to end in between.
const EXIT_STOPPED: u8 = 3;

/// What begins the names of copies.
const COPY: &str = "retention_";
/// What begins the names of complete ones. (No id of a tenant does.)
const READY: &str = "retention_ready_";

/// A table whose partitions are made by `expires_at`.
#[derive(clickhouse::Row, Deserialize)]
struct Found {
    name: String,
    sorting_key: String,
    /// Whether it has [`VERSION`].
    versioned: u8,
}

/// What a complete copy is for: its comment.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// None: keep.
    kept_seconds: Option<i64>,
    /// Rows received after this are not meant, and what would expire before is past its time. Milliseconds since 1970.
    cut_ms: i64,
    rewritten: u64,
    dropped: u64,
    /// Seconds since 1970; 0 with no row.
    last: u32,
}

#[derive(clickhouse::Row, Deserialize)]
struct Counted {
    rewritten: u64,
    dropped: u64,
    last: u32,
}

/// What begins the names of `tenant`'s complete copies.
pub(super) fn ready_prefix(tenant: Uuid) -> String {
    format!("{READY}{}_", tenant.simple())
}

/// Rewrites the rows of `tenant` that are not kept as `retention` says, in every table. Gives the tables of which rows
/// have changed, those that an earlier run left unfinished first.
pub(super) async fn apply(
    client: &Client,
    tenant: Uuid,
    retention: Retention,
    stop_after: Option<u8>,
) -> Result<Vec<Done>> {
    let mut done = Vec::new();
    for found in tables(client).await? {
        let table = Table { client, tenant, found, stop_after };
        let name = table.found.name.clone();
        done.extend(table.apply(retention).await.with_context(|| format!("table {name}"))?);
    }
    Ok(done)
}

async fn tables(client: &Client) -> Result<Vec<Found>> {
    let sql = format!(
        "SELECT t.name AS name, any(t.sorting_key) AS sorting_key, max(c.name = '{VERSION}') AS versioned \
         FROM system.tables AS t INNER JOIN system.columns AS c ON c.database = t.database AND c.table = t.name \
         WHERE t.database = {database} AND t.engine LIKE '%MergeTree' AND position(t.partition_key, 'expires_at') > 0 \
             AND NOT startsWith(t.name, '{COPY}') \
         GROUP BY t.name HAVING hasAll(groupArray(c.name), ['tenant_id', 'received_at', 'expires_at']) ORDER BY t.name",
        database = quote_text(client.database()),
    );
    client.fetch(&sql).await.context("looking for the tables")
}

struct Table<'a> {
    client: &'a Client,
    tenant: Uuid,
    found: Found,
    stop_after: Option<u8>,
}

impl Table<'_> {
    async fn apply(&self, retention: Retention) -> Result<Vec<Done>> {
        let mut done = Vec::new();
        if let Some(record) = self.unfinished().await? {
            self.finish(&record).await?;
            done.push(self.done(&record));
        }
        self.execute(&format!("DROP TABLE IF EXISTS {} SYNC", self.copy())).await?;
        let kept_seconds = match retention {
            Retention::Seconds(kept) => Some(kept),
            Retention::Keep => None,
        };
        let cut_ms = Timestamp::now().as_millisecond();
        let record = self.count(Record { kept_seconds, cut_ms, rewritten: 0, dropped: 0, last: 0 }).await?;
        if record.rewritten + record.dropped > 0 {
            let record = self.make_copy(record).await?;
            self.finish(&record).await?;
            done.push(self.done(&record));
        }
        Ok(done)
    }

    /// The record of a complete copy that an earlier run left.
    async fn unfinished(&self) -> Result<Option<Record>> {
        let sql = format!(
            "SELECT comment FROM system.tables WHERE database = {} AND name = {}",
            quote_text(self.client.database()),
            quote_text(&self.ready_name())
        );
        let comments = self.client.fetch::<String>(&sql).await?;
        let record = |comment: &String| serde_json::from_str(comment).context("reading the comment of a copy");
        comments.first().map(record).transpose()
    }

    /// How many rows are meant by `record`.
    async fn count(&self, record: Record) -> Result<Record> {
        let sql = format!(
            "SELECT countIf(new > cut) AS rewritten, countIf(new <= cut) AS dropped, \
                 toUInt32(maxIf(new, new > cut)) AS last \
             FROM (SELECT {new} AS new, {cut} AS cut FROM {table} WHERE {meant})",
            new = record.expires_at(),
            cut = record.cut(),
            table = self.table(),
            meant = self.meant(&record),
        );
        let counted = self.client.fetch_within::<Counted>(&sql, REWRITE_TIMEOUT).await?;
        let Some(Counted { rewritten, dropped, last }) = counted.into_iter().next() else {
            bail!("no answer to a count")
        };
        Ok(Record { rewritten, dropped, last, ..record })
    }

    /// Steps 1 to 3.
    async fn make_copy(&self, record: Record) -> Result<Record> {
        let (table, copy) = (self.table(), self.copy());
        self.execute(&format!("CREATE TABLE {copy} AS {table}")).await?;
        self.step(1);
        // Repeats are told apart by the copy as a whole, not by its blocks.
        self.execute(&format!(
            "INSERT INTO {copy} SELECT * REPLACE ({new} AS expires_at) \
             FROM (SELECT * FROM {table} WHERE {meant} AND {new} > {cut}) \
             SETTINGS max_partitions_per_insert_block = 0, insert_deduplicate = 0, async_insert = 0",
            new = record.expires_at(),
            cut = record.cut(),
            meant = self.meant(&record),
        ))
        .await?;
        self.step(2);
        // What was stored since it was counted is in the copy too.
        let rewritten =
            self.client.fetch_within::<u64>(&format!("SELECT count() FROM {copy}"), REWRITE_TIMEOUT).await?;
        let record = Record { rewritten: rewritten.first().copied().unwrap_or(record.rewritten), ..record };
        let comment = quote_text(&serde_json::to_string(&record)?);
        self.execute(&format!("ALTER TABLE {copy} MODIFY COMMENT {comment}")).await?;
        self.execute(&format!("RENAME TABLE {copy} TO {}", self.ready())).await?;
        self.step(3);
        Ok(record)
    }

    /// Steps 4 to 6.
    async fn finish(&self, record: &Record) -> Result<()> {
        let (table, ready) = (self.table(), self.ready());
        let deleted = format!(
            "{meant} AND ({new} <= {cut} OR {row} IN ({copied}))",
            meant = self.meant(record),
            new = record.expires_at(),
            cut = record.cut(),
            row = self.row(),
            copied = self.copied(),
        );
        let (name, token) = (&self.found.name, format!("{}:{}", self.ready_name(), record.cut_ms));
        let said = ledger::moved(self.client, name, &deleted, &record.expires_at(), &token).await;
        said.context("telling the ledger")?;
        // Waits for an earlier run's delete as well: they are carried out in order.
        self.execute(&format!("ALTER TABLE {table} DELETE WHERE {deleted} SETTINGS mutations_sync = 2")).await?;
        self.step(4);
        let partitions = format!(
            "SELECT DISTINCT partition_id FROM system.parts WHERE database = {} AND table = {} AND active ORDER BY 1",
            quote_text(self.client.database()),
            quote_text(&self.ready_name())
        );
        for partition in self.client.fetch::<String>(&partitions).await? {
            self.execute(&format!("ALTER TABLE {ready} MOVE PARTITION ID {} TO TABLE {table}", quote_text(&partition)))
                .await?;
            self.step(5);
        }
        let left = self.client.fetch_within::<u64>(&format!("SELECT count() FROM {ready}"), REWRITE_TIMEOUT).await?;
        if left.first() != Some(&0) {
            bail!("rows are left in {ready}; the next run goes on with them");
        }
        self.execute(&format!("DROP TABLE {ready} SYNC")).await
    }

    /// Which rows are meant: the tenant's, received before the cut, and with another expiry.
    fn meant(&self, record: &Record) -> String {
        format!(
            "tenant_id = toUUID('{}') AND received_at <= fromUnixTimestamp64Milli({}, 'UTC') AND expires_at != {}",
            self.tenant,
            record.cut_ms,
            record.expires_at()
        )
    }

    /// What a row of the table and its copy have in common: the sort key, by which the table itself takes rows for
    /// one, and the version.
    fn row(&self) -> String {
        let version = if self.found.versioned == 0 { String::new() } else { format!(", {VERSION}") };
        format!("sipHash128({}{version})", self.found.sorting_key)
    }

    /// The rows of the table that the copy stands for: its own, and lower versions that it has merged into them. A higher
    /// one has been stored since, and says more than the copy does.
    fn copied(&self) -> String {
        let ready = self.ready();
        if self.found.versioned == 0 {
            return format!("SELECT {} FROM {ready}", self.row());
        }
        format!("SELECT sipHash128({}, toUInt8(arrayJoin(range({VERSION} + 1)))) FROM {ready}", self.found.sorting_key)
    }

    fn table(&self) -> String {
        self.quoted(&self.found.name)
    }

    fn copy(&self) -> String {
        self.quoted(&format!("{COPY}{}_{}", self.tenant.simple(), self.found.name))
    }

    fn ready_name(&self) -> String {
        format!("{}{}", ready_prefix(self.tenant), self.found.name)
    }

    fn ready(&self) -> String {
        self.quoted(&self.ready_name())
    }

    fn quoted(&self, name: &str) -> String {
        format!("{}.{}", quote_identifier(self.client.database()), quote_identifier(name))
    }

    async fn execute(&self, sql: &str) -> Result<()> {
        let first_words: Vec<_> = sql.split_whitespace().take(3).collect();
        self.client.execute_within(sql, REWRITE_TIMEOUT).await.with_context(|| first_words.join(" "))
    }

    /// Where a test of crashes ends the process: nothing is tidied up.
    fn step(&self, step: u8) {
        if self.stop_after == Some(step) {
            std::process::exit(i32::from(EXIT_STOPPED));
        }
    }

    fn done(&self, record: &Record) -> Done {
        let until = |last: u32| match last {
            EXPIRES_NEVER => "never".to_owned(),
            last => Timestamp::from_second(last.into()).map_or_else(|_| last.to_string(), |time| time.to_string()),
        };
        Done {
            table: self.found.name.clone(),
            rewritten: record.rewritten,
            dropped: record.dropped,
            kept_until: (record.rewritten > 0).then(|| until(record.last)),
        }
    }
}

impl Record {
    fn expires_at(&self) -> String {
        self.kept_seconds.map_or(Retention::Keep, Retention::Seconds).expires_at_sql()
    }

    /// The cut as a value of `expires_at`.
    fn cut(&self) -> String {
        format!("toDateTime({}, 'UTC')", self.cut_ms.div_euclid(1000))
    }
}
