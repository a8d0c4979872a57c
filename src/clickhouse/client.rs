//! The client: the `clickhouse` crate with a limit on every wait and, if given, a CA of the operator's own.

use std::{fmt, fs, future::Future, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use clickhouse::{Row, RowOwned, RowRead, error::Error};
use hyper_tls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use native_tls::{Certificate, TlsConnector};
use thiserror::Error as ThisError;

use super::errors::QueryError;

/// A host that does not answer a SYN is not there; a longer wait only delays the retry.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Limit of a statement that answers at once on a server that works.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// For [`Client::execute_within`] and [`Client::fetch_within`]: limit of a statement that reads or rewrites a tenant's rows.
pub const REWRITE_TIMEOUT: Duration = Duration::from_hours(6);

/// Limit of a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that is kept longer than the server keeps it (3 s by default) would fail the next insert.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes handed to the connection at once: large enough that compression works well, small enough to overlap with
/// sending.
const CHUNK: usize = 1 << 20;

/// Compression of what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// None: right for a server on the same host, where bytes are cheaper than CPU.
    None,
    /// LZ4.
    Lz4,
}

/// Where ClickHouse is and who we are.
#[derive(Clone)]
pub struct Settings {
    /// `http://host:8123` or `https://host:8443`.
    pub url: String,
    /// User.
    pub user: String,
    /// Password; may be empty.
    pub password: String,
    /// Database of all tables.
    pub database: String,
    /// PEM file of a CA to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Compression of inserts and answers.
    pub compression: Compression,
    /// Longest wait for one insert, views included.
    pub insert_timeout: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("url", &self.url).field("database", &self.database).finish_non_exhaustive()
    }
}

/// Why a client cannot be made.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum ClientError {
    /// The CA file cannot be read.
    #[error("cannot read the CA file {path}")]
    ReadCa {
        /// The file.
        path: PathBuf,
        /// The file system's error.
        #[source]
        source: io::Error,
    },
    /// The CA file is no PEM certificate, or the TLS library refused.
    #[error("cannot set up TLS")]
    Tls(#[from] native_tls::Error),
    /// The address is not one.
    #[error("{url} is not an http or https address")]
    Url {
        /// As configured.
        url: String,
    },
}

/// A connection pool. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Client {
    http: clickhouse::Client,
    database: Arc<str>,
    insert_timeout: Duration,
}

