//! From the files of this node into the table, and the size cap of the table.

use std::{io, sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    ANNOUNCE, DeadLetters,
    letter::Letter,
    spool,
    store::{Filter, Held, Store},
};
use crate::{
    clickhouse::{Client, QueryError},
    erasure::{Erasures, Set},
    error_chain::chain,
    health::Component,
    ledger::Reason,
};

/// How often the letters in the table are counted.
const COUNT_EVERY: Duration = Duration::from_secs(30);
/// Of these the bytes are there.
const HELD: Option<&str> = Some("held");
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// Why letters stay where they are.
#[derive(Debug, thiserror::Error)]
enum DeliverError {
    #[error("ClickHouse does not answer")]
    Query(#[from] QueryError),
    #[error("their files cannot be read or removed")]
    Files(#[from] io::Error),
}

/// Delivers what this node keeps until `stop`. Where it `bounds` (a node with a sink, which has made the table), it also keeps
/// the table below its cap.
pub(crate) async fn run(
    letters: DeadLetters,
    client: Client,
    erasures: Erasures,
    bounds: bool,
    health: Component,
    stop: CancellationToken,
) {
    let telling = Arc::clone(&letters.telling);
    let delivery = Delivery { store: Store::new(client), letters, erasures, bounds, health };
    stop.run_until_cancelled(delivery.run()).await;
    telling.rest(true);
}

/// Says, until `stop`, that what this node keeps stays on its disk: it knows no ClickHouse.
pub(crate) async fn hold(letters: DeadLetters, health: Component, stop: CancellationToken) {
    let watching = async {
        loop {
            let spool = letters.spool.clone();
            match tokio::task::spawn_blocking(move || spool.bytes()).await {
                Ok(Ok(0)) => health.up(),
                _ => health.degraded(format!(
                    "dead letters stay in {}: this node knows no ClickHouse; set clickhouse.url",
                    letters.spool.folder().display()
                )),
            }
            drop(tokio::time::timeout(COUNT_EVERY, letters.spool.news.notified()).await);
            letters.telling.rest(false);
        }
    };
    stop.run_until_cancelled(watching).await;
    letters.telling.rest(true);
}

struct Delivery {
    store: Store,
    letters: DeadLetters,
    erasures: Erasures,
    bounds: bool,
    health: Component,
}

impl Delivery {
    async fn run(&self) {
        let (mut pause, mut held) = (RETRY_FIRST, Held::default());
        let mut counted: Option<Instant> = None;
        loop {
            self.letters.telling.rest(false);
            let turn = async {
                let delivered = self.deliver().await?;
                let due = delivered || counted.is_none_or(|counted| counted.elapsed() >= COUNT_EVERY);
                if self.bounds && due {
                    held = self.bound().await?;
                    counted = Some(Instant::now());
                }
                Ok::<_, DeliverError>(())
            };
            match turn.await {
                Ok(()) => {
                    pause = RETRY_FIRST;
                    self.report(held);
                    drop(tokio::time::timeout(COUNT_EVERY, self.letters.spool.news.notified()).await);
                }
                Err(error) => {
                    self.letters.metrics.error("dead_letters");
                    self.waiting(&error);
                    let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                    tokio::time::sleep(jittered).await;
                    pause = (pause * 2).min(RETRY_LONGEST);
                }
            }
        }
    }

    /// Brings every file into the table; true when there was one.
    async fn deliver(&self) -> Result<bool, DeliverError> {
        let files = self.on_disk(|letters| letters.spool.take()).await?;
        for path in &files {
            let (file, to_remove) = (path.clone(), path.clone());
            let read = self.on_disk(move |_| spool::read(&file)).await?;
            // Held until the insert has ended, as the sink holds it.
            let erased = self.erasures.lease().await?;
            let (gone, kept): (Vec<Letter>, Vec<Letter>) =
                read.into_iter().partition(|letter| is_erased(&erased, letter));
            if !kept.is_empty() {
                self.store.insert(&kept).await?;
            }
            // A letter goes one day; that its event has ended here stays said.
            let dead = kept.iter().flat_map(|letter| letter.gone(Reason::Dead));
            let ended = dead.chain(gone.iter().flat_map(|letter| letter.gone(Reason::Erased)));
            self.store.note(&ended.collect::<Vec<_>>()).await?;
            drop(erased);
            self.on_disk(move |letters| letters.spool.remove(&to_remove)).await?;
        }
        Ok(!files.is_empty())
    }

    /// Counts what is held, and removes what is above the cap.
    async fn bound(&self) -> Result<Held, QueryError> {
        let most = self.letters.limits.max_bytes;
        let mut held = self.store.count(&Filter::default(), HELD).await?;
        if held.bytes > most {
            // Some way below, so that not every further letter removes one.
            self.store.shrink(most - most / 10).await?;
            let before = std::mem::replace(&mut held, self.store.count(&Filter::default(), HELD).await?);
            let removed = before.letters.saturating_sub(held.letters);
            self.letters.metrics.dead_letters_removed.inc_by(removed);
            tracing::error!(
                removed,
                most,
                "removed the oldest dead letters of the tenants that have most: they were above dead_letters.max_bytes"
            );
        }
        let metrics = &self.letters.metrics;
        metrics.dead_letters_held.set(i64::try_from(held.letters).unwrap_or(i64::MAX));
        metrics.dead_letters_size.set(i64::try_from(held.bytes).unwrap_or(i64::MAX));
        Ok(held)
    }

    fn report(&self, held: Held) {
        let most = self.letters.limits.max_bytes;
        if is_near(held.bytes, most) {
            self.health.degraded(format!(
                "{} dead letters hold {} of at most {most} bytes (dead_letters.max_bytes); above that the oldest are removed: \
                 replay or drop them (`ingestion-engine dead-letters`)",
                held.letters, held.bytes
            ));
        } else {
            self.health.up();
        }
    }

    fn waiting(&self, error: &DeliverError) {
        let most = self.letters.limits.max_bytes;
        let folder = self.letters.spool.folder().display();
        let (kept, advice) = match self.letters.spool.bytes() {
            Ok(0) => {
                self.health.degraded(format!("the dead letters cannot be counted: {}", chain(error)));
                return;
            }
            Ok(bytes) if is_near(bytes, most) => {
                (bytes, "; above that nothing more is kept, and what cannot be delivered waits in the log or the topic")
            }
            Ok(bytes) => (bytes, ""),
            Err(_) => (0, ""),
        };
        self.health.degraded(format!(
            "dead letters wait in {folder} ({kept} of at most {most} bytes{advice}): {}",
            chain(error)
        ));
    }

    /// Work with the files, away from the async threads.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DeadLetters) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let letters = self.letters.clone();
        tokio::task::spawn_blocking(move || work(&letters)).await.map_err(io::Error::other)?
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share that is shown")]
fn is_near(bytes: u64, most: u64) -> bool {
    bytes as f64 >= most as f64 * ANNOUNCE
}

fn is_erased(erased: &Arc<Set>, letter: &Letter) -> bool {
    erased.names_person(letter.tenant_id, letter.received_at_ms, &letter.user_id, &letter.anonymous_id)
}
