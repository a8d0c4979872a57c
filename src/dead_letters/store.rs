//! The table of dead letters.

use std::fmt::Write as _;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::letter::{COLUMNS, Letter};
use crate::{
    clickhouse::{Client, QueryError, REWRITE_TIMEOUT, quote_identifier, quote_text},
    ids::WalId,
    ledger::{self, Gone},
    sink::insert_settings,
};

/// Which letters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// By name; empty: any.
    pub letters: Vec<Uuid>,
    /// Of this tenant.
    pub tenant: Option<Uuid>,
    /// Of this event.
    pub event: Option<Uuid>,
    /// Whose reason contains this, in whatever case.
    pub reason: Option<String>,
    /// That failed at this stage.
    pub stage: Option<String>,
    /// That failed at or after this moment, Unix milliseconds.
    pub since_ms: Option<i64>,
    /// That failed before this moment, Unix milliseconds.
    pub until_ms: Option<i64>,
}

impl Filter {
    /// Whether it names `letter`: what [`Filter::condition`] says, of a letter in a file.
    pub(super) fn names(&self, letter: &Letter) -> bool {
        let contains = |reason: &String| letter.reason.to_lowercase().contains(&reason.to_lowercase());
        (self.letters.is_empty() || self.letters.contains(&letter.letter_id))
            && self.tenant.is_none_or(|tenant| letter.tenant_id.0 == tenant)
            && self.event.is_none_or(|event| letter.event_id.0 == event)
            && self.reason.as_ref().is_none_or(contains)
            && self.stage.as_ref().is_none_or(|stage| letter.stage.as_str() == stage)
            && self.since_ms.is_none_or(|since| letter.died_at_ms >= since)
            && self.until_ms.is_none_or(|until| letter.died_at_ms < until)
    }

    fn condition(&self) -> String {
        let mut condition = "1".to_owned();
        let mut and = |arguments: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            write!(condition, " AND {arguments}").unwrap_or(());
        };
        if !self.letters.is_empty() {
            and(format_args!("letter_id IN ({})", list(&self.letters)));
        }
        if let Some(tenant) = self.tenant {
            and(format_args!("tenant_id = '{tenant}'"));
        }
        if let Some(event) = self.event {
            and(format_args!("event_id = '{event}'"));
        }
        if let Some(reason) = &self.reason {
            and(format_args!("positionCaseInsensitiveUTF8(reason, {}) > 0", quote_text(reason)));
        }
        if let Some(stage) = &self.stage {
            and(format_args!("stage = {}", quote_text(stage)));
        }
        if let Some(since) = self.since_ms {
            and(format_args!("died_at >= fromUnixTimestamp64Milli({since}, 'UTC')"));
        }
        if let Some(until) = self.until_ms {
            and(format_args!("died_at < fromUnixTimestamp64Milli({until}, 'UTC')"));
        }
        condition
    }
}

/// A letter as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, clickhouse::Row, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    #[serde(with = "clickhouse::serde::uuid")]
    pub letter_id: Uuid,
    /// Whose; the highest UUID when not known.
    #[serde(with = "clickhouse::serde::uuid")]
    pub tenant_id: Uuid,
    /// Which event; nil when not known.
    #[serde(with = "clickhouse::serde::uuid")]
    pub event_id: Uuid,
    /// `held`, `replayed`, `dropped` or `removed`.
    pub state: String,
    /// When that became of it, Unix milliseconds; 0 while it is held.
    pub version: u64,
    /// Unix milliseconds.
    pub died_at_ms: i64,
    /// Unix milliseconds.
    pub received_at_ms: i64,
    /// Unix seconds.
    pub expires_at: u32,
    /// Where it failed.
    pub stage: String,
    /// Why.
    pub reason: String,
    /// What the bytes are.
    pub form: String,
    /// How many.
    pub size: u64,
    /// Where it entered; nil when not known.
    #[serde(with = "clickhouse::serde::uuid")]
    pub wal_id: Uuid,
    /// Where it entered.
    pub wal_seq: u64,
    /// Where it entered.
    pub wal_ordinal: u32,
    /// Where it stood in a topic; empty: in none.
    pub topic: String,
    /// Where it stood in a topic.
    pub partition: u32,
    /// Where it stood in a topic.
    pub offset: u64,
    /// Where it stood in a topic.
    pub line: u32,
    /// The bytes, as base64; empty where they were not asked for, or are gone.
    pub bytes: String,
}

