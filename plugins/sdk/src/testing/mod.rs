//! A plugin's tests: calls a plugin as the engine does, through the functions of the contract, without an engine.
//!
//! ```
//! # use ingestion_plugin_sdk::{Description, Error, Host, NoConfig, Plugin, json, testing::Harness};
//! # struct MyPlugin;
//! # impl Plugin for MyPlugin {
//! #     type Config = NoConfig;
//! #     fn describe() -> Description {
//! #         Description::new("mine", "1.0.0", "Nothing").enriches(["pageview"])
//! #     }
//! #     fn new(_config: NoConfig, _host: Host) -> Result<Self, Error> {
//! #         Ok(Self)
//! #     }
//! # }
//! let harness = Harness::<MyPlugin>::new(json!({}))?;
//! harness.check()?;
//! assert!(harness.event(json!({ "type": "pageview", "url": "https://shop.test/" })).is_keep());
//! # Ok::<(), Error>(())
//! ```
//!
//! It is not the engine: events are given to the plugin as they are, without the engine's own checks and without the schema.
//! `ingestion-engine plugins check FILE` makes those.

mod check;
mod engine;

use std::{collections::BTreeMap, marker::PhantomData};

use serde_json::Value;

use crate::{
    Error, Plugin, Purpose, Verdict,
    abi::{self, Level, descriptor::Descriptor},
};
use engine::{Engine, Input};

/// What a plugin did wrong in a call; no verdict of the call counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It panicked: the message.
    Panicked(String),
    /// It failed, or gave a wrong number of verdicts: the words.
    Failed(String),
    /// The engine could not use what it gave: why.
    BadOutput(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Panicked(message) => write!(f, "the plugin panicked: {message}"),
            Self::Failed(words) => write!(f, "the plugin failed: {words}"),
            Self::BadOutput(problem) => write!(f, "the plugin's output is not usable: {problem}"),
        }
    }
}

impl std::error::Error for Fault {}

/// A plugin in use. Its tenant is 16 times the byte 1, and its clock stands at 2026-01-01 unless the test says otherwise.
pub struct Harness<P> {
    engine: Engine,
    purpose: Purpose,
    plugin: PhantomData<P>,
}

/// Stands for a plugin that is not written with this crate: see [`Harness::foreign`].
#[derive(Clone, Copy, Debug)]
pub struct Foreign;

impl Harness<Foreign> {
    /// Takes what a library exports into use, in whatever language it is written. It must be of today's minor version.
    ///
    /// # Errors
    /// As for [`Harness::new`].
    ///
    /// # Safety
    /// `plugin` keeps to the contract, and its library stays loaded.
    #[expect(unsafe_code, reason = "only its caller knows what the functions do")]
    pub unsafe fn foreign(plugin: abi::Plugin, config: Value) -> Result<Self, Error> {
        // SAFETY: the caller's.
        let engine = unsafe { Engine::new(plugin, &config.to_string(), abi::ABI_MINOR) }?;
        Ok(Self { engine, purpose: Purpose::LIVE, plugin: PhantomData })
    }
}

impl<P: Plugin> Harness<P> {
    /// Takes the plugin into use with this configuration.
    ///
    /// # Errors
    /// What the plugin says: of its configuration, or whatever keeps it from starting.
    pub fn new(config: Value) -> Result<Self, Error> {
        Self::with_contract(config, abi::ABI_MINOR)
    }

    /// As [`Harness::new`], in an engine of an older minor version of the contract.
    ///
    /// # Errors
    /// As for [`Harness::new`].
    pub fn with_contract(config: Value, minor: u32) -> Result<Self, Error> {
        let engine = Engine::of::<P>(&config.to_string(), minor)?;
        Ok(Self { engine, purpose: Purpose::LIVE, plugin: PhantomData })
    }
}

impl<P> Harness<P> {
    /// Gives the events of the next calls another purpose.
    pub fn set_purpose(&mut self, purpose: Purpose) {
        self.purpose = purpose;
    }

    /// Sets the clock, in milliseconds since 1970: what [`crate::Host::now_ms`] says, and when events are received.
    pub fn set_now_ms(&self, now: i64) {
        self.engine.record().set_now(now);
    }

    /// The plugin's verdicts on events of one request.
    ///
    /// # Panics
    /// If the call is a fault of the plugin's.
    pub fn process(&self, events: impl IntoIterator<Item = Value>) -> Vec<Verdict> {
        self.try_process(events).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// As [`Harness::process`].
    ///
    /// # Errors
    /// What the plugin did wrong.
    pub fn try_process(&self, events: impl IntoIterator<Item = Value>) -> Result<Vec<Verdict>, Fault> {
        let events: Vec<Input> = events.into_iter().map(|event| Input::new(event.to_string())).collect();
        self.engine.process(&events, self.purpose)
    }

    /// The plugin's verdict on one event.
    ///
    /// # Panics
    /// If the call is a fault of the plugin's.
    pub fn event(&self, event: Value) -> Verdict {
        self.event_json(&event.to_string())
    }

    /// As [`Harness::event`], for a JSON text whose spacing, digits or order of members matter.
    ///
    /// # Panics
    /// If the call is a fault of the plugin's.
    pub fn event_json(&self, json: &str) -> Verdict {
        let verdicts = self.engine.process(&[Input::new(json.to_owned())], self.purpose);
        match verdicts.map(|mut verdicts| verdicts.pop()) {
            Ok(Some(verdict)) => verdict,
            Ok(None) => panic!("no verdict"),
            Err(fault) => panic!("{fault}"),
        }
    }

    /// What the plugin says of its health.
    ///
    /// # Errors
    /// Its words, if it is not well.
    pub fn health(&self) -> Result<(), Fault> {
        self.engine.health()
    }

    /// What the engine reads as the plugin's description.
    ///
    /// # Errors
    /// It is none: the plugin's `describe` panicked.
    pub fn descriptor(&self) -> Result<Descriptor, Error> {
        let text = self.engine.describe();
        serde_json::from_str(&text).map_err(|error| format!("the description cannot be read ({error}): {text}").into())
    }

    /// Checks the description, and tries the plugin on its examples: none may be rejected.
    ///
    /// # Errors
    /// All that is wrong, a line each.
    pub fn check(&self) -> Result<(), Error> {
        let problems = check::problems(&self.descriptor()?, &self.engine);
        if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
    }

    /// The log lines so far.
    pub fn log(&self) -> Vec<(Level, String)> {
        self.engine.record().log()
    }

    /// The plugin's counters.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.engine.record().counters()
    }

    /// One of the plugin's counters; 0 if it has not counted.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters().get(name).copied().unwrap_or(0)
    }

    /// The plugin's gauges.
    pub fn gauges(&self) -> BTreeMap<String, f64> {
        self.engine.record().gauges()
    }
}

impl<P> std::fmt::Debug for Harness<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harness").field("plugin", &std::any::type_name::<P>()).finish_non_exhaustive()
    }
}
