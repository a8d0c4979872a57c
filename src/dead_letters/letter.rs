//! A dead letter: what it is, whose it is, and how it is named. No I/O.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, IntoDeserializer as _, value::StrDeserializer},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    ids::{EventId, TenantId, WalId},
    ledger::{Gone, Reason, UNKNOWN},
    row::{self, EventRow, Origin, ParkedRow, Place, Position, Row, Table},
    wal::Record,
};

/// Where something could not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// From the log to the broker.
    Relay,
    /// What the sink reads, from the log or the broker, was no row.
    Source,
    /// ClickHouse refused the row.
    Sink,
    /// A plugin refused an event that had been parked for it.
    Reprocess,
}

impl Stage {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Source => "source",
            Self::Sink => "sink",
            Self::Reprocess => "reprocess",
        }
    }
}

/// What the bytes of a letter are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The compressed content of a record of the log, which cannot be unpacked.
    Record,
    /// What was in a record or in a message, from the first row on whose length does not add up.
    Rows,
    /// A row as the log keeps it.
    Row,
    /// A row of an insert into `events`.
    Event,
    /// A row of an insert into `parked_events`.
    Parked,
    /// A row of a message in the topic of events: as the log keeps it, with its origin.
    TopicRow,
    /// A line of a message in the topic of events.
    Line,
    /// A line of a message in the topic of parked events.
    ParkedLine,
    /// An event's JSON, as it was sent.
    Sent,
}

impl Form {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Rows => "rows",
            Self::Row => "row",
            Self::Event => "event",
            Self::Parked => "parked",
            Self::TopicRow => "topic_row",
            Self::Line => "line",
            Self::ParkedLine => "parked_line",
            Self::Sent => "sent",
        }
    }

    /// The form that is written as `text`.
    pub fn named(text: &str) -> Option<Self> {
        let text: StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
        Self::deserialize(text).ok()
    }
}

/// Whose event it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// None when not known.
    pub tenant_id: Option<Uuid>,
    /// Nil when not known.
    pub event_id: Uuid,
    /// When it was accepted, Unix milliseconds.
    pub received_at_ms: Option<i64>,
    /// Unix seconds from which it may be dropped.
    pub expires_at: Option<u32>,
    /// So that an erasure finds it.
    pub user_id: String,
    /// So that an erasure finds it.
    pub anonymous_id: String,
    /// Where it entered.
    pub origin: Option<Place>,
    /// Where it was read.
    pub message: Option<MessageLine>,
    /// How many events the bytes hold, from the one that entered at `origin` on; 0 is taken for one.
    pub events: u32,
}

impl About {
    /// What a record of the log says of `events` of its events that cannot be read.
    pub fn of_record(record: &Record, events: u32) -> Self {
        let (tenant_id, received_at_ms) = (Some(record.tenant.0), Some(record.received_at_ms));
        Self { tenant_id, received_at_ms, events, ..Self::default() }
    }

    /// What the bytes themselves say.
    pub fn read(form: Form, bytes: &[u8]) -> Self {
        let of_row = |row: &Row<'_>, origin: Option<&Origin>| match row {
            Row::Event(event) => Self::event(event, origin),
            Row::Parked(parked) => Self::parked(parked, origin),
        };
        let of_insert = |table, mut input: &[u8]| {
            let (row, origin, Position { topic, partition, offset }) = row::read_insert_row(table, &mut input).ok()?;
            let message = Some(MessageLine { topic: topic.to_string(), partition, offset, line: 0 });
            Some(Self { message, ..of_row(&row, Some(&origin)) })
        };
        let read = match form {
            Form::Record | Form::Rows => None,
            Form::Row => row::decode(bytes).ok().map(|row| of_row(&row, None)),
            Form::Event => of_insert(Table::Events, bytes),
            Form::Parked => of_insert(Table::Parked, bytes),
            Form::TopicRow => row::decode_carried(bytes).ok().map(|(row, origin)| of_row(&row, Some(&origin))),
            Form::Line => row::read_json(bytes).ok().map(|(event, origin)| Self::event(&event, Some(&origin))),
            Form::ParkedLine => {
                row::read_parked_json(bytes).ok().map(|(parked, origin)| Self::parked(&parked, Some(&origin)))
            }
            Form::Sent => Some(Self::sent(bytes)),
        };
        read.unwrap_or_else(|| Self::object(bytes))
    }

    fn event(row: &EventRow<'_>, origin: Option<&Origin>) -> Self {
        Self {
            tenant_id: Some(row.tenant_id.0),
            event_id: row.event_id.0,
            received_at_ms: Some(row.received_at_ms),
            expires_at: Some(row.expires_at),
            user_id: row.user_id.to_string(),
            anonymous_id: row.anonymous_id.to_string(),
            origin: origin.map(Origin::place),
            message: None,
            events: 1,
        }
    }

    /// Of an event that waits for a plugin, `raw` being what was sent.
    pub fn parked(row: &ParkedRow<'_>, origin: Option<&Origin>) -> Self {
        Self {
            tenant_id: Some(row.tenant_id.0),
            event_id: row.event_id.0,
            received_at_ms: Some(row.received_at_ms),
            expires_at: Some(row.expires_at),
            origin: origin.map(Origin::place),
            ..Self::sent(row.raw.as_bytes())
        }
    }

    fn sent(bytes: &[u8]) -> Self {
        let sent: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let text = |name| match sent.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        Self { user_id: text("user_id"), anonymous_id: text("anonymous_id"), ..Self::default() }
    }

    /// Whose it says that it is, when it is JSON and no row. Nobody has checked that; it is shown, and no more.
    fn object(bytes: &[u8]) -> Self {
        let said: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let id = |name| said.get(name).and_then(Value::as_str).and_then(|text| Uuid::try_parse(text).ok());
        Self { tenant_id: id("tenant_id"), event_id: id("event_id").unwrap_or_default(), ..Self::sent(bytes) }
    }
}