impl From<&Letter> for Entry {
    fn from(letter: &Letter) -> Self {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        Self {
            letter_id: letter.letter_id,
            tenant_id: letter.tenant_id.0,
            event_id: letter.event_id.0,
            state: "held".to_owned(),
            version: 0,
            died_at_ms: letter.died_at_ms,
            received_at_ms: letter.received_at_ms,
            expires_at: letter.expires_at,
            stage: letter.stage.as_str().to_owned(),
            reason: letter.reason.clone(),
            form: letter.form.as_str().to_owned(),
            size: letter.bytes.len() as u64,
            wal_id: letter.wal_id.0,
            wal_seq: letter.wal_seq,
            wal_ordinal: letter.wal_ordinal,
            topic: letter.topic.clone(),
            partition: letter.partition,
            offset: letter.offset,
            line: letter.line,
            bytes: STANDARD.encode(&letter.bytes),
        }
    }
}

/// What becomes of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Replayed,
    Dropped,
    Removed,
}

impl Fate {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::Dropped => "dropped",
            Self::Removed => "removed",
        }
    }
}

/// How many letters, and how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clickhouse::Row, Deserialize)]
pub(super) struct Held {
    pub(super) letters: u64,
    pub(super) bytes: u64,
}

#[derive(clickhouse::Row, Deserialize)]
#[expect(clippy::struct_field_names, reason = "columns")]
struct Place {
    #[serde(with = "clickhouse::serde::uuid")]
    wal_id: Uuid,
    wal_seq: u64,
    wal_ordinal: u32,
}

#[derive(clickhouse::Row, Deserialize)]
struct Event {
    #[serde(with = "clickhouse::serde::uuid")]
    event_id: Uuid,
}

#[derive(Clone)]
pub(crate) struct Store {
    client: Client,
    database: String,
}

impl Store {
    pub(crate) fn new(client: Client) -> Self {
        let database = quote_identifier(client.database());
        Self { client, database }
    }

    /// Inserts letters. Those that are there already stay one.
    pub(super) async fn insert(&self, letters: &[Letter]) -> Result<(), QueryError> {
        let mut body = Vec::new();
        for letter in letters {
            letter.write_row(&mut body);
        }
        let sql = format!("INSERT INTO {}.dead_letters ({COLUMNS}) FORMAT RowBinary", self.database);
        let token = Uuid::new_v4();
        self.client.insert(&sql, &insert_settings(&token, letters.len()), Bytes::from(body)).await
    }

    /// Tells the ledger that events ended here.
    pub(super) async fn note(&self, gone: &[Gone]) -> Result<(), QueryError> {
        ledger::record(&self.client, gone).await
    }

    /// Held letters that `filter` names, after the letter `after` in the order of their names; `with_bytes`: their bytes too.
    pub(super) async fn list(
        &self,
        filter: &Filter,
        state: Option<&str>,
        after: Option<(Uuid, Uuid)>,
        limit: usize,
        with_bytes: bool,
    ) -> Result<Vec<Entry>, QueryError> {
        let state = state.map_or_else(String::new, |state| format!(" AND state = {}", quote_text(state)));
        let after = after.map_or_else(String::new, |(tenant, letter)| {
            format!(" AND (tenant_id, letter_id) > ('{tenant}', '{letter}')")
        });
        // By name a page has a next one; for people the newest stand first.
        let order = if with_bytes { "tenant_id, letter_id" } else { "died_at DESC, letter_id" };
        let sql = format!(
            "SELECT letter_id, tenant_id, event_id, toString(state) AS state, version, toUnixTimestamp64Milli(died_at) AS died_at_ms, \
             toUnixTimestamp64Milli(received_at) AS received_at_ms, toUInt32(expires_at) AS expires_at, \
             toString(stage) AS stage, reason, toString(form) AS form, size, wal_id, wal_seq, wal_ordinal, \
             toString(topic) AS topic, partition, offset, line, {bytes} AS bytes \
             FROM {database}.dead_letters FINAL WHERE {condition}{state}{after} ORDER BY {order} LIMIT {limit}",
            bytes = if with_bytes { "base64Encode(bytes)" } else { "''" },
            database = self.database,
            condition = filter.condition(),
        );
        self.client.fetch_within(&sql, REWRITE_TIMEOUT).await
    }

