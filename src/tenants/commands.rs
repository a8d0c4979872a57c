//! `ingestion-engine tenants ...` and `keys ...`: what a person sees and does.
//!
//! They work on the tenants' file and ask no engine: one that runs takes the changed file by itself. A change is checked as
//! the engine checks the file, and the file is replaced in one step under a lock, so that no engine ever sees half of one
//! and two people at a time both get theirs.

mod arguments;
mod edit;
mod table;

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;
use uuid::Uuid;

pub use arguments::{KeysAction, KeysArgs, TenantsAction, TenantsArgs};
pub use edit::EditError;

use self::edit::NewTenant;
use super::key::{self, Key, KeySum, Scope};
use crate::{
    config::{ConfigErrors, Span, Tenant, TenantDefaults},
    ids::TenantId,
};

/// What the commands need of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tenants' file.
    pub file: PathBuf,
    /// What tenants are resolved with.
    pub defaults: TenantDefaults,
}

/// Why a command failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The file is wrong, or would be.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// The file cannot be read or replaced.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The file system's error.
        #[source]
        source: io::Error,
    },
    /// The text cannot be changed.
    #[error("cannot change {}", path.display())]
    Edit {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: EditError,
    },
    /// There is no such tenant.
    #[error("there is no tenant {0:?}; `ingestion-engine tenants list` shows those that there are")]
    NoTenant(String),
    /// A tenant that is to be added has no name.
    #[error("the name is empty: give the tenant one, by which people and commands know it")]
    NoName,
    /// A tenant that is to be added has the name of another, or its id for a name.
    #[error("the tenant {id} has the name {name:?} already; commands could not tell the two apart")]
    NameTaken {
        /// The name.
        name: String,
        /// Of the one that has it.
        id: TenantId,
    },
    /// More than one is meant.
    #[error("{count} tenants have the name {name:?}: give the id")]
    AmbiguousTenant {
        /// The name.
        name: String,
        /// How many.
        count: usize,
    },
    /// There is no such key.
    #[error("the tenant has no key {0:?} that is still taken; `ingestion-engine keys list` shows those that it has")]
    NoKey(String),
    /// More than one is meant.
    #[error("{count} keys of the tenant are meant by {name:?}: give the first digits of its SHA-256 (`keys list`)")]
    AmbiguousKey {
        /// The name.
        name: String,
        /// How many.
        count: usize,
    },
    /// A moment or a span that is none.
    #[error("{0:?} is no moment to come; give one with its offset (2027-01-31T00:00:00Z) or a span from now (\"90d\")")]
    Moment(String),
    /// No random numbers.
    #[error("the system has no random numbers to make a key of")]
    Random(#[from] rand::rand_core::OsError),
    /// The answer cannot be shown.
    #[error("cannot show the answer")]
    Show(#[from] serde_json::Error),
}

impl CommandError {
    /// Whether the arguments, or the file, are wrong, and not the machine.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Edit { .. } | Self::Random(_) | Self::Show(_))
    }
}

/// Carries out `action` and prints what came of it.
///
/// # Errors
/// [`CommandError`]; the file is then as it was.
pub fn tenants(action: TenantsAction, settings: &Settings) -> Result<(), CommandError> {
    let store = Store { settings };
    match action {
        TenantsAction::Add { name, id, tier, retention, no_key } => {
            let id = TenantId(id.unwrap_or_else(Uuid::now_v7));
            let key = if no_key { None } else { Some(made("default", &[Scope::Ingest])?) };
            let (tier, retention) = (tier.as_deref(), retention.as_deref());
            store.change(|file, tenants| {
                if name.is_empty() {
                    return Err(CommandError::NoName);
                }
                if let Some(other) = tenants.iter().find(|other| other.name == name) {
                    return Err(CommandError::NameTaken { name: name.clone(), id: other.id });
                }
                file.add_tenant(&NewTenant { id, name: &name, tier, retention }).map_err(|error| store.edit(error))?;
                key.iter().try_for_each(|(_, key)| file.add_key(id, key)).map_err(|error| store.edit(error))
            })?;
            eprintln!("Added tenant {name:?} with the id");
            println!("{id}");
            if let Some((text, _)) = key {
                eprintln!("and the key, which is shown this once:");
                println!("{text}");
            }
        }
        TenantsAction::List { json } => print!("{}", table::tenants(&store.read()?.1, json)?),
        TenantsAction::Disable { tenant } => store.set_disabled(&tenant, true)?,
        TenantsAction::Enable { tenant } => store.set_disabled(&tenant, false)?,
        // The caller's: it works on the tables, and not on the file.
        TenantsAction::Purge { .. } => {}
    }
    Ok(())
}

