//! The ledger: every event that was ever received, and where it is now, by tenant.
//!
//! ```text
//! received = rejected + dropped + duplicate + in WAL + in broker + stored + parked + dead-lettered + erased + expired + damaged
//! ```
//!
//! Every term is counted where it happens, and none is made of the others: the log keeps books of what came in (`wal::books`)
//! and is read to see what waits in it; unread messages are read from the topic; ClickHouse counts the rows that are there,
//! what was ever inserted (under each insert's own token), and what was left out or erased.
//!
//! # The cut
//! Events do not stand still. A ledger is of those in the log's books at one moment, and each is looked for in one place:
//! records up to `done` have left the log, those behind it are counted in it (and kept until they are). Of a partition,
//! what is before the group's commit is looked for in ClickHouse, the rest in the topic. ClickHouse is asked after the log and
//! the topic, for nothing beyond these cuts. A measurement that does not balance is made again some times: what moves from one
//! table to another meanwhile (parked events that go on, rows that are erased) can be seen twice or not at all.
//!
//! # What is compared
//! Three sums, so that a difference has a place:
//! - `front`: what was received, with what was rejected, dropped, repeated and committed;
//! - `wal` (with brokers `wal` or `broker`): what was committed, with what waits and what has arrived in ClickHouse;
//! - `clickhouse`: what has arrived, with what is there, was erased, or has expired.
//!
//! # What damage to the log has taken
//! Events of records that are gone, once each: `damaged` where the record's header is left and says whose they are; else missing,
//! of their tenant if they were in the books before, and if not of nobody, in a number that the records around them say. None
//! of it balances: the sums come out with what is damaged, and the events are lost.
//!
//! # Repeats that ClickHouse merges
//! An event that is sent again outside of the dedup window is a second row, and one of the two is merged away later. Such a
//! row is missing like one that is lost, and nothing tells them apart: that would take a second copy of every event's id.
//! So it is missed, and the report says of how many it cannot be determined which they are (`undetermined`): as many as the
//! tenant has rows that can have replaced another, those with a time of their own that lies further back than the window.
//! A tenant that has no such row, and most have none, loses nothing unseen and is told of nothing that is not so.
//!
//! # What this is not
//! It is of one node: of the events that its log has taken in. It counts requests that were refused whole (401, 413, 429,
//! 503) not at all. What was in ClickHouse before the books were begun is not in it.

mod balance;
mod gone;
mod moved;
mod show;
mod store;

