//! Column types that a plugin may ask for: read, so that a mistake is found without ClickHouse and so that the value of
//! each can be taken from JSON without ever failing an insert; written again as ClickHouse itself writes them.
//!
//! What this is not: every type of ClickHouse. Tuples, JSON, Variant and geometry are left out; a column of text holds
//! what they would.

use std::fmt;

pub(super) use crate::clickhouse::quote_text as quote;

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    String,
    FixedString(u32),
    /// `UInt8` to `UInt256`, `Int8` to `Int256`.
    Integer {
        signed: bool,
        bits: u16,
    },
    /// `Float32`, `Float64`.
    Float(u8),
    Decimal {
        precision: u8,
        scale: u8,
    },
    Bool,
    Uuid,
    Ipv4,
    Ipv6,
    Date,
    Date32,
    DateTime {
        zone: Option<String>,
    },
    DateTime64 {
        precision: u8,
        zone: Option<String>,
    },
    Enum {
        bits: u8,
        values: Vec<(String, i16)>,
    },
    Nullable(Box<Kind>),
    LowCardinality(Box<Kind>),
    Array(Box<Kind>),
    Map(Box<Kind>, Box<Kind>),
}

/// Deepest nesting of a type: more is a mistake, and a bound keeps the reader's recursion in hand.
const DEEPEST: usize = 6;

impl Kind {
    /// Reads a type; the error says what is wrong with it.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut input = Input { rest: text };
        let kind = input.kind(0)?;
        input.space();
        if input.rest.is_empty() { Ok(kind) } else { Err(format!("type {text}: `{}` follows its end", input.rest)) }
    }

    /// Whether NULL is a value of it.
    pub(super) fn is_nullable(&self) -> bool {
        match self {
            Self::Nullable(_) => true,
            Self::LowCardinality(inner) => inner.is_nullable(),
            _ => false,
        }
    }

    /// The type without `LowCardinality` and `Nullable` around it.
    pub(super) fn bare(&self) -> &Self {
        match self {
            Self::Nullable(inner) | Self::LowCardinality(inner) => inner.bare(),
            bare => bare,
        }
    }

    /// Whether it has parts: such a type cannot be `Nullable`.
    pub(super) fn is_container(&self) -> bool {
        matches!(self, Self::Array(_) | Self::Map(..))
    }

    /// Whether `sum` answers with exactly this type, so that it can be a column of sums.
    pub(super) fn is_sum(&self) -> bool {
        match self {
            Self::Integer { bits, .. } => *bits >= 64,
            Self::Float(bits) => *bits == 64,
            Self::Decimal { precision, .. } => *precision >= 38,
            _ => false,
        }
    }
}

impl fmt::Display for Kind {
    /// As ClickHouse shows it in `system.columns`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String => f.write_str("String"),
            Self::FixedString(length) => write!(f, "FixedString({length})"),
            Self::Integer { signed: true, bits } => write!(f, "Int{bits}"),
            Self::Integer { signed: false, bits } => write!(f, "UInt{bits}"),
            Self::Float(bits) => write!(f, "Float{bits}"),
            Self::Decimal { precision, scale } => write!(f, "Decimal({precision}, {scale})"),
            Self::Bool => f.write_str("Bool"),
            Self::Uuid => f.write_str("UUID"),
            Self::Ipv4 => f.write_str("IPv4"),
            Self::Ipv6 => f.write_str("IPv6"),
            Self::Date => f.write_str("Date"),
            Self::Date32 => f.write_str("Date32"),
            Self::DateTime { zone: None } => f.write_str("DateTime"),
            Self::DateTime { zone: Some(zone) } => write!(f, "DateTime({})", quote(zone)),
            Self::DateTime64 { precision, zone: None } => write!(f, "DateTime64({precision})"),
            Self::DateTime64 { precision, zone: Some(zone) } => write!(f, "DateTime64({precision}, {})", quote(zone)),
            Self::Enum { bits, values } => {
                write!(f, "Enum{bits}(")?;
                for (index, (name, value)) in values.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{} = {value}", quote(name))?;
                }
                f.write_str(")")
            }
            Self::Nullable(inner) => write!(f, "Nullable({inner})"),
            Self::LowCardinality(inner) => write!(f, "LowCardinality({inner})"),
            Self::Array(inner) => write!(f, "Array({inner})"),
            Self::Map(key, value) => write!(f, "Map({key}, {value})"),
        }
    }
}

