//! Where the events of this node's log went when it was last used. A change of that while some are on their way could store
//! them twice, or leave them where nobody looks.
//!
//! ```text
//! ClickHouse -> another, or a broker    the ranges in flight may be stored, under tokens that only the former sink repeats
//! broker     -> ClickHouse              what was relayed may be in the topic, and its repeat in the log
//!            -> other brokers or topic  the same
//! ```
//!
//! So it is refused, with what to do, until nothing is on its way. What has not set out yet goes the new way.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    error_chain::chain,
    sink::wal_source,
    wal::{StateError, Wal},
};

/// Name of the state file in the log's folder.
const STATE: &str = "route";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Route {
    ClickHouse { url: String, database: String },
    Broker { brokers: Vec<String>, topic: String },
}

impl Route {
    fn of(config: &Config) -> Self {
        let (brokers, topic) = (config.redpanda.brokers.clone(), config.redpanda.topic.clone());
        if !brokers.is_empty() {
            return Self::Broker { brokers, topic };
        }
        let embedded = || {
            // A data folder that was moved as a whole has the same engine in it.
            let (path, data) = (config.clickhouse_path(), &config.process.data_dir);
            let place = path.strip_prefix(data).unwrap_or(&path);
            format!("the embedded engine in {}", place.display())
        };
        let url = config.clickhouse.url.as_ref().map_or_else(embedded, ToString::to_string);
        Self::ClickHouse { url, database: config.clickhouse.database.clone() }
    }
}

/// Remembers where the events go, and refuses a change that could lose or double some.
///
/// # Errors
/// What is on its way, and what to do about it.
pub(super) async fn keep(config: &Config, wal: &Wal) -> Result<()> {
    let now = Route::of(config);
    let before = match wal.load_state(STATE) {
        Ok(kept) => kept.and_then(|kept| serde_json::from_slice::<Route>(&kept).ok()),
        Err(error @ StateError::Io { .. }) => return Err(error).context("reading where events went before"),
        Err(error) => {
            tracing::warn!(error = chain(&error), "where events went before is not known");
            None
        }
    };
    if before.as_ref() == Some(&now) {
        return Ok(());
    }
    if let Some(before) = &before {
        let file = config.process.data_dir.join("wal/state").join(STATE);
        if let Some(reason) = refusal(before, &now, wal)? {
            let file = file.display();
            bail!("{reason}. If what is on its way does not matter any more, or was seen to, remove {file}");
        }
        tracing::info!(?before, ?now, "events go another way from now on");
    }
    if let Err(error) = wal.save_state(STATE, serde_json::to_vec(&now)?).await {
        // A full disk, most likely: a node must start on it, to free it.
        tracing::warn!(
            error = chain(&error),
            "where events go cannot be remembered: a change of it will not be noticed"
        );
    }
    Ok(())
}

/// Why events may not go another way now.
fn refusal(before: &Route, now: &Route, wal: &Wal) -> Result<Option<String>> {
    let reason = match (before, now) {
        (Route::ClickHouse { url, database }, _) => {
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
                format!(
                    "topic {topic} of the brokers {brokers} may hold events that no sink has stored yet. Let a sink with the \
                     former configuration (roles = [\"sink\"]) read it to its end"
                )
            }
        }
    };
    Ok(Some(reason))
}
