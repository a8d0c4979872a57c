//! What a plugin says of itself, read and judged: every problem at once, each with what to do about it.
//!
//! Judged here is what the description says alone. Whether another plugin has the same name or types is the registry's
//! question, whether the schemas and examples are good that of `schema` and `check`.

mod storage;

use std::{collections::HashSet, fmt};

use serde_json::value::RawValue;
use thiserror::Error;

pub use ingestion_plugin_abi::descriptor::{AddedType, Column, Descriptor, Function, Measure, Table, Value, View};

use crate::event::Types;

/// Most bytes of a description: a hundred types with schemas and examples, and little enough to keep in memory.
pub const DESCRIPTOR_BYTES: usize = 1 << 20;

/// Most bytes of a plugin's name: part of the contract.
const PLUGIN_NAME_BYTES: usize = 40;
/// Most bytes of the name of a type, a table, a view or a column: part of the contract for types, and short enough for
/// `plugin_<plugin>_<name>` to be a file's name.
const NAME_BYTES: usize = 64;
/// Most bytes of a version: it is shown in lists.
const VERSION_BYTES: usize = 64;
/// Most bytes of a sentence.
const SENTENCE_BYTES: usize = 1000;
/// Most types that a plugin adds, or names in `enriches`.
const MOST_TYPES: usize = 100;
/// Most examples of one type. The check runs every one of them many times.
const MOST_EXAMPLES: usize = 100;

/// Names that would be misread where a plugin's name stands among other words.
pub(super) const RESERVED: [&str; 6] = ["all", "any", "engine", "none", "plugin", "plugins"];

/// Why a description cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// `describe` returned nothing.
    #[error("`describe` returned no description (null, or no bytes)")]
    Missing,
    /// Longer than any description.
    #[error("`describe` returned {bytes} bytes, more than the {DESCRIPTOR_BYTES} of the longest description")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// An address that cannot be.
    #[error("`describe` returned a description that lies outside of memory: its length or address is garbage")]
    Garbage,
    /// Not text.
    #[error("the description is not UTF-8 (byte {at})")]
    NotUtf8 {
        /// Where.
        at: usize,
    },
    /// Words in place of a description: how a plugin says that it has none.
    #[error("it does not describe itself, and says: {words}")]
    Words {
        /// The words, or the first of them.
        words: String,
    },
    /// Not the JSON that it should be.
    #[error("the description is not the JSON that it should be: {problem}")]
    NotJson {
        /// Where and what.
        problem: String,
    },
    /// It says what it must not.
    #[error("the description is wrong: {}", problems.join("; "))]
    Wrong {
        /// Every problem.
        problems: Vec<String>,
    },
}

/// Reads and judges a description.
///
/// # Errors
/// [`DescriptorError`]
pub fn parse(json: &[u8]) -> Result<Descriptor, DescriptorError> {
    if json.is_empty() {
        return Err(DescriptorError::Missing);
    }
    if json.len() > DESCRIPTOR_BYTES {
        return Err(DescriptorError::TooLong { bytes: json.len() as u64 });
    }
    let text = std::str::from_utf8(json).map_err(|error| DescriptorError::NotUtf8 { at: error.valid_up_to() })?;
    if !text.trim_ascii_start().starts_with('{') {
        let end = text.floor_char_boundary(SENTENCE_BYTES);
        return Err(DescriptorError::Words { words: text.get(..end).unwrap_or_default().trim().to_owned() });
    }
    let descriptor: Descriptor =
        serde_json::from_str(text).map_err(|error| DescriptorError::NotJson { problem: error.to_string() })?;
    let problems = judge(&descriptor);
    if problems.is_empty() { Ok(descriptor) } else { Err(DescriptorError::Wrong { problems }) }
}

