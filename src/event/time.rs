//! Timestamps as senders write them.

use jiff::{Timestamp, civil, fmt::temporal::DateTimeParser, tz::TimeZone};

use super::{error::EventError, field::Field};

static PARSER: DateTimeParser = DateTimeParser::new();

/// Reads a timestamp as Unix milliseconds: ISO 8601 text (without an offset it means UTC), or epoch milliseconds.
pub(super) fn milliseconds(field: &Field<'_>) -> Result<i64, EventError> {
    const EXPECTED: &str = "must be ISO 8601 (\"2024-01-01T00:00:00Z\") or epoch milliseconds (1704067200000)";
    if !field.value.starts_with('"') {
        if let Ok(milliseconds) = field.value.parse::<i64>() {
            return Ok(milliseconds);
        }
        // performance.timeOrigin + performance.now() has decimals; 2^53 ms is the year 287396.
        return match field.value.parse::<f64>() {
            #[expect(clippy::cast_possible_truncation, reason = "bounded by 2^53, where a cast is exact")]
            Ok(milliseconds) if milliseconds.abs() <= 9_007_199_254_740_992.0 => Ok(milliseconds as i64),
            _ => Err(field.invalid(EXPECTED)),
        };
    }
    let text = field.string(EXPECTED)?;
    let parsed: Result<Timestamp, _> = PARSER.parse_timestamp(text.as_bytes()).or_else(|_| {
        let civil: civil::DateTime = PARSER.parse_datetime(text.as_bytes())?;
        civil.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp())
    });
    parsed.map(Timestamp::as_millisecond).map_err(|_| field.invalid(EXPECTED))
}
