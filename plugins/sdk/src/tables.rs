//! Tables and aggregates of a plugin's own, declared; the engine writes the DDL.
//!
//! A table has a row for each event of its types, and beside the columns that are declared here `tenant_id`, `event_id`,
//! `type`, `timestamp`, `received_at`, `expires_at`, `user_id` and `anonymous_id`. Its rows leave with their events. In the
//! database it is `plugin_<plugin>_<name>`.

pub use crate::abi::descriptor::Value;
use crate::abi::descriptor::{self as wire, Function};

/// A value from the event's `properties`; levels are separated by points: `address.city`. Every field that the engine has
/// no column for is a property.
pub fn property(path: &str) -> Value {
    Value::Property(path.to_owned())
}

/// A column of `events`, or, in a view of a table, of that table.
pub fn column(name: &str) -> Value {
    Value::Column(name.to_owned())
}

/// An expression of ClickHouse over those columns.
pub fn sql(expression: &str) -> Value {
    Value::Sql(expression.to_owned())
}

/// A table with a row for each event of some types.
#[derive(Clone, Debug)]
pub struct Table(pub(crate) wire::Table);

impl Table {
    /// A table for events of `types`, each of which the plugin adds or enriches.
    pub fn new<'a>(name: &str, types: impl IntoIterator<Item = &'a str>) -> Self {
        Self(wire::Table {
            name: name.to_owned(),
            types: types.into_iter().map(str::to_owned).collect(),
            columns: Vec::new(),
            order_by: Vec::new(),
        })
    }

    /// Adds a column of a ClickHouse type. A later version of the plugin may add columns, and changes none.
    #[must_use]
    pub fn column(mut self, name: &str, kind: &str, value: Value) -> Self {
        self.0.columns.push(a_column(name, kind, value));
        self
    }

    /// Columns of the sort key, after `tenant_id` and before `event_id`.
    #[must_use]
    pub fn order_by<'a>(mut self, columns: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.order_by.extend(columns.into_iter().map(str::to_owned));
        self
    }
}

/// An aggregate that is kept up to date with every insert. Its first column is `tenant_id`.
#[derive(Clone, Debug)]
pub struct View(pub(crate) wire::View);

impl View {
    /// An aggregate of a table of the plugin.
    pub fn of_table(name: &str, table: &str) -> Self {
        Self(wire::View {
            name: name.to_owned(),
            from: Some(table.to_owned()),
            types: Vec::new(),
            group_by: Vec::new(),
            measures: Vec::new(),
        })
    }

    /// An aggregate of those rows of `events` whose type is one of `types`, each of which the plugin adds or enriches.
    pub fn of_events<'a>(name: &str, types: impl IntoIterator<Item = &'a str>) -> Self {
        Self(wire::View {
            name: name.to_owned(),
            from: None,
            types: types.into_iter().map(str::to_owned).collect(),
            group_by: Vec::new(),
            measures: Vec::new(),
        })
    }

    /// Adds a column that it is grouped by, after `tenant_id`.
    #[must_use]
    pub fn group_by(mut self, name: &str, kind: &str, value: Value) -> Self {
        self.0.group_by.push(a_column(name, kind, value));
        self
    }

    /// Adds what it counts or adds up: [`count`], [`sum`], [`min`], [`max`] or [`uniq`].
    #[must_use]
    pub fn measure(mut self, measure: Measure) -> Self {
        self.0.measures.push(measure.0);
        self
    }
}

/// One aggregate of a view.
#[derive(Clone, Debug)]
pub struct Measure(wire::Measure);

/// Number of rows.
pub fn count(name: &str) -> Measure {
    measure(name, Function::Count, None, None)
}

/// Sum, of the ClickHouse type `kind`.
pub fn sum(name: &str, kind: &str, value: Value) -> Measure {
    measure(name, Function::Sum, Some(kind), Some(value))
}

/// Least value, of the ClickHouse type `kind`.
pub fn min(name: &str, kind: &str, value: Value) -> Measure {
    measure(name, Function::Min, Some(kind), Some(value))
}

/// Greatest value, of the ClickHouse type `kind`.
pub fn max(name: &str, kind: &str, value: Value) -> Measure {
    measure(name, Function::Max, Some(kind), Some(value))
}

/// Number of distinct values, approximately.
pub fn uniq(name: &str, value: Value) -> Measure {
    measure(name, Function::Uniq, None, Some(value))
}

fn measure(name: &str, function: Function, kind: Option<&str>, value: Option<Value>) -> Measure {
    Measure(wire::Measure { name: name.to_owned(), function, kind: kind.map(str::to_owned), value })
}

fn a_column(name: &str, kind: &str, value: Value) -> wire::Column {
    wire::Column { name: name.to_owned(), kind: kind.to_owned(), value }
}