/// Whether `text` is a name: `[a-z][a-z0-9_]*`, at most `most` bytes.
pub(super) fn is_name(text: &str, most: usize) -> bool {
    text.len() <= most
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// `text` as a problem shows it: quoted, and cut where it is longer than any good name.
fn shown(text: &str) -> String {
    let end = text.floor_char_boundary(NAME_BYTES);
    format!("{:?}{}", text.get(..end).unwrap_or_default(), if end < text.len() { "..." } else { "" })
}

/// Collects problems, each with its place.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, place: impl fmt::Display, problem: impl fmt::Display) {
        self.0.push(format!("{place} {problem}"));
    }

    fn name(&mut self, place: impl fmt::Display, name: &str, most: usize) {
        if !is_name(name, most) {
            let shown = shown(name);
            self.add(place, format_args!("is {shown}; use a-z, 0-9 and _, a letter first, at most {most} bytes"));
        }
    }

    fn at_most(&mut self, place: impl fmt::Display, what: &str, count: usize, most: usize) {
        if count > most {
            self.add(place, format_args!("has {count} {what}, more than the {most} allowed"));
        }
    }

    fn sentence(&mut self, place: impl fmt::Display, text: &str, most: usize) {
        if text.len() > most || text.chars().any(char::is_control) {
            self.add(place, format_args!("must be one line of at most {most} bytes"));
        }
    }
}

fn judge(descriptor: &Descriptor) -> Vec<String> {
    let mut problems = Problems::default();
    problems.name("name", &descriptor.name, PLUGIN_NAME_BYTES);
    if RESERVED.contains(&&*descriptor.name) {
        let name = &descriptor.name;
        problems.add("name", format_args!("{name:?} would be misread; none of {} can be one", RESERVED.join(", ")));
    }
    if descriptor.version.trim().is_empty() {
        problems.add("version", "is empty: give one that tells this build from the last, like \"1.0.0\"");
    }
    problems.sentence("version", &descriptor.version, VERSION_BYTES);
    problems.sentence("description", &descriptor.description, SENTENCE_BYTES);
    if descriptor.adds.is_empty() && descriptor.enriches.is_empty() {
        problems.add("adds", "and enriches are both empty, so the plugin would never be called: name a type, or \"*\"");
    }
    adds(descriptor, &mut problems);
    enriches(descriptor, &mut problems);
    examples("examples", &descriptor.examples, &mut problems);
    storage::judge(descriptor, &mut problems);
    problems.0
}

fn adds(descriptor: &Descriptor, problems: &mut Problems) {
    problems.at_most("adds", "types", descriptor.adds.len(), MOST_TYPES);
    let mut seen = HashSet::new();
    for (index, added) in descriptor.adds.iter().enumerate() {
        let place = format!("adds[{index}]");
        problems.name(format_args!("{place}.type"), &added.name, NAME_BYTES);
        if Types::BUILT_IN.contains(&&*added.name) {
            let name = &added.name;
            problems.add(
                &place,
                format_args!("claims the engine's own type {name:?}: choose another, or name it in enriches"),
            );
        }
        if !seen.insert(&added.name) {
            problems.add(&place, format_args!("adds {} a second time", shown(&added.name)));
        }
        problems.sentence(format_args!("{place}.description"), &added.description, SENTENCE_BYTES);
        if added.examples.is_empty() {
            problems.add(&place, "has no example: give at least one event of the type");
        }
        examples(&format!("{place}.examples"), &added.examples, problems);
    }
}

fn enriches(descriptor: &Descriptor, problems: &mut Problems) {
    problems.at_most("enriches", "types", descriptor.enriches.len(), MOST_TYPES);
    let mut seen = HashSet::new();
    for (index, name) in descriptor.enriches.iter().enumerate() {
        let place = format!("enriches[{index}]");
        if name != "*" {
            problems.name(&place, name, NAME_BYTES);
        } else if descriptor.enriches.len() > 1 {
            problems.add(&place, "is \"*\", which stands for all types: leave the others out");
        }
        if descriptor.adds.iter().any(|added| added.name == *name) {
            problems.add(&place, format_args!("is {}, which the plugin adds and is given anyway", shown(name)));
        }
        if !seen.insert(name) {
            problems.add(&place, format_args!("names {} a second time", shown(name)));
        }
    }
}

fn examples(place: &str, examples: &[Box<RawValue>], problems: &mut Problems) {
    problems.at_most(place, "examples", examples.len(), MOST_EXAMPLES);
    for (index, example) in examples.iter().enumerate() {
        if !example.get().starts_with('{') {
            problems.add(format_args!("{place}[{index}]"), "is not a JSON object: an example is a whole event");
        }
    }
}

/// Whether the plugin is given events of the type `name`.
pub(super) fn handles(descriptor: &Descriptor, name: &str) -> bool {
    descriptor.adds.iter().any(|added| added.name == name)
        || descriptor.enriches.iter().any(|enriched| enriched == name || enriched == "*")
}

#[cfg(test)]
mod tests;