struct Input<'a> {
    rest: &'a str,
}

impl<'a> Input<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, symbol: char) -> bool {
        self.space();
        let after = self.rest.strip_prefix(symbol);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn expect(&mut self, symbol: char) -> Result<(), String> {
        if self.take(symbol) { Ok(()) } else { Err(format!("`{symbol}` is missing in a type, at `{}`", self.rest)) }
    }

    fn word(&mut self) -> &'a str {
        self.space();
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = rest;
        word
    }

    fn number<N: std::str::FromStr>(&mut self) -> Result<N, String> {
        self.space();
        let sign = usize::from(self.rest.starts_with('-'));
        let digits = self.rest.bytes().skip(sign).take_while(u8::is_ascii_digit).count();
        let (number, rest) = self.rest.split_at_checked(sign + digits).unwrap_or((self.rest, ""));
        self.rest = rest;
        number.parse().map_err(|_| format!("a number is missing in a type, at `{number}{rest}`"))
    }

    fn text(&mut self) -> Result<String, String> {
        self.expect('\'')?;
        // No escapes: a name or a time zone that needs one is not worth the reading.
        let (text, rest) = self.rest.split_once('\'').ok_or("a quote is not closed in a type")?;
        if text.is_empty() || text.contains('\\') || rest.starts_with('\'') {
            return Err(format!("`{text}` cannot be a name in a type: it is empty or has quotes or backslashes"));
        }
        self.rest = rest;
        Ok(text.to_owned())
    }

    fn kind(&mut self, depth: usize) -> Result<Kind, String> {
        if depth > DEEPEST {
            return Err(format!("a type is nested more than {DEEPEST} levels deep"));
        }
        let name = self.word();
        Ok(match name {
            "String" => Kind::String,
            "Bool" => Kind::Bool,
            "UUID" => Kind::Uuid,
            "IPv4" => Kind::Ipv4,
            "IPv6" => Kind::Ipv6,
            "Date" => Kind::Date,
            "Date32" => Kind::Date32,
            "Float32" => Kind::Float(32),
            "Float64" => Kind::Float(64),
            "FixedString" => self.arguments(|input| Ok(Kind::FixedString(input.number()?)))?,
            "Decimal" => self.arguments(|input| {
                let precision = input.number()?;
                input.expect(',')?;
                decimal(precision, input.number()?)
            })?,
            "Decimal32" => self.arguments(|input| decimal(9, input.number()?))?,
            "Decimal64" => self.arguments(|input| decimal(18, input.number()?))?,
            "Decimal128" => self.arguments(|input| decimal(38, input.number()?))?,
            "Decimal256" => self.arguments(|input| decimal(76, input.number()?))?,
            "DateTime" => {
                let zone =
                    if self.rest.trim_start().starts_with('(') { Some(self.arguments(Self::text)?) } else { None };
                Kind::DateTime { zone }
            }
            "DateTime64" => self.arguments(|input| {
                let precision = input.number()?;
                if precision > 9 {
                    return Err(format!("DateTime64({precision}): at most 9 digits"));
                }
                let zone = if input.take(',') { Some(input.text()?) } else { None };
                Ok(Kind::DateTime64 { precision, zone })
            })?,
            "Enum8" => self.enumeration(8)?,
            "Enum16" => self.enumeration(16)?,
            "Nullable" => {
                let inner = self.arguments(|input| input.kind(depth + 1))?;
                if inner.is_container() || matches!(inner, Kind::Nullable(_) | Kind::LowCardinality(_)) {
                    return Err(format!("Nullable({inner}) is no type of ClickHouse"));
                }
                Kind::Nullable(Box::new(inner))
            }
            "LowCardinality" => {
                let inner = self.arguments(|input| input.kind(depth + 1))?;
                // Of other types ClickHouse takes it only with a setting that admits that it is slower.
                if !matches!(inner.bare(), Kind::String | Kind::FixedString(_))
                    || matches!(inner, Kind::LowCardinality(_))
                {
                    return Err(format!("LowCardinality({inner}): it is for String and FixedString"));
                }
                Kind::LowCardinality(Box::new(inner))
            }
            "Array" => Kind::Array(Box::new(self.arguments(|input| input.kind(depth + 1))?)),
            "Map" => self.arguments(|input| {
                let key = input.kind(depth + 1)?;
                if !matches!(key.bare(), Kind::String) || key.is_nullable() {
                    return Err(format!("Map({key}, ...): keys of JSON are of type String"));
                }
                input.expect(',')?;
                Ok(Kind::Map(Box::new(key), Box::new(input.kind(depth + 1)?)))
            })?,
            _ => return number_kind(name).ok_or_else(|| unknown(name)),
        })
    }

    fn arguments<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        self.expect('(')?;
        let arguments = read(self)?;
        self.expect(')')?;
        Ok(arguments)
    }

    fn enumeration(&mut self, bits: u8) -> Result<Kind, String> {
        self.arguments(|input| {
            let mut values: Vec<(String, i16)> = Vec::new();
            loop {
                let name = input.text()?;
                let value: i16 = if input.take('=') {
                    input.number()?
                } else {
                    values.last().map_or(1, |(_, last)| last.saturating_add(1))
                };
                if bits == 8 && i8::try_from(value).is_err() {
                    return Err(format!("Enum8: {value} has more than 8 bits"));
                }
                if values.iter().any(|(other, taken)| *other == name || *taken == value) {
                    return Err(format!("Enum{bits}: '{name}' = {value} is there twice"));
                }
                values.push((name, value));
                if !input.take(',') {
                    break;
                }
            }
            // As ClickHouse shows it, and so that the first is the default.
            values.sort_by_key(|(_, value)| *value);
            Ok(Kind::Enum { bits, values })
        })
    }
}

