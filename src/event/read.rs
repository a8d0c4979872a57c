//! One event: JSON to row.

use std::{borrow::Cow, ops::Range};

use uuid::Uuid;

use super::{
    error::{EventError, EventErrorCode},
    field::Field,
    kind::Kind,
    properties,
    scan::Checked,
    time,
    types::Types,
};
use crate::{
    ids::{EventId, TenantId},
    row::{EventRow, Text},
};

/// Most bytes of a session, user or anonymous id.
const ID_BYTES: usize = 256;
/// Most bytes of an address: what browsers and servers carry in practice.
const URL_BYTES: usize = 8192;
/// Most bytes of a user agent.
const USER_AGENT_BYTES: usize = 2048;
/// Most bytes of a locale, a time zone or a screen size.
const TAG_BYTES: usize = 64;

/// Fields that events of every type may have. With those of one type they are fewer than 32.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Common {
    Id,
    TenantId,
    Type,
    Timestamp,
    SessionId,
    UserId,
    AnonymousId,
    Url,
    Path,
    Referrer,
    UserAgent,
    Screen,
    Locale,
    Timezone,
    Context,
    Properties,
}

/// How many these are.
const COMMON: usize = Common::Properties as usize + 1;

impl Common {
    fn named(name: &str) -> Option<Self> {
        // The compiler makes a few comparisons of it, where a search through a list makes a dozen, for each field of each event.
        Some(match name {
            "id" => Self::Id,
            "tenant_id" => Self::TenantId,
            "type" => Self::Type,
            "timestamp" => Self::Timestamp,
            "session_id" => Self::SessionId,
            "user_id" => Self::UserId,
            "anonymous_id" => Self::AnonymousId,
            "url" => Self::Url,
            "path" => Self::Path,
            "referrer" => Self::Referrer,
            "user_agent" => Self::UserAgent,
            "screen" => Self::Screen,
            "locale" => Self::Locale,
            "timezone" => Self::Timezone,
            "context" => Self::Context,
            "properties" => Self::Properties,
            _ => return None,
        })
    }
}

/// What acceptance knows about a request and asks of its events.
#[derive(Clone, Debug)]
pub struct Acceptance {
    /// The tenant of the key: every row is written as this one.
    pub tenant_id: TenantId,
    /// The moment of receipt, Unix milliseconds.
    pub received_at_ms: i64,
    /// The tenant's expiry for rows received now.
    pub expires_at: u32,
    /// Most bytes of one event's JSON.
    pub event_bytes: usize,
    /// Oldest timestamp taken, Unix milliseconds.
    pub oldest_ms: i64,
    /// Latest timestamp taken, Unix milliseconds.
    pub latest_ms: i64,
}

/// Reads one event of which `fields` were found already, if any are. The id is returned even with an error where it could be
/// read.
pub(super) fn read_checked<'a>(
    json: Checked<'a>,
    fields: &[Field<'a>],
    acceptance: &Acceptance,
    types: &Types,
) -> Result<EventRow<'a>, (Option<EventId>, EventError)> {
    read_with_id(json, fields, acceptance, types).map(|(_, row)| row)
}

/// Reads one event, a text that nobody has parsed. The id is returned even with an error where it could be read, so that the
/// sender finds the event.
///
/// # Errors
/// [`EventError`] names the first thing that is wrong with the event.
pub fn read<'a>(
    json: &'a str,
    acceptance: &Acceptance,
    types: &Types,
) -> Result<EventRow<'a>, (Option<EventId>, EventError)> {
    let json = check(json, acceptance).map_err(|error| (None, error))?;
    read_checked(json, &[], acceptance, types)
}

fn check<'a>(json: &'a str, acceptance: &Acceptance) -> Result<Checked<'a>, EventError> {
    within_limit(json, acceptance)?;
    Checked::check(json).ok_or_else(not_an_object)
}

fn within_limit(json: &str, acceptance: &Acceptance) -> Result<(), EventError> {
    if json.len() > acceptance.event_bytes {
        let detail = format!("the event has {} bytes, more than the {} allowed", json.len(), acceptance.event_bytes);
        return Err(EventError::new(EventErrorCode::EventTooLarge, detail));
    }
    Ok(())
}

fn not_an_object() -> EventError {
    EventError::new(EventErrorCode::NotAnObject, "an event must be a JSON object")
}

