//! `ingestion-engine plugins ...`: what a person sees and does.
//!
//! - `list`, `quarantine`, `resume` and `reprocess` ask the engine that runs with the configured data folder (`control`).
//!   While none runs, the first three work on what it remembers, under the lock of its folder, and say so.
//! - `check` and `new` need no engine. `check` is the same check that the engine makes before it uses a file.

mod arguments;
mod table;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Map, Value};
use thiserror::Error;

pub use arguments::{Action, PluginsArgs};

use super::{
    check::{self, CheckError},
    instance::Limits,
    isolated,
    plugin::Quarantine,
    registry::{Listed, state_dir},
    reprocess::Summary,
    scaffold::{self, ScaffoldError},
    state::{State, StateError, StateFile},
};
use crate::{
    cli::EXIT_FAILURE,
    control::{self, ClientError, Request},
    folder_lock::{FolderLock, LockError},
};

/// What the commands need of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The engine's data folder.
    pub data_dir: PathBuf,
    /// The folder that plugins are dropped into.
    pub plugins_dir: PathBuf,
    /// This program.
    pub program: PathBuf,
    /// What plugins may return.
    pub limits: Limits,
    /// By plugin, what it is configured with.
    pub config: Map<String, Value>,
}

/// Why a command failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The engine has none, or an error for it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// An engine runs and cannot be asked.
    #[error(
        "an engine runs with this data folder, or starts just now, and there is no control socket to ask it by: try again, or see its log"
    )]
    NoSocket(#[source] LockError),
    /// Only an engine can do it.
    #[error("{0}: start the engine, then run this once more")]
    NotRunning(ClientError),
    /// There is no such plugin.
    #[error("the engine, which is stopped, knows no plugin {name:?}; it knows: {known}")]
    Unknown {
        /// The name that was given.
        name: String,
        /// Those that it knows.
        known: String,
    },
    /// It is not quarantined.
    #[error("plugin {0:?} is not quarantined")]
    NotQuarantined(String),
    /// The check left no report.
    #[error("{} cannot be used", file.display())]
    Check {
        /// The file.
        file: PathBuf,
        /// What became of the check.
        #[source]
        source: CheckError,
    },
    /// The check's report says no; it was printed.
    #[error("{} cannot be used", .0.display())]
    Unusable(PathBuf),
    /// No crate was made.
    #[error(transparent)]
    Scaffold(#[from] ScaffoldError),
    /// The answer cannot be shown.
    #[error("cannot show the answer")]
    Show(#[from] serde_json::Error),
}

/// Carries out `action` and prints what came of it.
///
/// # Errors
/// [`CommandError`]
pub fn run(action: Action, settings: &Settings) -> Result<(), CommandError> {
    match action {
        Action::List { json } => list(settings, json),
        Action::Check { file, json, .. } => check(settings, &file, json),
        Action::Quarantine { name, reason } => quarantine(settings, &name, reason),
        Action::Resume { name } => resume(settings, &name),
        Action::Reprocess { name } => reprocess(settings, name),
        Action::New { name, path } => {
            let made = scaffold::create(&name, &path)?;
            print!("{}", scaffold::next_steps(&name, &made, &settings.plugins_dir));
            Ok(())
        }
        // Done before the configuration was read.
        Action::Host { .. } => Ok(()),
    }
}

impl Action {
    /// What the engine starts this program for: does it and gives the exit code. None for what people ask for.
    pub fn run_as_child(&self) -> Option<ExitCode> {
        match self {
            Self::Check { file, as_child: true, .. } => Some(match check::serve_child(file) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::from(EXIT_FAILURE),
                Err(error) => {
                    eprintln!("error: the check has nobody to report to: {error}");
                    ExitCode::from(EXIT_FAILURE)
                }
            }),
            Self::Host { library } => Some(isolated::host_main(library)),
            _ => None,
        }
    }
}

fn list(settings: &Settings, json: bool) -> Result<(), CommandError> {
    let listed: Vec<Listed> = match control::ask(&settings.data_dir, &Request::List, |_| {}) {
        Ok(listed) => listed,
        Err(error @ ClientError::NotRunning { .. }) => {
            let _lock = locked(&settings.data_dir)?;
            if !json {
                println!("{error}; this is what it remembers:");
            }
            Listed::remembered(&StateFile::peek(&state_dir(&settings.data_dir))?)
        }
        Err(error) => return Err(error.into()),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&listed)?);
    } else {
        print!("{}", table::table(&listed));
    }
    Ok(())
}

