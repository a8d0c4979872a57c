//! How long rows are kept, and the bucket in which they expire.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use thiserror::Error;

use crate::row::EXPIRES_NEVER;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Rows kept this long or less are dropped by the hour.
const HOURLY_UP_TO: i64 = 7 * DAY;
/// Rows kept this long or less are dropped by the day, longer ones by the month.
const DAILY_UP_TO: i64 = 366 * DAY;
/// ClickHouse's `DateTime` ends in 2106.
const MOST_DAYS: i64 = 25_000;

/// How long a tenant's rows are kept after they were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// This many seconds: whole hours up to 7 days, whole days above.
    Seconds(i64),
    /// For ever.
    Keep,
}

/// Not a retention.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "\"{text}\" is not a retention: write whole hours up to 168 (\"24h\"), days up to 25000 (\"90d\"), or \"keep\""
)]
pub struct RetentionError {
    text: String,
}

impl FromStr for Retention {
    type Err = RetentionError;

    fn from_str(text: &str) -> Result<Self, RetentionError> {
        let error = || RetentionError { text: text.to_owned() };
        if text == "keep" {
            return Ok(Self::Keep);
        }
        let unit_at = text.len().checked_sub(1).ok_or_else(error)?;
        let (number, unit) = text.split_at_checked(unit_at).ok_or_else(error)?;
        let number: i64 = number.parse().map_err(|_| error())?;
        let seconds = match unit {
            "h" if (1..=168).contains(&number) => number * HOUR,
            "d" if (1..=MOST_DAYS).contains(&number) => number * DAY,
            _ => return Err(error()),
        };
        Ok(Self::Seconds(seconds))
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Seconds(seconds) if seconds % DAY == 0 => write!(f, "{}d", seconds / DAY),
            Self::Seconds(seconds) => write!(f, "{}h", seconds / HOUR),
        }
    }
}

impl Retention {
    /// The second from which a row received at `received_at_ms` may be dropped: never before its time is over, and
    /// rounded up to the bucket (hour, day or month, UTC) that makes one partition of the table.
    pub fn expires_at(self, received_at_ms: i64) -> u32 {
        let Self::Seconds(kept) = self else { return EXPIRES_NEVER };
        // Rounded up to the second first: a row is never dropped within its last one.
        let due = received_at_ms.div_euclid(1000) + i64::from(received_at_ms.rem_euclid(1000) != 0) + kept;
        let bucket = match kept {
            ..=HOURLY_UP_TO => round_up(due, HOUR),
            ..=DAILY_UP_TO => round_up(due, DAY),
            _ => next_month(due),
        };
        // The last value means "never"; a row that would live beyond what the type holds is kept until its end.
        u32::try_from(bucket).unwrap_or(EXPIRES_NEVER - 1).min(EXPIRES_NEVER - 1)
    }
}

fn round_up(seconds: i64, unit: i64) -> i64 {
    seconds.div_euclid(unit) * unit + if seconds.rem_euclid(unit) == 0 { 0 } else { unit }
}

/// The first second of the month at or after `seconds`.
fn next_month(seconds: i64) -> i64 {
    let start_of_month = |time: Timestamp, months: i64| {
        let civil = time.to_zoned(TimeZone::UTC).datetime().first_of_month().date().checked_add(months.months())?;
        Ok::<_, jiff::Error>(civil.to_zoned(TimeZone::UTC)?.timestamp().as_second())
    };
    let bucket = Timestamp::from_second(seconds).and_then(|time| {
        let this = start_of_month(time, 0)?;
        if this == seconds { Ok(this) } else { start_of_month(time, 1) }
    });
    // Beyond what a calendar can say; the caller cuts it to what the column holds.
    bucket.unwrap_or(i64::MAX)
}