/// Carries out `action` and prints what came of it.
///
/// # Errors
/// [`CommandError`]; the file is then as it was.
pub fn keys(action: KeysAction, settings: &Settings) -> Result<(), CommandError> {
    let store = Store { settings };
    match action {
        KeysAction::Create { tenant, name, scopes, origins, expires } => {
            let (text, mut key) = made(&name, &scopes)?;
            key.origins = origins.into();
            key.expires = expires.map(|text| moment(&text)).transpose()?;
            store.change(|file, tenants| {
                let tenant = find(tenants, &tenant)?;
                file.add_key(tenant.id, &key).map_err(|error| store.edit(error))
            })?;
            eprintln!("Made a key, which is shown this once:");
            println!("{text}");
        }
        KeysAction::Rotate { tenant, key: old, grace } => {
            let grace = grace.parse::<Span>().map_err(|_| CommandError::Moment(grace))?.duration();
            let now = Timestamp::now();
            let (text, _) = made("", &[])?;
            let until = store.change(|file, tenants| {
                let tenant = find(tenants, &tenant)?;
                let old = find_key(tenant, &old, now)?;
                // One that would have expired before that still does.
                let until = after(now, grace).map(|until| old.expires.map_or(until, |expires| expires.min(until)))?;
                let key = Key { sum: KeySum::of(&text), expires: None, ..old.clone() };
                file.set_expires(tenant.id, &old.sum, until).map_err(|error| store.edit(error))?;
                file.add_key(tenant.id, &key).map_err(|error| store.edit(error))?;
                Ok(until)
            })?;
            eprintln!("The old key is taken until {until}. Made a key with its rights, which is shown this once:");
            println!("{text}");
        }
        KeysAction::Revoke { tenant, key } => {
            let now = Timestamp::now();
            let sum = store.change(|file, tenants| {
                let tenant = find(tenants, &tenant)?;
                let key = find_key(tenant, &key, now)?;
                file.set_revoked(tenant.id, &key.sum, now).map_err(|error| store.edit(error))?;
                Ok(key.sum)
            })?;
            eprintln!("Revoked the key {}.", sum.short());
        }
        KeysAction::List { tenant, json } => {
            let (_, tenants) = store.read()?;
            print!("{}", table::keys(&find(&tenants, &tenant)?.keys, json)?);
        }
    }
    Ok(())
}

/// A new key and what is held of it.
fn made(name: &str, scopes: &[Scope]) -> Result<(String, Key), CommandError> {
    let text = key::generate()?;
    let key = Key {
        sum: KeySum::of(&text),
        name: name.into(),
        scopes: scopes.iter().copied().collect(),
        origins: Box::default(),
        expires: None,
        revoked: None,
    };
    Ok((text, key))
}

/// A moment to come, or a span from now.
fn moment(text: &str) -> Result<Timestamp, CommandError> {
    let now = Timestamp::now();
    let wrong = || CommandError::Moment(text.to_owned());
    let at = match text.parse::<Span>() {
        Ok(span) => after(now, span.duration()),
        Err(_) => text.parse().map_err(|_| wrong()),
    }?;
    if at > now { Ok(at) } else { Err(wrong()) }
}

fn after(now: Timestamp, span: Duration) -> Result<Timestamp, CommandError> {
    now.checked_add(span).map_err(|_| CommandError::Moment(format!("{} s from now", span.as_secs())))
}

/// The id of the tenant that is meant: an id may be of one that is no longer in the file.
///
/// # Errors
/// [`CommandError`] when no tenant or more than one has the name.
pub fn tenant_id(tenants: &[Tenant], tenant: &str) -> Result<TenantId, CommandError> {
    Uuid::try_parse(tenant).map(TenantId).or_else(|_| find(tenants, tenant).map(|found| found.id))
}

