//! The engine as the facade sees it: connections, statements, inserts, and errors with ClickHouse's code.

use std::{ffi::CString, path::Path};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{durable::Keeper, ffi};

/// An error as a ClickHouse server would word it, with its number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct QueryError {
    /// ClickHouse's error number.
    pub(super) code: u32,
    /// `Code: N. DB::Exception: ... (NAME)`.
    pub(super) message: String,
}

impl QueryError {
    /// An error raised by the facade itself, in the server's form.
    pub(super) fn new(code: u32, name: &str, message: impl std::fmt::Display) -> Self {
        Self { code, message: format!("Code: {code}. DB::Exception: {message}. ({name})") }
    }

    /// Takes the number out of a message of the library.
    fn from_library(message: String) -> Self {
        /// `UNKNOWN_EXCEPTION`: what a server says when it has no better number.
        const UNKNOWN: u32 = 1002;
        let code = message.split_once("Code: ").and_then(|(_, rest)| {
            let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
            digits.parse().ok()
        });
        match code {
            Some(code) => Self { code, message },
            None => Self::new(UNKNOWN, "UNKNOWN_EXCEPTION", message),
        }
    }
}

/// What a statement gave.
pub(super) struct Outcome {
    /// The answer in the statement's output format, in the library's own memory (not copied).
    pub(super) body: Bytes,
    /// Figures for the summary header.
    pub(super) summary: Summary,
}

/// Figures of one statement.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Summary {
    pub(super) read_rows: u64,
    pub(super) read_bytes: u64,
    pub(super) written_rows: u64,
    pub(super) written_bytes: u64,
    pub(super) result_rows: u64,
    pub(super) elapsed_seconds: f64,
}

impl From<ffi::ResultBuffer> for Outcome {
    fn from(result: ffi::ResultBuffer) -> Self {
        let (read_rows, read_bytes) = result.read();
        let (written_rows, written_bytes) = result.written();
        let summary = Summary {
            read_rows,
            read_bytes,
            written_rows,
            written_bytes,
            result_rows: result.rows(),
            elapsed_seconds: result.elapsed(),
        };
        Self { body: Bytes::from_owner(result), summary }
    }
}

/// Why the engine did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The library could not be loaded.
    #[error("libchdb could not be loaded")]
    Load(#[source] libloading::Error),
    /// The path cannot be passed to the library.
    #[error("the path contains a NUL byte")]
    Path(#[source] std::ffi::NulError),
    /// The library refused; it prints its reason on standard error.
    #[error("libchdb did not open the path (its reason, if any, stands on standard error)")]
    Refused,
    /// The first statement failed.
    #[error("the engine does not answer: {0}")]
    Silent(String),
}

/// The one engine of this process. Dropping the last of it and its connections shuts the engine down.
pub(super) struct Engine {
    library: &'static ffi::Library,
    arguments: Vec<CString>,
    /// Closing the last connection shuts the engine down, so one stays open; it also runs what no client asked for.
    anchor: Mutex<Connection>,
    version: String,
    timezone: String,
    keeper: Keeper,
}

impl Engine {
    /// Loads `library` and opens the tables under `path`.
    pub(super) fn open(library: &Path, path: &Path, options: &[&str]) -> Result<Self, OpenError> {
        let library = ffi::Library::load(library).map_err(OpenError::Load)?;
        let keeper = Keeper::new(path);
        let path = format!("--path={}", path.display());
        let arguments = ["clickhouse", &path]
            .into_iter()
            .chain(options.iter().copied())
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(OpenError::Path)?;
        let mut anchor = library.connect(&arguments).map(Connection).ok_or(OpenError::Refused)?;
        let answer = anchor
            .query(b"SELECT version(), timezone()", "TSV", &[])
            .map_err(|error| OpenError::Silent(error.message))?;
        let answer = String::from_utf8_lossy(&answer.body).into_owned();
        let (version, timezone) = answer.trim_end().split_once('\t').unwrap_or((answer.as_str(), "UTC"));
        let (version, timezone) = (version.to_owned(), timezone.to_owned());
        Ok(Self { library, arguments, anchor: Mutex::new(anchor), version, timezone, keeper })
    }

    /// A fresh connection (about 0.1 ms): its settings and current database are its own.
    pub(super) fn connect(&self) -> Result<Connection, QueryError> {
        self.library
            .connect(&self.arguments)
            .map(Connection)
            .ok_or_else(|| QueryError::new(210, "NETWORK_ERROR", "the engine opened no connection"))
    }

    /// Cancels every statement that runs now.
    pub(super) fn cancel_all(&self) -> Result<(), QueryError> {
        self.anchor.lock().query(b"KILL QUERY WHERE 1 ASYNC", "Null", &[]).map(drop)
    }

    /// Whether the parser calls `sql` read-only. What does not parse changes nothing.
    pub(super) fn is_read_only(&self, sql: &[u8]) -> bool {
        self.anchor.lock().is_read_only(sql).unwrap_or(true)
    }

    /// Returns when what statements have changed is on disk.
    pub(super) fn settle(&self) -> std::io::Result<()> {
        self.keeper.settle()
    }

    /// The engine's version, as `SELECT version()` says it.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The engine's time zone.
    pub(super) fn timezone(&self) -> &str {
        &self.timezone
    }
}

/// One connection, used by one request at a time.
pub(super) struct Connection(ffi::Connection);

impl Connection {
    /// Runs one statement that brings no data with it.
    pub(super) fn query(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &[(String, String)],
    ) -> Result<Outcome, QueryError> {
        self.0.query(sql, format, parameters).map(Outcome::from).map_err(QueryError::from_library)
    }

    /// Starts an insert; see [`Insert`].
    pub(super) fn insert(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &[(String, String)],
    ) -> Result<Insert<'_>, QueryError> {
        self.0.insert(sql, format, parameters).map(Insert).map_err(QueryError::from_library)
    }

    /// Whether the engine's parser calls `sql` read-only; None when it does not parse.
    pub(super) fn is_read_only(&mut self, sql: &[u8]) -> Option<bool> {
        self.0.is_read_only(sql)
    }
}

/// An insert that takes its data in pieces. Dropped unfinished, it is cancelled.
pub(super) struct Insert<'c>(ffi::InsertStream<'c>);

impl Insert<'_> {
    /// The next bytes of the data.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), QueryError> {
        self.0.append(data).map_err(QueryError::from_library)
    }

    /// Ends the data; the rows are in the table when this returns.
    pub(super) fn finish(self) -> Result<Outcome, QueryError> {
        self.0.finish().map(Outcome::from).map_err(QueryError::from_library)
    }
}
