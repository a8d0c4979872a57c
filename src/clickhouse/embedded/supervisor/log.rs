//! Puts what the child prints into this process's log.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A line as the child's own log writes it when its output is no terminal.
#[derive(Debug, Deserialize)]
struct Line {
    level: String,
    #[serde(flatten)]
    fields: BTreeMap<String, Value>,
}

impl Line {
    /// Message and fields in one line.
    fn text(mut self) -> String {
        let mut text = match self.fields.remove("message") {
            Some(Value::String(message)) => message,
            Some(other) => other.to_string(),
            None => String::new(),
        };
        // This process's log has a time and a target of its own.
        let fields = self.fields.into_iter().filter(|(name, _)| !matches!(name.as_str(), "timestamp" | "target"));
        for (name, value) in fields {
            text.extend([" ", &name, "=", &value.to_string()]);
        }
        text
    }
}

/// Logs one line under the target `clickhouse`, at its own level if it has one. The library's own lines have none.
pub(super) fn forward(line: &str) {
    let Ok(parsed) = serde_json::from_str::<Line>(line) else {
        tracing::info!(target: "clickhouse", "{line}");
        return;
    };
    match parsed.level.as_str() {
        "ERROR" => tracing::error!(target: "clickhouse", "{}", parsed.text()),
        "WARN" => tracing::warn!(target: "clickhouse", "{}", parsed.text()),
        "DEBUG" => tracing::debug!(target: "clickhouse", "{}", parsed.text()),
        "TRACE" => tracing::trace!(target: "clickhouse", "{}", parsed.text()),
        _ => tracing::info!(target: "clickhouse", "{}", parsed.text()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_structured_line_keeps_its_fields() {
        let line = r#"{"timestamp":"t","level":"WARN","message":"slow","ms":7,"target":"x"}"#;
        let line: Line = serde_json::from_str(line).unwrap();
        assert_eq!(line.level, "WARN");
        assert_eq!(line.text(), "slow ms=7");
    }
}