fn check(settings: &Settings, file: &Path, json: bool) -> Result<(), CommandError> {
    let request = check::Request { configs: settings.config.clone(), limits: settings.limits };
    let report = check::check_in_child(&settings.program, file, &request)
        .map_err(|source| CommandError::Check { file: file.to_owned(), source })?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    if report.ok { Ok(()) } else { Err(CommandError::Unusable(file.to_owned())) }
}

fn quarantine(settings: &Settings, name: &str, reason: String) -> Result<(), CommandError> {
    let request = Request::Quarantine { name: name.to_owned(), reason: reason.clone() };
    let change = |state: &mut State| {
        known(state, name)?;
        state.quarantined.insert(name.to_owned(), Quarantine { reason, since: Timestamp::now() });
        Ok(())
    };
    let stopped = ask_or_edit(settings, &request, change)?;
    println!("plugin {name} is quarantined: its events are kept until it is resumed{stopped}");
    Ok(())
}

fn resume(settings: &Settings, name: &str) -> Result<(), CommandError> {
    let request = Request::Resume { name: name.to_owned() };
    let change = |state: &mut State| {
        let sums = known(state, name)?;
        if !sums.iter().any(|sum| state.quarantine(name, sum).is_some()) {
            return Err(CommandError::NotQuarantined(name.to_owned()));
        }
        for sum in &sums {
            state.pardon(name, sum);
        }
        Ok(())
    };
    let stopped = ask_or_edit(settings, &request, change)?;
    println!(
        "plugin {name} is called again{stopped}; what was parked for it waits for: ingestion-engine plugins reprocess {name}"
    );
    Ok(())
}

fn reprocess(settings: &Settings, name: String) -> Result<(), CommandError> {
    let words = |summary: &Summary| {
        let Summary { stored, rejected, dropped, erased, skipped, left } = summary;
        format!(
            "{stored} stored, {rejected} rejected, {dropped} dropped, {erased} erased, {skipped} expired, {left} still parked"
        )
    };
    let request = Request::Reprocess { name };
    let tell = |progress| {
        if let Ok(summary) = serde_json::from_value(progress) {
            eprintln!("{}", words(&summary));
        }
    };
    match control::ask::<Summary>(&settings.data_dir, &request, tell) {
        Ok(summary) => println!("{}", words(&summary)),
        Err(error @ ClientError::NotRunning { .. }) => return Err(CommandError::NotRunning(error)),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Asks the engine or, while none runs, makes the change in what it remembers. Returns what to add to the answer.
fn ask_or_edit(
    settings: &Settings,
    request: &Request,
    change: impl FnOnce(&mut State) -> Result<(), CommandError>,
) -> Result<&'static str, CommandError> {
    match control::ask::<Value>(&settings.data_dir, request, |_| {}) {
        Ok(_) => Ok(""),
        Err(ClientError::NotRunning { .. }) => {
            let _lock = locked(&settings.data_dir)?;
            let (mut file, damaged) = StateFile::open(&state_dir(&settings.data_dir))?;
            if let Some(damaged) = damaged {
                eprintln!("{damaged}");
            }
            change(&mut file.state)?;
            file.save()?;
            Ok(" (from the next start on: no engine runs now)")
        }
        Err(error) => Err(error.into()),
    }
}

/// An engine that ends just now, or another command, is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

fn locked(data_dir: &Path) -> Result<FolderLock, CommandError> {
    FolderLock::acquire(&state_dir(data_dir), PATIENCE).map_err(CommandError::NoSocket)
}

/// The sums of the files that the plugin `name` is known from.
fn known(state: &State, name: &str) -> Result<Vec<String>, CommandError> {
    let files = state.files.values().filter(|known| known.plugin == name);
    let sums: Vec<String> = files.map(|known| known.sha256.clone()).collect();
    if sums.is_empty() {
        let mut known: Vec<&str> = state.files.values().map(|known| known.plugin.as_str()).collect();
        known.dedup();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(CommandError::Unknown { name: name.to_owned(), known });
    }
    Ok(sums)
}
