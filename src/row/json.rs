//! The row as a line of JSON, as it stands in a topic: readable by any consumer and by ClickHouse's own Kafka engine
//! (`JSONEachRow`). Names are those of the columns of `events`; what is empty is left out; times are written as
//! ClickHouse reads them (`2024-01-01 00:00:00.000`, UTC); `context` and `properties` are objects.

use std::{borrow::Cow, fmt};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, Visitor},
};
use serde_json::value::RawValue;
use thiserror::Error;
use uuid::Uuid;

use super::{
    binary::{Json, Text},
    columns::{EventRow, Origin},
    line,
};
use crate::ids::{EventId, TenantId, WalId};

/// A line that is not a row.
#[derive(Debug, Error)]
#[error("not a row of this engine")]
pub struct JsonError(#[from] pub(super) serde_json::Error);

macro_rules! wire {
    (
        texts: $($text:ident $text_name:literal)+;
        numbers: $($number:ident $number_name:literal)+;
    ) => {
        /// Event columns and origin as one flat object. Unknown names are refused: they would be columns that a
        /// newer version wrote and this one would lose.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, bound(deserialize = "'de: 'a"))]
        struct Wire<'a> {
            tenant_id: TenantId,
            event_id: EventId,
            #[serde(deserialize_with = "milliseconds")]
            timestamp: i64,
            #[serde(deserialize_with = "milliseconds")]
            received_at: i64,
            expires_at: u32,
            $(#[serde(rename = $text_name, default)] $text: Text<'a>,)+
            $(#[serde(rename = $number_name, default)] $number: Option<f64>,)+
            #[serde(default)]
            context: Json<'a>,
            #[serde(default)]
            properties: Json<'a>,
            wal_id: WalId,
            wal_seq: u64,
            wal_ordinal: u32,
            #[serde(deserialize_with = "milliseconds")]
            relayed_at: i64,
        }

        impl<'a> Wire<'a> {
            fn into_parts(self) -> (EventRow<'a>, Origin) {
                let row = EventRow {
                    tenant_id: self.tenant_id,
                    event_id: self.event_id,
                    timestamp_ms: self.timestamp,
                    received_at_ms: self.received_at,
                    expires_at: self.expires_at,
                    $($text: self.$text,)+
                    $($number: self.$number,)+
                    context: self.context,
                    properties: self.properties,
                };
                let origin = Origin {
                    wal_id: self.wal_id,
                    wal_seq: self.wal_seq,
                    wal_ordinal: self.wal_ordinal,
                    relayed_at_ms: self.relayed_at,
                };
                (row, origin)
            }
        }

        fn write_optional_columns(row: &EventRow<'_>, out: &mut Vec<u8>) {
            $(if !row.$text.is_empty() {
                out.extend_from_slice(concat!(",\"", $text_name, "\":").as_bytes());
                write_value::<str>(&row.$text, out);
            })+
            $(if let Some(value) = row.$number {
                out.extend_from_slice(concat!(",\"", $number_name, "\":").as_bytes());
                write_value(&value, out);
            })+
        }

        /// In the order of [`write_optional_columns`].
        fn read_optional_columns<'a>(line: &mut line::Reader<'a>, row: &mut EventRow<'a>) -> Option<()> {
            $(if line.begins(concat!(",\"", $text_name, "\":").as_bytes()) {
                row.$text = line.text()?;
            })+
            $(if line.begins(concat!(",\"", $number_name, "\":").as_bytes()) {
                row.$number = Some(line.number()?);
            })+
            Some(())
        }
    };
}

wire! {
    texts: kind "type" session_id "session_id" user_id "user_id" anonymous_id "anonymous_id" url "url" path "path"
        referrer "referrer" title "title" user_agent "user_agent" screen "screen" locale "locale" timezone "timezone"
        name "name" element "element" selector "selector" text "text" direction "direction";
    numbers: x "x" y "y" depth "depth" load_time_ms "load_time_ms" lcp "lcp" fid "fid" inp "inp" cls "cls" ttfb "ttfb"
        fcp "fcp" dom_content_loaded "dom_content_loaded" load_complete "load_complete";
}

/// Appends `row` and `origin` to `out` as one JSON object, without a line break.
pub fn write_json(row: &EventRow<'_>, origin: &Origin, out: &mut Vec<u8>) {
    write_identity(row.tenant_id, row.event_id, [row.timestamp_ms, row.received_at_ms], row.expires_at, out);
    write_optional_columns(row, out);
    for (name, object) in [(&b",\"context\":"[..], &row.context), (b",\"properties\":", &row.properties)] {
        if !object.is_empty() {
            out.extend_from_slice(name);
            out.extend_from_slice(object.as_bytes());
        }
    }
    write_origin(origin, out);
}

/// Reads one line as [`write_json`] wrote it.
///
/// # Errors
/// [`JsonError`] when the line is not JSON, misses a column that every row has, or has one that no row has.
pub fn read_json(line: &[u8]) -> Result<(EventRow<'_>, Origin), JsonError> {
    read_own(line).map_or_else(|| parse_json(line), Ok)
}

/// Reads a line that is byte for byte as [`write_json`] writes one, without an escape in a text.
pub(super) fn read_own(line: &[u8]) -> Option<(EventRow<'_>, Origin)> {
    line::read(line, read_optional_columns)
}

/// Reads a line whatever the order of its columns.
pub(super) fn parse_json(line: &[u8]) -> Result<(EventRow<'_>, Origin), JsonError> {
    Ok(serde_json::from_slice::<Wire<'_>>(line)?.into_parts())
}

/// What every kind of row begins with. `times`: timestamp and receipt.
pub(super) fn write_identity(
    tenant_id: TenantId,
    event_id: EventId,
    times: [i64; 2],
    expires_at: u32,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"tenant_id\":");
    write_uuid(tenant_id.0, out);
    out.extend_from_slice(b",\"event_id\":");
    write_uuid(event_id.0, out);
    for (name, time) in [&b",\"timestamp\":"[..], b",\"received_at\":"].into_iter().zip(times) {
        out.extend_from_slice(name);
        write_time(time, out);
    }
    out.extend_from_slice(b",\"expires_at\":");
    write_value(&expires_at, out);
}

/// What every kind of row ends with.
pub(super) fn write_origin(origin: &Origin, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"wal_id\":");
    write_uuid(origin.wal_id.0, out);
    out.extend_from_slice(b",\"wal_seq\":");
    write_value(&origin.wal_seq, out);
    out.extend_from_slice(b",\"wal_ordinal\":");
    write_value(&origin.wal_ordinal, out);
    out.extend_from_slice(b",\"relayed_at\":");
    write_time(origin.relayed_at_ms, out);
    out.push(b'}');
}

