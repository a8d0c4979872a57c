//! Plugins: event types of other people's making, in shared libraries that are dropped into a folder.
//!
//! ```text
//! folder --copy, check--> registry --swap--> Set: which plugin is given which event, in which order
//!                                             |
//! events of a request --> chain --> Plugin::process --> Backend: in this process, or in a child
//!                           |            on a plugin thread, under a deadline, named in a crash slot
//!                           +--> accepted (as it was, or changed) | rejected | dropped | parked
//! ```
//!
//! - A plugin runs before the write-ahead log, so that a sender hears of a rejection.
//! - What a plugin does wrong costs the events of its types their way, never their existence: they are parked, raw, to be
//!   run through it later; or, if it asks for that, their senders are told to come again.
//! - A library is never unloaded and its file in the folder is never opened by the loader: a private copy is.

// What a plugin is.
pub mod descriptor;
pub mod schema;
pub mod library;
pub mod host;
pub mod check;
// Where its code runs.
pub mod call;
pub mod instance;
pub mod isolated;
pub mod threads;
pub mod slots;
// Which plugins are in use, and which of them is given which event.
pub mod plugin;
pub mod faults;
pub mod set;
pub mod chain;
pub mod folder;
pub mod watch;
pub mod state;
pub mod registry;
// What they leave behind.
pub mod tables;
pub mod reprocess;
pub mod rerun;
// For people.
pub mod commands;
pub mod scaffold;

pub use registry::Plugins;
