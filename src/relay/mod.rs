//! The relay: from the write-ahead log to the broker, in order, and out of the log only what the broker has.
//!
//! ```text
//! reader -> group rows by partition -> producer -> acknowledged -> truncate the log
//!    ^                                    |
//!    +------------ rewind <---------------+  any delivery error
//! ```
//!
//! # What a message is
//! Rows that share a partition, in binary or as newline-separated JSON ([`crate::broker::message`]), at most
//! [`Settings::batch_size`] of them and [`Settings::max_message_bytes`] bytes; of one record, or of several that follow each
//! other and were waiting together. Its key is null, its partition is set. Each row says itself where it comes from
//! (`wal_id`, `wal_seq`, `wal_ordinal`).
//!
//! ```text
//! headers   wal_id       the opening of the log that wrote the records (UUID)
//!           wal_seq      the sequence of the first row's record
//!           wal_ordinal  the first row's place in that record
//!           rows         number of rows
//! ```
//!
//! Parked events ([`crate::row::ParkedRow`]) of a record are messages of the same shape, of JSON, in a topic of their own,
//! `<topic>.parked`, partition 0: the topic of events is read by others, and a parked event may hold what its plugin
//! would have removed. That topic is asked for when the first parked event is to be sent, and not before. A record leaves
//! the log when its messages of both topics are acknowledged.
//!
//! # Order
//! - Messages are handed to one idempotent producer (`acks=all`, no gaps, no time-out) in the order of the log. So in a
//!   partition a broker never holds what came later without what came before.
//! - On any delivery error nothing further is sent. The producer is purged and replaced, the reader goes back to the
//!   lowest record that is not wholly acknowledged, and everything from there is sent again in order. The rows of it that
//!   the broker had already taken are there twice then, in messages that may be cut otherwise: a reader that drops, per
//!   partition and wal id, the rows that are not above the highest (sequence, ordinal) that it has seen, sees every row
//!   once and in order.
//! - A record that is sent again is cut by the number of partitions of its first sending (see [`crate::broker`]).
//!
//! # Operation
//! One thread reads, encodes and hands over; one serves librdkafka's callbacks; one looks after the topic. Memory is
//! bounded by [`Settings::in_flight_bytes`]. While the broker is away librdkafka keeps what is in flight and tries
//! again for as long as it takes, the rest waits in the log.
//!
//! A row that no message can carry goes to the dead letters, durably, before its record may leave the log. A crash in
//! between writes the letter twice.
//!
//! # What this is not
//! It knows nothing of consumers, and it does not decide what is a duplicate.

mod counts;
mod group;
mod producer;
mod window;
mod worker;

use std::sync::Arc;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{BrokerError, Settings, Status},
    dead_letters::DeadLetters,
    health::Component,
    metrics::Metrics,
    wal::{ReadError, Reader, Wal},
};

/// Why the relay ended without being told to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The log cannot be read any more.
    #[error("the relay cannot read the write-ahead log")]
    Read(#[source] ReadError),
    /// No producer can be made.
    #[error("the relay cannot make a producer")]
    Broker(#[source] BrokerError),
    /// The relay's thread panicked.
    #[error("the relay's thread panicked")]
    Panicked,
}

/// What moves the log to the broker. One per log.
pub struct Relay {
    settings: Settings,
    reader: Reader,
    wal: Wal,
    dead_letters: DeadLetters,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
}

impl Relay {
    /// Prepares a relay; [`Relay::run`] starts it. `health` is the broker's component.
    pub fn new(
        settings: Settings,
        reader: Reader,
        wal: Wal,
        dead_letters: DeadLetters,
        health: Component,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { settings, reader, wal, dead_letters, status: Arc::new(Status::new(health)), metrics }
    }

    /// Relays until `cancel`, then gives messages in flight [`Settings::drain`] to be acknowledged. What is not
    /// acknowledged by then stays in the log. Stops too when the returned future is dropped.
    ///
    /// # Errors
    /// [`RelayError`] when the log or the client's configuration ends it. An absent broker is waited for.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), RelayError> {
        let cancel = cancel.child_token();
        // The thread below must not outlive this future.
        let _stop_with_me = cancel.clone().drop_guard();
        let worker = worker::Worker::new(self, cancel).map_err(RelayError::Broker)?;
        let run = move || {
            // It is busy for as long as anything is relayed: who looks at threads should see which one it is.
            let before = rustix::thread::name().ok();
            rustix::thread::set_name(c"relay-worker").ok();
            let result = worker.run();
            if let Some(name) = before {
                rustix::thread::set_name(&name).ok();
            }
            result
        };
        tokio::task::spawn_blocking(run).await.unwrap_or(Err(RelayError::Panicked))
    }
}
