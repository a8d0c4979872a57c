//! JSON Schemas of added types, compiled, and an event held against them.
//!
//! - A schema refers to nothing outside itself: an engine does not fetch what senders' events are judged by.
//! - Patterns run in linear time (no look-around, no back-references), because events come from anybody.
//! - `format` is checked (`uuid`, `date-time`, `email`, ...), whatever the draft says: whoever writes it means it.

use std::{collections::HashMap, fmt::Write as _};

use jsonschema::{PatternOptions, Retrieve, Uri, Validator};
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
                .map_err(|cause| error(problem(&cause)))?;
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

/// Finds nothing, and says so.
struct Nothing;

impl Retrieve for Nothing {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("{uri} lies outside of the schema: put what is referred to under \"$defs\"").into())
    }
}
