//! Who a plugin is and what it wants, in the shape of [`crate::abi::descriptor`].

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use crate::{
    abi::descriptor::{AddedType, Descriptor},
    tables::{Table, View},
};

/// A plugin's description.
#[derive(Clone, Debug)]
pub struct Description(pub(crate) Descriptor);

impl Description {
    /// A plugin that does nothing yet. `name` (`[a-z][a-z0-9_]*`, at most 40 bytes) is the prefix of its tables and of its
    /// codes, and the key of its configuration; `description` says in a sentence what it does.
    pub fn new(name: &str, version: &str, description: &str) -> Self {
        Self(Descriptor {
            name: name.to_owned(),
            version: version.to_owned(),
            description: description.to_owned(),
            adds: Vec::new(),
            enriches: Vec::new(),
            examples: Vec::new(),
            fail_closed: false,
            tables: Vec::new(),
            views: Vec::new(),
        })
    }

    /// Adds an event type. The plugin is given its events.
    #[must_use]
    pub fn adds(mut self, kind: EventType) -> Self {
        self.0.adds.push(kind.0);
        self
    }

    /// Asks for the events of types of the engine or of other plugins; `*` stands for all.
    #[must_use]
    pub fn enriches<'a>(mut self, types: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.enriches.extend(types.into_iter().map(str::to_owned));
        self
    }

    /// An event on which the plugin is tried before it is taken into use, beside the examples of its own types. It must
    /// not be rejected.
    #[must_use]
    pub fn example(mut self, event: Value) -> Self {
        self.0.examples.push(raw(&event));
        self
    }

    /// While the plugin cannot be used, requests with its events are answered with 503 and have to be sent again. Without
    /// this they are accepted and set aside.
    #[must_use]
    pub fn fail_closed(mut self) -> Self {
        self.0.fail_closed = true;
        self
    }

    /// Adds a table of the plugin's own.
    #[must_use]
    pub fn table(mut self, table: Table) -> Self {
        self.0.tables.push(table.0);
        self
    }

    /// Adds an aggregate that is kept up to date with every insert.
    #[must_use]
    pub fn view(mut self, view: View) -> Self {
        self.0.views.push(view.0);
        self
    }
}

/// An event type that a plugin adds. It needs an example at least.
#[derive(Clone, Debug)]
pub struct EventType(AddedType);

impl EventType {
    /// A type without a schema. `name` is `[a-z][a-z0-9_]*`, at most 64 bytes; `description` says in a sentence what an
    /// event of it means.
    pub fn new(name: &str, description: &str) -> Self {
        Self(AddedType {
            name: name.to_owned(),
            description: description.to_owned(),
            schema: None,
            examples: Vec::new(),
        })
    }

    /// JSON Schema (draft 2020-12) of a whole event: one that does not fit is rejected before the plugin sees it.
    #[must_use]
    pub fn schema(mut self, schema: Value) -> Self {
        self.0.schema = Some(raw(&schema));
        self
    }

    /// The schema of what serde reads as `T`. An event has fields that `T` does not know (`id`, `timestamp`, ...), so `T`
    /// must not deny unknown fields.
    #[must_use]
    pub fn schema_of<T: JsonSchema>(self) -> Self {
        let schema = SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<T>();
        self.schema(schema.to_value())
    }

    /// An event of the type, for its documentation, and to try the plugin before it is taken into use.
    #[must_use]
    pub fn example(mut self, event: Value) -> Self {
        self.0.examples.push(raw(&event));
        self
    }
}

fn raw(value: &Value) -> Box<RawValue> {
    // A `Value` can always be written: its keys are texts, and writing to memory does not fail.
    to_raw_value(value).unwrap_or_default()
}
