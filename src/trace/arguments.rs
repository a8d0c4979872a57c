//! The form of `ingestion-engine trace`.

use std::str::FromStr;

use clap::Args;
use jiff::Timestamp;
use uuid::Uuid;

use crate::config::Span;

const AFTER: &str = "\
Asks, in this order: the write-ahead log and the dedup window of this node (through the engine that runs, or on disk), \
the topics, the dead letters on this node's disk, and ClickHouse (rows, parked events, dead letters, erasures). A place \
that cannot be asked is named; the others are asked all the same. Nothing is changed.

Exit codes: 0 found, or left for a reason that is said (erased, expired, dropped), 1 found nowhere, or acknowledged and \
in no place any more (deleted by hand, or lost), or failed, 64 wrong usage.

Examples:
  ingestion-engine --config engine.toml trace 01990b2c-5f5e-7a3c-8d1f-0c9a4a3e2b10
      of every tenant that has sent this id
  ingestion-engine --config engine.toml trace 01990b2c-5f5e-7a3c-8d1f-0c9a4a3e2b10 --tenant acme --since 3d
      of one tenant; log and topics are searched three days back
  ingestion-engine --config engine.toml trace 01990b2c-5f5e-7a3c-8d1f-0c9a4a3e2b10 --since 2026-11-29T08:00:00Z --json
      for programs";

/// Arguments of the `trace` subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = AFTER)]
pub struct TraceArgs {
    /// The event's id, as it was sent or as it was made at acceptance
    #[arg(value_name = "EVENT_ID", value_parser = event_id)]
    pub event: Uuid,
    /// Id or name of a tenant; without it all tenants are searched, for two may have sent the same id
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
    /// How far back write-ahead log and topics are searched: a span ("90m", "3d") or a moment (2026-11-29T08:00:00Z)
    ///
    /// ClickHouse and the dead letters are searched without a bound.
    #[arg(long, value_name = "SINCE", default_value = "1h")]
    pub since: Since,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

fn event_id(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text)
        .map_err(|_| "an event's id is a UUID, such as 01990b2c-5f5e-7a3c-8d1f-0c9a4a3e2b10".to_owned())
}

/// A moment in the past, or how long ago it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Span(Span),
    /// Then.
    Moment(Timestamp),
}

impl Since {
    /// The moment that is meant at `now`.
    pub fn moment(self, now: Timestamp) -> Timestamp {
        match self {
            // A span that reaches further than time does means all of it.
            Self::Span(span) => now.checked_sub(span.duration()).unwrap_or(Timestamp::UNIX_EPOCH),
            Self::Moment(moment) => moment,
        }
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(span) = text.parse() {
            return Ok(Self::Span(span));
        }
        match text.parse::<Timestamp>() {
            Ok(moment) if moment <= Timestamp::now() => Ok(Self::Moment(moment)),
            Ok(_) => Err("that moment is still to come".to_owned()),
            Err(_) => {
                Err("give a span (\"90m\", \"24h\", \"3d\") or a moment with its offset (2026-11-29T08:00:00Z)"
                    .to_owned())
            }
        }
    }
}
