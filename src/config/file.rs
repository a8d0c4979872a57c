//! The layer of the configuration file, and of the defaults, which are such a file too.

use std::{collections::BTreeMap, path::Path};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{ConfigError, Origin, Problem},
    raw::{Raw, Setting},
    schema::KEYS,
    text::nearest,
};

/// What a file says.
#[derive(Default)]
pub(super) struct FileLayer {
    pub(super) settings: BTreeMap<&'static str, Setting>,
    pub(super) errors: Vec<ConfigError>,
    /// The file is no TOML: what it says about single keys is unknown.
    pub(super) unreadable: bool,
}

/// Reads the file at `path`.
pub(super) fn read(path: &Path) -> FileLayer {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text, |line| Origin::File { path: path.to_owned(), line }),
        Err(error) => {
            let problem = Problem::new(format!("cannot be read, {error}"), "give a readable TOML file");
            let (key, value) = ("--config".to_owned(), Some(path.display().to_string()));
            let errors = vec![ConfigError { key, value, origin: None, problem }];
            FileLayer { errors, unreadable: true, ..FileLayer::default() }
        }
    }
}

/// Reads a TOML document; `origin` names a line of it.
pub(super) fn parse(text: &str, origin: impl Fn(usize) -> Origin) -> FileLayer {
    let lines = Lines::of(text);
    let origin = |offset: usize| origin(lines.number(offset));
    let (table, errors) = parse_table(text, origin);
    let mut layer = FileLayer { unreadable: !errors.is_empty(), errors, ..FileLayer::default() };
    if !layer.unreadable {
        let mut walk = Walk { layer: &mut layer, origin: &origin };
        walk.table("", table.get_ref());
    }
    layer
}

/// The lines of a text: found once, as a tenants' file may have hundreds of thousands of keys.
pub(super) struct Lines {
    ends: Vec<usize>,
}

impl Lines {
    pub(super) fn of(text: &str) -> Self {
        Self { ends: memchr::memchr_iter(b'\n', text.as_bytes()).collect() }
    }

    /// The line of the byte at `offset`, from 1.
    pub(super) fn number(&self, offset: usize) -> usize {
        1 + self.ends.partition_point(|end| *end < offset)
    }
}

/// The TOML of `text`, and what is wrong with its syntax; `origin` names the place of a byte of it.
pub(super) fn parse_table(text: &str, origin: impl Fn(usize) -> Origin) -> (Spanned<DeTable<'_>>, Vec<ConfigError>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let wrong = |error: &toml::de::Error| {
        // Only the message: the error's own text quotes the line, which may hold a password or a key.
        let problem = Problem::new(error.message().replace('\n', ", "), "correct the TOML");
        let origin = error.span().map(|span| origin(span.start));
        ConfigError { key: "syntax".to_owned(), value: None, origin, problem }
    };
    (table, errors.iter().map(wrong).collect())
}

struct Walk<'a> {
    layer: &'a mut FileLayer,
    origin: &'a dyn Fn(usize) -> Origin,
}

impl Walk<'_> {
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = format!("{prefix}{}", name.get_ref());
            let origin = (self.origin)(name.span().start);
            if let Some(key) = KEYS.iter().find(|key| key.path == path) {
                self.layer.settings.insert(key.path, Setting { raw: Raw::from_toml(value.get_ref()), origin });
            } else if path == "tenants" {
                let fix = "put them into the file of auth.tenants_file (config/tenants.toml shows how), or let \
                           `ingestion-engine tenants add` do it";
                self.error(path, origin, "tenants have a file of their own", fix);
            } else if is_section(&path) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.table(&format!("{path}."), inner),
                    _ => self.error(path.clone(), origin, "not a table", format!("write a section [{path}]")),
                }
            } else {
                let fix = nearest_key(&path).map_or_else(
                    || "remove it, or see config/default.toml for the keys there are".to_owned(),
                    |near| format!("did you mean {near}?"),
                );
                self.error(path, origin, "unknown key", fix);
            }
        }
    }

    /// The value is left out: it may be a password under a misspelt name.
    fn error(&mut self, key: String, origin: Origin, what: &str, fix: impl Into<String>) {
        let problem = Problem::new(what, fix);
        self.layer.errors.push(ConfigError { key, value: None, origin: Some(origin), problem });
    }
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The known key that `path` may have been meant for: a misspelt one, or one put into the wrong section.
fn nearest_key(path: &str) -> Option<&'static str> {
    let sections = KEYS.iter().filter_map(|key| key.path.rsplit_once('.')).map(|(section, _)| section);
    let known = KEYS.iter().map(|key| key.path).chain(sections);
    let last = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
    let name = path.rsplit('.').next().unwrap_or(path);
    let in_any_section = || {
        let name = nearest(name, KEYS.iter().map(|key| last(key.path)))?;
        KEYS.iter().map(|key| key.path).find(|path| last(path) == name)
    };
    nearest(path, known).or_else(in_any_section)
}
