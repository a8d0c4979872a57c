//! ClickHouse, wherever it runs: a client with a limit on every wait, what its errors mean, and the schema.
//!
//! ```text
//! client    HTTP(S) through the `clickhouse` crate: queries, and inserts of rows that are encoded already
//! errors    which errors pass by themselves, which need an operator, which name the data
//! migrate   migrations/*.sql, applied once each and recorded with their checksums
//! embedded  ClickHouse's engine as a child process, for nodes without a server
//! ```
//!
//! - Every statement names its database, so that one client serves a database that does not exist yet.
//! - Nothing here retries: the callers know what a repeat costs them. They ask [`QueryError::kind`].

mod client;
pub mod embedded;
mod errors;
mod migrate;

pub use client::{Client, ClientError, Compression, REWRITE_TIMEOUT, Settings};
pub use errors::{Kind, QueryError};
pub use migrate::{MIGRATIONS, MigrateError, Migration, Migrator, Mode, Template, wait_and_migrate};

/// Quotes `text` as a literal.
pub fn quote_text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Quotes an identifier.
pub fn quote_identifier(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}
