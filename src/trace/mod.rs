//! `ingestion-engine trace`: where an event is now, and when it passed each stage.
//!
//! ```text
//! this node's log and dedup window --> topics --> dead letters on this node's disk --> ClickHouse
//! ```
//!
//! - The places are asked one after the other, in the order in which an event travels: one that moves on meanwhile is met
//!   further on, and not missed.
//! - Nothing is changed anywhere: no group commits, no migration, no repair.
//! - A place that cannot be asked is named, and the others are asked all the same.
//! - Each row carries where it came from, so that the stages before are known from the last place alone.
//! - Logs of other nodes are not asked: their disks are theirs.

mod arguments;
pub mod letters;
mod report;
mod stage;
pub mod tables;

pub use arguments::{Since, TraceArgs};
pub use report::{OfTenant, Report};
pub use stage::{Stage, Step};

use self::{letters::Letter, tables::InTables};
use crate::{
    broker::find::InTopic,
    ids::{EventId, TenantId},
    wal::Findings,
};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The event.
    pub event: EventId,
    /// Only that tenant's; none: everybody's, since two tenants may have sent the same id.
    pub tenant: Option<TenantId>,
    /// What is older is not looked at in log and topics.
    pub since: jiff::Timestamp,
}

/// What a place has answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked<T> {
    /// It is not part of this node's configuration, in words.
    Absent(String),
    /// It could not be asked, or not wholly; with what it said all the same.
    Failed(T, String),
    /// What it said, and what of it was looked at, in words.
    Answered(T, String),
}

impl<T> Asked<T> {
    /// What it said.
    pub fn said(&self) -> Option<&T> {
        match self {
            Self::Absent(_) => None,
            Self::Failed(said, _) | Self::Answered(said, _) => Some(said),
        }
    }

    /// Whether it might have said more.
    pub fn failed(&self) -> bool {
        matches!(self, Self::Failed(..))
    }

    /// Whether it is there at all.
    pub fn is_there(&self) -> bool {
        !matches!(self, Self::Absent(_))
    }
}

/// What all places have answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answers {
    /// This node's log and dedup window.
    pub log: Asked<Findings>,
    /// The topics of events and of parked events.
    pub topics: Asked<Vec<InTopic>>,
    /// Dead letters on this node's disk.
    pub letters: Asked<Vec<Letter>>,
    /// ClickHouse.
    pub tables: Asked<InTables>,
}
