//! An event as its sender wrote it, checked and turned into a row.
//!
//! ```text
//! body --Batch::parse--> raw events (slices of the body) --read--> EventRow (borrowing from the body) --row::encode--> log
//! ```
//!
//! - A body is checked, and split into events and these into fields, in one pass. Each event is then read alone, so that one
//!   bad event never fails the others.
//! - Nothing is copied that can be borrowed, and nothing that a client sent is lost: a field that has no column of its
//!   own is kept under `properties`, in the sender's own bytes.
//! - Decisions here are pure: no clock, no I/O. The moment of receipt and the rules come in as parameters.
//! - `event` knows the row and nothing behind it.

mod batch;
mod error;
mod field;
mod kind;
mod properties;
mod read;
mod retention;
mod scan;
mod split;
mod time;
mod types;

pub use batch::{Batch, BodyError, Event};
pub use error::{EventError, EventErrorCode};
pub use read::{Acceptance, read, read_again};
pub use retention::Retention;
pub use types::Types;

#[cfg(test)]
mod tests;
