//! What an event has passed, and when.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::ids::{WalId, WalSeq};

/// A stage that an event has passed, and where. In the order in which an event travels.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// On a node's disk: its sender has a 2xx.
    Accepted {
        /// The opening of the log that wrote it.
        wal_id: WalId,
        /// The record.
        sequence: WalSeq,
        /// The row in it.
        ordinal: u32,
    },
    /// The same, as the dedup window remembers it: its record is gone.
    #[serde(rename = "accepted")]
    Remembered,
    /// Sent to the broker.
    Relayed {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The message.
        offset: u64,
    },
    /// A row of `events`.
    Stored,
    /// A row of `parked_events`.
    Parked {
        /// The plugin that it waits for.
        plugin: String,
        /// Why.
        reason: String,
    },
    /// Run through its plugin again.
    Released {
        /// The plugin.
        plugin: String,
    },
    /// Could not be delivered.
    DeadLetter {
        /// Its name.
        letter_id: String,
        /// Where it failed.
        at_stage: String,
        /// Why.
        reason: String,
        /// What became of it; `held` while nothing has.
        state: String,
        /// The table that keeps it, or the folder.
        kept: String,
    },
    /// Erased on request: copies that are still on their way are not stored.
    Erased {
        /// The tombstone that names it.
        tombstone: Uuid,
    },
}

impl Stage {
    /// In one word.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accepted { .. } | Self::Remembered => "accepted",
            Self::Relayed { .. } => "relayed",
            Self::Stored => "stored",
            Self::Parked { .. } => "parked",
            Self::Released { .. } => "released",
            Self::DeadLetter { .. } => "dead letter",
            Self::Erased { .. } => "erased",
        }
    }

    /// Its place in the journey, for stages of the same moment.
    pub(super) const fn rank(&self) -> u8 {
        match self {
            Self::Accepted { .. } | Self::Remembered => 0,
            Self::Relayed { .. } => 1,
            Self::Stored | Self::Parked { .. } => 2,
            Self::Released { .. } => 3,
            Self::DeadLetter { .. } => 4,
            Self::Erased { .. } => 5,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { wal_id, sequence, ordinal } => {
                write!(f, "write-ahead log {wal_id}, sequence {sequence}, row {ordinal}")
            }
            Self::Remembered => f.write_str("this node's dedup window"),
            Self::Relayed { topic, partition, offset } => {
                write!(f, "topic {topic}, partition {partition}, offset {offset}")
            }
            Self::Stored => f.write_str("table events"),
            Self::Parked { plugin, reason } => write!(f, "table parked_events, for plugin {plugin}: {reason}"),
            Self::Released { plugin } => write!(f, "table parked_events, run through plugin {plugin}"),
            Self::DeadLetter { letter_id, at_stage, reason, state, kept } => {
                write!(f, "{kept}, letter {letter_id} ({state}), from stage {at_stage}: {reason}")
            }
            Self::Erased { tombstone } => write!(f, "tombstone {tombstone}: received up to then, and not to be stored"),
        }
    }
}

/// A stage and its moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// When.
    pub at: Option<Timestamp>,
    /// What.
    #[serde(flatten)]
    pub stage: Stage,
}
