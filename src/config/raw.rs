//! Values as they were written, before any of them is known to be right.

use std::fmt;

use toml::{Spanned, de::DeValue};

use super::{HIDDEN, error::Origin};

/// How the values of a key are written; decides how a text from the environment is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Float,
    /// `true` or `false`.
    Boolean,
    /// A list of strings; separated by commas in the environment.
    List,
    /// A table of strings; cannot be given in the environment.
    Table,
}

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// A string.
    Text(String),
    /// A whole number. TOML's own are of 64 bits; more than that is `Other`.
    Integer(i64),
    /// A number with a point.
    Float(f64),
    /// A truth value.
    Boolean(bool),
    /// An array.
    List(Vec<Raw>),
    /// A table, in the order of its keys.
    Table(Vec<(String, Raw)>),
    /// A value of a type that no key takes, as written.
    Other(String),
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting {
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

impl Raw {
    /// A value of a TOML document.
    pub(super) fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Self::Other(number.to_string()), Self::Integer),
            DeValue::Float(number) => {
                number.as_str().parse().map_or_else(|_| Self::Other(number.to_string()), Self::Float)
            }
            DeValue::Boolean(value) => Self::Boolean(*value),
            DeValue::Datetime(date) => Self::Other(date.to_string()),
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::from_toml(item.get_ref())).collect()),
            DeValue::Table(table) => {
                let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                    let key: &std::borrow::Cow<'_, str> = key.get_ref();
                    (key.to_string(), Self::from_toml(value.get_ref()))
                };
                Self::Table(table.iter().map(entry).collect())
            }
        }
    }

    /// A value of the environment. A text that is not of the key's shape stays a text, for the key to refuse.
    pub(super) fn from_environment(text: &str, shape: Shape) -> Self {
        let trimmed = text.trim();
        let parsed = match shape {
            Shape::Text | Shape::Table => None,
            Shape::Integer => trimmed.parse().ok().map(Self::Integer),
            Shape::Float => trimmed.parse().ok().map(Self::Float),
            Shape::Boolean => trimmed.parse().ok().map(Self::Boolean),
            Shape::List => {
                let items = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Self::List(items.map(|item| Self::Text(item.to_owned())).collect()))
            }
        };
        parsed.unwrap_or_else(|| Self::Text(text.to_owned()))
    }

    /// The value with every text inside it replaced by `hidden`.
    pub(super) fn hidden(&self) -> Self {
        match self {
            Self::Text(text) if text.is_empty() => self.clone(),
            Self::List(items) => Self::List(items.iter().map(Self::hidden).collect()),
            _ => Self::Text(HIDDEN.to_owned()),
        }
    }
}

/// As TOML writes it.
impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => toml::Value::String(text.clone()).fmt(f),
            Self::Integer(number) => number.fmt(f),
            Self::Float(number) => toml::Value::Float(*number).fmt(f),
            Self::Boolean(value) => value.fmt(f),
            Self::Other(text) => f.write_str(text),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Table(entries) if entries.is_empty() => f.write_str("{}"),
            Self::Table(entries) => {
                f.write_str("{ ")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    let key = toml::Value::String(key.clone());
                    write!(f, "{}{key} = {value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str(" }")
            }
        }
    }
}
