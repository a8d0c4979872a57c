//! Sizes, spans of time and retention as people write them.

use std::{fmt, str::FromStr, time::Duration};

use super::error::Problem;

const SIZE_FIX: &str = r#"give a number of bytes, or a string such as "8MiB" (2^20) or "10GB" (10^9)"#;
const SPAN_FIX: &str = r#"give a number with a unit: "500ms", "30s", "15m", "24h" or "14d""#;
const RETENTION_FIX: &str =
    r#"give hours up to 7 days ("24h"), else whole days ("90d") up to "25000d", or "keep" to store for ever"#;

/// Longest span that is taken: a century, far from where adding it to a clock could overflow.
const LONGEST: Duration = Duration::from_hours(36_500 * 24);

/// Splits `"8MiB"` into its number and its unit.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit.trim_start()))
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A size in bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = Problem;

    /// Takes a plain number of bytes, or a number with `B`, `kB`/`KB`, `MB`, `GB`, `TB` (powers of 1000) or `KiB`,
    /// `MiB`, `GiB`, `TiB` (powers of 1024).
    fn from_str(text: &str) -> Result<Self, Problem> {
        let (number, unit) = number_and_unit(text).ok_or_else(|| Problem::new("not a size", SIZE_FIX))?;
        let factor: u64 = match unit {
            "" | "B" => 1,
            "kB" | "KB" => 1000,
            "MB" => 1000_u64.pow(2),
            "GB" => 1000_u64.pow(3),
            "TB" => 1000_u64.pow(4),
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(Problem::new(format!("unknown unit {unit:?}"), SIZE_FIX)),
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| Problem::new("too large", SIZE_FIX))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [
            (1_u64 << 40, "TiB"),
            (1000_u64.pow(4), "TB"),
            (1 << 30, "GiB"),
            (1000_u64.pow(3), "GB"),
            (1 << 20, "MiB"),
            (1000_u64.pow(2), "MB"),
            (1 << 10, "KiB"),
            (1000, "kB"),
        ] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// A span of that length.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// The span as the standard library has it.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = Problem;

    /// Takes a whole number with `ms`, `s`, `m`, `h` or `d`.
    fn from_str(text: &str) -> Result<Self, Problem> {
        let (number, unit) = number_and_unit(text).ok_or_else(|| Problem::new("not a span of time", SPAN_FIX))?;
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(Problem::new("no unit", SPAN_FIX)),
            _ => return Err(Problem::new(format!("unknown unit {unit:?}"), SPAN_FIX)),
        };
        match number.checked_mul(milliseconds).map(Duration::from_millis) {
            Some(span) if span <= LONGEST => Ok(Self(span)),
            _ => Err(Problem::new("longer than 36500 days", SPAN_FIX)),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        for (factor, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")] {
            if milliseconds >= factor && milliseconds.is_multiple_of(factor) {
                return write!(f, "{}{unit}", milliseconds / factor);
            }
        }
        write!(f, "{milliseconds}ms")
    }
}

/// How long an event is stored, counted from its acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// For ever.
    Keep,
    /// For this many hours: any number up to 168, whole days above, at most 25,000 days.
    Hours(u32),
}

impl Retention {
    /// Hours up to which retention is counted in hours and not in days.
    pub const HOURLY: u32 = 7 * 24;
    /// Longest retention that is not "keep", in hours: expiry dates stay inside ClickHouse's `DateTime`.
    pub const LONGEST: u32 = 25_000 * 24;

    /// The retention as a span of time; absent for "keep".
    pub fn duration(self) -> Option<Duration> {
        match self {
            Self::Keep => None,
            Self::Hours(hours) => Some(Duration::from_hours(u64::from(hours))),
        }
    }
}

impl FromStr for Retention {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        if text.trim() == "keep" {
            return Ok(Self::Keep);
        }
        let wrong = |what: &str| Problem::new(what, RETENTION_FIX);
        let seconds = text.parse::<Span>().map_err(|problem| wrong(&problem.what))?.duration().as_secs();
        let hours = u32::try_from(seconds / 3600).map_err(|_| wrong("longer than 25000 days"))?;
        if !seconds.is_multiple_of(3600) || hours == 0 {
            return Err(wrong("not a whole number of hours"));
        }
        if hours > Self::LONGEST {
            return Err(wrong("longer than 25000 days"));
        }
        if hours > Self::HOURLY && !hours.is_multiple_of(24) {
            return Err(wrong("longer than 7 days and not a whole number of days"));
        }
        Ok(Self::Hours(hours))
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Hours(hours) if hours.is_multiple_of(24) => write!(f, "{}d", hours / 24),
            Self::Hours(hours) => write!(f, "{hours}h"),
        }
    }
}
