//! The schema: the numbered files of `migrations/`, compiled in, each applied once and in order.
//!
//! ```text
//! file      0001_events.sql: statements, each ended by a `;` at the end of a line; `--` comments between them
//! template  ${database} ${on_cluster} ${replicated} ${settings}, filled in by Template
//! record    {database}.schema_migrations: version, statement, checksum of the file
//! ```
//!
//! - A statement is recorded after it ran, so a crash in between runs it again: every statement must bear that
//!   (`IF NOT EXISTS` and the like). For the same reason two nodes may start at once.
//! - The checksum is that of the file and not of the rendered text, so that the same files fit a single node and a
//!   cluster. An applied file never changes; a change is a new file. A changed one is refused by name, and so is a
//!   database that a newer version has migrated: this one does not know its tables.
//! - What this is not: it does not undo. A mistake is mended by the next file.

mod template;

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Client, Kind, QueryError, quote_identifier};
use crate::health::Component;
pub use template::Template;

/// First and longest pause between two attempts to reach ClickHouse.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// One file of `migrations/`.
#[derive(Clone, Debug)]
pub struct Migration {
    /// Its number.
    pub version: u32,
    /// Its file name.
    pub file: &'static str,
    /// Its text, not rendered.
    pub sql: &'static str,
}

macro_rules! migrations {
    ($($version:literal $file:literal)+) => {
        &[$(Migration {
            version: $version,
            file: $file,
            sql: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/", $file)),
        }),+]
    };
}

/// Every migration, in order.
pub const MIGRATIONS: &[Migration] = migrations! {
    1 "0001_events.sql"
    2 "0002_events_unique.sql"
    3 "0003_events_per_minute.sql"
    4 "0004_page_views_daily.sql"
    5 "0005_web_vitals_daily.sql"
    6 "0006_parked_events.sql"
    7 "0007_erasures.sql"
    8 "0008_activity.sql"
    9 "0009_views_expiry.sql"
    10 "0010_sink_ranges.sql"
    11 "0011_received_at_index.sql"
    12 "0012_dead_letters.sql"
    13 "0013_ledger.sql"
};

/// The database and the table of records itself: run before all others at every start, never recorded.
const RECORDS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/0000_schema_migrations.sql"));

/// Whether this process may change the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Apply what is missing.
    Auto,
    /// Change nothing; wait until somebody else has applied everything.
    Verify,
}

/// Why the schema is not as this version needs it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// An applied file is not the one that this version carries.
    #[error("migration {file} was changed after it had been applied (applied {applied}, now {now})")]
    Changed {
        /// The file.
        file: String,
        /// Checksum on record.
        applied: String,
        /// Checksum of this version's file.
        now: String,
    },
    /// The database has migrations that this version does not know.
    #[error("the database was migrated by a newer version of this engine: it has {files}")]
    Newer {
        /// The files on record, separated by commas.
        files: String,
    },
    /// Migrations are missing, and the mode does not allow to apply them.
    #[error("migrations are missing: {files}; run `ingestion-engine migrate`")]
    Missing {
        /// The files, separated by commas.
        files: String,
    },
    /// A statement failed.
    #[error("{file}, statement {statement}: {source}")]
    Statement {
        /// The file.
        file: String,
        /// Number of the statement in it, from 1.
        statement: u32,
        /// ClickHouse's answer.
        #[source]
        source: QueryError,
    },
    /// The records cannot be read.
    #[error("cannot read the applied migrations: {0}")]
    Records(#[source] QueryError),
    /// Asked to stop while ClickHouse was not there.
    #[error("stopped before ClickHouse was ready")]
    Cancelled,
}

impl MigrateError {
    /// Whether trying again can help without a change of this program or its files.
    fn passes(&self) -> bool {
        match self {
            Self::Statement { .. } | Self::Records(_) | Self::Missing { .. } => true,
            Self::Changed { .. } | Self::Newer { .. } | Self::Cancelled => false,
        }
    }
}

/// A statement on record.
#[derive(clickhouse::Row, Deserialize)]
struct Record {
    version: u32,
    file: String,
    statement: u32,
    checksum: String,
}

/// Brings a database to this version's schema.
#[derive(Clone)]
pub struct Migrator {
    client: Client,
    template: Template,
    migrations: Vec<Migration>,
}