    pub(super) async fn count(&self, filter: &Filter, state: Option<&str>) -> Result<Held, QueryError> {
        let state = state.map_or_else(String::new, |state| format!(" AND state = {}", quote_text(state)));
        let sql = format!(
            "SELECT count() AS letters, sum(size) AS bytes FROM {}.dead_letters FINAL WHERE {}{state}",
            self.database,
            filter.condition()
        );
        Ok(self.client.fetch_within(&sql, REWRITE_TIMEOUT).await?.into_iter().next().unwrap_or_default())
    }

    /// Writes down what became of the held letters that `filter` names; their bytes go.
    pub(super) async fn settle(&self, filter: &Filter, fate: Fate) -> Result<(), QueryError> {
        let from = format!("{}.dead_letters FINAL WHERE state = 'held' AND {}", self.database, filter.condition());
        self.bury(&from, fate).await
    }

    /// Removes held letters until at most `most` bytes of them are left: the oldest of whichever tenant has most.
    pub(super) async fn shrink(&self, most: u64) -> Result<(), QueryError> {
        let columns = COLUMNS.replace(" bytes,", "");
        let from = format!(
            "(SELECT *, sum(size) OVER (ORDER BY of_tenant, letter_id) AS total FROM \
             (SELECT {columns}, sum(size) OVER (PARTITION BY tenant_id ORDER BY died_at DESC, wal_seq DESC, wal_ordinal DESC, letter_id) AS of_tenant \
             FROM {}.dead_letters FINAL WHERE state = 'held')) WHERE total > {most}",
            self.database
        );
        self.bury(&from, Fate::Removed).await?;
        // The bytes go with a merge; this one does not wait to be due.
        self.client
            .execute_within(&format!("OPTIMIZE TABLE {}.dead_letters FINAL", self.database), REWRITE_TIMEOUT)
            .await
    }

    async fn bury(&self, from: &str, fate: Fate) -> Result<(), QueryError> {
        let version = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(1);
        let sql = format!(
            "INSERT INTO {}.dead_letters ({COLUMNS}) SETTINGS async_insert = 0, insert_deduplication_token = '{}' \
             SELECT letter_id, tenant_id, event_id, '{}', {version}, died_at, received_at, expires_at, stage, reason, form, \
             '', size, '', '', wal_id, wal_seq, wal_ordinal, topic, partition, offset, line FROM {from}",
            self.database,
            Uuid::new_v4(),
            fate.as_str()
        );
        self.client.execute_within(&sql, REWRITE_TIMEOUT).await
    }

    /// Where rows entered that ClickHouse has refused, of the logs `wal_ids` and the records from `first` to `last`.
    pub(crate) async fn refused_rows(
        &self,
        wal_ids: impl IntoIterator<Item = WalId>,
        (first, last): (u64, u64),
    ) -> Result<Vec<(WalId, u64, u32)>, QueryError> {
        let wal_ids: Vec<Uuid> = wal_ids.into_iter().map(|wal_id| wal_id.0).collect();
        let sql = format!(
            "SELECT DISTINCT wal_id, wal_seq, wal_ordinal FROM {}.dead_letters \
             WHERE stage = 'sink' AND wal_id IN ({}) AND wal_seq BETWEEN {first} AND {last}",
            self.database,
            list(&wal_ids)
        );
        let places: Vec<Place> = self.client.fetch(&sql).await?;
        Ok(places.into_iter().map(|place| (WalId(place.wal_id), place.wal_seq, place.wal_ordinal)).collect())
    }

    /// Which of the `events` of `tenant` are stored.
    pub(super) async fn stored(&self, tenant: Uuid, events: &[Uuid]) -> Result<Vec<Uuid>, QueryError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT DISTINCT event_id FROM {}.events WHERE tenant_id = '{tenant}' AND event_id IN ({})",
            self.database,
            list(events)
        );
        let found: Vec<Event> = self.client.fetch_within(&sql, REWRITE_TIMEOUT).await?;
        Ok(found.into_iter().map(|event| event.event_id).collect())
    }
}

fn list(ids: &[Uuid]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    ids.join(", ")
}
