//! The form of `ingestion-engine plugins ...`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

const AFTER: &str = "\
Examples:
  ingestion-engine plugins new signup
      makes a crate signup/ that builds, with a test
  ingestion-engine plugins check target/release/libsignup.so
      what the engine would say of it, with what to mend
  cp target/release/libsignup.so data/plugins/
      brings it into a running engine; no restart
  ingestion-engine plugins list
      which plugins are in use, and why others are not
  ingestion-engine plugins quarantine signup --reason \"wrong totals, see ticket 12\"
      stops calling it; its events are kept
  ingestion-engine plugins resume signup && ingestion-engine plugins reprocess signup
      calls it again, and runs what was kept through it";

/// Arguments of `plugins`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = AFTER, subcommand_required = true, arg_required_else_help = true)]
pub struct PluginsArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with plugins.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Action {
    /// Show the files of the plugins' folder: in use, quarantined or refused, and why
    ///
    /// With the engine stopped this shows what it remembers.
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Check a library as the engine does before it uses it; exit code 0 if it can be used, else 1
    ///
    /// The library is loaded in a process of its own, configured with its table [plugins.config.NAME] of the
    /// configuration, and tried on its own examples.
    Check {
        /// The shared library
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Print JSON instead of words
        #[arg(long)]
        json: bool,
        /// Be the process that the library is loaded in.
        #[arg(long, hide = true)]
        as_child: bool,
    },
    /// Stop calling a plugin until `resume`, whatever file comes
    ///
    /// Its events are acknowledged and kept as they were sent, in the table parked_events; those of a plugin that is
    /// fail_closed are answered with 503 instead.
    Quarantine {
        /// The plugin's name
        name: String,
        /// Why, for whoever looks later
        #[arg(long, default_value = "by an operator")]
        reason: String,
    },
    /// Call a quarantined plugin again
    Resume {
        /// The plugin's name
        name: String,
    },
    /// Run the events that were kept for a plugin through it
    Reprocess {
        /// The plugin's name
        name: String,
    },
    /// Make a crate for a new plugin
    New {
        /// The plugin's name: small letters, digits and underscores
        name: String,
        /// Folder that the crate's folder is made in
        #[arg(long, value_name = "DIR", default_value = ".")]
        path: PathBuf,
    },
    /// Be the process that an isolated plugin runs in.
    #[command(hide = true)]
    Host(HostArgs),
}

/// Arguments of `plugins host`: what the engine passes to itself.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct HostArgs {
    /// For the part that starts it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<std::ffi::OsString>,
}