use std::{future::Future, io, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use thiserror::Error;

pub use balance::{Cut, Report, Stage, StageName, TenantReport, Terms, UNKNOWN};
pub(crate) use gone::{Gone, Reason, erased, record};
pub(crate) use moved::moved;
pub use show::table;

use crate::{
    broker,
    clickhouse::{Client, QueryError},
    dead_letters::{Letter, read_files},
    error_chain::chain,
    ids::TenantId,
    wal::{Holdings, StoreError, Wal},
};

/// How often a ledger that does not balance is measured, and the pause between: longer than a page of parked events or a
/// deletion of an erasure takes from one table to the next.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Why there is no ledger.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The log cannot be counted.
    #[error("the write-ahead log cannot be counted")]
    Wal(#[source] StoreError),
    /// There is no ClickHouse (yet).
    #[error("{0}")]
    NotReached(String),
    /// The dead letters on this node's disk cannot be read.
    #[error("the dead letters on disk cannot be read")]
    Letters(#[source] io::Error),
    /// ClickHouse refused, or cannot be reached.
    #[error("ClickHouse cannot be asked")]
    ClickHouse(#[from] QueryError),
    /// The topic cannot be read.
    #[error("the broker cannot be asked")]
    Broker(#[source] rdkafka::error::KafkaError),
}

/// Gives the client of ClickHouse, or says why there is none.
pub type Connect = Arc<dyn Fn() -> Result<Client, String> + Send + Sync>;

/// What is in the log.
#[derive(Clone)]
pub enum Log {
    /// It is open, and moves.
    Open(Wal),
    /// It was read while no engine had it.
    Read(Arc<Holdings>),
}

/// What measures. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    log: Log,
    connect: Connect,
    /// The topics of events and of parked events; none without brokers.
    topics: Vec<broker::Settings>,
    /// Where dead letters wait for ClickHouse.
    letters: Option<PathBuf>,
    /// How far back a repeat is recognised.
    window: Duration,
    /// It reads much: one at a time, however many ask.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The outcome of [`Source::ledger`].
pub type Measured<'a> = Pin<Box<dyn Future<Output = Result<Report, String>> + Send + 'a>>;

/// Whoever can measure a ledger.
pub trait Source: Send + Sync {
    /// The ledger now.
    fn ledger(&self) -> Measured<'_>;
}

impl Source for Ledger {
    fn ledger(&self) -> Measured<'_> {
        Box::pin(async move { self.measure().await.map_err(|error| chain(&error)) })
    }
}

impl Ledger {
    /// A ledger of `log` and of the ClickHouse that `connect` gives.
    pub fn new(log: Log, connect: Connect, window: Duration) -> Self {
        Self { log, connect, topics: Vec::new(), letters: None, window, turn: Arc::default() }
    }

    /// What leaves the log goes through a broker.
    #[must_use]
    pub fn with_broker(self, settings: broker::Settings) -> Self {
        Self { topics: vec![settings.parked(), settings], ..self }
    }

    /// Dead letters wait in `folder`.
    #[must_use]
    pub fn with_letters(self, folder: PathBuf) -> Self {
        Self { letters: Some(folder), ..self }
    }

    /// Measures until it balances, a few times.
    ///
    /// # Errors
    /// [`LedgerError`] when a term cannot be counted: then nothing is said.
    pub async fn measure(&self) -> Result<Report, LedgerError> {
        let _my_turn = self.turn.lock().await;
        let mut tries = 1;
        loop {
            let report = self.once().await?;
            if report.balanced || tries == TRIES {
                return Ok(report);
            }
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn once(&self) -> Result<Report, LedgerError> {
        let client = (self.connect)().map_err(LedgerError::NotReached)?;
        let holdings = match self.log.clone() {
            Log::Open(wal) => {
                let counted = tokio::task::spawn_blocking(move || wal.holdings()).await;
                let counted = counted.unwrap_or_else(|panic| Err(StoreError::Panicked(panic.to_string())));
                Arc::new(counted.map_err(LedgerError::Wal)?)
            }
            Log::Read(holdings) => holdings,
        };
        let unread = if self.topics.is_empty() { None } else { Some(self.unread().await?) };
        // Before the table: one that is delivered meanwhile counts twice, and the measurement is made again.
        let letters = self.letters().await?;
        let mut found = store::count(&client, &holdings, unread.as_deref(), self.window).await?;
        for letter in letters.iter().filter(|letter| holdings.has_left(letter.wal_id, letter.wal_seq)) {
            found.entry(letter.tenant_id).or_default().dead_lettered += i64::from(letter.events);
        }
        Ok(balance::balance(&holdings, &found))
    }
}

impl Ledger {
    /// The dead letters that are not in ClickHouse yet, each once.
    async fn letters(&self) -> Result<Vec<Letter>, LedgerError> {
        let Some(folder) = self.letters.clone() else { return Ok(Vec::new()) };
        let read = tokio::task::spawn_blocking(move || read_files(&folder)).await;
        let mut letters = read.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(LedgerError::Letters)?;
        letters.sort_by_key(|letter| letter.letter_id);
        letters.dedup_by_key(|letter| letter.letter_id);
        Ok(letters)
    }

    async fn unread(&self) -> Result<Vec<broker::Unread>, LedgerError> {
        let topics = self.topics.clone();
        let read = move || topics.iter().filter_map(|topic| broker::unread(topic).transpose()).collect();
        let read = tokio::task::spawn_blocking(read).await.unwrap_or(Err(rdkafka::error::KafkaError::Canceled));
        read.map_err(LedgerError::Broker)
    }
}

impl Report {
    /// Says the name of each tenant that has one.
    pub fn name(&mut self, name: impl Fn(TenantId) -> Option<String>) {
        for tenant in &mut self.tenants {
            tenant.name = name(tenant.tenant_id).filter(|name| !name.is_empty());
        }
    }

    /// What concerns one tenant.
    #[must_use]
    pub fn of(self, tenant: TenantId) -> Self {
        let Self { since, cut, tenants, .. } = self;
        let tenants: Vec<_> = tenants.into_iter().filter(|report| report.tenant_id == tenant).collect();
        Self::new(since, cut, tenants)
    }
}
