//! What a key can hold: one type for every kind of value, with its own idea of what is wrong.

use std::{
    fmt,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{
    error::Problem,
    raw::{Raw, Shape},
    text::nearest,
    units::{ByteSize, Retention, Span},
};

/// A kind of value. `Value` is what the resolved configuration holds.
pub trait Kind {
    /// The resolved type.
    type Value;
    /// How the value is written, which is also how a text from the environment is read.
    const SHAPE: Shape = Shape::Text;
    /// Takes the value or says what is wrong with it.
    fn parse(raw: &Raw) -> Result<Self::Value, Problem>;
    /// The value as it may be printed.
    fn shown(raw: &Raw) -> Raw {
        raw.clone()
    }
}

/// A value that is never printed: `Debug` and `Display` hide it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(super::HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(super::HIDDEN)
    }
}

/// Names a kind of value: a type that is never made, only named in the schema.
macro_rules! kind {
    ($(#[$doc:meta])* $name:ident $(<$(const $param:ident: $param_ty:ty),+>)? -> $value:ty $(, shape $shape:ident)? $(, shown $shown:path)?; |$raw:ident| $parse:expr) => {
        $(#[$doc])*
        pub struct $name $(<$(const $param: $param_ty),+>)?;

        impl $(<$(const $param: $param_ty),+>)? Kind for $name $(<$($param),+>)? {
            type Value = $value;
            $(const SHAPE: Shape = Shape::$shape;)?
            fn parse($raw: &Raw) -> Result<$value, Problem> {
                $parse
            }
            $(fn shown(raw: &Raw) -> Raw {
                $shown(raw)
            })?
        }
    };
}

kind! {
    /// Any text.
    Text -> String; |raw| Ok(string(raw)?.to_owned())
}
kind! {
    /// Any text, never printed.
    SecretText -> Secret, shown Raw::hidden; |raw| Ok(Secret::new(string(raw)?))
}
kind! {
    /// A path; relative ones start at the working directory.
    FilePath -> PathBuf; |raw| match string(raw)? {
        "" => Err(Problem::new("empty", "give a path")),
        path => Ok(PathBuf::from(path)),
    }
}
kind! {
    /// A path, or empty for none.
    OptionalPath -> Option<PathBuf>; |raw| Ok(Some(string(raw)?).filter(|path| !path.is_empty()).map(PathBuf::from))
}
kind! {
    /// `true` or `false`.
    Flag -> bool, shape Boolean; |raw| match raw {
        Raw::Boolean(value) => Ok(*value),
        _ => Err(Problem::new("not a truth value", "give true or false")),
    }
}
kind! {
    /// A share above 0 and up to 1.
    Ratio -> f64, shape Float; |raw| {
        #[expect(clippy::cast_precision_loss, reason = "0 and 1 are the only integers in range")]
        let value = match raw {
            Raw::Float(value) => Some(*value),
            Raw::Integer(value) => Some(*value as f64),
            _ => None,
        };
        value
            .filter(|value| *value > 0.0 && *value <= 1.0)
            .ok_or_else(|| Problem::new("not a share", "give a number above 0 and up to 1, such as 0.8"))
    }
}
kind! {
    /// A size from `MIN` to `MAX` bytes.
    Bytes<const MIN: u64, const MAX: u64> -> u64; |raw| {
        let size = byte_size(raw)?;
        if (MIN..=MAX).contains(&size.bytes()) {
            return Ok(size.bytes());
        }
        let fix = match MAX {
            u64::MAX => format!("give at least {}", ByteSize::new(MIN)),
            max => format!("give {} to {}", ByteSize::new(MIN), ByteSize::new(max)),
        };
        Err(Problem::new("out of range", fix))
    }
}
kind! {
    /// A segment of the write-ahead log.
    SegmentBytes -> u64; |raw| {
        let size = byte_size(raw)?.bytes();
        // Below 4 MiB sled writes whole leaf pages to files that it never syncs; above 16 MiB it refuses to open.
        if size.is_power_of_two() && (8 << 20..=16 << 20).contains(&size) {
            return Ok(size);
        }
        Err(Problem::new("not a segment size", r#"give "8MiB" or "16MiB""#))
    }
}
kind! {
    /// A span of at least `MIN` milliseconds.
    Interval<const MIN: u64> -> Duration; |raw| {
        let span = span(raw)?;
        let least = Span::new(Duration::from_millis(MIN));
        if span < least {
            return Err(Problem::new("too short", format!("give at least \"{least}\"")));
        }
        Ok(span.duration())
    }
}
kind! {
    /// A span, or empty or `unlimited` for none.
    OptionalInterval -> Option<Duration>; |raw| match raw {
        Raw::Text(text) if text.is_empty() || text == "unlimited" => Ok(None),
        _ => match span(raw) {
            Ok(span) => Ok(Some(span.duration())),
            Err(problem) => Err(Problem::new(problem.what, format!("{}, or \"unlimited\"", problem.fix))),
        },
    }
}
kind! {
    /// A retention.
    RetentionText -> Retention; |raw| string(raw)?.parse()
}
kind! {
    /// An address to listen on.
    Host -> IpAddr; |raw| host(string(raw)?)
        .ok_or_else(|| Problem::new("not an IP address", r#"give one, such as "0.0.0.0", "127.0.0.1" or "::""#))
}
kind! {
    /// An address with a port, or empty for none.
    Listen -> Option<SocketAddr>; |raw| {
        let text = string(raw)?;
        if text.is_empty() {
            return Ok(None);
        }
        let parsed = text.parse().ok().or_else(|| {
            let (name, port) = text.rsplit_once(':')?;
            Some(SocketAddr::new(host(name)?, port.parse().ok()?))
        });
        parsed.map(Some).ok_or_else(|| {
            let fix = r#"give one, such as "127.0.0.1:8081", or "" for the port of the API"#;
            Problem::new("not an address with a port", fix)
        })
    }
}

/// A whole number from `MIN` to `MAX`.
pub struct Whole<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<T: TryFrom<u64>, const MIN: u64, const MAX: u64> Kind for Whole<T, MIN, MAX> {
    type Value = T;
    const SHAPE: Shape = Shape::Integer;

    fn parse(raw: &Raw) -> Result<T, Problem> {
        let fix = || match (MIN, MAX) {
            (0, u64::MAX) => "give a whole number".to_owned(),
            _ => format!("give a whole number from {MIN} to {MAX}"),
        };
        let Raw::Integer(number) = raw else { return Err(Problem::new("not a whole number", fix())) };
        u64::try_from(*number)
            .ok()
            .filter(|number| (MIN..=MAX).contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| Problem::new("out of range", fix()))
    }
}

/// An enum of a few words.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// The word that stands for it in a configuration.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl Kind for $name {
            type Value = Self;

            fn parse(raw: &Raw) -> Result<Self, Problem> {
                match string(raw)? {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(not_one_of(&[$($word),+])),
                }
            }
        }
    };
}

choice! {
    /// What a customer pays for, as far as it says how long events are kept.
    Tier {
        /// 24 hours.
        Free = "free",
        /// 90 days.
        Paid = "paid",
        /// As the tenant's `retention` says; for ever without one.
        Enterprise = "enterprise",
    }
}
choice! {
    /// What a 2xx stands for.
    Durability {
        /// The event is on disk (fsync).
        Fsync = "fsync",
        /// The event is in the system's page cache: safe from a crash of the engine, not from one of the machine.
        Os = "os",
    }
}
choice! {
    /// Compression of the write-ahead log's records.
    WalCodec {
        /// LZ4.
        Lz4 = "lz4",
        /// Zstandard.
        Zstd = "zstd",
    }
}
choice! {
    /// How events are written into the topic.
    TopicFormat {
        /// As the log keeps them.
        Binary = "binary",
        /// As JSON, for whoever else reads the topic.
        Json = "json",
    }
}
choice! {
    /// Compression of broker messages, by librdkafka's names.
    BrokerCompression {
        /// LZ4.
        Lz4 = "lz4",
        /// Zstandard.
        Zstd = "zstd",
        /// Snappy.
        Snappy = "snappy",
        /// Gzip.
        Gzip = "gzip",
        /// Not compressed.
        None = "none",
    }
}
choice! {
    /// Compression of requests to ClickHouse.
    ClickHouseCompression {
        /// LZ4.
        Lz4 = "lz4",
        /// Not compressed.
        None = "none",
    }
}
choice! {
    /// What the engine does about the tables when it starts.
    Migrate {
        /// Creates and changes them.
        Auto = "auto",
        /// Only checks them and refuses to start when they are not as they should be.
        Verify = "verify",
    }
}
choice! {
    /// Where plugins run.
    Isolation {
        /// In this process.
        None = "none",
        /// Each in child processes of its own.
        Process = "process",
    }
}
choice! {
    /// Form of the log.
    LogFormat {
        /// Text on a terminal, JSON otherwise.
        Auto = "auto",
        /// A line for people.
        Text = "text",
        /// A JSON object a line.
        Json = "json",
    }
}

/// What is wrong with a word that is none of `words`.
pub(super) fn not_one_of(words: &[&str]) -> Problem {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    let (last, rest) = quoted.split_last().map_or(("", &[][..]), |(last, rest)| (last.as_str(), rest));
    Problem::new("unknown choice", format!("give {} or {last}", rest.join(", ")))
}

/// The text of `raw`.
pub(super) fn string(raw: &Raw) -> Result<&str, Problem> {
    match raw {
        Raw::Text(text) => Ok(text),
        _ => Err(Problem::new("not a string", "give a string in quotes")),
    }
}

fn byte_size(raw: &Raw) -> Result<ByteSize, Problem> {
    match raw {
        Raw::Integer(bytes) => match u64::try_from(*bytes) {
            Ok(bytes) => Ok(ByteSize::new(bytes)),
            Err(_) => Err(Problem::new("out of range", "give a number of bytes that is not negative")),
        },
        Raw::Text(text) => text.parse(),
        // The same words as for a text that is no size.
        _ => "".parse(),
    }
}

fn span(raw: &Raw) -> Result<Span, Problem> {
    match raw {
        Raw::Text(text) => text.parse(),
        Raw::Integer(number) => number.to_string().parse(),
        _ => "".parse(),
    }
}

fn host(text: &str) -> Option<IpAddr> {
    match text {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => text.trim_start_matches('[').trim_end_matches(']').parse().ok(),
    }
}

kind! {
    /// A filter for the log: a level, or `target=level` parts separated by commas.
    LogFilter -> String; |raw| {
        const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "off"];
        let text = string(raw)?;
        let fix = r#"give a level (error, warn, info, debug, trace) or parts such as "info,ingestion_engine::relay=debug""#;
        if text.is_empty() || tracing_subscriber::EnvFilter::builder().parse(text).is_err() {
            return Err(Problem::new("not a log filter", fix));
        }
        // "inof" would parse as the name of a module and turn all other logging off.
        for part in text.split(',').map(|part| part.trim().to_lowercase()).filter(|part| !part.contains(['=', '[', ':'])) {
            if !LEVELS.contains(&part.as_str())
                && let Some(level) = nearest(&part, LEVELS.into_iter())
            {
                return Err(Problem::new(format!("no level {part:?}, did you mean {level:?}"), fix));
            }
        }
        Ok(text.to_owned())
    }
}
