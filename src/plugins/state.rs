//! What the registry remembers across restarts: one small JSON file.
//!
//! ```text
//! state.json
//!   files        file name -> plugin, sum, descriptor, the engine version under which its check passed
//!   quarantined  plugin name -> why, since when        an operator's: stays until `resume`, whatever file comes
//!   faulty       sum -> plugin, why, since when        the engine's own: of this file, a new one is tried afresh
//!   crashes      plugin, sum, signal, when             of the last day
//!   retired      event type -> plugin                  types of plugins that were removed
//! ```
//!
//! - Written whole: a temporary file, fsync, rename, fsync of the folder. So it is the old one or the new one.
//! - A file that cannot be read as such is moved aside and said in health. It is never replaced by an empty one in
//!   silence: with it go the operator's decisions.
//! - One process writes it: the engine, or a command while the engine is stopped, under the lock of the data folder.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    descriptor::Descriptor,
    faults::crashed_too_often,
    plugin::Quarantine,
    slots::{Crash, signal_name},
};

/// Name of the file in the state folder.
const FILE: &str = "state.json";
/// Form of the file; another one is not read.
const VERSION: u32 = 1;
/// Crashes that count together are within an hour; a day is for people who look.
const CRASHES_KEPT: SignedDuration = SignedDuration::from_hours(24);
/// How long the engine remembers why it gave up a file that is not in use any more. Somebody may put it back.
const FAULTY_KEPT: SignedDuration = SignedDuration::from_hours(24 * 30);
/// Why the state cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateError {
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A later engine wrote it.
    #[error("{} has version {version}, and this engine reads {VERSION}; start the engine that wrote it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// A file in use, or the last one of its name that was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Known {
    /// The plugin in it.
    pub plugin: String,
    /// Its sum, hexadecimal.
    pub sha256: String,
    /// What the plugin says of itself.
    pub descriptor: Descriptor,
    /// The engine version under which its check passed.
    pub checked_by: String,
}

/// A file that the engine gave up by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faulty {
    /// The plugin in it.
    pub plugin: String,
    /// Why and since when.
    #[serde(flatten)]
    pub quarantine: Quarantine,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    version: u32,
    /// By name of the file in the folder.
    pub files: BTreeMap<String, Known>,
    /// By name of the plugin.
    pub quarantined: BTreeMap<String, Quarantine>,
    /// By sum.
    pub faulty: BTreeMap<String, Faulty>,
    /// In the order of their discovery.
    pub crashes: Vec<Crash>,
    /// By name of the type.
    pub retired: BTreeMap<String, String>,
}

impl State {
    /// Takes in crashes that were just found. A file that crashed the process too often ([`crashed_too_often`]), seen from
    /// its last crash, is given up.
    ///
    /// Returns the sums that this gave up.
    pub fn crashed(&mut self, found: impl IntoIterator<Item = Crash>, now: Timestamp) -> Vec<String> {
        let mut given_up = Vec::new();
        for crash in found {
            let (sha256, at) = (crash.sha256.clone(), crash.at);
            self.crashes.push(crash.clone());
            if crashed_too_often(&self.crashes, &sha256, at) && !self.faulty.contains_key(&sha256) {
                let crashes = self.crashes.iter().filter(|crash| crash.sha256 == sha256).count();
                let signal = signal_name(crash.signal);
                let reason =
                    format!("the engine crashed in it again and again ({crashes} times, at last with {signal})");
                let quarantine = Quarantine { reason, since: now };
                self.faulty.insert(sha256.clone(), Faulty { plugin: crash.plugin, quarantine });
                given_up.push(sha256);
            }
        }
        given_up
    }

    /// Drops what is too old to matter.
    pub fn forget(&mut self, now: Timestamp) {
        let within = |at: Timestamp, kept| now.duration_since(at) <= kept;
        self.crashes.retain(|crash| within(crash.at, CRASHES_KEPT));
        let used: Vec<&str> = self.files.values().map(|known| known.sha256.as_str()).collect();
        self.faulty.retain(|sum, faulty| used.contains(&sum.as_str()) || within(faulty.quarantine.since, FAULTY_KEPT));
    }

    /// Forgets why the plugin `name` from the file with this sum was quarantined, so that its faults count afresh.
    pub fn pardon(&mut self, name: &str, sha256: &str) {
        self.quarantined.remove(name);
        self.faulty.remove(sha256);
        self.crashes.retain(|crash| crash.sha256 != sha256);
    }

    /// Why the plugin `name` from the file with this sum is not to be called: an operator's reason before the engine's.
    pub fn quarantine(&self, name: &str, sha256: &str) -> Option<(By, &Quarantine)> {
        let operator = self.quarantined.get(name).map(|quarantine| (By::Operator, quarantine));
        operator.or_else(|| self.faulty.get(sha256).map(|faulty| (By::Engine, &faulty.quarantine)))
    }
}

/// Who decided on a quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// A person.
    Operator,
    /// The engine, after faults or crashes.
    Engine,
}

/// The file and what is in it.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// What is in it, and with changes that were not saved yet.
    pub state: State,
}

