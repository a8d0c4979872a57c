//! (skeleton, owned by the helper "library")
pub use ingestion_plugin_abi::descriptor::{AddedType, Column, Descriptor, Function, Measure, Table, Value, View};