impl Migrator {
    /// A migrator of [`MIGRATIONS`].
    pub fn new(client: Client, template: Template) -> Self {
        Self::with_migrations(client, template, MIGRATIONS.to_vec())
    }

    /// A migrator of other files.
    pub fn with_migrations(client: Client, template: Template, migrations: Vec<Migration>) -> Self {
        Self { client, template, migrations }
    }

    /// Applies what is missing and returns the names of the files that it applied, wholly or from where an earlier
    /// attempt stopped.
    ///
    /// # Errors
    /// [`MigrateError`]; what was applied before stays applied and on record.
    pub async fn apply(&self) -> Result<Vec<&'static str>, MigrateError> {
        for (index, statement) in statements(RECORDS).enumerate() {
            self.run("0000_schema_migrations.sql", number(index), statement).await?;
        }
        let applied = self.applied().await?;
        let mut done = Vec::new();
        for (migration, first_missing) in self.missing(&applied)? {
            let checksum = checksum(migration.sql);
            for (index, statement) in statements(migration.sql).enumerate().skip(first_missing) {
                let statement_number = number(index);
                self.run(migration.file, statement_number, statement).await?;
                let record = self.insert_record(migration, statement_number, &checksum);
                self.client.execute(&record).await.map_err(|source| MigrateError::Statement {
                    file: migration.file.to_owned(),
                    statement: statement_number,
                    source,
                })?;
            }
            tracing::info!(file = migration.file, "applied a migration");
            done.push(migration.file);
        }
        Ok(done)
    }

    /// Checks that everything is applied, and changes nothing.
    ///
    /// # Errors
    /// [`MigrateError::Missing`] naming what is not, or another [`MigrateError`].
    pub async fn verify(&self) -> Result<(), MigrateError> {
        let applied = self.applied().await?;
        let missing: Vec<_> = self.missing(&applied)?.into_iter().map(|(migration, _)| migration.file).collect();
        if missing.is_empty() { Ok(()) } else { Err(MigrateError::Missing { files: missing.join(", ") }) }
    }

    async fn run(&self, file: &str, statement: u32, template: &str) -> Result<(), MigrateError> {
        self.client.execute(&self.template.render(template)).await.map_err(|source| MigrateError::Statement {
            file: file.to_owned(),
            statement,
            source,
        })
    }

    /// What is on record; nothing when the table of records is not there yet.
    async fn applied(&self) -> Result<Vec<Record>, MigrateError> {
        let table = format!("{}.schema_migrations", quote_identifier(&self.template.database));
        let query =
            format!("SELECT DISTINCT version, file, statement, checksum FROM {table} ORDER BY version, statement");
        match self.client.fetch(&query).await {
            Err(error) if error.is_missing_table() => Ok(Vec::new()),
            result => result.map_err(MigrateError::Records),
        }
    }

    /// The files that are not wholly applied, each with the number of its statements that are.
    fn missing(&self, applied: &[Record]) -> Result<Vec<(&Migration, usize)>, MigrateError> {
        let mut known: BTreeMap<u32, (&Migration, usize)> =
            self.migrations.iter().map(|migration| (migration.version, (migration, 0))).collect();
        let mut newer: Vec<&str> = Vec::new();
        for record in applied {
            match known.get_mut(&record.version) {
                Some((migration, statements)) => {
                    let now = checksum(migration.sql);
                    if record.checksum != now {
                        let (file, applied) = (migration.file.to_owned(), record.checksum.clone());
                        return Err(MigrateError::Changed { file, applied, now });
                    }
                    // On record means run: statements are recorded in order.
                    *statements = (*statements).max(record.statement as usize);
                }
                None if newer.last() == Some(&record.file.as_str()) => {}
                None => newer.push(&record.file),
            }
        }
        if !newer.is_empty() {
            return Err(MigrateError::Newer { files: newer.join(", ") });
        }
        Ok(known.into_values().filter(|(migration, done)| *done < statements(migration.sql).count()).collect())
    }

    fn insert_record(&self, migration: &Migration, statement: u32, checksum: &str) -> String {
        let table = format!("{}.schema_migrations", quote_identifier(&self.template.database));
        let Migration { version, file, .. } = migration;
        // A token of its own keeps a record from being taken for an earlier copy that was deleted by hand. A second
        // record of a statement is harmless: DISTINCT drops it.
        let token = Uuid::new_v4();
        format!(
            "INSERT INTO {table} (version, file, statement, checksum) \
             SETTINGS async_insert = 0, insert_deduplication_token = '{token}' \
             VALUES ({version}, '{file}', {statement}, '{checksum}')"
        )
    }
}