/// A line of a message of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageLine {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The message.
    pub offset: u64,
    /// Which line of it, from 0.
    pub line: u32,
}

/// One thing that could not be delivered.
#[derive(Debug)]
pub struct DeadLetter<'a> {
    /// Where it failed.
    pub stage: Stage,
    /// Why, in words.
    pub reason: String,
    /// What `bytes` are.
    pub form: Form,
    /// The original bytes.
    pub bytes: &'a [u8],
    /// Where it entered, where the bytes do not say it themselves.
    pub origin: Option<Place>,
    /// Where it stood in a topic.
    pub message: Option<MessageLine>,
    /// Whose it is; none: what the bytes say.
    pub about: Option<About>,
}

/// A letter as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// Its name: the same for the same bytes from the same place, so that a letter that is kept twice is one.
    pub letter_id: Uuid,
    /// Whose; [`UNKNOWN`] when not known.
    pub tenant_id: TenantId,
    /// Which event; nil when not known.
    pub event_id: EventId,
    /// When it could not be delivered, Unix milliseconds.
    pub died_at_ms: i64,
    /// When the event was accepted; `died_at_ms` when not known.
    pub received_at_ms: i64,
    /// Unix seconds from which the letter may be dropped.
    pub expires_at: u32,
    /// Where it failed.
    pub stage: Stage,
    /// Why, in words.
    pub reason: String,
    /// What the bytes are.
    pub form: Form,
    /// The person, where known.
    pub user_id: String,
    /// The person, where known.
    pub anonymous_id: String,
    /// Where it entered; nil when not known.
    pub wal_id: WalId,
    /// Where it entered.
    pub wal_seq: u64,
    /// Where it entered.
    pub wal_ordinal: u32,
    /// Where it stood in a topic; empty: in none.
    pub topic: String,
    /// Where it stood in a topic.
    pub partition: u32,
    /// Where it stood in a topic.
    pub offset: u64,
    /// Where it stood in a topic.
    pub line: u32,
    /// How many events the bytes hold.
    pub events: u32,
    /// The original bytes.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub bytes: Vec<u8>,
}

impl Letter {
    /// `letter`, that could not be delivered `now` and is kept for `retention`, but no longer than its event would have been.
    pub(super) fn of(letter: &DeadLetter<'_>, now: Timestamp, retention: Duration) -> Self {
        let about = letter.about.clone().unwrap_or_else(|| About::read(letter.form, letter.bytes));
        let origin = letter.origin.or(about.origin);
        let named_by = letter.message.as_ref().filter(|_| origin.is_none());
        let letter_id = name(letter.stage, origin, named_by, letter.bytes);
        let (wal_id, wal_seq, wal_ordinal) = origin.unwrap_or((WalId(Uuid::nil()), 0, 0));
        let message = letter.message.clone().or(about.message);
        let MessageLine { topic, partition, offset, line } =
            message.unwrap_or(MessageLine { topic: String::new(), partition: 0, offset: 0, line: 0 });
        let kept_until = u64::try_from(now.as_second()).unwrap_or(0).saturating_add(retention.as_secs());
        let kept_until = u32::try_from(kept_until).unwrap_or(u32::MAX - 1);
        let died_at_ms = now.as_millisecond();
        Self {
            letter_id,
            tenant_id: about.tenant_id.map_or(UNKNOWN, TenantId),
            event_id: EventId(about.event_id),
            died_at_ms,
            received_at_ms: about.received_at_ms.unwrap_or(died_at_ms),
            expires_at: about.expires_at.unwrap_or(u32::MAX).min(kept_until),
            stage: letter.stage,
            reason: letter.reason.clone(),
            form: letter.form,
            user_id: about.user_id,
            anonymous_id: about.anonymous_id,
            wal_id,
            wal_seq,
            wal_ordinal,
            topic,
            partition,
            offset,
            line,
            events: about.events.max(1),
            bytes: letter.bytes.to_vec(),
        }
    }

