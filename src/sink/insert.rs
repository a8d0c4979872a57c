//! One range, one insert for each table that it has rows of: the statements, its settings, and the repeats.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{Rng as _, seq::IndexedMutRandom as _};
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Settings, arrival,
    arrival::Arrival,
    bisect::{self, BisectError, Found, Search},
    copies,
    recount::{self, RecountError, Stored},
    report::Report,
    resent::{Resent, Window},
    source::{Block, Range},
};
use crate::{
    clickhouse::{Client, Kind, MigrateError, Migrator, Mode, QueryError, Template, quote_identifier},
    dead_letters::{DeadLetter, DeadLetters, Form, Stage, store::Store},
    erasure::{Erasures, Set},
    ids::WalId,
    ledger,
    metrics::{LeftOutLabels, Metrics},
    plugins::tables::{Tables, TablesError},
    row::{self, BinaryError, ORIGIN_COLUMNS, POSITION_COLUMNS, Piece, Place, Table},
};

/// So many stored rows are remembered of a table.
const SAMPLES: usize = 32;
/// The one that is remembered of a block is among so many of its first.
const FIRST_ROWS: usize = 64;

/// How the storing of a range ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every row is in ClickHouse.
    Stored,
    /// The partition was taken away first.
    Revoked,
    /// The sink was asked to stop while ClickHouse refused.
    Stopped,
}

