//! Kinds of values that plugins bring: their names, their files' sums, and tables of which only they know the keys.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    HIDDEN,
    compound::{shows_no_secret, strings},
    error::Problem,
    kinds::Kind,
    raw::{Raw, Shape},
};

/// Whether `name` can be a plugin's: the form that the contract asks for.
fn is_plugin_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.len() <= 40
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn not_a_plugin_name(name: &str) -> Problem {
    let fix = "a name begins with a small letter and has up to 40 small letters, digits and underscores";
    Problem::new(format!("{name:?} is not the name of a plugin"), fix)
}

/// Names of plugins.
pub struct PluginNames;

impl Kind for PluginNames {
    type Value = BTreeSet<String>;
    const SHAPE: Shape = Shape::List;

    fn parse(raw: &Raw) -> Result<Self::Value, Problem> {
        let names = strings(raw)?;
        match names.iter().find(|name| !is_plugin_name(name)) {
            Some(wrong) => Err(not_a_plugin_name(wrong)),
            None => Ok(names.into_iter().map(str::to_owned).collect()),
        }
    }
}

/// SHA-256 sums, in small letters once read.
pub struct Sha256Sums;

impl Kind for Sha256Sums {
    type Value = BTreeSet<String>;
    const SHAPE: Shape = Shape::List;

    fn parse(raw: &Raw) -> Result<Self::Value, Problem> {
        let sums = strings(raw)?;
        match sums.iter().find(|sum| sum.len() != 64 || !sum.chars().all(|c| c.is_ascii_hexdigit())) {
            Some(wrong) => {
                let fix = "give 64 hexadecimal digits each, as sha256sum prints them";
                Err(Problem::new(format!("{wrong:?} is not a SHA-256 sum"), fix))
            }
            None => Ok(sums.into_iter().map(str::to_ascii_lowercase).collect()),
        }
    }
}

/// A table for each plugin, by name, as the JSON object that the plugin is given.
pub struct PluginTables;

impl Kind for PluginTables {
    type Value = BTreeMap<String, serde_json::Value>;
    const SHAPE: Shape = Shape::Table;

    fn parse(raw: &Raw) -> Result<Self::Value, Problem> {
        let fix = "write a section [plugins.config.<name>] for each plugin";
        let Raw::Table(entries) = raw else { return Err(Problem::new("not a table of tables", fix)) };
        let table = |(name, value): &(String, Raw)| {
            if !is_plugin_name(name) {
                return Err(not_a_plugin_name(name));
            }
            if !matches!(value, Raw::Table(_)) {
                return Err(Problem::new(format!("{name:?} is not a table"), fix));
            }
            Ok((name.clone(), json(value)))
        };
        entries.iter().map(table).collect()
    }

    fn shown(raw: &Raw) -> Raw {
        shown(raw)
    }
}

fn json(raw: &Raw) -> serde_json::Value {
    match raw {
        Raw::Text(text) | Raw::Other(text) => text.as_str().into(),
        Raw::Integer(number) => (*number).into(),
        Raw::Float(number) => (*number).into(),
        Raw::Boolean(value) => (*value).into(),
        Raw::List(items) => items.iter().map(json).collect(),
        Raw::Table(entries) => entries.iter().map(|(key, value)| (key.clone(), json(value))).collect(),
    }
}

/// Hides what has the name of a secret, at any depth.
fn shown(raw: &Raw) -> Raw {
    match raw {
        Raw::Table(entries) => {
            let entry = |(key, value): &(String, Raw)| {
                let hide = !shows_no_secret(&key.to_lowercase()) && !matches!(value, Raw::Table(_));
                (key.clone(), if hide { Raw::Text(HIDDEN.to_owned()) } else { shown(value) })
            };
            Raw::Table(entries.iter().map(entry).collect())
        }
        Raw::List(items) => Raw::List(items.iter().map(shown).collect()),
        other => other.clone(),
    }
}
