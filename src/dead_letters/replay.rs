//! Dead letters through the front again: as their tenant, through validation and plugins, into the log.
//!
//! ```text
//! held letters --page--> whose events are not stored yet --as JSON--> front --accepted--> marked as replayed
//!                             |                                        | refused: stays held, and is told
//!                             +-- are: marked as replayed              |
//! ```
//!
//! # Once
//! An event keeps its id. One that is stored already is only marked. For one that the front accepts, the letter's name is kept
//! in the log beside the event, in the same fsync, as an idempotency key is, and for ten minutes too: a run that was cut off
//! before it marked the letter is recognised by that, and later by the event's being stored. The dedup window does not look at
//! replayed events: it knows their ids from when they were accepted for the first time.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    future::Future,
    pin::Pin,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

pub use super::store::Filter;
use super::{
    letter::Form,
    store::{Entry, Fate, Store},
};
use crate::{
    clickhouse::Client,
    error_chain::chain,
    ids::{EventId, TenantId},
    row::{self, EventRow, ParkedRow, Row, Table},
};

/// Letters of a page: their bytes are in memory.
const PAGE: usize = 100;
/// Events that are given to the front at a time: they share its fsyncs.
const AT_A_TIME: usize = 32;
/// Letters that stayed held are told with their reason, up to so many.
const MOST_TOLD: usize = 20;

/// What the front says of an event; an error is the front's, and the event may be tried again.
pub type Replayed<'a> = Pin<Box<dyn Future<Output = Result<Taken, String>> + Send + 'a>>;

/// What the front makes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is on disk, or a plugin has dropped it.
    Accepted,
    /// Why it is not accepted.
    Refused(String),
}

/// The front, for events that have been accepted before.
pub trait Front: Send + Sync {
    /// Takes the `event` (a JSON object) of `letter` as `tenant`'s.
    fn replay<'a>(&'a self, tenant: TenantId, letter: Uuid, event: &'a str) -> Replayed<'a>;
}

/// What a run has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Accepted by the front.
    pub replayed: u64,
    /// Of an event that is stored already, or that another letter has just brought back: these were not sent.
    pub stored: u64,
    /// Refused again, or no event: they stay.
    pub held: u64,
    /// Why, of the first of these.
    pub reasons: Vec<Reason>,
}

/// Why a letter stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The letter.
    pub letter_id: Uuid,
    /// Why, in words.
    pub reason: String,
}

impl Summary {
    /// What is to be said when the run was cut off after this.
    pub fn cut_off(&self) -> String {
        format!(
            "{} letters were done before that ({} replayed, {} of events that are stored already); repeating the command is safe: \
             what is done is not sent again (within ten minutes, or once it is stored)",
            self.replayed + self.stored,
            self.replayed,
            self.stored
        )
    }

    fn stays(&mut self, letter_id: Uuid, reason: String) {
        self.held += 1;
        if self.reasons.len() < MOST_TOLD {
            self.reasons.push(Reason { letter_id, reason });
        }
    }
}

/// Replays the held letters that `filter` names; `tell` is told now and then what is done.
///
/// # Errors
/// ClickHouse's or the front's error, in words; what was done until then is done.
pub async fn run(
    client: &Client,
    front: &dyn Front,
    filter: &Filter,
    tell: impl Fn(&Summary),
) -> Result<Summary, String> {
    let mut summary = Summary::default();
    match pages(&Store::new(client.clone()), front, filter, &mut summary, tell).await {
        Ok(()) => Ok(summary),
        Err(reason) => Err(format!("{reason}; {}", summary.cut_off())),
    }
}

async fn pages(
    store: &Store,
    front: &dyn Front,
    filter: &Filter,
    summary: &mut Summary,
    tell: impl Fn(&Summary),
) -> Result<(), String> {
    let mut after = None;
    // What this run has given to the front.
    let mut given: HashSet<(Uuid, Uuid)> = HashSet::new();
    loop {
        let page = store.list(filter, Some("held"), after, PAGE, true).await.map_err(|error| chain(&error))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some((last.tenant_id, last.letter_id));
        let mut by_tenant: BTreeMap<Uuid, Vec<(Uuid, Uuid, String)>> = BTreeMap::new();
        for entry in &page {
            match event_of(entry) {
                Ok(Event { tenant_id, id, json }) => {
                    by_tenant.entry(tenant_id.0).or_default().push((entry.letter_id, id.0, json));
                }
                Err(reason) => summary.stays(entry.letter_id, reason),
            }
        }
        for (tenant, events) in by_tenant {
            let ids: Vec<Uuid> = events.iter().map(|(_, event_id, _)| *event_id).collect();
            let stored = store.stored(tenant, &ids).await.map_err(|error| chain(&error))?;
            // Nor one of which another letter was replayed: it may not be stored yet.
            let (done, events): (Vec<_>, Vec<_>) = events
                .into_iter()
                .partition(|(_, event_id, _)| stored.contains(event_id) || !given.insert((tenant, *event_id)));
            summary.stored += done.len() as u64;
            mark(store, done.iter().map(|(letter_id, ..)| *letter_id).collect()).await?;
            for events in events.chunks(AT_A_TIME) {
                let replays =
                    events.iter().map(|(letter_id, _, json)| front.replay(TenantId(tenant), *letter_id, json));
                let mut accepted = Vec::new();
                let mut failed = None;
                for (answer, (letter_id, ..)) in join_all(replays).await.into_iter().zip(events) {
                    match answer {
                        Ok(Taken::Accepted) => accepted.push(*letter_id),
                        Ok(Taken::Refused(reason)) => summary.stays(*letter_id, reason),
                        Err(reason) => failed = Some(reason),
                    }
                }
                summary.replayed += accepted.len() as u64;
                mark(store, accepted).await?;
                tell(summary);
                if let Some(reason) = failed {
                    return Err(reason);
                }
            }
        }
    }
}

