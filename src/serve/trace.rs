//! Asks every place that this node's configuration knows for an event.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::{maintenance, settings};
use crate::{
    broker,
    config::Config,
    control::{self, ClientError, Request},
    error_chain::chain,
    folder_lock::LockError,
    ids::TenantId,
    trace::{Answers, Asked, Question, Report, letters, tables},
    wal::{Findings, OpenError, Sought, Wal},
};

/// With more tenants the dedup window is asked only for one that is named.
const MOST_TENANTS: usize = 1000;
/// How long ClickHouse may take to answer at all. The embedded engine has its own patience while it starts.
const CLICKHOUSE_TIME: Duration = Duration::from_mins(10);

/// Where the event of `question` is, and when it passed each stage.
///
/// # Errors
/// Only when this process itself fails: a place that cannot be asked is part of the report.
pub async fn trace(config: &Config, question: Question) -> Result<Report> {
    // In the order in which an event travels: one that moves on meanwhile is met further on.
    let log = blocking(config, &question, ask_log).await?;
    let topics = blocking(config, &question, ask_topics).await?;
    let mut met = tables::Elsewhere::default();
    if let Some(found) = log.said() {
        met.tenants.extend(found.remembered.iter().map(|(tenant, _)| *tenant));
        met.places.extend(found.rows.iter().map(|row| (row.row.tenant_id, (row.wal_id, row.seq.0, row.ordinal))));
    }
    met.places.extend(topics.said().into_iter().flatten().map(|row| (row.row.tenant_id, row.origin.place())));
    met.tenants.extend(met.places.iter().map(|(tenant, _)| *tenant));
    let letters = blocking(config, &question, ask_letters).await?;
    let tables = ask_tables(config, &question, &met).await;
    let answers = Answers { log, topics, letters, tables };
    let name = |tenant: TenantId| {
        let known = config.tenants.tenants.iter().find(|known| known.id == tenant);
        known.map(|known| known.name.clone()).filter(|name| !name.is_empty())
    };
    Ok(Report::new(&question, &answers, Timestamp::now(), name))
}

async fn blocking<T: Send + 'static>(
    config: &Config,
    question: &Question,
    ask: fn(&Config, &Question) -> Asked<T>,
) -> Result<Asked<T>> {
    let (config, question) = (config.clone(), question.clone());
    tokio::task::spawn_blocking(move || ask(&config, &question)).await.context("a search ended early")
}

/// This node's log and dedup window: of the engine that runs, else on disk.
fn ask_log(config: &Config, question: &Question) -> Asked<Findings> {
    let settings = settings::wal(config);
    let tenants = config.tenants.tenants.iter().map(|tenant| tenant.id);
    let (asked, window) = match question.tenant {
        Some(tenant) => (vec![tenant], "dedup window"),
        None if config.tenants.tenants.len() <= MOST_TENANTS => (tenants.collect(), "dedup window"),
        None => (Vec::new(), "not the dedup window, for which one tenant must be named (--tenant)"),
    };
    let sought =
        Sought { event: question.event, tenant: question.tenant, asked, since_ms: question.since.as_millisecond() };
    let searched = format!("records received since {:.3}, and {window}", question.since);
    let folder = settings.dir.display();
    match control::ask(&config.process.data_dir, &Request::Trace(sought.clone()), |_| {}) {
        Ok(Some(found)) => return Asked::Answered(found, format!("{searched}, of the engine that runs")),
        Ok(None) => return Asked::Absent("this node has none (roles)".to_owned()),
        // What is on disk is asked then.
        Err(ClientError::NotRunning { .. } | ClientError::Control(_)) => {}
        Err(error) => return Asked::Failed(Findings::default(), chain(&error)),
    }
    match Wal::find_in(&settings, &sought) {
        Ok(Some(found)) => Asked::Answered(found, format!("{searched}, in {folder} (no engine runs)")),
        Ok(None) => Asked::Absent(format!("there is none in {folder}")),
        Err(OpenError::Lock(LockError::Held { holder, .. })) => {
            let why = "a process has it that cannot be asked: a `drain`, or an engine that starts or ends just now";
            Asked::Failed(Findings::default(), format!("{why} ({holder})"))
        }
        Err(error) => Asked::Failed(Findings::default(), chain(&error)),
    }
}

/// The topics of events and of parked events.
fn ask_topics(config: &Config, question: &Question) -> Asked<Vec<broker::find::InTopic>> {
    if config.redpanda.brokers.is_empty() {
        return Asked::Absent("none is configured".to_owned());
    }
    let events = settings::broker(config);
    let (mut found, mut searched, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for topic in [events.clone(), events.parked()] {
        let name = &topic.topic;
        let say = |messages| eprintln!("Reading topic {name}: {messages} messages so far");
        match broker::find::find(&topic, question.event, question.since, say) {
            Ok(None) => searched.push(format!("there is no topic {name}")),
            Ok(Some(read)) => {
                found.extend(read.found);
                if read.unread.is_empty() {
                    searched.push(format!("topic {name}"));
                } else {
                    let partitions: Vec<String> = read.unread.iter().map(ToString::to_string).collect();
                    failed.push(format!(
                        "topic {name}: the broker stopped answering, partitions {} were not read to their end",
                        partitions.join(", ")
                    ));
                }
            }
            Err(error) => {
                failed.push(format!("topic {name} at {}: {}", topic.brokers, chain(&error)));
                // It does not answer for the other topic either.
                break;
            }
        }
    }
    if failed.is_empty() {
        let what = format!("{}; messages sent since {:.3}", searched.join(", "), question.since);
        Asked::Answered(found, what)
    } else {
        Asked::Failed(found, failed.join("; "))
    }
}

/// ClickHouse, which is not changed: neither are its tables brought up to date, nor is it begun where there is none.
async fn ask_tables(config: &Config, question: &Question, met: &tables::Elsewhere) -> Asked<tables::InTables> {
    let path = config.clickhouse_path();
    if config.clickhouse.url.is_none() && !path.exists() {
        if config.process.roles.sink {
            return Asked::Absent(format!("nothing was ever stored in {}", path.display()));
        }
        let why = "this node knows none: set clickhouse.url, which a node with the API alone needs for commands only";
        return Asked::Failed(tables::InTables::default(), why.to_owned());
    }
    let asking = async {
        let connection = maintenance::reach(config).await?;
        let found = tables::ask(connection.client(), question, met).await;
        connection.stop().await;
        found
    };
    match tokio::time::timeout(CLICKHOUSE_TIME, asking).await {
        Ok(Ok(found)) => {
            let names: Vec<&str> = found.asked.iter().map(String::as_str).collect();
            let what = if names.is_empty() {
                format!("database {} has none of the tables yet", config.clickhouse.database)
            } else {
                format!("tables {}", names.join(", "))
            };
            Asked::Answered(found, what)
        }
        Ok(Err(error)) => Asked::Failed(tables::InTables::default(), chain(&*error)),
        Err(_elapsed) => Asked::Failed(tables::InTables::default(), "it does not answer in time".to_owned()),
    }
}

/// Dead letters on this node's disk.
fn ask_letters(config: &Config, question: &Question) -> Asked<Vec<letters::Letter>> {
    let folder = settings::dead_letters_folder(config);
    match letters::find(&folder, question) {
        Ok(found) => Asked::Answered(found, format!("all of them, in {}", folder.display())),
        Err(error) => Asked::Failed(Vec::new(), format!("{}: {error}", folder.display())),
    }
}