/// The event, with its id as its sender gave it.
fn read_with_id<'a>(
    json: Checked<'a>,
    fields: &[Field<'a>],
    acceptance: &Acceptance,
    types: &Types,
) -> Result<(Option<EventId>, EventRow<'a>), (Option<EventId>, EventError)> {
    within_limit(json.text(), acceptance).map_err(|error| (None, error))?;
    let found;
    let fields = if fields.is_empty() {
        found = json.fields().ok_or_else(|| (None, not_an_object()))?;
        &found
    } else {
        fields
    };
    let id = fields.iter().find(|field| field.name == "id").and_then(|field| event_id(field).ok().flatten());
    read_fields(fields, id, acceptance, types).map(|row| (id, row)).map_err(|error| (id, error))
}

/// Reads an event again after somebody has changed it: it must be of the type `kind` still, and its id, if it has one,
/// must be `id`.
///
/// # Errors
/// [`EventError`] names the first thing that is wrong with the event.
pub fn read_again<'a>(
    json: &'a str,
    acceptance: &Acceptance,
    types: &Types,
    id: EventId,
    kind: &str,
) -> Result<EventRow<'a>, EventError> {
    let json = check(json, acceptance)?;
    let (sent, mut row) = read_with_id(json, &[], acceptance, types).map_err(|(_, error)| error)?;
    if *row.kind != *kind {
        return Err(EventError::invalid("type", format_args!("was {kind:?} and must stay so")));
    }
    if sent.is_some_and(|sent| sent != id) {
        return Err(EventError::invalid("id", format_args!("was {id} and must stay so")));
    }
    row.event_id = id;
    Ok(row)
}

fn read_fields<'a>(
    fields: &[Field<'a>],
    id: Option<EventId>,
    acceptance: &Acceptance,
    types: &Types,
) -> Result<EventRow<'a>, EventError> {
    let (mut kind, name) = event_kind(fields, types)?;
    let mut row = EventRow::new(acceptance.tenant_id, id.unwrap_or_else(|| EventId(Uuid::now_v7())), name);
    row.received_at_ms = acceptance.received_at_ms;
    row.expires_at = acceptance.expires_at;

    let mut timestamp = None;
    let mut sent_properties = None;
    let mut leftovers = Vec::new();
    let mut seen = 0_u32;
    for field in fields {
        let common = Common::named(&field.name);
        let own = || kind.fields().iter().position(|name| *name == field.name).map(|own| COMMON + own);
        let Some(place) = common.map(|common| common as usize).or_else(own) else {
            leftovers.push(field);
            continue;
        };
        // Two values under one name: which is meant cannot be known, so neither is guessed.
        if seen & (1 << place) != 0 {
            let detail = format!("\"{}\" stands twice in the event", field.shown_name());
            return Err(EventError::new(EventErrorCode::DuplicateField, detail));
        }
        seen |= 1 << place;
        // For a field with a column, null says the same as leaving it out; elsewhere it is the sender's data.
        if field.is_null() {
            continue;
        }
        match common {
            None => kind.set(field)?,
            Some(Common::Properties) => sent_properties = Some(field),
            // These were read first. An id that is none is found to be so here.
            Some(Common::Type) => {}
            Some(Common::Id) if id.is_some() => {}
            Some(common) => set_common(&mut row, &mut timestamp, common, field, acceptance)?,
        }
    }
    row.timestamp_ms = timestamp.unwrap_or(acceptance.received_at_ms);
    if row.path.is_empty() && !row.url.is_empty() {
        row.path = path_of(&row.url);
    }
    kind.finish(&mut row)?;
    row.properties = properties::join(sent_properties, &leftovers)?;
    Ok(row)
}

fn event_kind<'a>(fields: &[Field<'a>], types: &Types) -> Result<(Kind<'a>, Text<'a>), EventError> {
    let Some(field) = fields.iter().find(|field| field.name == "type" && !field.is_null()) else {
        return Err(EventError::missing("an event needs \"type\": pageview, click, scroll, performance or custom"));
    };
    let name = field.string("must be a string")?;
    match Kind::named(&name) {
        Some(kind) => Ok((kind, Text(name))),
        None if types.is_added(&name) => Ok((Kind::Added, Text(name))),
        None => Err(EventError::new(EventErrorCode::UnknownType, types.unknown(&name))),
    }
}

