//! # Write plugins for the ingestion engine in safe Rust
//!
//! A plugin is a shared library in the engine's plugin folder. It adds event types, or changes, refuses or drops events of
//! types that are there. This crate turns an implementation of [`Plugin`] into such a library.
//!
//! ```
//! use ingestion_plugin_sdk::{
//!     Batch, Description, Error, Event, EventType, Host, Plugin, Rejection, Verdict, export_plugin, json,
//!     schemars::{self, JsonSchema},
//!     tables::{Table, View, column, property, sql, sum},
//! };
//! use serde::Deserialize;
//!
//! /// The fields of an event that we look at; the others are none of our business.
//! #[derive(Deserialize, JsonSchema)]
//! struct Purchase<'a> {
//!     order_id: &'a str,
//!     total: f64,
//!     currency: &'a str,
//! }
//!
//! /// `[plugins.config.purchase]` in the engine's configuration.
//! #[derive(Deserialize)]
//! struct Config {
//!     currencies: Vec<String>,
//! }
//!
//! struct Shop {
//!     config: Config,
//!     host: Host,
//! }
//!
//! impl Plugin for Shop {
//!     type Config = Config;
//!
//!     fn describe() -> Description {
//!         Description::new("purchase", "1.0.0", "Orders of a shop")
//!             .adds(
//!                 EventType::new("purchase", "An order was paid")
//!                     .schema_of::<Purchase>()
//!                     .example(json!({ "type": "purchase", "order_id": "A-1", "total": 12.5, "currency": "EUR" })),
//!             )
//!             .table(
//!                 Table::new("orders", ["purchase"])
//!                     .column("order_id", "String", property("order_id"))
//!                     .column("total", "Decimal(18, 4)", property("total"))
//!                     .order_by(["order_id"]),
//!             )
//!             .view(
//!                 View::of_table("revenue_daily", "orders")
//!                     .group_by("day", "Date", sql("toDate(timestamp)"))
//!                     .measure(sum("revenue", "Decimal(38, 4)", column("total"))),
//!             )
//!     }
//!
//!     fn new(config: Config, host: Host) -> Result<Self, Error> {
//!         Ok(Self { config, host })
//!     }
//!
//!     fn event(&self, event: &Event<'_>, _batch: &Batch<'_>) -> Result<Verdict, Rejection> {
//!         let purchase: Purchase = event.parse()?;
//!         if !self.config.currencies.iter().any(|known| known == purchase.currency) {
//!             self.host.count("unknown_currencies", 1);
//!             return Err(Rejection::new("unknown_currency", "`currency` is none that this shop takes"));
//!         }
//!         Ok(Verdict::keep())
//!     }
//! }
//!
//! export_plugin!(Shop);
//!
//! // In the plugin's tests:
//! use ingestion_plugin_sdk::testing::Harness;
//!
//! let harness = Harness::<Shop>::new(json!({ "currencies": ["EUR"] }))?;
//! harness.check()?; // runs the examples
//! let verdict = harness.event(json!({ "type": "purchase", "order_id": "A-2", "total": 1, "currency": "XXX" }));
//! assert_eq!(verdict.code(), Some("unknown_currency"));
//! assert_eq!(harness.counter("unknown_currencies"), 1);
//! # Ok::<(), ingestion_plugin_sdk::Error>(())
//! ```
//!
//! The crate of a plugin has `crate-type = ["cdylib"]`, and depends on this crate, on `serde`, and on `schemars` if it uses
//! [`EventType::schema_of`].
//!
//! # What happens to an event
//! The engine reads it, checks it against the schema of its type, and gives it to the plugins before anything is stored:
//! the sender hears of a rejection. A replacement is read and checked like an event that was sent. Fields that the engine
//! has no column for become members of `properties`, so a plugin may add them at the top level.
//!
//! # Faults
//! A rejection is the event's fault. A panic, [`Verdict::fail`], a wrong number of verdicts, output that is not usable and a
//! call that takes too long are the plugin's: no verdict of that call counts, and the engine sets its events aside to be
//! processed again. Panics are caught in here, so a plugin must be compiled with `panic = "unwind"` (the default).
//!
//! # What this is not
//! A sandbox: a plugin runs in the engine's process (or, if its operator says so, in one of its own) with all rights.

#[cfg(not(panic = "unwind"))]
compile_error!("a plugin must be compiled with panic = \"unwind\", or its first panic would end the engine's process");

mod config;
mod description;
mod event;
mod ffi;
mod object;
pub mod tables;
pub mod testing;
mod verdict;

pub use ingestion_plugin_abi as abi;
pub use ingestion_plugin_abi::Purpose;
pub use schemars;
pub use serde_json::{self, json};

pub use config::NoConfig;
pub use description::{Description, EventType};
pub use event::{Event, Id};
pub use ffi::{Batch, Host, plugin};
pub use object::Object;
pub use verdict::{Rejection, Verdict, Verdicts};

/// Why a plugin could not be made: any error, or a text (`"no such file".into()`).
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A plugin. One instance serves all threads; it ends when a newer file takes its place or the engine stops.
pub trait Plugin: Send + Sync + Sized + 'static {
    /// What `[plugins.config.<name>]` holds; [`NoConfig`] for a plugin that has nothing to configure. Keys that it does
    /// not know, and values of a wrong type, are refused with their path.
    type Config: serde::de::DeserializeOwned;

    /// Says who the plugin is and what it wants. Called once, before everything else.
    fn describe() -> Description;

    /// Makes an instance. An older one may still be in use.
    ///
    /// # Errors
    /// Whatever makes the plugin unusable: it is then not taken into use, and an older one stays.
    fn new(config: Self::Config, host: Host) -> Result<Self, Error>;

    /// Says what becomes of one event. Without it every event is kept: enough for a plugin that adds a type with a schema
    /// and a table.
    ///
    /// # Errors
    /// [`Rejection`]: the event is bad, and its sender is told so.
    fn event(&self, event: &Event<'_>, batch: &Batch<'_>) -> Result<Verdict, Rejection> {
        let _ = (event, batch);
        Ok(Verdict::keep())
    }

    /// Says what becomes of all events of a request: one verdict for each, in their order. Calls [`Plugin::event`] for each
    /// one; a plugin that is faster with all of them at once has a `process` of its own. Called by many threads at a time.
    fn process(&self, batch: &Batch<'_>, verdicts: &mut Verdicts<'_>) {
        for event in batch {
            verdicts.push(self.event(&event, batch));
        }
    }

    /// Whether the plugin can do its work; shown in the engine's `/health`. Called beside `process`.
    ///
    /// # Errors
    /// The reason, if it cannot.
    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Exports a [`Plugin`] from a shared library, once in a crate: `export_plugin!(MyPlugin);`.
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty) => {
        /// What the engine looks for.
        #[unsafe(no_mangle)]
        #[allow(non_upper_case_globals, reason = "the contract names it so")]
        pub static ingestion_plugin: $crate::abi::Plugin = $crate::plugin::<$plugin>();
    };
}
