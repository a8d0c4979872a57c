//! `ingestion-engine erase` and `tenants purge`: tombstone, wait for the sinks, delete, report.
//!
//! A run that ends anywhere may simply be started again: a second tombstone does no harm, and what is deleted is deleted.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    SILENT,
    tables::{Deletion, TableColumns, Whose},
};
use crate::{
    clickhouse::{Client, REWRITE_TIMEOUT, Template, quote_identifier, quote_text},
    dead_letters::read_files,
    ids::TenantId,
    ledger,
    retention::copies_of,
};

/// How often it is looked whether the sinks have confirmed.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is said what is waited for.
const SAY: Duration = Duration::from_secs(10);
/// Longest wait for sinks: one that works confirms within seconds, one that is cut off is silent sooner than that.
const CONFIRMATION: Duration = Duration::from_mins(15);
/// Tables whose rows are in the ledger.
const COUNTED: [&str; 3] = ["events", "parked_events", "dead_letters"];
/// How much longer than a topic's retention a tombstone is kept.
const LONGER_THAN_TOPIC: Duration = Duration::from_hours(90 * 24);

/// Whose rows to erase.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tenant.
    pub tenant: TenantId,
    /// One person of it; none: everything.
    pub user: Option<String>,
}

/// What the commands need of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a topic keeps a message; none without brokers.
    pub topic_retention: Option<Duration>,
    /// Longest insert of a sink.
    pub insert_timeout: Duration,
    /// Where this node keeps dead letters.
    pub dead_letters: PathBuf,
}

/// What a run has done.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The tombstone's name.
    pub tombstone: Uuid,
    /// Whose rows.
    pub tenant_id: TenantId,
    /// Of which person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The names of a person under which no user's rows stand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub anonymous_ids: Vec<String>,
    /// Rows that were received up to this moment are gone and do not come back.
    pub before: Timestamp,
    /// Rows that were deleted.
    pub removed: Vec<Removed>,
    /// Sinks that leave such rows out from now on.
    pub sinks_confirmed: u64,
    /// Where something is left.
    pub remains: Vec<Remains>,
}

/// Rows deleted from a table.
#[derive(Clone, Debug, Serialize)]
pub struct Removed {
    /// The table.
    pub table: String,
    /// How many rows.
    pub rows: u64,
}

/// What is left, where and until when.
#[derive(Clone, Debug, Serialize)]
pub struct Remains {
    /// Where.
    pub place: String,
    /// What.
    pub what: String,
    /// Until when, in words.
    pub until: String,
}

#[derive(clickhouse::Row, Deserialize)]
struct Sink {
    #[serde(with = "clickhouse::serde::uuid")]
    id: Uuid,
    stopped: u8,
    silent_seconds: i64,
    applies: u8,
}

/// Erases what `request` names, and says what is left where.
///
/// # Errors
/// ClickHouse refused or cannot be reached, or rows are left. The tombstone stays: start the command again.
pub async fn run(client: &Client, template: &Template, settings: &Settings, request: Request) -> Result<Report> {
    let run = Run {
        client,
        database: quote_identifier(&template.database),
        on_cluster: template.render("${on_cluster}"),
        cluster: template.cluster.clone(),
        settings,
    };
    let Request { tenant, user } = request;
    run.nothing_is_half_moved(tenant).await?;
    let anonymous_ids = match &user {
        Some(user) => run.anonymous_ids(tenant, user).await?,
        None => Vec::new(),
    };
    let (tombstone, before_ms) = run.bury(tenant, user.as_deref().unwrap_or_default(), &anonymous_ids).await?;
    let before = Timestamp::from_millisecond(before_ms).context("the server's clock")?;
    eprintln!("Tombstone {tombstone} is in place: rows received up to {before} are not stored any more.");

    let user_id = user.clone().unwrap_or_default();
    let whose = Whose { tenant_id: tenant.0, user_id, anonymous_ids: anonymous_ids.clone(), before_ms };
    let (deletions, aggregates) = run.deletions(&whose).await?;
    let mut removed: Vec<Removed> = deletions.iter().map(|one| Removed { table: one.table.clone(), rows: 0 }).collect();
    // Once sinks know of it no more such rows come, so that what the ledger is told is what is deleted. Where one does not
    // say that it knows, what is there is deleted all the same.
    let confirmed = run.confirmed(tombstone).await;
    run.delete(&deletions, &mut removed).await?;
    let sinks_confirmed = confirmed?;
    run.check(&deletions).await?;
    removed.retain(|removed| removed.rows > 0);
    let remains = run.remains(user.is_some(), &aggregates, run.unread_letters().await?);
    Ok(Report { tombstone, tenant_id: tenant, user_id: user, anonymous_ids, before, removed, sinks_confirmed, remains })
}