fn decimal(precision: u8, scale: u8) -> Result<Kind, String> {
    if (1..=76).contains(&precision) && scale <= precision {
        Ok(Kind::Decimal { precision, scale })
    } else {
        Err(format!("Decimal({precision}, {scale}): 1 to 76 digits, and no more of them behind the point"))
    }
}

fn number_kind(name: &str) -> Option<Kind> {
    let (signed, bits) = match name.strip_prefix('U') {
        Some(rest) => (false, rest.strip_prefix("Int")?),
        None => (true, name.strip_prefix("Int")?),
    };
    let bits: u16 = bits.parse().ok()?;
    [8, 16, 32, 64, 128, 256].contains(&bits).then_some(Kind::Integer { signed, bits })
}

fn unknown(name: &str) -> String {
    format!(
        "type `{name}` is not known here; known are String, FixedString(N), UUID, Bool, Int8 to Int256, UInt8 to UInt256, \
         Float32, Float64, Decimal(P, S), Date, Date32, DateTime, DateTime64(P), IPv4, IPv6, Enum8, Enum16, and \
         Nullable, LowCardinality, Array and Map of them"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn types_are_written_as_clickhouse_shows_them() {
        let table = [
            ("Decimal64(4)", "Decimal(18, 4)"),
            (" Decimal( 18,4 ) ", "Decimal(18, 4)"),
            ("Nullable(DateTime64(3,'UTC'))", "Nullable(DateTime64(3, 'UTC'))"),
            ("DateTime", "DateTime"),
            ("DateTime('Europe/Berlin')", "DateTime('Europe/Berlin')"),
            ("Enum8('b', 'c', 'a' = -1)", "Enum8('a' = -1, 'b' = 1, 'c' = 2)"),
            ("LowCardinality(Nullable(String))", "LowCardinality(Nullable(String))"),
            ("Map(String, Array(UInt256))", "Map(String, Array(UInt256))"),
            ("FixedString(3)", "FixedString(3)"),
        ];
        for (text, expected) in table {
            assert_eq!(Kind::read(text).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_type_is_refused_in_words() {
        let table = [
            ("", "type `` is not known"),
            ("Strin", "type `Strin` is not known"),
            ("UInt7", "type `UInt7` is not known"),
            ("String DEFAULT 1", "follows its end"),
            ("String) ENGINE = Null", "follows its end"),
            ("Nullable(Array(String))", "no type of ClickHouse"),
            ("LowCardinality(UInt8)", "for String"),
            ("Decimal(18)", "`,` is missing"),
            ("Decimal(77, 1)", "1 to 76 digits"),
            ("DateTime64(12)", "at most 9"),
            ("DateTime('UTC", "not closed"),
            ("Enum8('a' = 300)", "more than 8 bits"),
            ("Enum8('a', 'a')", "twice"),
            ("Enum8('it\\'s')", "quotes or backslashes"),
            ("Map(UInt8, String)", "keys of JSON"),
            ("Array(Array(Array(Array(Array(Array(Array(String)))))))", "levels deep"),
        ];
        for (text, expected) in table {
            let error = Kind::read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