async fn mark(store: &Store, letters: Vec<Uuid>) -> Result<(), String> {
    if letters.is_empty() {
        return Ok(());
    }
    let filter = Filter { letters, ..Filter::default() };
    store.settle(&filter, Fate::Replayed).await.map_err(|error| chain(&error))
}

/// A letter's event, as a client would send it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) tenant_id: TenantId,
    pub(super) id: EventId,
    pub(super) json: String,
}

/// The event of a letter; or why it has none.
pub(super) fn event_of(entry: &Entry) -> Result<Event, String> {
    let bytes = STANDARD.decode(&entry.bytes).map_err(|error| format!("its bytes cannot be read: {error}"))?;
    let form = Form::named(&entry.form).ok_or_else(|| format!("its form, {:?}, is not known", entry.form))?;
    let no_row = |error: &dyn std::error::Error| format!("it is no event: {}", chain(error));
    match form {
        Form::Record | Form::Rows => Err("it is no event: what is left of a damaged record or message".to_owned()),
        Form::Row => event_of_row(&row::decode(&bytes).map_err(|error| no_row(&error))?),
        Form::Event | Form::Parked => {
            let table = if form == Form::Event { Table::Events } else { Table::Parked };
            let read = row::read_insert_row(table, &mut &bytes[..]);
            event_of_row(&read.map_err(|error| no_row(&error))?.0)
        }
        Form::TopicRow => event_of_row(&row::decode_carried(&bytes).map_err(|error| no_row(&error))?.0),
        Form::Line => {
            let (event, _) = row::read_json(&bytes).map_err(|error| no_row(&error))?;
            of_event(&event).map_err(|error| no_row(&error))
        }
        Form::ParkedLine => {
            let (parked, _) = row::read_parked_json(&bytes).map_err(|error| no_row(&error))?;
            of_parked(&parked)
        }
        Form::Sent => {
            let json = std::str::from_utf8(&bytes).map_err(|error| no_row(&error))?;
            of_sent(TenantId(entry.tenant_id), EventId(entry.event_id), None, json)
        }
    }
}

fn event_of_row(row: &Row<'_>) -> Result<Event, String> {
    match row {
        Row::Event(event) => of_event(event).map_err(|error| format!("it is no event: {error}")),
        Row::Parked(parked) => of_parked(parked),
    }
}

fn of_parked(row: &ParkedRow<'_>) -> Result<Event, String> {
    of_sent(row.tenant_id, row.event_id, Some(row.timestamp_ms), &row.raw)
}

/// An event that is put together from values as they were written: numbers keep all of their digits.
type Fields<'a> = BTreeMap<Cow<'a, str>, Box<RawValue>>;

/// What was sent, with the id that it was given at acceptance, and the time if it had none.
fn of_sent(tenant_id: TenantId, event_id: EventId, timestamp_ms: Option<i64>, json: &str) -> Result<Event, String> {
    let no_event = |error: serde_json::Error| format!("it is no event: {error}");
    let mut fields: Fields<'_> = serde_json::from_str(json).map_err(no_event)?;
    fields.insert("id".into(), to_raw_value(&event_id).map_err(no_event)?);
    if let Some(timestamp_ms) = timestamp_ms {
        fields.insert("timestamp".into(), to_raw_value(&timestamp_ms).map_err(no_event)?);
    }
    Ok(Event { tenant_id, id: event_id, json: serde_json::to_string(&fields).map_err(no_event)? })
}