fn set_common<'a>(
    row: &mut EventRow<'a>,
    timestamp: &mut Option<i64>,
    common: Common,
    field: &Field<'a>,
    acceptance: &Acceptance,
) -> Result<(), EventError> {
    match common {
        Common::Id => drop(event_id(field)?),
        Common::TenantId => same_tenant(field, acceptance.tenant_id)?,
        Common::Timestamp => *timestamp = Some(timestamp_in_range(field, acceptance)?),
        Common::SessionId => row.session_id = field.identifier(ID_BYTES)?,
        Common::UserId => row.user_id = field.identifier(ID_BYTES)?,
        Common::AnonymousId => row.anonymous_id = field.identifier(ID_BYTES)?,
        Common::Url => row.url = field.text(URL_BYTES)?,
        Common::Path => row.path = field.text(URL_BYTES)?,
        Common::Referrer => row.referrer = field.text(URL_BYTES)?,
        Common::UserAgent => row.user_agent = field.text(USER_AGENT_BYTES)?,
        Common::Screen => row.screen = field.text(TAG_BYTES)?,
        Common::Locale => row.locale = field.text(TAG_BYTES)?,
        Common::Timezone => row.timezone = field.text(TAG_BYTES)?,
        Common::Context => row.context = field.object()?,
        // The type decides how the others are read, and the properties take in what is left of them.
        Common::Type | Common::Properties => {}
    }
    Ok(())
}

fn event_id(field: &Field<'_>) -> Result<Option<EventId>, EventError> {
    if field.is_null() {
        return Ok(None);
    }
    let text = field.string("must be a UUID")?;
    Uuid::try_parse(&text).map(|id| Some(EventId(id))).map_err(|_| {
        field.invalid("must be a UUID like 550e8400-e29b-41d4-a716-446655440000; leave it out to have one made")
    })
}

fn same_tenant(field: &Field<'_>, tenant_id: TenantId) -> Result<(), EventError> {
    let text = field.string("must be a UUID")?;
    match Uuid::try_parse(&text) {
        Ok(id) if TenantId(id) == tenant_id => Ok(()),
        Ok(_) => Err(EventError::new(
            EventErrorCode::TenantMismatch,
            "\"tenant_id\" is not the tenant of the key; leave it out or send the key's own",
        )),
        Err(_) => Err(field.invalid("must be the UUID of the key's tenant; it may be left out")),
    }
}

fn timestamp_in_range(field: &Field<'_>, acceptance: &Acceptance) -> Result<i64, EventError> {
    let milliseconds = time::milliseconds(field)?;
    let outside = |problem: &str, limit: i64| {
        let limit = jiff::Timestamp::from_millisecond(limit).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let detail = format!("\"timestamp\" {} {problem} {limit}", field.value);
        Err(EventError::new(EventErrorCode::TimestampOutOfRange, detail))
    };
    if milliseconds < acceptance.oldest_ms {
        outside("is before the oldest that is accepted,", acceptance.oldest_ms)
    } else if milliseconds > acceptance.latest_ms {
        outside("is after the latest that is accepted,", acceptance.latest_ms)
    } else {
        Ok(milliseconds)
    }
}

/// The path of an address, without query and fragment: `https://shop.example/a/b?c` to `/a/b`.
fn path_of<'a>(url: &Text<'a>) -> Text<'a> {
    let path = match &url.0 {
        Cow::Borrowed(url) => Cow::Borrowed(url.get(path_range(url)).unwrap_or_default()),
        Cow::Owned(url) => Cow::Owned(url.get(path_range(url)).unwrap_or_default().to_owned()),
    };
    if path.is_empty() { "/".into() } else { Text(path) }
}

fn path_range(url: &str) -> Range<usize> {
    let start = match url.find("://") {
        Some(scheme) => {
            let host = scheme + 3;
            let rest = url.get(host..).unwrap_or_default();
            host + rest.find(['/', '?', '#']).unwrap_or(rest.len())
        }
        // An address without scheme and host is a path already.
        None => 0,
    };
    let path = url.get(start..).unwrap_or_default();
    start..start + path.find(['?', '#']).unwrap_or(path.len())
}