/// Waits for ClickHouse, however long that takes, and brings its schema up to date ([`Mode::Auto`]) or waits until
/// somebody else has ([`Mode::Verify`]). Reports to `health` meanwhile.
///
/// # Errors
/// What no waiting mends: a changed file, a newer schema, or `cancel`.
pub async fn wait_and_migrate(
    client: &Client,
    migrator: &Migrator,
    mode: Mode,
    health: &Component,
    cancel: &CancellationToken,
) -> Result<(), MigrateError> {
    let (mut pause, longest) = RETRY;
    loop {
        let attempt = async {
            client.ping().await.map_err(MigrateError::Records)?;
            match mode {
                Mode::Auto => migrator.apply().await.map(|_files| ()),
                Mode::Verify => migrator.verify().await,
            }
        };
        let result = tokio::select! {
            result = attempt => result,
            () = cancel.cancelled() => return Err(MigrateError::Cancelled),
        };
        match result {
            Ok(()) => {
                health.up();
                return Ok(());
            }
            Err(error) if error.passes() => health.down(describe(&error)),
            Err(error) => {
                health.down(error.to_string());
                return Err(error);
            }
        }
        // Half of the pause is random, so that nodes that lost the same server do not come back together.
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => pause = (pause * 2).min(longest),
            () = cancel.cancelled() => return Err(MigrateError::Cancelled),
        }
    }
}

/// The error as `/health` shows it: an absent server is said to be absent, whatever was asked of it.
fn describe(error: &MigrateError) -> String {
    match error {
        MigrateError::Records(source) | MigrateError::Statement { source, .. }
            if *source.kind() == Kind::Infrastructure && source.code().is_none() =>
        {
            format!("ClickHouse cannot be reached: {source}")
        }
        other => other.to_string(),
    }
}

/// The statements of a file: a `;` at the end of a line ends one. Pieces of nothing but comments are none.
fn statements(sql: &str) -> impl Iterator<Item = &str> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let mut end = 0;
            let mut closed = None;
            for line in rest.split_inclusive('\n') {
                end += line.len();
                if let Some(text) = line.trim_end().strip_suffix(';') {
                    closed = Some(end - line.len() + text.len());
                    break;
                }
            }
            let (statement, next) = (rest.get(..closed.unwrap_or(end))?, rest.get(end..)?);
            rest = next;
            if statement.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with("--")) {
                return Some(statement.trim());
            }
        }
        None
    })
}

/// Statements are counted from 1 for people; a file has a handful.
fn number(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(u32::MAX)
}

fn checksum(sql: &str) -> String {
    format!("{:x}", Sha256::digest(sql.as_bytes()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    #[test]
    fn a_statement_ends_with_a_semicolon_at_the_end_of_a_line() {
        let text = "-- head; not one\nSELECT ';'\nFROM a; \n\n-- between\nSELECT 2;\n-- tail;\n";
        let found: Vec<_> = statements(text).collect();
        assert_eq!(found, ["-- head; not one\nSELECT ';'\nFROM a", "-- between\nSELECT 2"]);
        assert_eq!(statements("SELECT 1").collect::<Vec<_>>(), ["SELECT 1"]);
        assert_eq!(statements("-- nothing\n").count(), 0);
    }

    #[test]
    fn every_file_of_the_folder_is_compiled_in_and_ends_its_statements() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut files: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let listed: Vec<_> =
            std::iter::once("0000_schema_migrations.sql").chain(MIGRATIONS.iter().map(|m| m.file)).collect();
        assert_eq!(files, listed);
        for migration in MIGRATIONS {
            assert!(migration.file.starts_with(&format!("{:04}_", migration.version)), "{}", migration.file);
            assert!(migration.sql.trim_end().ends_with(';'), "{}", migration.file);
            for statement in statements(migration.sql) {
                assert!(!statement.contains(";\n"), "{}: {statement}", migration.file);
            }
        }
    }
}
