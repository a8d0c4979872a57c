#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::too_many_lines, reason = "tables")]

mod conflicts;
mod environment;
mod reference;
mod tenants;
mod values;

use std::{collections::BTreeMap, io::Write, path::PathBuf};

use tempfile::NamedTempFile;

use super::{Config, Warning};

/// A configuration file with this text. Its path stands as FILE in what [`errors`] returns.
fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn environment(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(text: &str, entries: &[(&str, &str)]) -> (Config, Vec<Warning>) {
    let file = file(text);
    Config::load(Some(file.path()), &environment(entries)).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The errors as printed, each on a line.
fn errors(text: &str, entries: &[(&str, &str)]) -> Vec<String> {
    let file = file(text);
    let path = file.path().display().to_string();
    match Config::load(Some(file.path()), &environment(entries)) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(|error| error.to_string().replace(&path, "FILE")).collect(),
    }
}

fn development() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "config", "development.toml"].iter().collect()
}
