//! Tables and views of plugins: from their structural declaration to DDL, there before the first row that needs them.
//!
//! ```text
//! Descriptor --check--> plan (pure) --try_out--> a scratch database
//!     | declare: on disk, then a new generation
//! sink, before an insert: is the generation applied? --no--> apply: look, CREATE or ALTER, remember
//! ```
//!
//! - A plugin declares its tables before it takes its first event. Tables stay when it goes, and so does its
//!   declaration: rows of its types may still be on their way.
//! - Applying is idempotent, and any number of nodes may do it at once. It looks first: every object carries the version
//!   of its plugin and the fingerprint of its declaration in its comment, so that a repeat is one query, and so that a
//!   node with an older version of the plugin leaves alone what a newer one made.
//! - A table is made before what fills it, and is altered before: an insert at any moment finds either all of a chain or
//!   none of its beginning. Where a statement fails, nothing after it is run for that plugin.
//! - A later version may add tables, views, columns and measures, and may change where a value comes from. It cannot
//!   rename, remove or retype, nor sort or group by something else. An older version may come back: the tables stay as
//!   the newer one made them.
//! - What this is not: it does not fill new tables with old events, and never drops anything.

mod declared;
mod kind;
mod plan;
mod trial;
mod value;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use serde::Deserialize;
use thiserror::Error;

use super::descriptor::Descriptor;
use crate::clickhouse::{Client, Kind, Mode, QueryError, Template};
use declared::{Declaration, Declarations, is_newer};
use kind::quote;
use plan::{Object, Role};
pub use trial::{TrialError, try_out};

/// The tables that plugins have declared, and whether they stand. Cheap to clone.
#[derive(Clone)]
pub struct Tables(Arc<Inner>);

struct Inner {
    path: PathBuf,
    declarations: Mutex<Declarations>,
    /// Counts declarations, and doubts.
    generation: AtomicU64,
    /// The generation that stood in the database when it was last looked at.
    applied: AtomicU64,
    /// One look at a time: inserts that wait for the same tables wait for the same look.
    applying: tokio::sync::Mutex<()>,
}

/// Why the tables of plugins are not as they are declared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TablesError {
    /// What stands there cannot be seen.
    #[error("cannot look for the tables of plugins: {0}")]
    Look(#[source] QueryError),
    /// A statement failed.
    #[error("plugin {plugin}, {object}, `{statement}`: {source}")]
    Statement {
        /// The plugin.
        plugin: String,
        /// `table orders`, `view revenue_daily`.
        object: String,
        /// Its first line.
        statement: String,
        /// ClickHouse's answer.
        #[source]
        source: QueryError,
    },
    /// A table of this name stands there and is another one.
    #[error("plugin {plugin}: {detail}; rename or drop it, then the plugin's is made")]
    Occupied {
        /// The plugin.
        plugin: String,
        /// Which table, and how it differs.
        detail: String,
    },
    /// Tables are missing or old, and the mode does not allow to make them.
    #[error("tables of plugins are missing or not up to date: {names}; run `ingestion-engine migrate`")]
    Missing {
        /// Their names, separated by commas.
        names: String,
    },
    /// A persisted declaration is none that this version can read.
    #[error("plugin {plugin}: {problems}")]
    Declaration {
        /// The plugin.
        plugin: String,
        /// Every mistake.
        problems: String,
    },
}

impl TablesError {
    /// Whether trying again can help without a change of the plugin or of the database.
    pub fn passes(&self) -> bool {
        match self {
            // In mode verify it is the operator who makes what is missing.
            Self::Look(_) | Self::Missing { .. } => true,
            Self::Statement { source, .. } => matches!(source.kind(), Kind::Infrastructure),
            Self::Occupied { .. } | Self::Declaration { .. } => false,
        }
    }

    /// ClickHouse's answer, if it is one.
    pub fn query(&self) -> Option<&QueryError> {
        match self {
            Self::Look(source) | Self::Statement { source, .. } => Some(source),
            Self::Occupied { .. } | Self::Missing { .. } | Self::Declaration { .. } => None,
        }
    }
}

