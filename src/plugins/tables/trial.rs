//! A declaration tried on the real engine before it is taken into use: everything is made in a database of its own, and
//! events run through it.
//!
//! What a plugin's own expressions do wrong is found here, where it costs nobody anything: in the sink it would hold up
//! the rows of all. Beside the plugin's examples an event without any property runs through, because that is what a
//! sender forgets first.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use thiserror::Error;
use uuid::Uuid;

use super::{Object, Role, TablesError, declared::Declaration, plan, quote, run};
use crate::{
    clickhouse::{Client, MIGRATIONS, MigrateError, Migrator, QueryError, Template, quote_identifier},
    ids::{EventId, TenantId, WalId},
    plugins::descriptor::Descriptor,
    row::{self, BinaryError, EVENT_COLUMNS, EventRow, Origin, Position},
    sink::insert_statement,
};

/// A scratch database older than this is one that a crash left behind. A trial takes seconds.
const LEFT_BEHIND: Duration = Duration::from_hours(1);

/// Why a declaration is not taken into use.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrialError {
    /// It cannot be made.
    #[error("{}", problems.join("; "))]
    Declaration {
        /// Every mistake.
        problems: Vec<String>,
    },
    /// An expression, or the type of what it gives.
    #[error("{object}, column {column}: {source}")]
    Value {
        /// `table orders`, `view revenue_daily`.
        object: String,
        /// The column or measure.
        column: String,
        /// ClickHouse's answer.
        #[source]
        source: QueryError,
    },
    /// A statement.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// Rows could not be inserted once the plugin's tables were there.
    #[error("an event cannot be inserted: {0}")]
    Insert(#[source] QueryError),
    /// A row could not be written.
    #[error(transparent)]
    Row(BinaryError),
    /// There is no scratch database to try it in: ClickHouse is away, or does not let us make one. It says nothing of
    /// the declaration.
    #[error("no database to try it in: {0}")]
    NoDatabase(#[source] MigrateError),
}

/// Makes everything that `descriptor` declares in a scratch database, lets an empty event of each of its types and
/// `examples` run through it, and drops it. `template` says what kind of server it is.
///
/// # Errors
/// [`TrialError`]; [`TrialError::NoDatabase`] is no verdict.
pub async fn try_out(
    client: &Client,
    template: &Template,
    descriptor: &Descriptor,
    examples: &[EventRow<'_>],
) -> Result<(), TrialError> {
    let declaration = Declaration::new(descriptor);
    let objects = plan::plan(&declaration).map_err(|problems| TrialError::Declaration { problems })?;
    if objects.is_empty() {
        return Ok(());
    }
    sweep(client, &template.database).await;
    // One node only: what is tried is the same on all.
    let scratch = Template { database: scratch_name(&template.database), cluster: None, embedded: false };
    let events = MIGRATIONS.iter().take(1).cloned().collect();
    let made = Migrator::with_migrations(client.clone(), scratch.clone(), events).apply().await;
    let result = match made {
        Ok(_) => run_through(client, &scratch, &declaration, &objects, examples).await,
        Err(error) => Err(TrialError::NoDatabase(error)),
    };
    let drop = format!("DROP DATABASE IF EXISTS {} SYNC", quote_identifier(&scratch.database));
    if let Err(error) = client.execute(&drop).await {
        tracing::debug!(%error, database = scratch.database, "cannot drop a scratch database; a later trial does");
    }
    result
}

async fn run_through(
    client: &Client,
    scratch: &Template,
    declaration: &Declaration,
    objects: &[Object],
    examples: &[EventRow<'_>],
) -> Result<(), TrialError> {
    let rows = rows(declaration, examples)?;
    let make = async |object: &Object| run(client, scratch, &declaration.plugin, object, &object.create()).await;
    let fillers = |of_events: bool| {
        objects.iter().filter_map(move |object| match &object.role {
            Role::Filler { from, values, .. } if (from == "events") == of_events => Some((object, from, values)),
            _ => None,
        })
    };
    for object in objects.iter().filter(|object| !matches!(object.role, Role::Filler { .. })) {
        make(object).await?;
    }
    // The expressions run over rows that are there before the views that evaluate them: one that fails is known by its
    // column, not by its view.
    insert(client, scratch, &rows).await?;
    for of_events in [true, false] {
        for (object, from, values) in fillers(of_events) {
            try_values(client, scratch, object, from, values).await?;
            make(object).await?;
        }
        insert(client, scratch, &rows).await?;
    }
    for object in objects {
        let read = format!("SELECT * FROM ${{database}}.`{}` FORMAT Null", object.name);
        if matches!(object.role, Role::Reader { .. }) {
            run(client, scratch, &declaration.plugin, object, &read).await?;
        }
    }
    Ok(())
}

async fn try_values(
    client: &Client,
    scratch: &Template,
    object: &Object,
    from: &str,
    values: &[(String, String)],
) -> Result<(), TrialError> {
    for (column, expression) in values {
        let query = format!("SELECT {expression} FROM ${{database}}.`{from}` AS e FORMAT Null");
        client.execute(&scratch.render(&query)).await.map_err(|source| TrialError::Value {
            object: object.label.clone(),
            column: column.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Rows of an insert: an event without anything of each type, and the examples.
#[expect(clippy::result_large_err, reason = "called once for a trial")]
fn rows(declaration: &Declaration, examples: &[EventRow<'_>]) -> Result<Bytes, TrialError> {
    let now = Timestamp::now().as_millisecond();
    let empty = declaration.types.iter().map(|kind| {
        let kind = if kind == "*" { "custom" } else { kind };
        let mut row = EventRow::new(TenantId(Uuid::nil()), EventId(Uuid::now_v7()), kind);
        (row.timestamp_ms, row.received_at_ms, row.expires_at) = (now, now, row::EXPIRES_NEVER);
        row
    });
    let origin = Origin { wal_id: WalId(Uuid::nil()), wal_seq: 0, wal_ordinal: 0, relayed_at_ms: now };
    let position = Position { topic: "trial".into(), partition: 0, offset: 0 };
    let mut body = Vec::new();
    for row in empty.chain(examples.iter().cloned()) {
        let mut encoded = Vec::new();
        row::encode(&row, &mut encoded);
        row::write_insert_row(&encoded, &origin, &position, &mut body).map_err(TrialError::Row)?;
    }
    Ok(body.into())
}

async fn insert(client: &Client, scratch: &Template, rows: &Bytes) -> Result<(), TrialError> {
    // A token of its own, or the second insert would be taken for a repeat of the first.
    let settings = [
        ("async_insert", "0".to_owned()),
        ("insert_deduplication_token", Uuid::new_v4().to_string()),
        ("max_partitions_per_insert_block", "0".to_owned()),
    ];
    client
        .insert(&insert_statement(&scratch.database, "events", EVENT_COLUMNS, &[]), &settings, rows.clone())
        .await
        .map_err(TrialError::Insert)
}

/// How the scratch databases of `database` begin.
fn prefix(database: &str) -> String {
    format!("{database}_plugin_check_")
}

fn scratch_name(database: &str) -> String {
    let seconds = Timestamp::now().as_second();
    format!("{}{seconds}_{}", prefix(database), Uuid::new_v4().simple())
}

/// Drops what trials that ended in a crash have left behind. Whatever fails is left to the next one.
async fn sweep(client: &Client, database: &str) {
    let prefix = prefix(database);
    let query = format!("SELECT name FROM system.databases WHERE startsWith(name, {})", quote(&prefix));
    let found: Vec<String> = client.fetch(&query).await.unwrap_or_default();
    for name in found {
        let made = name.strip_prefix(&prefix).and_then(|rest| rest.split('_').next()?.parse::<i64>().ok());
        let limit = i64::try_from(LEFT_BEHIND.as_secs()).unwrap_or(i64::MAX);
        if made.is_some_and(|made| Timestamp::now().as_second().saturating_sub(made) > limit) {
            let drop = format!("DROP DATABASE IF EXISTS {} SYNC", quote_identifier(&name));
            if let Err(error) = client.execute(&drop).await {
                tracing::debug!(%error, database = name, "cannot drop a scratch database");
            }
        }
    }
}
