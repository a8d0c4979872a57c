//! Calendar months, in UTC.

use jiff::{Timestamp, civil::Date, tz::TimeZone};

/// A month in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month(u32);

impl Month {
    /// The month that `ms` (milliseconds since 1970) lies in; January 1970 for all that is before.
    pub fn of(ms: i64) -> Self {
        let date = Timestamp::from_millisecond(ms).unwrap_or_default().to_zoned(TimeZone::UTC).date();
        let months = (i32::from(date.year()) - 1970) * 12 + i32::from(date.month()) - 1;
        Self(u32::try_from(months).unwrap_or(0))
    }

    /// The month that is `number` months after January 1970.
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// Months since January 1970.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The month before.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// Its first millisecond, since 1970.
    pub fn starts_at_ms(self) -> i64 {
        let year = i16::try_from(1970 + self.0 / 12).unwrap_or(i16::MAX);
        let month = i8::try_from(self.0 % 12 + 1).unwrap_or(1);
        let start = Date::new(year, month, 1).and_then(|date| date.to_zoned(TimeZone::UTC));
        // Months beyond the calendar's last year (9999) never begin.
        start.map_or(i64::MAX, |start| start.timestamp().as_millisecond())
    }

    /// The first millisecond of the month after.
    pub fn ends_at_ms(self) -> i64 {
        Self(self.0 + 1).starts_at_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_begins_on_its_first_in_utc() {
        let november = Month::of(1_795_000_000_000);
        assert_eq!(november.number(), 56 * 12 + 10);
        assert_eq!(november.starts_at_ms(), 1_793_491_200_000, "2026-11-01T00:00:00Z");
        assert_eq!(november.ends_at_ms(), 1_796_083_200_000, "2026-12-01T00:00:00Z");
        assert_eq!(Month::of(november.ends_at_ms() - 1), november);
        assert_eq!(Month::of(november.ends_at_ms()).before(), november);
        assert_eq!(Month::of(-5), Month::from_number(0));
        assert_eq!(Month::from_number(0).starts_at_ms(), 0);
    }
}
