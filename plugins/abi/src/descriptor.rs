//! What a plugin says of itself: the JSON document that [`crate::Plugin::describe`] returns.
//!
//! Unknown members are ignored, so that a newer plugin can say more to a newer engine. All but `name`, `version`, and the
//! `type` and `examples` of an added type can be left out.
//!
//! ```json
//! {
//!   "name": "purchase", "version": "1.0.0", "description": "Orders of a shop",
//!   "adds": [{ "type": "purchase", "description": "An order was paid", "schema": { }, "examples": [{ }] }],
//!   "enriches": ["pageview"], "examples": [{ "type": "pageview", "path": "/" }], "fail_closed": false,
//!   "tables": [{
//!     "name": "orders", "types": ["purchase"],
//!     "columns": [{ "name": "total", "type": "Decimal(18, 4)", "value": { "property": "total" } }],
//!     "order_by": ["order_id"]
//!   }],
//!   "views": [{
//!     "name": "revenue_daily", "from": "orders",
//!     "group_by": [{ "name": "day", "type": "Date", "value": { "sql": "toDate(timestamp)" } }],
//!     "measures": [{ "name": "revenue", "function": "sum", "type": "Decimal(38, 4)", "value": { "column": "total" } }]
//!   }]
//! }
//! ```

use alloc::{boxed::Box, string::String, vec::Vec};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A plugin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its name: `[a-z][a-z0-9_]*`, at most 40 bytes. Prefix of its tables and codes, key of its configuration.
    pub name: String,
    /// Its version, as it is shown.
    pub version: String,
    /// What it does, in a sentence.
    #[serde(default)]
    pub description: String,
    /// Event types that exist because of it.
    #[serde(default)]
    pub adds: Vec<AddedType>,
    /// Event types of the engine or of other plugins whose events it is given too; `*` stands for all.
    #[serde(default)]
    pub enriches: Vec<String>,
    /// Events on which it is tried before it is taken into use, beside those of `adds`. None of them may be rejected.
    #[serde(default)]
    pub examples: Vec<Box<RawValue>>,
    /// While it is quarantined, requests with its events are answered with 503 instead of parking them.
    #[serde(default)]
    pub fail_closed: bool,
    /// Tables that are filled from its events.
    #[serde(default)]
    pub tables: Vec<Table>,
    /// Aggregates that are kept up to date with every insert.
    #[serde(default)]
    pub views: Vec<View>,
}

/// An event type.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddedType {
    /// Its name: `[a-z][a-z0-9_]*`, at most 64 bytes.
    #[serde(rename = "type")]
    pub name: String,
    /// What it means, in a sentence.
    #[serde(default)]
    pub description: String,
    /// JSON Schema (draft 2020-12 unless `$schema` says otherwise) of a whole event. An event that does not fit is
    /// rejected before the plugin sees it.
    #[serde(default)]
    pub schema: Option<Box<RawValue>>,
    /// Events of the type, at least one. The plugin is tried on them; none of them may be rejected.
    pub examples: Vec<Box<RawValue>>,
}

/// A table with one row for each event of some types. Beside its own columns it has `tenant_id`, `event_id`, `type`,
/// `timestamp`, `received_at`, `expires_at`, `user_id` and `anonymous_id`; rows leave with their events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name; in the database `plugin_<plugin>_<name>`.
    pub name: String,
    /// The types whose events it holds; each is one that the plugin adds or enriches.
    pub types: Vec<String>,
    /// Its own columns. A later version of the plugin may add some, and changes none.
    pub columns: Vec<Column>,
    /// Columns of the sort key, after `tenant_id` and before `event_id`.
    #[serde(default)]
    pub order_by: Vec<String>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name: `[a-z][a-z0-9_]*`.
    pub name: String,
    /// Its ClickHouse type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where its value comes from.
    pub value: Value,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// A member of the event's `properties`, and every field that the engine has no column for is one. Levels are
    /// separated by points: `address.city`.
    Property(String),
    /// A column of `events`, or, in a view of a table, of that table.
    Column(String),
    /// An expression of ClickHouse over those columns.
    Sql(String),
}

/// An aggregate that is kept up to date with every insert. Its first column is `tenant_id`; it is read through the view
/// `plugin_<plugin>_<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its name.
    pub name: String,
    /// The plugin's table that it reads; without one it reads `events`.
    #[serde(default)]
    pub from: Option<String>,
    /// Of `events` the types that it counts; each is one that the plugin adds or enriches.
    #[serde(default)]
    pub types: Vec<String>,
    /// What it is grouped by, after `tenant_id`.
    pub group_by: Vec<Column>,
    /// What it adds up.
    pub measures: Vec<Measure>,
}

/// One aggregate of a view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// Its name.
    pub name: String,
    /// How it is made.
    pub function: Function,
    /// Type of the result of `sum`, `min` and `max`; not given for the others.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What it is made of; not given for `count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// How an aggregate is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// Number of rows.
    Count,
    /// Sum.
    Sum,
    /// Least value.
    Min,
    /// Greatest value.
    Max,
    /// Number of distinct values, approximately.
    Uniq,
}
