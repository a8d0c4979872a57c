//! A request body split into events, without reading them.

use std::{borrow::Cow, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{
    EventError, Types,
    field::Field,
    read::{Acceptance, read_checked},
    scan::Checked,
    split::Split,
};
use crate::{ids::EventId, row::EventRow};

/// A body that could not be split into events.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BodyError {
    /// Not UTF-8, so not JSON.
    #[error("the body is not UTF-8: byte {position} starts no character")]
    NotUtf8 {
        /// Offset of the first offending byte.
        position: usize,
    },
    /// Not JSON, or JSON of another shape.
    #[error("the body is not valid: {problem}, at line {line} column {column}")]
    NotJson {
        /// What the parser found.
        problem: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// More events than a request may carry.
    #[error("the body holds more than {limit} events: split it into several requests")]
    TooManyEvents {
        /// The limit.
        limit: usize,
    },
    /// No event at all.
    #[error("the body holds no event: send {{\"events\":[...]}}, an array of events, or one event object")]
    NoEvents,
}

/// The events of one request, as slices of its body.
#[derive(Debug)]
pub struct Batch<'a>(Split<'a>);

/// An event of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Event<'b, 'a> {
    json: Checked<'a>,
    /// None when they are yet to be found.
    fields: &'b [Field<'a>],
}

impl<'a> Event<'_, 'a> {
    /// Its JSON.
    pub const fn text(&self) -> &'a str {
        self.json.text()
    }

    /// Reads it. The id is returned even with an error where it could be read, so that the sender finds the event.
    ///
    /// # Errors
    /// [`EventError`] names the first thing that is wrong with the event.
    pub fn read(&self, acceptance: &Acceptance, types: &Types) -> Result<EventRow<'a>, (Option<EventId>, EventError)> {
        read_checked(self.json, self.fields, acceptance, types)
    }
}

impl<'a> Batch<'a> {
    /// Splits `body`, which is `{"events":[...]}`, a bare array, or one event object.
    ///
    /// # Errors
    /// [`BodyError`] when the body is not JSON of one of these shapes, is empty, or holds more than `limit` events.
    pub fn parse(body: &'a [u8], limit: usize) -> Result<Self, BodyError> {
        let text = std::str::from_utf8(body).map_err(|e| BodyError::NotUtf8 { position: e.valid_up_to() })?;
        if text.trim_ascii().is_empty() {
            return Err(BodyError::NoEvents);
        }
        if let Some(split) = Split::of(text, limit) {
            return Ok(Self(split));
        }
        let mut too_many = false;
        let mut json = serde_json::Deserializer::from_str(text);
        let parsed = json.deserialize_any(Root { limit, too_many: &mut too_many }).and_then(|root| {
            json.end()?;
            Ok(root)
        });
        let events = match parsed {
            Ok(Shape::Events(events)) => events,
            Ok(Shape::Single) => vec![Checked::by_parser(text)],
            Err(_) if too_many => return Err(BodyError::TooManyEvents { limit }),
            Err(error) => return Err(not_json(&error)),
        };
        if events.is_empty() {
            return Err(BodyError::NoEvents);
        }
        let events = events.into_iter().map(|event| (event, 0..0)).collect();
        Ok(Self(Split { events, fields: Vec::new() }))
    }

    /// How many events there are: one at least.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.0.events.len()
    }

    /// The events, in the order in which they were sent.
    pub fn events(&self) -> impl Iterator<Item = Event<'_, 'a>> {
        let Split { events, fields } = &self.0;
        let fields = |places: &Range<usize>| fields.get(places.clone()).unwrap_or_default();
        events.iter().map(move |(json, places)| Event { json: *json, fields: fields(places) })
    }

    /// The JSON of the event at `index`; nothing when there is none.
    pub fn text(&self, index: usize) -> &'a str {
        self.0.events.get(index).map(|(json, _)| json.text()).unwrap_or_default()
    }
}

fn not_json(error: &serde_json::Error) -> BodyError {
    // serde_json ends its message with the position, which we give as fields of our own.
    let message = error.to_string();
    let problem = message.split(" at line ").next().unwrap_or(&message).to_owned();
    BodyError::NotJson { problem, line: error.line(), column: error.column() }
}

enum Shape<'a> {
    Events(Vec<Checked<'a>>),
    /// The whole body is one event.
    Single,
}

struct Root<'l> {
    limit: usize,
    too_many: &'l mut bool,
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = Shape<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{\"events\":[...]}, an array of events, or one event object")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, events: A) -> Result<Self::Value, A::Error> {
        Events(self).visit_seq(events).map(Shape::Events)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { limit, too_many } = self;
        let mut found = None;
        while let Some(Key(key)) = map.next_key()? {
            if key == "events" {
                if found.is_some() {
                    return Err(de::Error::custom("\"events\" stands twice"));
                }
                found = Some(map.next_value_seed(Events(Root { limit, too_many }))?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found.map_or(Shape::Single, Shape::Events))
    }
}

/// The array of events, counted while it is read: a body of millions of tiny values never becomes a list of millions.
struct Events<'l>(Root<'l>);

impl<'de> DeserializeSeed<'de> for Events<'_> {
    type Value = Vec<Checked<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Events<'_> {
    type Value = Vec<Checked<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"events\" to be an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut events = Vec::new();
        while let Some(event) = items.next_element::<&'de RawValue>()? {
            if events.len() == self.0.limit {
                *self.0.too_many = true;
                return Err(de::Error::custom("too many events"));
            }
            events.push(Checked::by_parser(event.get()));
        }
        Ok(events)
    }
}

/// A key, borrowed unless it holds an escape.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::row::Text::deserialize(deserializer).map(|text| Key(text.0))
    }
}