/// A table as `system.tables` has it.
#[derive(clickhouse::Row, Deserialize)]
struct Standing {
    name: String,
    comment: String,
    columns: Vec<(String, String)>,
}

impl Standing {
    /// Version and fingerprint in the comment of an object that a plugin's declaration made.
    fn made_by(&self, plugin: &str) -> Option<(&str, &str)> {
        let rest = self.comment.strip_prefix("plugin ")?.strip_prefix(plugin)?.strip_prefix(' ')?;
        let (version, rest) = rest.split_once(", ")?;
        Some((version, rest.rsplit_once(", ")?.1))
    }
}

/// What a plugin had declared before it declared something else.
#[derive(Clone, Debug)]
pub struct Before(Option<Declaration>);

/// Whether `new` asks for more than `old`.
fn is_news(old: Option<&Declaration>, new: &Declaration) -> bool {
    match old {
        None => !new.is_empty(),
        Some(old) if *new == (Declaration { applied: new.applied, ..old.clone() }) => false,
        // Where it was before; its tables hold more than it fills.
        Some(old) => !(old.applied && new.is_older_than(old)),
    }
}

/// What is to be done for one object.
enum Step {
    Nothing,
    Create,
    Alter(Vec<(String, String)>),
}

impl Tables {
    /// Reads what was declared before; nothing of it counts as applied.
    ///
    /// # Errors
    /// The file's, or [`io::ErrorKind::InvalidData`] when it is damaged or newer than this version.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let declarations = declared::load(&path)?;
        let generation = AtomicU64::new(u64::from(!declarations.is_empty()));
        Ok(Self(Arc::new(Inner {
            path,
            declarations: Mutex::new(declarations),
            generation,
            applied: AtomicU64::new(0),
            applying: tokio::sync::Mutex::default(),
        })))
    }

    /// Whether the tables of `descriptor` can be made, as far as can be told without ClickHouse, and fit those that this
    /// plugin and the others have declared before.
    ///
    /// # Errors
    /// Everything that is in the way, in words.
    pub fn compatible(&self, descriptor: &Descriptor) -> Result<(), Vec<String>> {
        let new = Declaration::new(descriptor);
        let objects = plan::plan(&new)?;
        let declarations = self.0.declarations.lock();
        let mut problems = Vec::new();
        for other in declarations.values().filter(|other| other.plugin != new.plugin) {
            let taken: BTreeSet<_> = plan::plan(other).unwrap_or_default().into_iter().map(|made| made.name).collect();
            for object in objects.iter().filter(|object| taken.contains(&object.name)) {
                let Object { label, name, .. } = object;
                problems.push(format!("{label}: {name} is plugin {}'s already", other.plugin));
            }
        }
        if let Some(old) = declarations.get(&new.plugin)
            && old.applied
            && !new.is_older_than(old)
        {
            problems.extend(old.changes(&new));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// The statements that make the tables and views of `descriptor` where there are none, with the variables of
    /// [`Template`] in them: to be shown.
    ///
    /// # Errors
    /// Every mistake in it, in words.
    pub fn statements(descriptor: &Descriptor) -> Result<Vec<String>, Vec<String>> {
        Ok(plan::plan(&Declaration::new(descriptor))?.iter().map(Object::create).collect())
    }

    /// Notes the tables of `descriptor`, durably, so that no row is inserted before they stand. To be called before the
    /// plugin takes its first event, and after [`Self::compatible`]. Blocking: a write and an fsync, when it is news.
    ///
    /// # Errors
    /// The file's; nothing has changed then.
    pub fn declare(&self, descriptor: &Descriptor) -> io::Result<Before> {
        let new = Declaration::new(descriptor);
        let mut declarations = self.0.declarations.lock();
        let before = declarations.get(&new.plugin).cloned();
        if !is_news(before.as_ref(), &new) {
            return Ok(Before(before));
        }
        let mut changed = declarations.clone();
        changed.insert(new.plugin.clone(), new);
        declared::store(&self.0.path, &changed)?;
        *declarations = changed;
        self.0.generation.fetch_add(1, Ordering::Release);
        Ok(Before(before))
    }

    /// Whether [`Self::declare`] would change nothing.
    pub fn is_declared(&self, descriptor: &Descriptor) -> bool {
        let new = Declaration::new(descriptor);
        !is_news(self.0.declarations.lock().get(&new.plugin), &new)
    }

    /// Takes back a declaration whose tables cannot be made, while the plugin has not had an event yet.
    ///
    /// # Errors
    /// The file's; the declaration stays then.
    pub fn restore(&self, plugin: &str, before: Before) -> io::Result<()> {
        let mut declarations = self.0.declarations.lock();
        let mut changed = declarations.clone();
        match before.0 {
            Some(declaration) => changed.insert(plugin.to_owned(), declaration),
            None => changed.remove(plugin),
        };
        declared::store(&self.0.path, &changed)?;
        *declarations = changed;
        self.0.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Number of the newest declaration; it grows.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Whether everything that is declared stood in the database when it was last looked at. Two atomic loads.
    pub fn is_applied(&self) -> bool {
        self.0.applied.load(Ordering::Acquire) >= self.generation()
    }

    /// Forgets that anything stands: after an outage ClickHouse may have come back without it.
    pub fn doubt(&self) {
        if !self.0.declarations.lock().is_empty() {
            self.0.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Makes what is missing and alters what is older, or in [`Mode::Verify`] says what that would be.
    ///
    /// # Errors
    /// [`TablesError`], the first one; the other plugins' tables are made all the same.
    pub async fn bring_up(&self, client: &Client, template: &Template, mode: Mode) -> Result<(), TablesError> {
        match mode {
            Mode::Auto => self.apply(client, template).await,
            Mode::Verify => self.verify(client).await,
        }
    }

    /// Makes what is missing and alters what is older. Does nothing when everything stands already.
    ///
    /// # Errors
    /// [`TablesError`], the first one; the other plugins' tables are made all the same.
    pub async fn apply(&self, client: &Client, template: &Template) -> Result<(), TablesError> {
        let _one_at_a_time = self.0.applying.lock().await;
        let (generation, declarations) = self.snapshot();
        if self.is_applied() {
            return Ok(());
        }
        let standing = look(client).await?;
        let mut first_error = None;
        let mut done = Vec::new();
        for declaration in declarations.values() {
            match apply_one(client, template, declaration, &standing).await {
                Ok(()) => done.push(declaration),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        self.note_applied(&done);
        match first_error {
            Some(error) => Err(error),
            None => {
                self.0.applied.store(generation, Ordering::Release);
                Ok(())
            }
        }
    }

    /// Checks that everything stands, and changes nothing.
    ///
    /// # Errors
    /// [`TablesError::Missing`] naming what does not, or another [`TablesError`].
    pub async fn verify(&self, client: &Client) -> Result<(), TablesError> {
        let _one_at_a_time = self.0.applying.lock().await;
        let (generation, declarations) = self.snapshot();
        if self.is_applied() {
            return Ok(());
        }
        let standing = look(client).await?;
        let mut missing = Vec::new();
        for declaration in declarations.values() {
            for object in &planned(declaration)? {
                if !matches!(step(object, declaration, &standing)?, Step::Nothing) {
                    missing.push(object.name.clone());
                }
            }
        }
        if !missing.is_empty() {
            return Err(TablesError::Missing { names: missing.join(", ") });
        }
        self.note_applied(&declarations.values().collect::<Vec<_>>());
        self.0.applied.store(generation, Ordering::Release);
        Ok(())
    }

    /// The declarations, and the generation that they have at least.
    fn snapshot(&self) -> (u64, Declarations) {
        // First the number: a declaration that comes in between is then applied twice, and not never.
        let generation = self.generation();
        (generation, self.0.declarations.lock().clone())
    }

    /// Remembers, on disk too, that `done` binds later versions.
    fn note_applied(&self, done: &[&Declaration]) {
        let mut declarations = self.0.declarations.lock();
        let mut changed = declarations.clone();
        for declaration in done {
            if let Some(current) = changed.get_mut(&declaration.plugin)
                && current == *declaration
            {
                current.applied = true;
            }
        }
        if changed == *declarations {
            return;
        }
        // Not worth an insert: without the note a later version is compared with less, and ClickHouse refuses in its
        // words what would have been refused in ours.
        if let Err(error) = declared::store(&self.0.path, &changed) {
            tracing::warn!(%error, path = %self.0.path.display(), "cannot note that the tables of plugins stand");
        }
        *declarations = changed;
    }
}

#[expect(clippy::result_large_err, reason = "seldom called, and never in a loop over rows")]
fn planned(declaration: &Declaration) -> Result<Vec<Object>, TablesError> {
    plan::plan(declaration).map_err(|problems| TablesError::Declaration {
        plugin: declaration.plugin.clone(),
        problems: problems.join("; "),
    })
}

/// The tables and views of all plugins that stand in the database, by name.
async fn look(client: &Client) -> Result<HashMap<String, Standing>, TablesError> {
    let database = quote(client.database());
    let query = format!(
        "SELECT t.name AS name, t.comment AS comment, c.columns AS columns FROM \
         (SELECT name, comment FROM system.tables WHERE database = {database} AND startsWith(name, 'plugin_')) AS t \
         LEFT JOIN (SELECT table, groupArray((name, type)) AS columns FROM system.columns \
         WHERE database = {database} AND startsWith(table, 'plugin_') GROUP BY table) AS c ON c.table = t.name"
    );
    let found: Vec<Standing> = client.fetch(&query).await.map_err(TablesError::Look)?;
    Ok(found.into_iter().map(|standing| (standing.name.clone(), standing)).collect())
}

/// Compares `object` with what stands under its name.
#[expect(clippy::result_large_err, reason = "seldom called, and never in a loop over rows")]
fn step(object: &Object, declaration: &Declaration, standing: &HashMap<String, Standing>) -> Result<Step, TablesError> {
    let Some(found) = standing.get(&object.name) else { return Ok(Step::Create) };
    let occupied = |detail| TablesError::Occupied { plugin: declaration.plugin.clone(), detail };
    let Some((version, fingerprint)) = found.made_by(&declaration.plugin) else {
        return Err(occupied(format!("{} is there and was not made for it", object.name)));
    };
    if fingerprint == object.fingerprint || is_newer(version, &declaration.version) {
        return Ok(Step::Nothing);
    }
    if let Role::Target { columns, .. } = &object.role {
        for (name, kind) in columns {
            if let Some((_, other)) = found.columns.iter().find(|(column, other)| column == name && other != kind) {
                return Err(occupied(format!("{} has column {name} of type {other} and not {kind}", object.name)));
            }
        }
    }
    Ok(Step::Alter(found.columns.clone()))
}

async fn apply_one(
    client: &Client,
    template: &Template,
    declaration: &Declaration,
    standing: &HashMap<String, Standing>,
) -> Result<(), TablesError> {
    for object in planned(declaration)? {
        let statements = match step(&object, declaration, standing)? {
            Step::Nothing => continue,
            Step::Create => vec![object.create()],
            Step::Alter(present) => object.alter(&present),
        };
        for statement in statements {
            run(client, template, &declaration.plugin, &object, &statement).await?;
        }
        tracing::info!(plugin = declaration.plugin, table = object.name, "a plugin's table or view is in place");
    }
    Ok(())
}

async fn run(
    client: &Client,
    template: &Template,
    plugin: &str,
    object: &Object,
    statement: &str,
) -> Result<(), TablesError> {
    client.execute(&template.render(statement)).await.map_err(|source| TablesError::Statement {
        plugin: plugin.to_owned(),
        object: object.label.clone(),
        statement: template.render(statement.lines().next().unwrap_or_default()),
        source,
    })
}
