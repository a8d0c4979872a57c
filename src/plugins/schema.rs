//! JSON Schemas of added types, compiled, and an event held against them.
//!
//! - A schema refers to nothing outside itself: an engine does not fetch what senders' events are judged by.
//! - Patterns run in linear time (no look-around, no back-references), because events come from anybody.
//! - `format` is checked (`uuid`, `date-time`, `email`, ...), whatever the draft says: whoever writes it means it.

use std::{collections::HashMap, fmt::Write as _};

use jsonschema::{PatternOptions, Retrieve, Uri, Validator, error::ValidationErrorKind};
use serde_json::Value;
use thiserror::Error;

use super::descriptor::Descriptor;

/// Problems of an event that its sender is told; more are seldom others.
const SHOWN_PROBLEMS: usize = 3;

/// Most bytes of one problem: a problem quotes the value, which may be long.
const PROBLEM_BYTES: usize = 240;

/// Most bytes of a compiled pattern: the default of `regex`, said here because patterns are a stranger's.
const PATTERN_BYTES: usize = 10 << 20;

/// Why a schema cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the schema of {kind:?} cannot be used: {problem}")]
pub struct SchemaError {
    /// The type.
    pub kind: String,
    /// Where and what.
    pub problem: String,
}

/// The compiled schemas of a plugin's types.
#[derive(Debug, Default)]
pub struct Schemas {
    of: HashMap<Box<str>, Validator>,
}

impl Schemas {
    /// Compiles the schemas of `descriptor`.
    ///
    /// # Errors
    /// The first schema that is none, or refers to something outside itself.
    pub fn compile(descriptor: &Descriptor) -> Result<Self, SchemaError> {
        let mut of = HashMap::new();
        for added in &descriptor.adds {
            let Some(schema) = &added.schema else { continue };
            let error = |problem: String| SchemaError { kind: added.name.clone(), problem };
            let schema: Value = serde_json::from_str(schema.get()).map_err(|cause| error(cause.to_string()))?;
            let validator = jsonschema::options()
                .with_retriever(Nothing)
                .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES))
                .should_validate_formats(true)
                .build(&schema)
                .map_err(|cause| error(problem(&cause) + hint(&cause)))?;
            of.insert(added.name.as_str().into(), validator);
        }
        Ok(Self { of })
    }

    /// Number of types that have a schema.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether no type has one.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Holds an event against the schema of its type `kind`. A type without a schema takes every event.
    ///
    /// # Errors
    /// The first problems, each with its place, for the event's sender.
    pub fn check(&self, kind: &str, json: &str) -> Result<(), String> {
        let Some(validator) = self.of.get(kind) else { return Ok(()) };
        let event: Value = serde_json::from_str(json).map_err(|error| format!("the event is no JSON: {error}"))?;
        if validator.is_valid(&event) {
            return Ok(());
        }
        let mut words = String::new();
        let mut errors = validator.iter_errors(&event);
        for error in errors.by_ref().take(SHOWN_PROBLEMS) {
            if !words.is_empty() {
                words.push_str("; ");
            }
            words.push_str(&problem(&error));
        }
        match errors.count() {
            0 => {}
            // Writing to a String cannot fail.
            more => drop(write!(words, "; and {more} more")),
        }
        Err(words)
    }
}

/// One problem with its place, cut where a quoted value makes it long.
fn problem(error: &jsonschema::ValidationError<'_>) -> String {
    let place = error.instance_path().as_str();
    let mut words = error.to_string();
    let end = words.floor_char_boundary(PROBLEM_BYTES);
    if end < words.len() {
        words.truncate(end);
        words.push_str("...");
    }
    if place.is_empty() { words } else { format!("{place}: {words}") }
}

/// Why a pattern may be refused that other tools take.
fn hint(error: &jsonschema::ValidationError<'_>) -> &'static str {
    match error.kind() {
        ValidationErrorKind::Format { format } if format == "regex" => {
            " of the kind that runs in linear time: write it without look-around and back-references"
        }
        _ => "",
    }
}

/// Finds nothing, and says so.
struct Nothing;

impl Retrieve for Nothing {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("{uri} lies outside of the schema: put what is referred to under \"$defs\"").into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;
    use crate::plugins::descriptor;

    fn compile(schema: &Value) -> Result<Schemas, SchemaError> {
        let json = json!({
            "name": "shop", "version": "1",
            "adds": [
                { "type": "purchase", "schema": schema, "examples": [{}] },
                { "type": "refund", "examples": [{}] },
            ],
        });
        Schemas::compile(&descriptor::parse(json.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn an_event_is_held_against_its_types_schema() {
        let schema = json!({
            "required": ["total"],
            "properties": {
                "total": { "type": "number" },
                "lines": { "items": { "$ref": "#/$defs/line" } },
                "order": { "format": "uuid" },
            },
            "$defs": { "line": { "type": "string", "pattern": "^[a-z]+$" } },
        });
        let schemas = compile(&schema).unwrap();
        assert_eq!(schemas.len(), 1);
        let check = |json: &str| schemas.check("purchase", json);
        assert_eq!(check(r#"{"total": 5, "lines": ["a"], "order": "550e8400-e29b-41d4-a716-446655440000"}"#), Ok(()));
        assert_eq!(schemas.check("refund", "{}"), Ok(()));
        assert_eq!(check("{}").unwrap_err(), "\"total\" is a required property");
        assert_eq!(check(r#"{"total": "5"}"#).unwrap_err(), "/total: \"5\" is not of type \"number\"");
        assert!(check(r#"{"total": 5, "order": "A1"}"#).unwrap_err().starts_with("/order: \"A1\" is not a \"uuid\""));
        let many = check(r#"{"lines": ["A", "B", "C", 5]}"#).unwrap_err();
        assert!(many.contains("/lines/") && many.ends_with("; and 2 more"), "{many}");
        let long = check(&format!(r#"{{"total": "{}"}}"#, "\u{e9}".repeat(10_000))).unwrap_err();
        assert!(long.len() < 300 && long.ends_with("..."), "{long}");
    }

    #[test]
    fn a_schema_that_cannot_be_used_is_refused() {
        let words = |schema: Value| compile(&schema).unwrap_err().to_string();
        let none = words(json!({ "type": "nonsense" }));
        assert!(none.starts_with("the schema of \"purchase\" cannot be used: /type: "), "{none}");
        let outside = words(json!({ "$ref": "https://example.com/schema.json" }));
        assert!(outside.contains("https://example.com/schema.json lies outside of the schema"), "{outside}");
        let nowhere = words(json!({ "$ref": "#/$defs/nowhere" }));
        assert!(nowhere.contains("nowhere"), "{nowhere}");
        // Would take exponential time in an engine that goes back.
        let looks_around = words(json!({ "pattern": "^(?=a)b" }));
        assert!(looks_around.contains("write it without look-around"), "{looks_around}");
    }
}
