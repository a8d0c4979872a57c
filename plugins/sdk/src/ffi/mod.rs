//! The line between safe Rust and the contract; with `testing::engine` the only code of this crate that is unsafe.
//!
//! `lent` reads what the engine lends, `callbacks` is what the engine calls.

mod callbacks;
mod lent;

pub use callbacks::plugin;
pub use lent::{Batch, Host};