impl Client {
    /// Makes a client; connects to nothing yet.
    ///
    /// # Errors
    /// [`ClientError`] when the address or the CA file is not usable.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        let is_http = settings.url.starts_with("http://") || settings.url.starts_with("https://");
        if !is_http || settings.url.parse::<axum::http::Uri>().is_err() {
            return Err(ClientError::Url { url: settings.url.clone() });
        }
        let mut tls = TlsConnector::builder();
        if let Some(path) = &settings.ca_file {
            let pem = fs::read(path).map_err(|source| ClientError::ReadCa { path: path.clone(), source })?;
            tls.add_root_certificate(Certificate::from_pem(&pem)?);
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let connector = HttpsConnector::from((tcp, tls.build()?.into()));
        let pool = HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_TIMEOUT).build(connector);
        let http = clickhouse::Client::with_http_client(pool)
            .with_url(&settings.url)
            .with_user(&settings.user)
            .with_password(&settings.password)
            .with_compression(match settings.compression {
                Compression::None => clickhouse::Compression::None,
                Compression::Lz4 => clickhouse::Compression::Lz4,
            });
        let database = settings.database.as_str().into();
        Ok(Self { http, database, insert_timeout: settings.insert_timeout })
    }

    /// The database of all tables.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Asks for a sign of life as the configured user.
    ///
    /// # Errors
    /// [`QueryError`]
    pub async fn ping(&self) -> Result<(), QueryError> {
        bounded(PING_TIMEOUT, self.http.query_raw("SELECT 1").execute()).await
    }

    /// Runs a statement that answers nothing. The text is sent as it is: no `?` is replaced.
    ///
    /// # Errors
    /// [`QueryError`]
    pub async fn execute(&self, sql: &str) -> Result<(), QueryError> {
        bounded(QUERY_TIMEOUT, self.http.query_raw(sql).execute()).await
    }

    /// Runs a statement that may take long, such as one that rewrites parts, and answers nothing.
    ///
    /// # Errors
    /// [`QueryError`]; after one of kind `Infrastructure` it is unknown whether the statement was carried out.
    pub async fn execute_within(&self, sql: &str, limit: Duration) -> Result<(), QueryError> {
        bounded(limit, self.http.query_raw(sql).execute()).await
    }

    /// Runs a query and returns all of its rows.
    ///
    /// # Errors
    /// [`QueryError`]
    pub async fn fetch<T: Row + RowOwned + RowRead>(&self, sql: &str) -> Result<Vec<T>, QueryError> {
        bounded(QUERY_TIMEOUT, self.http.query_raw(sql).fetch_all::<T>()).await
    }

    /// [`Client::fetch`] for a query that reads much.
    ///
    /// # Errors
    /// [`QueryError`]
    pub async fn fetch_within<T: Row + RowOwned + RowRead>(
        &self,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<T>, QueryError> {
        bounded(limit, self.http.query_raw(sql).fetch_all::<T>()).await
    }

    /// Runs a query and gives each of its rows to `take` as it comes, for answers that are too large to be held.
    ///
    /// # Errors
    /// [`QueryError`]; some rows may have been given.
    pub async fn fetch_each<T: Row + RowOwned + RowRead>(
        &self,
        sql: &str,
        limit: Duration,
        mut take: impl FnMut(T),
    ) -> Result<(), QueryError> {
        bounded(limit, async {
            let mut rows = self.http.query_raw(sql).fetch::<T>()?;
            while let Some(row) = rows.next().await? {
                take(row);
            }
            Ok(())
        })
        .await
    }

    /// Runs a query and returns all of its rows as `RowBinary`.
    ///
    /// # Errors
    /// [`QueryError`]
    pub async fn fetch_row_binary(&self, sql: &str) -> Result<Bytes, QueryError> {
        bounded(QUERY_TIMEOUT, async { self.http.query_raw(sql).fetch_bytes("RowBinary")?.collect().await }).await
    }

    /// Runs an insert (`INSERT INTO ... FORMAT ...`) of `body` under `settings`. Nothing is stored unless the whole
    /// body arrives.
    ///
    /// # Errors
    /// [`QueryError`]; after one of kind `Infrastructure` it is unknown whether the rows were stored.
    pub async fn insert(&self, sql: &str, settings: &[(&str, String)], body: Bytes) -> Result<(), QueryError> {
        self.insert_pieces(sql, settings, [body]).await
    }

    /// [`Client::insert`] of a body in pieces, each of which is asked for when it is to be sent.
    ///
    /// # Errors
    /// [`QueryError`]; after one of kind `Infrastructure` it is unknown whether the rows were stored.
    pub async fn insert_pieces(
        &self,
        sql: &str,
        settings: &[(&str, String)],
        pieces: impl IntoIterator<Item = Bytes, IntoIter: Send> + Send,
    ) -> Result<(), QueryError> {
        let mut insert = self.http.insert_formatted_with(sql);
        for (name, value) in settings {
            insert = insert.with_setting(*name, value);
        }
        bounded(self.insert_timeout, async move {
            for mut piece in pieces {
                while !piece.is_empty() {
                    insert.send(piece.split_to(piece.len().min(CHUNK))).await?;
                }
            }
            insert.end().await
        })
        .await
    }
}

/// Awaits `work` for at most `limit`.
async fn bounded<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, QueryError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(QueryError::from),
        Err(_elapsed) => Err(QueryError::silent(limit)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::clickhouse::errors::Kind;

    #[tokio::test]
    async fn a_server_that_says_nothing_is_said_to_say_nothing() {
        // As one that is frozen: the system takes the connection, and nobody reads.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(&Settings {
            url: format!("http://{}", listener.local_addr().unwrap()),
            user: "default".to_owned(),
            password: String::new(),
            database: "o".to_owned(),
            ca_file: None,
            compression: Compression::None,
            insert_timeout: Duration::from_millis(50),
        })
        .unwrap();
        let error = client.insert("INSERT INTO t FORMAT RowBinary", &[], Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(crate::error_chain::chain(&error), "no answer within 0.05 s");
        assert_eq!((error.kind(), error.code()), (&Kind::Infrastructure, None));
    }
}