fn write_uuid(id: Uuid, out: &mut Vec<u8>) {
    out.push(b'"');
    super::write_uuid(id, out);
    out.push(b'"');
}

/// A text, a whole number or a finite one: none of them can fail to be JSON, and a Vec takes whatever is written.
pub(super) fn write_value<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    if serde_json::to_writer(out, value).is_err() {
        debug_assert!(false, "texts and finite numbers are always representable as JSON");
    }
}

/// `"2024-01-01 00:00:00.000"`, with the quotes. Times before year 0 or after 9999 do not pass validation.
fn write_time(milliseconds: i64, out: &mut Vec<u8>) {
    let time = Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH);
    let civil = TimeZone::UTC.to_datetime(time);
    let digits = |value: i32, count: u32, out: &mut Vec<u8>| {
        for place in (0..count).rev() {
            let digit = value / 10_i32.pow(place) % 10;
            out.push(b'0' + u8::try_from(digit).unwrap_or_default());
        }
    };
    out.push(b'"');
    digits(i32::from(civil.year()), 4, out);
    out.push(b'-');
    digits(i32::from(civil.month()), 2, out);
    out.push(b'-');
    digits(i32::from(civil.day()), 2, out);
    out.push(b' ');
    digits(i32::from(civil.hour()), 2, out);
    out.push(b':');
    digits(i32::from(civil.minute()), 2, out);
    out.push(b':');
    digits(i32::from(civil.second()), 2, out);
    out.push(b'.');
    digits(i32::from(civil.millisecond()), 3, out);
    out.push(b'"');
}

pub(super) fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    struct Time;
    impl Visitor<'_> for Time {
        type Value = i64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a UTC time like \"2024-01-01 00:00:00.000\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<i64, E> {
            let civil: DateTime = text.parse().map_err(E::custom)?;
            civil.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp().as_millisecond()).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Time)
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl<'de> Visitor<'de> for AnyText {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(AnyText).map(Text)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&'de RawValue>::deserialize(deserializer)?.get();
        if raw.starts_with('{') { Ok(Json::from(raw)) } else { Err(D::Error::custom("expected a JSON object")) }
    }
}
