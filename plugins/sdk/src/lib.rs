//! Write plugins for the ingestion engine in safe Rust.
