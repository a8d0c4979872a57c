//! What plugins have declared, on disk: kept when a plugin goes, because its tables stay and rows of its types may still
//! be on their way to them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::plugins::descriptor::{Descriptor, Measure, Table, View};

/// What one plugin has declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Declaration {
    pub(super) plugin: String,
    pub(super) version: String,
    /// The types that it adds or enriches.
    pub(super) types: Vec<String>,
    pub(super) tables: Vec<Table>,
    pub(super) views: Vec<View>,
    /// Whether all of it has stood in the database. Until then nothing is bound to it.
    #[serde(default)]
    pub(super) applied: bool,
}

/// All of them, by plugin.
pub(super) type Declarations = BTreeMap<String, Declaration>;

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Content {
    /// A newer layout would have another number.
    format: u32,
    plugins: Declarations,
}

const FORMAT: u32 = 1;

impl Declaration {
    pub(super) fn new(descriptor: &Descriptor) -> Self {
        // It stands in a comment, between commas.
        let version =
            descriptor.version.chars().map(|c| if c.is_ascii_graphic() && c != ',' && c != '$' { c } else { '_' });
        Self {
            plugin: descriptor.name.clone(),
            version: version.collect(),
            types: descriptor.adds.iter().map(|added| &added.name).chain(&descriptor.enriches).cloned().collect(),
            tables: descriptor.tables.clone(),
            views: descriptor.views.clone(),
            applied: false,
        }
    }

    /// Whether it asks for nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.views.is_empty()
    }

    /// Whether it is of an older version than `other` and the tables of that one hold all that it fills: a plugin that
    /// is taken back to where it was.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        is_newer(&other.version, &self.version) && self.changes(other).is_empty()
    }

    /// What of `self` cannot become `newer` with the rows that are there.
    pub(super) fn changes(&self, newer: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for table in &self.tables {
            match newer.tables.iter().find(|other| other.name == table.name) {
                Some(other) => changes_of_table(table, other, &mut found),
                None => found.push(format!("table {} is gone: a table stays, and goes on being filled", table.name)),
            }
        }
        for view in &self.views {
            match newer.views.iter().find(|other| other.name == view.name) {
                Some(other) => changes_of_view(view, other, &mut found),
                None => found.push(format!("view {} is gone: a view stays, and goes on being filled", view.name)),
            }
        }
        found
    }
}

fn changes_of_table(old: &Table, new: &Table, found: &mut Vec<String>) {
    let table = &old.name;
    for column in &old.columns {
        let name = &column.name;
        match new.columns.iter().find(|other| other.name == *name) {
            None => found.push(format!("table {table}: column {name} is gone or has another name; columns stay")),
            Some(other) if other.kind != column.kind => found.push(format!(
                "table {table}: column {name} was {} and cannot become {}; add another column",
                column.kind, other.kind
            )),
            Some(_) => {}
        }
    }
    if old.order_by != new.order_by {
        found.push(format!(
            "table {table}: its sort key was ({}) and cannot become ({}); make another table",
            old.order_by.join(", "),
            new.order_by.join(", ")
        ));
    }
}

fn changes_of_view(old: &View, new: &View, found: &mut Vec<String>) {
    let view = &old.name;
    if old.from != new.from {
        found.push(format!("view {view}: it reads another table than before; make another view"));
    }
    if old.group_by != new.group_by {
        found.push(format!("view {view}: it is grouped by other columns than before; make another view"));
    }
    for measure in &old.measures {
        let Measure { name, function, kind, .. } = measure;
        match new.measures.iter().find(|other| other.name == *name) {
            None => found.push(format!("view {view}: measure {name} is gone or has another name; measures stay")),
            Some(other) if other.function != *function || other.kind != *kind => found.push(format!(
                "view {view}: measure {name} has another function or type than before; add another measure"
            )),
            Some(_) => {}
        }
    }
}

/// Whether version `one` is newer than `other`: compared number by number, `1.10` after `1.9`.
pub(super) fn is_newer(one: &str, other: &str) -> bool {
    let numbers = |version: &str| -> Vec<u64> {
        let release = version.split(['-', '+']).next().unwrap_or(version);
        release.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    numbers(one) > numbers(other)
}

/// Reads the file; without one nothing is declared.
pub(super) fn load(path: &Path) -> io::Result<Declarations> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Declarations::new()),
        text => text?,
    };
    let unreadable = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
    let content: Content = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
    if content.format != FORMAT {
        return Err(unreadable(format!("format {} is a newer engine's", content.format)));
    }
    Ok(content.plugins)
}

/// Replaces the file: after a crash it has the old content or the new one.
pub(super) fn store(path: &Path, plugins: &Declarations) -> io::Result<()> {
    let content = Content { format: FORMAT, plugins: plugins.clone() };
    let temporary = path.with_extension("json.tmp");
    let mut file = File::create(&temporary)?;
    serde_json::to_writer_pretty(&mut file, &content)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