impl StateFile {
    /// Reads the state in `folder` (created when missing). Beside it comes what to tell the operator when the file was
    /// damaged: it is kept under another name then.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn open(folder: &Path) -> Result<(Self, Option<String>), StateError> {
        let path = folder.join(FILE);
        let failed = |action| {
            let path = path.clone();
            move |source| StateError::Io { action, path, source }
        };
        fs::create_dir_all(folder).map_err(failed("create the folder of"))?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read")(error)),
        };
        let Some(bytes) = bytes else { return Ok((Self { path, state: State::default() }, None)) };
        match serde_json::from_slice::<State>(&bytes) {
            Ok(state) if state.version > VERSION => Err(StateError::Newer { path, version: state.version }),
            Ok(state) => Ok((Self { path, state }, None)),
            Err(error) => {
                let aside = folder.join(format!("{FILE}.damaged-{}", Timestamp::now().as_millisecond()));
                fs::rename(&path, &aside).map_err(failed("move aside"))?;
                let warning = format!(
                    "{} was damaged ({error}) and is kept as {}: quarantines that an operator had set, crashes of the \
                     last hour and the types of removed plugins are not known any more; look into it, and quarantine \
                     again what was",
                    path.display(),
                    aside.display()
                );
                Ok((Self { path, state: State::default() }, Some(warning)))
            }
        }
    }

    /// Reads the state in `folder` without touching anything.
    ///
    /// # Errors
    /// [`StateError`]; damage is an error here.
    pub fn peek(folder: &Path) -> Result<State, StateError> {
        let path = folder.join(FILE);
        let failed = |source| StateError::Io { action: "read", path: path.clone(), source };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// The system refused; the file on disk is the old one then.
    pub fn save(&mut self) -> Result<(), StateError> {
        self.state.version = VERSION;
        let failed = |source| StateError::Io { action: "write", path: self.path.clone(), source };
        let bytes = serde_json::to_vec_pretty(&self.state).map_err(|error| failed(error.into()))?;
        let temporary = self.path.with_extension("json.new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary).map_err(failed)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, &self.path).map_err(failed)?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 60 * minute).unwrap()
    }

    fn crash(sha256: &str, minute: i64) -> Crash {
        Crash { plugin: "p".to_owned(), sha256: sha256.to_owned(), signal: libc::SIGSEGV, at: at(minute) }
    }

    #[test]
    fn the_third_crash_within_an_hour_gives_a_file_up() {
        let mut state = State::default();
        assert!(state.crashed([crash("a", 0)], at(0)).is_empty());
        assert!(state.crashed([crash("b", 1), crash("a", 50)], at(50)).is_empty());
        // The first one is too long ago by now.
        assert!(state.crashed([crash("a", 70)], at(70)).is_empty());
        assert_eq!(state.crashed([crash("a", 80)], at(81)), ["a"]);
        let (by, quarantine) = state.quarantine("p", "a").unwrap();
        assert_eq!((by, quarantine.since), (By::Engine, at(81)));
        assert!(quarantine.reason.contains("4 times") && quarantine.reason.contains("SIGSEGV"), "{quarantine:?}");
        assert_eq!(state.quarantine("p", "b"), None);
        // It is said once.
        assert!(state.crashed([crash("a", 82)], at(82)).is_empty());
    }

    #[test]
    fn an_operator_s_quarantine_goes_by_name_and_before_the_engine_s() {
        let mut state = State::default();
        state.crashed((0..3).map(|minute| crash("a", minute)), at(3));
        let quarantine = Quarantine { reason: "by hand".to_owned(), since: at(9) };
        state.quarantined.insert("p".to_owned(), quarantine.clone());
        assert_eq!(state.quarantine("p", "a"), Some((By::Operator, &quarantine)));
        assert_eq!(state.quarantine("p", "new"), Some((By::Operator, &quarantine)));
        assert_eq!(state.quarantine("q", "new"), None);
    }

    #[test]
    fn what_is_old_is_forgotten_but_not_what_is_in_use() {
        let mut state = State::default();
        state.crashed((0..3).flat_map(|minute| [crash("a", minute), crash("b", minute)]), at(3));
        let descriptor = serde_json::from_str(r#"{"name": "p", "version": "1"}"#).unwrap();
        let known = Known { plugin: "p".to_owned(), sha256: "a".to_owned(), descriptor, checked_by: "1".to_owned() };
        state.files.insert("p.so".to_owned(), known);
        state.forget(at(60 * 24 * 40));
        assert!(state.crashes.is_empty());
        assert_eq!(state.faulty.keys().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn it_reads_back_what_it_wrote() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("made");
        let (mut file, warning) = StateFile::open(&folder).unwrap();
        assert_eq!(warning, None);
        let json = r#"{"name":"p","version":"1","adds":[{"type":"t","schema":{"a": 1.50},"examples":[{"type":"t"}]}]}"#;
        let descriptor: Descriptor = serde_json::from_str(json).unwrap();
        let known = Known { plugin: "p".to_owned(), sha256: "a".to_owned(), descriptor, checked_by: "1".to_owned() };
        file.state.files.insert("p.so".to_owned(), known);
        file.state.crashed((0..3).map(|minute| crash("a", minute)), at(3));
        file.state.retired.insert("gone".to_owned(), "q".to_owned());
        file.save().unwrap();
        let (read, warning) = StateFile::open(&folder).unwrap();
        assert_eq!(warning, None);
        assert_eq!(serde_json::to_value(&read.state).unwrap(), serde_json::to_value(&file.state).unwrap());
        let schema = read.state.files["p.so"].descriptor.adds[0].schema.as_ref().unwrap();
        assert_eq!(schema.get(), r#"{"a": 1.50}"#);
    }

    #[test]
    fn a_damaged_file_is_moved_aside_and_told() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(FILE), b"{\"files\": {").unwrap();
        assert!(StateFile::peek(home.path()).is_err());
        let (file, warning) = StateFile::open(home.path()).unwrap();
        assert!(file.state.files.is_empty());
        assert!(warning.unwrap().contains("was damaged"));
        let names = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(names.into_iter().all(|name| name.starts_with("state.json.damaged-")));
    }

    #[test]
    fn a_later_engine_s_file_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(FILE), b"{\"version\": 2}").unwrap();
        assert!(matches!(StateFile::open(home.path()), Err(StateError::Newer { version: 2, .. })));
        assert!(home.path().join(FILE).exists());
    }
}