/// The tenant of that id or name.
///
/// # Errors
/// None, or more than one, is meant.
pub fn find<'a>(tenants: &'a [Tenant], tenant: &str) -> Result<&'a Tenant, CommandError> {
    if let Ok(id) = Uuid::try_parse(tenant) {
        let found = tenants.iter().find(|known| known.id.0 == id);
        return found.ok_or_else(|| CommandError::NoTenant(tenant.to_owned()));
    }
    let named: Vec<_> = tenants.iter().filter(|known| known.name == tenant).collect();
    match named[..] {
        [found] => Ok(found),
        [] => Err(CommandError::NoTenant(tenant.to_owned())),
        _ => Err(CommandError::AmbiguousTenant { name: tenant.to_owned(), count: named.len() }),
    }
}

/// The key of that name or sum, of those that are still taken.
fn find_key<'a>(tenant: &'a Tenant, key: &str, now: Timestamp) -> Result<&'a Key, CommandError> {
    let digits = key.to_ascii_lowercase();
    let by_sum = |known: &&Key| digits.len() >= 8 && known.sum.to_string().starts_with(&digits);
    let taken = || tenant.keys.iter().filter(|known| known.state(now) == "active");
    let mut meant: Vec<_> = taken().filter(by_sum).collect();
    if meant.is_empty() {
        meant = taken().filter(|known| *known.name == *key).collect();
    }
    match meant[..] {
        [found] => Ok(found),
        [] => Err(CommandError::NoKey(key.to_owned())),
        _ => Err(CommandError::AmbiguousKey { name: key.to_owned(), count: meant.len() }),
    }
}

/// The file on disk.
struct Store<'a> {
    settings: &'a Settings,
}

impl Store<'_> {
    fn io(&self, what: &'static str) -> impl FnOnce(io::Error) -> CommandError {
        let path = self.settings.file.clone();
        move |source| CommandError::Io { what, path, source }
    }

    fn edit(&self, source: EditError) -> CommandError {
        CommandError::Edit { path: self.settings.file.clone(), source }
    }

    /// The file's text and what it says.
    fn read(&self) -> Result<(String, Vec<Tenant>), CommandError> {
        let text = match fs::read_to_string(&self.settings.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(self.io("read"))?,
        };
        let tenants = self.settings.defaults.parse(&text, &self.settings.file)?;
        Ok((text, tenants))
    }

    /// Changes the file as `change` says, unless what comes of it would be refused by an engine.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut edit::File, &[Tenant]) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        // Through a link to the file that is meant: replacing the link would leave the file as it was.
        let path = fs::canonicalize(&self.settings.file).unwrap_or_else(|_| self.settings.file.clone());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(self.io("make the folder of"))?;
        let lock = path.with_added_extension("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(lock);
        let lock = lock.map_err(self.io("lock"))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| self.io("lock")(error.into()))?;

        let (text, tenants) = self.read()?;
        let mut file = edit::File::parse(&text).map_err(|error| self.edit(error))?;
        let changed = change(&mut file, &tenants)?;
        let text = file.text();
        self.settings.defaults.parse(&text, &self.settings.file)?;
        replace(&path, folder, &text).map_err(self.io("write"))?;
        Ok(changed)
    }

    fn set_disabled(&self, tenant: &str, disabled: bool) -> Result<(), CommandError> {
        let id = self.change(|file, tenants| {
            let id = find(tenants, tenant)?.id;
            file.set_disabled(id, disabled).map_err(|error| self.edit(error))?;
            Ok(id)
        })?;
        eprintln!("Tenant {id} is {}.", if disabled { "disabled" } else { "enabled" });
        Ok(())
    }
}

/// Replaces the file at `path` in one step, with owner and mode as they were; a new file belongs to whom its folder does.
fn replace(path: &Path, folder: &Path, text: &str) -> io::Result<()> {
    let (mode, like) = match fs::metadata(path) {
        Ok(before) => (before.mode(), before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (0o600, fs::metadata(folder)?),
        Err(error) => return Err(error),
    };
    let fresh = path.with_added_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    if (like.uid(), like.gid()) != (file.metadata()?.uid(), file.metadata()?.gid()) {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    file.set_permissions(Permissions::from_mode(mode & 0o777))?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(folder)?.sync_all()
}