struct Run<'a> {
    client: &'a Client,
    database: String,
    on_cluster: String,
    cluster: Option<String>,
    settings: &'a Settings,
}

impl Run<'_> {
    /// Rows that a `retention apply` has taken out of their table and not put back yet are found by nobody.
    async fn nothing_is_half_moved(&self, tenant: TenantId) -> Result<()> {
        let sql = format!(
            "SELECT count() FROM system.tables WHERE database = {} AND startsWith(name, {})",
            quote_text(self.client.database()),
            quote_text(&copies_of(tenant))
        );
        let copies: Vec<u64> = self.client.fetch(&sql).await.context("looking for unfinished copies")?;
        if copies.first().is_some_and(|count| *count > 0) {
            bail!("a `retention apply {tenant}` was not finished: run it again first, then this");
        }
        Ok(())
    }

    /// Names under which the person was known before they gave theirs.
    async fn anonymous_ids(&self, tenant: TenantId, user: &str) -> Result<Vec<String>> {
        // A run that comes after another no longer finds the events: what the other has found stands in its tombstone.
        let sql = format!(
            "SELECT DISTINCT id FROM (\
             SELECT anonymous_id AS id FROM {database}.events WHERE tenant_id = '{tenant}' AND user_id = {user} \
             UNION ALL SELECT arrayJoin(anonymous_ids) AS id FROM {database}.erasures \
             WHERE tenant_id = '{tenant}' AND user_id = {user}) WHERE id != '' ORDER BY id",
            database = self.database,
            user = quote_text(user)
        );
        let found = self.client.fetch_within(&sql, REWRITE_TIMEOUT).await;
        let mut ids: Vec<String> = found.context("looking for the person's anonymous ids")?;
        // The id may be an anonymous one itself.
        if !ids.iter().any(|id| id == user) {
            ids.push(user.to_owned());
        }
        Ok(ids)
    }

    /// Writes the tombstone; returns its name and its moment.
    async fn bury(&self, tenant: TenantId, user: &str, anonymous_ids: &[String]) -> Result<(Uuid, i64)> {
        let id = Uuid::now_v7();
        let kept = self.settings.topic_retention.unwrap_or_default() + LONGER_THAN_TOPIC;
        let anonymous: Vec<String> = anonymous_ids.iter().map(|id| quote_text(id)).collect();
        let sql = format!(
            "INSERT INTO {}.erasures (id, tenant_id, user_id, anonymous_ids, before, kept_until) \
             SETTINGS async_insert = 0, insert_deduplication_token = '{id}' \
             SELECT '{id}', '{tenant}', {}, [{}], now64(3, 'UTC'), now() + {}",
            self.database,
            quote_text(user),
            anonymous.join(", "),
            kept.as_secs()
        );
        self.client.execute(&sql).await.context("writing the tombstone")?;
        let sql = format!("SELECT toUnixTimestamp64Milli(before) FROM {}.erasures WHERE id = '{id}'", self.database);
        let found: Vec<i64> = self.client.fetch(&sql).await.context("reading the tombstone back")?;
        if self.cluster.is_some() {
            // A sink that says from now on that it is there reads the tombstones after that, from whichever replica; and
            // what others have said before is here.
            for table in ["erasures", "sink_reports"] {
                let sql = format!("SYSTEM SYNC REPLICA {} {}.{table}", self.on_cluster, self.database);
                let synced = self.client.execute_within(&sql, CONFIRMATION).await;
                synced.context("bringing the tombstone to every replica; start the command again")?;
            }
        }
        match found.first() {
            Some(before_ms) => Ok((id, *before_ms)),
            None => bail!("the tombstone that was written cannot be read: nothing was erased, start the command again"),
        }
    }

    async fn deletions(&self, whose: &Whose) -> Result<(Vec<Deletion>, Vec<String>)> {
        let sql = format!(
            "SELECT table, groupArray(name) AS columns FROM system.columns \
             WHERE database = {database} AND table IN \
             (SELECT name FROM system.tables WHERE database = {database} AND engine LIKE '%MergeTree') \
             GROUP BY table ORDER BY table",
            database = quote_text(self.client.database())
        );
        let tables: Vec<TableColumns> = self.client.fetch(&sql).await.context("looking for the tables")?;
        Ok(whose.deletions(&self.database, &tables))
    }

    async fn count(&self, deletion: &Deletion) -> Result<u64> {
        let Deletion { table, condition, .. } = deletion;
        let sql = format!("SELECT count() FROM {}.{} WHERE {condition}", self.database, quote_identifier(table));
        let counted = self.client.fetch_within(&sql, REWRITE_TIMEOUT).await;
        let counts: Vec<u64> = counted.with_context(|| format!("counting the rows in {table}"))?;
        Ok(counts.first().copied().unwrap_or(0))
    }

    /// Deletes, and waits until it is done: the parts are rewritten without the rows.
    async fn delete(&self, deletions: &[Deletion], removed: &mut [Removed]) -> Result<()> {
        for (deletion, removed) in deletions.iter().zip(removed) {
            let rows = self.count(deletion).await?;
            if rows == 0 {
                continue;
            }
            let Deletion { table, condition, .. } = deletion;
            if COUNTED.contains(&table.as_str()) {
                let sql = ledger::erased(&self.database, table, condition);
                let said = self.client.execute_within(&sql, REWRITE_TIMEOUT).await;
                said.with_context(|| format!("noting what is erased from {table}; start the command again"))?;
            }
            let sql = format!(
                "ALTER TABLE {}.{} {} DELETE WHERE {condition} \
                 SETTINGS mutations_sync = 2, allow_nondeterministic_mutations = 1",
                self.database,
                quote_identifier(table),
                self.on_cluster
            );
            let deleted = self.client.execute_within(&sql, REWRITE_TIMEOUT).await;
            deleted.with_context(|| format!("deleting from {table}; start the command again"))?;
            removed.rows += rows;
        }
        Ok(())
    }

    async fn check(&self, deletions: &[Deletion]) -> Result<()> {
        for deletion in deletions.iter().filter(|deletion| deletion.ends) {
            let left = self.count(deletion).await?;
            if left > 0 {
                bail!("{left} rows are left in {}: start the command again", deletion.table);
            }
        }
        Ok(())
    }

    /// Waits until every sink leaves out what the tombstone names, and until no insert is left that began before.
    /// Returns how many have confirmed.
    async fn confirmed(&self, tombstone: Uuid) -> Result<u64> {
        let silent = SILENT + 2 * self.settings.insert_timeout;
        let sql = format!(
            "SELECT sink AS id, argMax(stopped, at) AS stopped, \
             toInt64(dateDiff('second', max(at), now64(3, 'UTC'))) AS silent_seconds, \
             has(groupUniqArrayArray(applies), toUUID('{tombstone}')) AS applies \
             FROM {}.sink_reports GROUP BY sink",
            self.database
        );
        let started = tokio::time::Instant::now();
        let mut said = started;
        loop {
            let sinks: Vec<Sink> = self.client.fetch(&sql).await.context("asking for the sinks")?;
            let applied = sinks.iter().filter(|sink| sink.applies == 1).count() as u64;
            let alive =
                |sink: &&Sink| sink.stopped == 0 && u64::try_from(sink.silent_seconds).unwrap_or(0) <= silent.as_secs();
            let waiting: Vec<_> = sinks.iter().filter(alive).filter(|sink| sink.applies == 0).collect();
            if waiting.is_empty() {
                self.inserts_ended().await?;
                return Ok(applied);
            }
            let names: Vec<String> = waiting.iter().map(|sink| sink.id.to_string()).collect();
            if started.elapsed() >= CONFIRMATION {
                bail!(
                    "sinks are there and do not confirm ({}): see /health of the nodes. The rows are deleted and the tombstone \
                     stays; start the command again to delete what these sinks may have stored meanwhile",
                    names.join(", ")
                );
            }
            if said.elapsed() >= SAY {
                said = tokio::time::Instant::now();
                eprintln!(
                    "Waiting for sinks to confirm, or to be silent for {} s: {}",
                    silent.as_secs(),
                    names.join(", ")
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Inserts whose sink has given them up may still be running in ClickHouse.
    async fn inserts_ended(&self) -> Result<()> {
        let since = tokio::time::Instant::now();
        loop {
            let processes = self.cluster.as_ref().map_or_else(
                || "system.processes".to_owned(),
                |cluster| format!("clusterAllReplicas({}, system.processes)", quote_text(cluster)),
            );
            let sql = format!(
                "SELECT count() FROM {processes} WHERE query_kind = 'Insert' AND elapsed > {}",
                since.elapsed().as_secs_f64()
            );
            let running: Vec<u64> = self.client.fetch(&sql).await.context("asking for inserts that still run")?;
            if running.first().is_none_or(|count| *count == 0) {
                return Ok(());
            }
            if since.elapsed() >= CONFIRMATION {
                bail!(
                    "inserts that began before still run in ClickHouse (see system.processes). The rows are deleted and the \
                     tombstone stays; start the command again to delete what these inserts store"
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Dead letters that say of nobody whose they are.
    async fn unread_letters(&self) -> Result<u64> {
        let (nil, unknown) = (Uuid::nil(), ledger::UNKNOWN);
        let sql = format!(
            "SELECT count() FROM {}.dead_letters FINAL WHERE state = 'held' AND (tenant_id = '{unknown}' OR event_id = '{nil}')",
            self.database
        );
        let counts: Vec<u64> = self.client.fetch(&sql).await.context("counting dead letters")?;
        Ok(counts.first().copied().unwrap_or(0))
    }

    fn remains(&self, person: bool, aggregates: &[String], unread: u64) -> Vec<Remains> {
        let remains =
            |place: &str, what: &str, until: String| Remains { place: place.to_owned(), what: what.to_owned(), until };
        let kept = self.settings.topic_retention.unwrap_or_default() + LONGER_THAN_TOPIC;
        let days = |span: Duration| span.as_secs() / 86_400;
        let mut all = vec![
            remains(
                "ClickHouse",
                "the files of the parts that were rewritten",
                "about 8 minutes (old_parts_lifetime)".to_owned(),
            ),
            remains(
                "the tombstone",
                if person { "the person's ids, so that they are recognised" } else { "the tenant's id" },
                format!("{} days from now", days(kept)),
            ),
            remains(
                "write-ahead logs",
                "events that no sink has read yet; they are left out then",
                "they are delivered (`ingestion-engine drain` shows it for a node)".to_owned(),
            ),
        ];
        if let Some(retention) = self.settings.topic_retention {
            all.push(remains(
                "the broker's topics",
                "messages; no sink stores them again",
                format!("{} days, or what the topic keeps if it was made by others", days(retention)),
            ));
        }
        let letters = read_files(&self.settings.dead_letters).map_or(1, |letters| letters.len());
        if letters > 0 {
            all.push(remains(
                &self.settings.dead_letters.display().to_string(),
                "dead letters on this node's disk; those of the person are left out when they are delivered",
                "ClickHouse takes them".to_owned(),
            ));
        }
        if unread > 0 {
            all.push(remains(
                "table dead_letters",
                "letters whose bytes are no event, so that nobody knows whose they are",
                "their own expiry, or `ingestion-engine dead-letters drop`".to_owned(),
            ));
        }
        for table in aggregates {
            all.push(remains(
                &format!("table {table}"),
                "counts and sketches in which the person's events are contained, without a name",
                "their own expiry".to_owned(),
            ));
        }
        all.push(remains(
            "backups and other consumers of the topic",
            "what they have copied",
            "they forget it".to_owned(),
        ));
        all
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            writeln!(text, "{arguments}").unwrap_or(());
        };
        match &self.user_id {
            Some(user) => line(format_args!("Erased user {user:?} of tenant {}", self.tenant_id)),
            None => line(format_args!("Purged tenant {}", self.tenant_id)),
        }
        if !self.anonymous_ids.is_empty() {
            line(format_args!("Anonymous ids that are theirs: {}", self.anonymous_ids.join(", ")));
        }
        line(format_args!("Received up to: {}", self.before));
        line(format_args!("Sinks that leave such rows out: {}", self.sinks_confirmed));
        line(format_args!("Removed:"));
        if self.removed.is_empty() {
            line(format_args!("  nothing: no table held such a row"));
        }
        for Removed { table, rows } in &self.removed {
            line(format_args!("  {rows} rows from {table}"));
        }
        line(format_args!("Remains:"));
        for Remains { place, what, until } in &self.remains {
            line(format_args!("  {place}: {what}; until {until}"));
        }
        text
    }
}
