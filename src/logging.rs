//! Logs through `tracing`, to standard error: standard output stays for what a subcommand prints.

use std::io::{IsTerminal, stderr};

use tracing::{Subscriber, subscriber::SetGlobalDefaultError};
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt::MakeWriter};

use crate::config::LogFormat;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is none; a resolved configuration never holds such a one.
    #[error("not a log filter")]
    Filter(#[source] ParseError),
    /// The process logs already.
    #[error("logging was set up before")]
    Again(#[source] SetGlobalDefaultError),
}

/// Sets up logging for the whole process, once.
///
/// `level` is a filter as `RUST_LOG` knows it.
pub fn init(level: &str, format: LogFormat) -> Result<(), LoggingError> {
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !stderr().is_terminal(),
    };
    let subscriber = subscriber(level, json, stderr().is_terminal(), stderr)?;
    // Boxed: the two forms are types of their own.
    tracing::subscriber::set_global_default(subscriber).map_err(LoggingError::Again)
}

type Boxed = Box<dyn Subscriber + Send + Sync>;

fn subscriber<W>(level: &str, json: bool, colours: bool, writer: W) -> Result<Boxed, LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(level).map_err(LoggingError::Filter)?;
    // Whoever reads the log may be gone (a parent that was killed). Reporting that to the same closed stream panics, and
    // would turn an orderly end into a hang.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).log_internal_errors(false);
    if json {
        // Fields at the top level: where log stores look for them.
        Ok(Box::new(builder.json().flatten_event(true).with_current_span(false).with_span_list(false).finish()))
    } else {
        Ok(Box::new(builder.with_ansi(colours).finish()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use std::{io::Write, sync::Arc};

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, json: bool) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        tracing::subscriber::with_default(subscriber(level, json, false, move || writer.clone()).unwrap(), || {
            tracing::info!(port = 8080, "listening");
            tracing::debug!("a detail");
        });
        let bytes = buffer.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_one_object_a_line_with_its_fields_at_the_top() {
        let text = logged("info", true);
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(
            (&line["message"], &line["port"], &line["level"]),
            (&"listening".into(), &8080.into(), &"INFO".into())
        );
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn text_is_for_people() {
        let text = logged("info", false);
        assert!(text.contains("listening port=8080"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn the_level_filters() {
        assert_eq!(logged("debug", false).lines().count(), 2);
        assert_eq!(logged("off", false), "");
        assert!(matches!(subscriber("a=b=c", false, false, std::io::sink), Err(LoggingError::Filter(_))));
    }
}