    /// Its events, for the ledger: they end here. None of what did not enter through a log.
    pub(super) fn gone(&self, reason: Reason) -> Vec<Gone> {
        let events = if self.wal_id.0.is_nil() { 0 } else { self.events };
        let gone = |ordinal| Gone {
            tenant: self.tenant_id,
            origin: Origin {
                wal_id: self.wal_id,
                wal_seq: self.wal_seq,
                wal_ordinal: self.wal_ordinal.saturating_add(ordinal),
                relayed_at_ms: 0,
            },
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
            expires_at: self.expires_at,
            reason,
        };
        (0..events).map(gone).collect()
    }

    /// Its row as `RowBinary` has it, in the order of [`COLUMNS`].
    pub(super) fn write_row(&self, out: &mut Vec<u8>) {
        row::write_uuid_binary(self.letter_id, out);
        row::write_uuid_binary(self.tenant_id.0, out);
        row::write_uuid_binary(self.event_id.0, out);
        row::write_bytes_binary(b"held", out);
        // The first version: whatever became of the letter meanwhile stands above it.
        out.extend_from_slice(&0_u64.to_le_bytes());
        out.extend_from_slice(&self.died_at_ms.to_le_bytes());
        out.extend_from_slice(&self.received_at_ms.to_le_bytes());
        out.extend_from_slice(&self.expires_at.to_le_bytes());
        row::write_bytes_binary(self.stage.as_str().as_bytes(), out);
        row::write_bytes_binary(self.reason.as_bytes(), out);
        row::write_bytes_binary(self.form.as_str().as_bytes(), out);
        row::write_bytes_binary(&self.bytes, out);
        out.extend_from_slice(&(self.bytes.len() as u64).to_le_bytes());
        row::write_bytes_binary(self.user_id.as_bytes(), out);
        row::write_bytes_binary(self.anonymous_id.as_bytes(), out);
        row::write_uuid_binary(self.wal_id.0, out);
        out.extend_from_slice(&self.wal_seq.to_le_bytes());
        out.extend_from_slice(&self.wal_ordinal.to_le_bytes());
        row::write_bytes_binary(self.topic.as_bytes(), out);
        out.extend_from_slice(&self.partition.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.line.to_le_bytes());
    }
}

/// Columns of the table, in the order in which a row is written.
pub(super) const COLUMNS: &str = "letter_id, tenant_id, event_id, state, version, died_at, received_at, expires_at, stage, \
     reason, form, bytes, size, user_id, anonymous_id, wal_id, wal_seq, wal_ordinal, topic, partition, offset, line";

/// A UUID of version 8 (RFC 9562): the first bits of a SHA-256 sum.
fn name(stage: Stage, origin: Option<Place>, message: Option<&MessageLine>, bytes: &[u8]) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(stage.as_str());
    if let Some((wal_id, wal_seq, wal_ordinal)) = origin {
        hash.update(wal_id.0.as_bytes());
        hash.update(wal_seq.to_le_bytes());
        hash.update(wal_ordinal.to_le_bytes());
    }
    if let Some(MessageLine { topic, partition, offset, line }) = message {
        hash.update((topic.len() as u64).to_le_bytes());
        hash.update(topic);
        hash.update(partition.to_le_bytes());
        hash.update(offset.to_le_bytes());
        hash.update(line.to_le_bytes());
    }
    // A row that is read again carries another time of reading, and is the same row: where it entered names it.
    if origin.is_none() {
        hash.update(bytes);
    }
    let sum = hash.finalize();
    let mut first = [0; 16];
    first.iter_mut().zip(sum).for_each(|(to, from)| *to = from);
    uuid::Builder::from_custom_bytes(first).into_uuid()
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
}
