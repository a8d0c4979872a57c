//! How long rows are kept, and the bucket in which they expire.

use std::time::Duration;

use jiff::{Timestamp, ToSpan, tz::TimeZone};

use crate::row::EXPIRES_NEVER;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Rows kept this long or less are dropped by the hour.
const HOURLY_UP_TO: i64 = 7 * DAY;
/// Rows kept this long or less are dropped by the day, longer ones by the month.
const DAILY_UP_TO: i64 = 366 * DAY;

/// How long a tenant's rows are kept after they were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// This many seconds.
    Seconds(i64),
    /// For ever.
    Keep,
}

impl Retention {
    /// Kept for `duration`, or for ever.
    pub fn of(duration: Option<Duration>) -> Self {
        duration.map_or(Self::Keep, |kept| Self::Seconds(i64::try_from(kept.as_secs()).unwrap_or(i64::MAX)))
    }

    /// The second from which a row received at `received_at_ms` may be dropped: never before its time is over, and
    /// rounded up to the bucket (hour, day or month, UTC) that makes one partition of the table.
    pub fn expires_at(self, received_at_ms: i64) -> u32 {
        let Self::Seconds(kept) = self else { return EXPIRES_NEVER };
        // Rounded up to the second first: a row is never dropped within its last one.
        let due = received_at_ms.div_euclid(1000) + i64::from(received_at_ms.rem_euclid(1000) != 0) + kept;
        let bucket = if kept <= HOURLY_UP_TO {
            round_up(due, HOUR)
        } else if kept <= DAILY_UP_TO {
            round_up(due, DAY)
        } else {
            next_month(due)
        };
        // The last value means "never"; a row that would live beyond what the type holds is kept until its end.
        u32::try_from(bucket).unwrap_or(EXPIRES_NEVER - 1).min(EXPIRES_NEVER - 1)
    }

    /// [`Retention::expires_at`] as an expression of ClickHouse over the column `received_at`: the same value for every
    /// row, so that rows can be compared with it and rewritten to it where they are.
    pub fn expires_at_sql(self) -> String {
        const LAST: u32 = EXPIRES_NEVER - 1;
        /// 2106-02-01: the first second of the last month that the type holds.
        const LAST_MONTH: i64 = 4_294_425_600;
        let Self::Seconds(kept) = self else { return format!("toDateTime({EXPIRES_NEVER}, 'UTC')") };
        // Rows are received after 1970, so dividing rounds down here too.
        let due = format!("(intDiv(toUnixTimestamp64Milli(received_at) + 999, 1000) + {kept})");
        let rounded = |unit: i64| format!("intDiv({due} + {}, {unit}) * {unit}", unit - 1);
        let bucket = if kept <= HOURLY_UP_TO {
            rounded(HOUR)
        } else if kept <= DAILY_UP_TO {
            rounded(DAY)
        } else {
            let month = format!("toStartOfMonth(toDateTime(least({due}, {LAST_MONTH}), 'UTC'))");
            let start = |date: &str| format!("toInt64(toUnixTimestamp(toDateTime({date}, 'UTC')))");
            format!(
                "multiIf({due} > {LAST_MONTH}, {LAST}, {this} = {due}, {due}, {next})",
                this = start(&month),
                next = start(&format!("addMonths({month}, 1)"))
            )
        };
        format!("toDateTime(toUInt32(least({bucket}, {LAST})), 'UTC')")
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
