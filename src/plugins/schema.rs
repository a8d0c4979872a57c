//! JSON Schemas of added types, compiled, and an event held against them.