/// Why an attempt failed.
#[derive(Debug, Error)]
pub(super) enum AttemptError {
    /// ClickHouse refused, or cannot be reached.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Tables or views are not there (yet).
    #[error(transparent)]
    Schema(MigrateError),
    /// Tables of plugins are not there (yet).
    #[error(transparent)]
    Plugins(#[from] TablesError),
    /// Whether the rows are there is not known.
    #[error(transparent)]
    Recount(#[from] RecountError),
    /// What is to be inserted cannot be read, so that nobody knows what of it was erased.
    #[error("the rows of the range cannot be read")]
    Rows(#[from] BinaryError),
    /// Rows are refused, and which they are cannot be told.
    #[error(transparent)]
    Bisect(#[from] BisectError),
    /// The dead letters of this node cannot be written or read.
    #[error("dead letters cannot be kept")]
    Letters(#[from] io::Error),
    /// The repeat that gives the views what they may lack is refused.
    ///
    /// It cannot go on without the rows that are stored and refused now: whether a view has them is known to its token alone,
    /// which stands for the whole block, and a constraint is looked at before the token is. Left out, they would be missing from
    /// every view that an attempt did not reach; given to the views by another way, they would be in the others twice.
    #[error(
        "rows of the range were stored by an attempt of which nobody knows whether the views have them too, and its repeat is \
         refused: remove what refuses them until the range is stored: {0}"
    )]
    StoredBefore(#[source] QueryError),
    /// Refused rows were put aside; the rest is to be inserted, or to be searched further.
    #[error("{rows} rows are refused and now dead letters")]
    PutAside {
        /// How many.
        rows: usize,
    },
}

impl AttemptError {
    /// Whether rows may have been stored all the same.
    fn leaves_doubt(&self) -> bool {
        match self {
            Self::Query(error) => matches!(error.kind(), Kind::Infrastructure | Kind::ViewPush { .. }),
            Self::Recount(_) => true,
            Self::Schema(_)
            | Self::Plugins(_)
            | Self::Rows(_)
            | Self::Bisect(_)
            | Self::Letters(_)
            | Self::StoredBefore(_)
            | Self::PutAside { .. } => false,
        }
    }
}

/// What is known of a range while it is stored.
struct Attempts {
    /// It may be stored already, wholly or in part: another process was at it, or nobody has answered.
    in_doubt: bool,
    /// Where the rows entered that are dead letters.
    refused: HashSet<Place>,
    /// How many of them are of this range, and were found by this process.
    letters: usize,
    /// Whether the dead letters of earlier processes were looked for.
    recalled: bool,
    /// Where the rows entered that another process has stored. Looked for before the first attempt, which leaves rows of its
    /// own.
    elsewhere: Option<HashSet<Place>>,
    /// Where the rows entered whose event another node has sent too. Looked for once, whatever is stored by then.
    resent: Option<HashSet<Place>>,
}

impl Attempts {
    fn of(range: &Range) -> Self {
        let elsewhere = if range.of_earlier_opening { None } else { Some(HashSet::new()) };
        Self { in_doubt: range.replayed, refused: HashSet::new(), letters: 0, recalled: false, elsewhere, resent: None }
    }
}

/// The tables of plugins, which stand before a row that needs them is inserted.
pub(super) struct Gate {
    pub(super) tables: Tables,
    pub(super) template: Template,
    pub(super) mode: Mode,
}

/// Stores ranges. Shared by all inserts in flight.
pub(super) struct Inserter {
    client: Client,
    schema: Migrator,
    /// Whether the schema must be looked at before the next insert. After an outage ClickHouse may come back empty and
    /// be migrated while inserts are repeated: rows that arrived between the table and its views would be missing
    /// from the views for ever.
    schema_in_doubt: AtomicBool,
    gate: OnceLock<Gate>,
    erasures: OnceLock<Erasures>,
    resent: OnceLock<Resent>,
    letters: DeadLetters,
    /// By table, rows that were stored lately.
    samples: Mutex<BTreeMap<&'static str, Vec<Bytes>>>,
    settings: Settings,
    report: Report,
    metrics: Arc<Metrics>,
}

impl Inserter {
    pub(super) fn new(
        client: Client,
        letters: DeadLetters,
        settings: Settings,
        report: Report,
        metrics: Arc<Metrics>,
    ) -> Self {
        // Only looked at: what it would create does not matter.
        let template = Template { database: client.database().to_owned(), cluster: None, embedded: false };
        let schema = Migrator::new(client.clone(), template);
        let schema_in_doubt = AtomicBool::new(false);
        Self {
            client,
            schema,
            schema_in_doubt,
            gate: OnceLock::new(),
            erasures: OnceLock::new(),
            resent: OnceLock::new(),
            letters,
            samples: Mutex::default(),
            settings,
            report,
            metrics,
        }
    }

    /// Lets nothing through before the tables of plugins stand. The first gate stays.
    pub(super) fn guard(&self, gate: Gate) {
        self.gate.get_or_init(|| gate);
    }

    /// Leaves out what was erased. The first handle stays.
    pub(super) fn apply(&self, erasures: Erasures) {
        self.erasures.get_or_init(|| erasures);
    }

    /// Leaves out what was sent to another node as well. The first window stays.
    pub(super) fn compare(&self, window: Window) {
        self.resent.get_or_init(|| Resent::new(self.client.clone(), window));
    }

    /// Inserts `range` until it is stored, its partition is taken away, or `stop` comes while it cannot be stored.
    pub(super) async fn store(&self, range: &Range, stop: &CancellationToken) -> Outcome {
        let mut pause = self.settings.retry_first;
        let mut attempts = 0_u32;
        // Of a range that another process may have stored, or an attempt that nobody answered, the rows are counted.
        let mut known = Attempts::of(range);
        loop {
            let attempt = tokio::select! {
                biased;
                () = range.revoked.cancelled() => Err(None),
                result = self.attempt(range, &mut known, stop) => result.map_err(Some),
            };
            match attempt {
                Ok((arrival, took)) => {
                    self.stored(range, &arrival, took);
                    return Outcome::Stored;
                }
                Err(None) => {
                    self.report.resolved(&range.id);
                    return Outcome::Revoked;
                }
                // What was found is kept. The rest need not wait, unless for the next start.
                Err(Some(AttemptError::PutAside { .. })) if stop.is_cancelled() => return Outcome::Stopped,
                Err(Some(AttemptError::PutAside { .. })) => continue,
                Err(Some(error)) => {
                    known.in_doubt |= error.leaves_doubt();
                    attempts = attempts.saturating_add(1);
                    self.metrics.error("sink");
                    self.report.failed(&range.id, attempts, &error);
                }
            }
            // Half of the pause is random, so that partitions that failed together do not come back together.
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::select! {
                biased;
                () = range.revoked.cancelled() => {}
                () = stop.cancelled() => return Outcome::Stopped,
                () = tokio::time::sleep(jittered) => {}
            }
            pause = (pause * 2).min(self.settings.retry_longest);
        }
    }

    async fn attempt(
        &self,
        range: &Range,
        known: &mut Attempts,
        stop: &CancellationToken,
    ) -> Result<(Arrival, Duration), AttemptError> {
        if self.schema_in_doubt.load(Relaxed) {
            match self.schema.verify().await {
                // A newer schema has every column that this version knows.
                Ok(()) | Err(MigrateError::Newer { .. } | MigrateError::Changed { .. }) => {
                    self.schema_in_doubt.store(false, Relaxed);
                }
                Err(missing) => return Err(AttemptError::Schema(missing)),
            }
        }
        if let Some(Gate { tables, template, mode }) = self.gate.get()
            && !tables.is_applied()
        {
            tables.bring_up(&self.client, template, *mode).await?;
        }
        if known.resent.is_none()
            && let Some(resent) = self.resent.get()
        {
            known.resent = Some(match resent.look(range).await {
                Err(RecountError::Query(error)) => self.noted(Err(error))?,
                looked => looked?,
            });
        }
        // Held until the inserts have ended: by then every sink that says so applies what it says.
        let erased = match self.erasures.get() {
            Some(erasures) => self.noted(erasures.lease().await)?,
            None => Arc::new(Set::default()),
        };
        let now = u32::try_from(jiff::Timestamp::now().as_second()).unwrap_or(u32::MAX - 1);
        let mut arrival = arrival::sort(range, Arc::clone(&erased), now).await?;
        if let Some(resent) = &known.resent {
            arrival.leave_out_duplicates(resent)?;
        }
        self.recall(range, &arrival, known).await?;
        arrival.leave_out_refused(&known.refused)?;
        let started = Instant::now();
        let elsewhere = match &known.elsewhere {
            Some(known) => known,
            None => known.elsewhere.insert(self.look_for_copies(range, &arrival).await?),
        };
        arrival.leave_out_stored(elsewhere)?;
        // A range of which every row went to the dead letters, or was left out, is only to be committed.
        for ((table, block), stored) in
            arrival.blocks().into_iter().zip(arrival.stored).filter(|((_, block), _)| block.rows > 0)
        {
            let settings = insert_settings(&arrival::token(range, block, stored), block.rows);
            match insert_block(&self.client, table.name(), table, block, &settings).await {
                Err(AttemptError::Query(error)) if *error.kind() == Kind::Data => {
                    return Err(self.put_aside(range, (table, block), known, error, stop).await?);
                }
                Err(AttemptError::Query(error)) => self.noted(Err(error))?,
                result => result?,
            }
            self.remember(table, block)?;
        }
        self.noted(ledger::record(&self.client, &arrival.gone).await)?;
        if known.in_doubt {
            self.recount(range, &arrival).await?;
        }
        drop(erased);
        Ok((arrival, started.elapsed()))
    }

    /// Keeps a row of `block`, which was stored: proof that the table takes rows. Of several kinds of rows there are samples
    /// before long, and of those that were frequent a while ago too.
    fn remember(&self, table: Table, block: &Block) -> Result<(), BinaryError> {
        let mut random = rand::rng();
        let body = block.body.first(FIRST_ROWS);
        let mut input = &body[..];
        for _ in 0..random.random_range(0..block.rows.clamp(1, FIRST_ROWS)) {
            row::read_insert_row(table, &mut input)?;
        }
        let from = input;
        row::read_insert_row(table, &mut input)?;
        let row = Bytes::copy_from_slice(from.get(..from.len() - input.len()).unwrap_or_default());
        let mut samples = self.samples.lock();
        let samples = samples.entry(table.name()).or_default();
        if samples.len() < SAMPLES {
            samples.push(row);
        } else if let Some(sample) = samples.choose_mut(&mut random) {
            *sample = row;
        }
        Ok(())
    }

    /// Finds out which rows of a range that was given out before are dead letters already.
    async fn recall(&self, range: &Range, arrival: &Arrival, known: &mut Attempts) -> Result<(), AttemptError> {
        if known.recalled || !(range.replayed || range.of_earlier_opening) {
            return Ok(());
        }
        // The files first: what is delivered from them meanwhile is in the table then.
        let letters = self.letters.clone();
        let local = tokio::task::spawn_blocking(move || letters.refused_rows()).await.map_err(io::Error::other)??;
        known.refused.extend(local);
        let store = Store::new(self.client.clone());
        for (table, block) in arrival.blocks() {
            let rows = recount::read(table, &block.body.by_row())?.0;
            let wal_ids: BTreeSet<WalId> = rows.iter().map(|row| row.origin.wal_id).collect();
            let records = || rows.iter().map(|row| row.origin.wal_seq);
            if let (Some(first), Some(last)) = (records().min(), records().max()) {
                known.refused.extend(self.noted(store.refused_rows(wal_ids, (first, last)).await)?);
            }
        }
        known.recalled = true;
        Ok(())
    }

    /// Makes dead letters of the rows of `block` that ClickHouse does not take; it has said `error` of the whole of it. Gives
    /// what the attempt comes to.
    async fn put_aside(
        &self,
        range: &Range,
        (table, block): (Table, &Block),
        known: &mut Attempts,
        error: QueryError,
        stop: &CancellationToken,
    ) -> Result<AttemptError, AttemptError> {
        let letters = known.letters;
        let block = &block.by_row();
        self.report.searching(&range.id, table.name(), block.rows, letters, &error);
        let search = Search {
            client: &self.client,
            table,
            block,
            token: range.id.to_string(),
            samples: self.samples.lock().get(table.name()).cloned().unwrap_or_default(),
            stop,
            progress: &|left, found| self.report.searching(&range.id, table.name(), left, letters + found, &error),
        };
        let Found { mut refused, cut_short } = bisect::refused(&search, &error).await?;
        if known.in_doubt && !refused.is_empty() {
            // Taken by an earlier attempt, before whatever makes ClickHouse refuse them now.
            let (rows, received) = recount::read(table, &block.body.by_row())?;
            let there = recount::there(&self.client, table, &rows, received).await?;
            let found = refused.len();
            refused.retain(|row| !there.has_row(row.place));
            if refused.is_empty() && found > 0 {
                return Err(AttemptError::StoredBefore(error));
            }
        }
        // None of them alone is refused: it was not about the rows, and the range is tried again as it is.
        if refused.is_empty() {
            return Ok(if cut_short { AttemptError::PutAside { rows: 0 } } else { error.into() });
        }
        let form = if table == Table::Events { Form::Event } else { Form::Parked };
        let places: Vec<Place> = refused.iter().map(|row| row.place).collect();
        let letters = self.letters.clone();
        let keeping = tokio::task::spawn_blocking(move || {
            let refused = refused.iter().map(|row| DeadLetter {
                stage: Stage::Sink,
                reason: row.reason.clone(),
                form,
                bytes: &row.bytes,
                origin: Some(row.place),
                message: None,
                about: None,
            });
            letters.keep(&refused.collect::<Vec<_>>())
        });
        keeping.await.map_err(io::Error::other)??;
        known.refused.extend(&places);
        known.letters += places.len();
        Ok(AttemptError::PutAside { rows: places.len() })
    }

    /// The rows of a range that another process has stored.
    async fn look_for_copies(&self, range: &Range, arrival: &Arrival) -> Result<HashSet<Place>, AttemptError> {
        let mut places = HashSet::new();
        for (table, block) in arrival.blocks() {
            copies::look(&self.client, table, block, range.replayed, &mut places).await?;
        }
        Ok(places)
    }

    /// Puts back what ClickHouse has lost of a range that it says it has.
    async fn recount(&self, range: &Range, arrival: &Arrival) -> Result<(), AttemptError> {
        let token = range.id.to_string();
        for (table, block) in arrival.blocks() {
            if block.rows > 0 {
                let stored = Stored { table, block, token: &token };
                let missing = recount::mend(&self.client, &stored).await?;
                self.metrics.sink_mended_rows.inc_by(missing as u64);
            }
        }
        self.metrics.sink_recounts.inc();
        Ok(())
    }

    /// Remembers that the schema must be looked at when ClickHouse may not be the one that it was.
    fn noted<T>(&self, result: Result<T, QueryError>) -> Result<T, QueryError> {
        if let Err(error) = &result
            && matches!(error.kind(), Kind::Infrastructure | Kind::Configuration)
        {
            self.schema_in_doubt.store(true, Relaxed);
            if let Some(gate) = self.gate.get() {
                gate.tables.doubt();
            }
        }
        result
    }

    fn stored(&self, range: &Range, arrival: &Arrival, took: Duration) {
        self.report.resolved(&range.id);
        let rows = [arrival.events.rows, arrival.parked.rows];
        self.metrics.sink_rows.inc_by(arrival.events.rows as u64);
        self.metrics.sink_parked_rows.inc_by(arrival.parked.rows as u64);
        self.metrics.sink_inserts.inc_by(rows.into_iter().filter(|rows| *rows > 0).count() as u64);
        for (reason, count) in [
            ("expired", arrival.expired),
            ("erased", arrival.erased),
            ("duplicate", arrival.duplicate),
            ("stored", arrival.stored.iter().sum()),
        ] {
            if count > 0 {
                self.metrics.sink_left_out.get_or_create(&LeftOutLabels { reason }).inc_by(count as u64);
                tracing::info!(range = %range.id, reason, rows = count, "left rows out of an insert");
            }
        }
        self.metrics.sink_insert.observe(took.as_secs_f64());
    }
}

/// Inserts `block`, whose rows are of `table`, into the table `into`: by column, which ClickHouse reads with less work. The
/// columns say of what type they are, and are converted if those of the table are of others.
pub(super) async fn insert_block<E: From<QueryError> + From<BinaryError>>(
    client: &Client,
    into: &str,
    table: Table,
    block: &Block,
    settings: &[(&str, String)],
) -> Result<(), E> {
    let statement = format!("{} FORMAT Native", insert_into(client.database(), into, table.columns(), &[]));
    let pieces = native(table, block).await?.into_iter().flat_map(Piece::into_parts);
    Ok(client.insert_pieces(&statement, settings, pieces).await?)
}

async fn native(table: Table, block: &Block) -> Result<Vec<Piece>, BinaryError> {
    let body = block.body.clone();
    // Of a full range by row some 20 ms: too long for an async thread.
    let native = tokio::task::spawn_blocking(move || body.native(table)).await;
    native.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// The insert, naming every column that a row has and then `more`: one that a later migration adds takes its default.
pub(crate) fn statement(database: &str, table: &str, columns: &[&str], more: &[&str]) -> String {
    format!("{} FORMAT RowBinary", insert_into(database, table, columns, more))
}

fn insert_into(database: &str, table: &str, columns: &[&str], more: &[&str]) -> String {
    format!("INSERT INTO {}.{table} ({})", quote_identifier(database), column_list(columns, more))
}

/// The columns of a complete row: `columns`, its origin and position, and `more`.
pub(super) fn column_list(columns: &[&str], more: &[&str]) -> String {
    let columns = columns.iter().chain(ORIGIN_COLUMNS).chain(POSITION_COLUMNS).chain(more);
    columns.map(|column| quote_identifier(column)).collect::<Vec<_>>().join(", ")
}

/// What every insert pins, whatever the server's or the user's profile says.
pub(crate) fn insert_settings(token: &impl ToString, rows: usize) -> [(&'static str, String); 9] {
    [
        // A block holds no key twice, so looking for one to replace only costs: a quarter of the work of an insert.
        ("optimize_on_insert", "0".into()),
        // Gathered with others' rows an insert would have no block, hence no token, of its own.
        ("async_insert", "0".into()),
        ("insert_deduplicate", "1".into()),
        ("insert_deduplication_token", token.to_string()),
        // A repeat must reach the views' targets too: each has a window of its own and recognises it there.
        ("deduplicate_blocks_in_dependent_materialized_views", "1".into()),
        // One block: a token stands for whole ranges only. The reader of the format cuts at the first, the writer
        // gathers until the second.
        ("max_insert_block_size", rows.to_string()),
        ("min_insert_block_size_rows", rows.to_string()),
        ("min_insert_block_size_bytes", "0".into()),
        // The source bounds the partitions of a range. A limit here would make the one record that is above it
        // (a request of many retentions) impossible to store for ever.
        ("max_partitions_per_insert_block", "0".into()),
    ]
}