/// A row as the event that it was. What is empty was not sent.
fn of_event(row: &EventRow<'_>) -> Result<Event, serde_json::Error> {
    let mut fields = Fields::new();
    fields.insert("id".into(), to_raw_value(&row.event_id)?);
    fields.insert("type".into(), to_raw_value(&*row.kind)?);
    fields.insert("timestamp".into(), to_raw_value(&row.timestamp_ms)?);
    let texts = [
        ("session_id", &row.session_id),
        ("user_id", &row.user_id),
        ("anonymous_id", &row.anonymous_id),
        ("url", &row.url),
        ("path", &row.path),
        ("referrer", &row.referrer),
        ("title", &row.title),
        ("user_agent", &row.user_agent),
        ("screen", &row.screen),
        ("locale", &row.locale),
        ("timezone", &row.timezone),
        ("name", &row.name),
        ("element", &row.element),
        ("selector", &row.selector),
        ("text", &row.text),
        ("direction", &row.direction),
    ];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        fields.insert(name.into(), to_raw_value(&**text)?);
    }
    let numbers = [
        ("x", row.x),
        ("y", row.y),
        ("depth", row.depth),
        ("load_time_ms", row.load_time_ms),
        ("lcp", row.lcp),
        ("fid", row.fid),
        ("inp", row.inp),
        ("cls", row.cls),
        ("ttfb", row.ttfb),
        ("fcp", row.fcp),
        ("dom_content_loaded", row.dom_content_loaded),
        ("load_complete", row.load_complete),
    ];
    for (name, number) in numbers.into_iter().filter_map(|(name, number)| Some((name, number?))) {
        fields.insert(name.into(), to_raw_value(&number)?);
    }
    for (name, object) in [("context", &row.context), ("properties", &row.properties)] {
        if !object.is_empty() {
            fields.insert(name.into(), RawValue::from_string(object.to_string())?);
        }
    }
    Ok(Event { tenant_id: row.tenant_id, id: row.event_id, json: serde_json::to_string(&fields)? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;
    use crate::{
        dead_letters::{DeadLetter, Letter, Stage},
        event::{self, Acceptance, Types},
        ids::WalId,
        row::{Origin, Position},
    };

    const TENANT: Uuid = Uuid::from_u128(7);

    fn acceptance() -> Acceptance {
        Acceptance {
            tenant_id: TenantId(TENANT),
            received_at_ms: 1_790_000_000_000,
            expires_at: 1_800_000_000,
            event_bytes: 64 << 10,
            oldest_ms: i64::MIN,
            latest_ms: i64::MAX,
        }
    }

    fn letter(form: Form, bytes: &[u8]) -> Entry {
        let dead = DeadLetter {
            stage: Stage::Sink,
            reason: "refused".to_owned(),
            form,
            bytes,
            origin: None,
            message: None,
            about: None,
        };
        Entry::from(&Letter::of(&dead, jiff::Timestamp::now(), std::time::Duration::from_secs(60)))
    }

    /// What the front makes of a replayed event is the row that it was, whatever form the letter has.
    #[test]
    fn an_event_comes_out_of_a_letter_as_it_was() {
        let sent = [
            r#"{"type":"pageview","url":"https://a.example/b?c","title":"T \"quoted\"","load_time_ms":1.5,"user_id":"u","properties":{"a":[1,{"b":null}],"big":123456789012345678901234567890},"extra":12.50}"#,
            r#"{"type":"click","selector":"a > b","x":1,"y":-2.25,"session_id":"s","timestamp":1789999999999}"#,
            r#"{"type":"scroll","depth":55.5,"direction":"down","anonymous_id":"anon"}"#,
            r#"{"type":"performance","lcp":1200.5,"cls":0.013,"inp":8,"context":{"k":"v"}}"#,
            r#"{"type":"custom","name":"näme","path":"/p","locale":"de-CH","timezone":"Europe/Zurich","screen":"1x2"}"#,
        ];
        for json in sent {
            let row = event::read(json, &acceptance(), &Types::default()).unwrap();
            let mut encoded = Vec::new();
            row::encode(&row, &mut encoded);
            let origin = Origin { wal_id: WalId(TENANT), wal_seq: 3, wal_ordinal: 1, relayed_at_ms: 5 };
            let (mut insert, mut line, mut carried) = (Vec::new(), Vec::new(), Vec::new());
            let position = Position { topic: "t".into(), partition: 0, offset: 3 };
            row::write_insert_row(&encoded, &origin, &position, &mut insert).unwrap();
            row::write_json(&row, &origin, &mut line);
            row::write_carried(&encoded, &origin, &mut carried);
            for (form, bytes) in
                [(Form::Row, &encoded), (Form::Event, &insert), (Form::TopicRow, &carried), (Form::Line, &line)]
            {
                let entry = letter(form, bytes);
                assert_eq!((entry.tenant_id, entry.event_id), (TENANT, row.event_id.0), "{form:?}");
                let event = event_of(&entry).unwrap();
                assert_eq!((event.tenant_id.0, event.id), (TENANT, row.event_id), "{form:?}");
                let again = event::read(&event.json, &acceptance(), &Types::default()).unwrap();
                assert_eq!(again, row, "{form:?} {}", event.json);
            }
        }
    }

    #[test]
    fn what_is_no_event_says_so() {
        for (form, bytes) in [
            (Form::Record, &b"x"[..]),
            (Form::Rows, b"x"),
            (Form::Row, b"\x63"),
            (Form::TopicRow, b"\x63"),
            (Form::Line, b"{\"half\":"),
            (Form::ParkedLine, b"\xff"),
            (Form::Sent, b"[1]"),
        ] {
            let reason = event_of(&letter(form, bytes)).unwrap_err();
            assert!(reason.starts_with("it is no event"), "{form:?}: {reason}");
        }
    }
}
