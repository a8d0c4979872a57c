//! librdkafka's events and log lines, turned into health and tracing.

use std::sync::Arc;

use rdkafka::{
    ClientContext, Statistics,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{Severity, Status};

/// Events of a client: embedded in the contexts of producer and consumer.
#[derive(Clone)]
pub(crate) struct ClientEvents {
    status: Arc<Status>,
}

impl ClientEvents {
    pub(crate) fn new(status: Arc<Status>) -> Self {
        Self { status }
    }
}

impl ClientContext for ClientEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, line, "librdkafka");
            }
            // A broker that is away makes such a line at every attempt to reach it: health says it once.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::debug!(facility, line, "librdkafka");
            }
            RDKafkaLogLevel::Debug => tracing::trace!(facility, line, "librdkafka"),
        }
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        tracing::debug!(?code, reason, "librdkafka reports an error");
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.status.set("connection", Severity::Down, format!("no broker can be reached: {reason}"));
        } else if code == Some(RDKafkaErrorCode::Authentication)
            || code == Some(RDKafkaErrorCode::SaslAuthenticationFailed)
            || code == Some(RDKafkaErrorCode::SSL)
        {
            self.status.set("connection", Severity::Down, format!("the broker refuses the connection: {reason}"));
        }
    }
}
