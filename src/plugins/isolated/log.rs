//! Log lines of a plugin's process: written to its standard error, read by the engine at once, so that the last words
//! before a crash are there too.
//!
//! A line of the plugin's [`crate::plugins::host`] is a control byte, a letter for its level, and its message as a JSON
//! string. Whatever else the plugin prints, to standard output too, is shown as it is.

use std::{
    fmt::{self, Write as _},
    io::{self, BufRead, BufReader, Read, Write as _},
    sync::atomic::{AtomicU64, Ordering},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

/// Begins a line of ours. No text begins with it.
const MARK: u8 = 0x01;

/// Longer lines are shown in pieces: a message of 8 KiB, every character of it escaped, is one.
const LINE_BYTES: u64 = 64 << 10;

const LEVELS: [(Level, u8); 5] =
    [(Level::ERROR, b'E'), (Level::WARN, b'W'), (Level::INFO, b'I'), (Level::DEBUG, b'D'), (Level::TRACE, b'T')];

/// How many of the levels, the most severe first, this process logs.
pub(super) fn levels() -> u8 {
    let most = LevelFilter::current();
    LEVELS.iter().map(|(level, _)| u8::from(*level <= most)).sum()
}

/// Sends what is logged in this process to standard error, for [`forward`].
pub(super) fn install(levels: u8) {
    let lines = Lines { levels, spans: AtomicU64::new(1) };
    // Somebody logs here already: then it is shown as it comes.
    drop(tracing::subscriber::set_global_default(lines));
}

struct Lines {
    levels: u8,
    spans: AtomicU64,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        LEVELS.iter().take(self.levels.into()).any(|(level, _)| level == metadata.level())
    }

    // Spans are not shown.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let letter =
            LEVELS.iter().find(|(level, _)| level == event.metadata().level()).map_or(b'I', |(_, letter)| *letter);
        let mut words = Words::default();
        event.record(&mut words);
        let mut line = vec![MARK, letter];
        // A String can be written as JSON.
        if serde_json::to_writer(&mut line, &(words.message + &words.fields)).is_ok() {
            line.push(b'\n');
            // Nobody reads any more: the engine has ended, and so will this process.
            drop(io::stderr().lock().write_all(&line));
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // The engine's line names it.
            "plugin" => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
        if written.is_err() {
            self.message.clear();
        }
    }
}

/// Logs what comes from the process of `plugin`, until nobody can write there any more.
pub(super) fn forward(from: impl Read, plugin: &str) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    // An error is an end too.
    while let Ok(1..) = from.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
        let (level, message) = read(line.trim_ascii_end());
        match level {
            Level::ERROR => tracing::error!(plugin, "{message}"),
            Level::WARN => tracing::warn!(plugin, "{message}"),
            Level::INFO => tracing::info!(plugin, "{message}"),
            Level::DEBUG => tracing::debug!(plugin, "{message}"),
            Level::TRACE => tracing::trace!(plugin, "{message}"),
        }
        line.clear();
    }
}

/// What a line says. Words that are not of our making are worth a look: libraries print what went wrong.
fn read(line: &[u8]) -> (Level, String) {
    let ours = |line: &[u8]| {
        let [MARK, letter, message @ ..] = line else { return None };
        let (level, _) = LEVELS.iter().find(|(_, known)| known == letter)?;
        Some((*level, serde_json::from_slice(message).ok()?))
    };
    ours(line).unwrap_or_else(|| (Level::WARN, String::from_utf8_lossy(line).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ours_keep_their_level_and_breaks_and_others_are_shown() {
        for (line, level, message) in [
            (&b"\x01E\"it\\nbroke\""[..], Level::ERROR, "it\nbroke"),
            (b"\x01D\"\"", Level::DEBUG, ""),
            (b"free(): invalid pointer", Level::WARN, "free(): invalid pointer"),
            (b"\x01X\"a\"", Level::WARN, "\x01X\"a\""),
            (b"\x01Ea\"", Level::WARN, "\x01Ea\""),
            (b"\xff", Level::WARN, "\u{fffd}"),
        ] {
            assert_eq!(read(line), (level, message.to_owned()));
        }
    }
}
