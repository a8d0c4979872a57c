//! One field of an event: its JSON, read as what the column needs, with an error that names the field.

use std::borrow::Cow;

use super::error::EventError;
use crate::row::{Json, Text};

/// A field's name and its value as JSON text, both borrowed from the body.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    pub name: Cow<'a, str>,
    pub value: &'a str,
    /// Of a string: it holds no escape, and means what stands between its quotes.
    pub plain: bool,
}

/// Names that a message shows are cut here: a name is the sender's, and may be long.
const NAME_SHOWN: usize = 64;

impl<'a> Field<'a> {
    /// `null` says the same as leaving the field out.
    pub fn is_null(&self) -> bool {
        self.value == "null"
    }

    /// A string of at most `limit` bytes.
    pub fn text(&self, limit: usize) -> Result<Text<'a>, EventError> {
        let text = self.string("must be a string")?;
        if text.len() > limit {
            return Err(self.invalid(format_args!("has {} bytes, more than the {limit} allowed", text.len())));
        }
        Ok(Text(text))
    }

    /// An identifier: a string of at most `limit` bytes, or an integer, which many senders use for users.
    pub fn identifier(&self, limit: usize) -> Result<Text<'a>, EventError> {
        if self.value.bytes().all(|byte| byte.is_ascii_digit()) && self.value.len() <= limit {
            return Ok(Text::from(self.value));
        }
        if !self.value.starts_with('"') {
            return Err(self.invalid("must be a string or a whole number"));
        }
        self.text(limit)
    }

    /// A string, unescaped only if it holds an escape.
    pub fn string(&self, expectation: &str) -> Result<Cow<'a, str>, EventError> {
        let Some(inner) = self.value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
            return Err(self.invalid(expectation));
        };
        if self.plain {
            return Ok(Cow::Borrowed(inner));
        }
        serde_json::from_str(self.value).map(Cow::Owned).map_err(|error| self.invalid(format_args!("holds {error}")))
    }

    /// A number from `low` to `high`.
    pub fn number(&self, low: f64, high: f64) -> Result<f64, EventError> {
        let number: f64 = serde_json::from_str(self.value)
            .map_err(|_| self.invalid(format_args!("must be a number from {low} to {high}")))?;
        if (low..=high).contains(&number) {
            Ok(number)
        } else {
            Err(self.invalid(format_args!("is {number}, and must be from {low} to {high}")))
        }
    }

    /// One of `allowed`.
    pub fn one_of(&self, allowed: &[&'static str]) -> Result<Text<'a>, EventError> {
        let text = self.string("must be a string")?;
        match allowed.iter().find(|value| **value == text) {
            Some(value) => Ok(Text::from(*value)),
            None => Err(self.invalid(format_args!("must be one of {}", allowed.join(", ")))),
        }
    }

    /// A JSON object, as text on one line.
    pub fn object(&self) -> Result<Json<'a>, EventError> {
        if self.value.starts_with('{') {
            Ok(Json(one_line(self.value)))
        } else {
            Err(self.invalid("must be an object"))
        }
    }

    pub fn invalid(&self, problem: impl std::fmt::Display) -> EventError {
        EventError::invalid(self.shown_name(), problem)
    }

    pub fn shown_name(&self) -> &str {
        let end = self.name.floor_char_boundary(NAME_SHOWN);
        self.name.get(..end).unwrap_or_default()
    }
}

/// JSON text without line breaks between its tokens: a row in a topic is one line. Strings hold none (JSON wants them
/// escaped), so a line break is always insignificant space.
pub(super) fn one_line(json: &str) -> Cow<'_, str> {
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_none() {
        return Cow::Borrowed(json);
    }
    Cow::Owned(json.split(['\n', '\r']).map(|line| line.trim_matches([' ', '\t'])).collect())
}
