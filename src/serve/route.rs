//! Where the events of this node's log went when it was last used. A change of that while some are on their way could store
//! them twice, or leave them where nobody looks.
//!
//! ```text
//! ClickHouse -> another, or a broker    the ranges in flight may be stored, under tokens that only the former sink repeats
//! broker     -> ClickHouse              what was relayed may be in the topic, and its repeat in the log
//!            -> other brokers or topic  the same
//! ```
//!
//! So it is refused, with what to do, until nothing is on its way. What has not set out yet goes the new way. The topic that is
//! left is read, from what the group has committed to its end.

use anyhow::{Context, Result, bail};
use rdkafka::error::KafkaError;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::settings;
use crate::{
    broker,
    config::Config,
    error_chain::chain,
    sink::wal_source,
    wal::{StateError, Wal},
};

/// Name of the state file in the log's folder.
const STATE: &str = "route";

/// Name of the one that says in which ClickHouse the events of the books are.
const STORED: &str = "stored";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Route {
    ClickHouse(Stored),
    Broker { brokers: Vec<String>, topic: String },
}

/// Where events end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    url: String,
    database: String,
}

impl Stored {
    fn of(config: &Config) -> Self {
        let embedded = || {
            // A data folder that was moved as a whole has the same engine in it.
            let (path, data) = (config.clickhouse_path(), &config.process.data_dir);
            let place = path.strip_prefix(data).unwrap_or(&path);
            format!("the embedded engine in {}", place.display())
        };
        let url = config.clickhouse.url.as_ref().map_or_else(embedded, ToString::to_string);
        Self { url, database: config.clickhouse.database.clone() }
    }
}

/// What became of the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Events go on.
    GoOn,
    /// They end in another ClickHouse than those that the log's books have: the books are to begin anew, or the ledger would
    /// look for the former ones there for good.
    BooksAnew,
}

impl Route {
    fn of(config: &Config) -> Self {
        let (brokers, topic) = (config.redpanda.brokers.clone(), config.redpanda.topic.clone());
        if !brokers.is_empty() {
            return Self::Broker { brokers, topic };
        }
        Self::ClickHouse(Stored::of(config))
    }
}

/// Remembers where the events go, and refuses a change that could lose or double some.
///
/// # Errors
/// What is on its way, and what to do about it.
pub(super) async fn keep(config: &Config, wal: &Wal) -> Result<Kept> {
    let now = Route::of(config);
    let before: Option<Route> = read(wal, STATE)?;
    if before.as_ref() != Some(&now) {
        if let Some(before) = &before {
            let file = config.process.data_dir.join("wal/state").join(STATE);
            if let Some(reason) = refusal(config, before, &now, wal).await? {
                let file = file.display();
                bail!("{reason}. If what is on its way does not matter any more, or was seen to, remove {file}");
            }
            tracing::info!(?before, ?now, "events go another way from now on");
        }
        save(wal, STATE, &now).await?;
    }
    let stored = Stored::of(config);
    let former: Option<Stored> = match (read(wal, STORED)?, before) {
        // Earlier versions wrote no other.
        (None, Some(Route::ClickHouse(stored))) => Some(stored),
        (former, _) => former,
    };
    match former {
        Some(former) if former != stored => Ok(Kept::BooksAnew),
        Some(_) => Ok(Kept::GoOn),
        None => remember(config, wal).await.map(|()| Kept::GoOn),
    }
}

/// Says in which ClickHouse the events of the log's books are from now on.
///
/// # Errors
/// It cannot be written as JSON.
pub(super) async fn remember(config: &Config, wal: &Wal) -> Result<()> {
    save(wal, STORED, &Stored::of(config)).await
}

fn read<T: DeserializeOwned>(wal: &Wal, name: &'static str) -> Result<Option<T>> {
    match wal.load_state(name) {
        Ok(kept) => Ok(kept.and_then(|kept| serde_json::from_slice(&kept).ok())),
        Err(error @ StateError::Io { .. }) => Err(error).context("reading where events went before"),
        Err(error) => {
            tracing::warn!(error = chain(&error), "where events went before is not known");
            Ok(None)
        }
    }
}

async fn save(wal: &Wal, name: &'static str, state: &impl Serialize) -> Result<()> {
    if let Err(error) = wal.save_state(name, serde_json::to_vec(state)?).await {
        // A full disk, most likely: a node must start on it, to free it.
        tracing::warn!(
            error = chain(&error),
            "where events go cannot be remembered: a change of it will not be noticed"
        );
    }
    Ok(())
}

/// Why events may not go another way now.
async fn refusal(config: &Config, before: &Route, now: &Route, wal: &Wal) -> Result<Option<String>> {
    let reason = match (before, now) {
        (Route::ClickHouse(Stored { url, database }), _) => {
            if !wal_source::has_ranges_in_flight(wal).context("reading which ranges were in flight")? {
                return Ok(None);
            }
            format!(
                "events of the write-ahead log were on their way to ClickHouse ({url}, database {database}) when the engine \
                 was last stopped, and may be stored there; another way could store them twice. Run `ingestion-engine drain` \
                 with the former configuration first"
            )
        }
        // One broker in common: the same cluster, of which another member is named.
        (Route::Broker { brokers, topic }, Route::Broker { brokers: others, topic: other })
            if topic == other && brokers.iter().any(|broker| others.contains(broker)) =>
        {
            return Ok(None);
        }
        (Route::Broker { brokers, topic }, _) => {
            let (records, brokers) = (wal.stats().records, brokers.join(","));
            if records > 0 {
                format!(
                    "{records} records of the write-ahead log may be in topic {topic} of the brokers {brokers} already; \
                     another way could store them twice. Run `ingestion-engine drain` with the former configuration, and let \
                     a sink with it read the topic to its end"
                )
            } else {
                match unread(config, brokers.clone(), topic.clone()).await? {
                    Ok(0) => return Ok(None),
                    Ok(rows) => format!(
                        "topic {topic} of the brokers {brokers} holds {rows} events that no sink of the group {} has stored yet. \
                         Start the engine with the former configuration (roles = [\"sink\"] is enough), until `ledger` counts 0 in \
                         the broker",
                        config.redpanda.group
                    ),
                    Err(error) => format!(
                        "topic {topic} of the brokers {brokers} may hold events that no sink has stored yet, and cannot be asked: {}",
                        chain(&error)
                    ),
                }
            }
        }
    };
    Ok(Some(reason))
}

/// How many events the topic and that of parked events hold which no sink has stored.
async fn unread(config: &Config, brokers: String, topic: String) -> Result<Result<usize, KafkaError>> {
    let events = broker::Settings { brokers, topic, ..settings::broker(config) };
    let count = move || {
        let topics = [events.parked(), events];
        topics.iter().map(|topic| Ok(broker::unread(topic)?.map_or(0, |unread| unread.rows.len()))).sum()
    };
    Ok(tokio::task::spawn_blocking(count).await?)
}
