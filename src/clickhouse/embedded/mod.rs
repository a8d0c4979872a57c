//! The embedded ClickHouse: ClickHouse's own engine (libchdb) in a child process of this binary, behind ClickHouse's own
//! HTTP interface on 127.0.0.1.
//!
//! # Layout
//! ```text
//! serve ── supervisor ── pipe, signals, GET /ping ──> ingestion-engine clickhouse   (child)
//!                                                      facade   HTTP on 127.0.0.1     (axum)
//!                                                      engine   connections, inserts  (safe)
//!                                                      ffi      libchdb's C calls     (unsafe)
//!                                                      lock     one process per path
//! ```
//!
//! # Why a child process
//! The library is a whole database in C++: half a gigabyte of code, its own allocator, a process-wide state that opens
//! one path once. In a process of its own its crash, its leak or its out-of-memory kill costs a restart of a second or
//! two, and not the log into which events are being accepted. And because the child speaks ClickHouse's HTTP interface,
//! the rest of the engine knows one kind of ClickHouse: moving to a server is a URL.
//!
//! # Why HTTP data goes through the insert stream
//! libchdb's call for a statement as one text ends the data behind `FORMAT x` at the first empty line. Every insert with
//! data therefore goes through its stream calls, which take statement, format and data apart.
//!
//! A statement that changed something is answered when the change is on disk (`durable`).
//!
//! # Life and death
//! - The child holds a file lock on the path and waits 10 s for a predecessor that is still exiting; then it names it.
//! - It exits when the pipe from its parent closes, so it never outlives a parent that was killed. (A parent-death signal
//!   would fire when the *thread* that forked ends.)
//! - A nonce, fresh for every start, passed through the environment and repeated on `/ping`, proves that whoever answers
//!   on the port is this start's child.
//! - A child that exits is noticed at once and restarted, one that does not answer is killed and restarted; the port
//!   stays the same.
//!
//! # Who may do what
//! The port takes any user and password, so what a request may do is limited for all: no files, no networks, no users
//! (`access`); nothing that a foreign web page sends; nothing changed by GET.
//!
//! # What it is not
//! A ClickHouse server: no users, no replication, no system log tables, nobody else's network.

mod access;
mod child;
mod defaults;
mod durable;
mod engine;
mod facade;
mod ffi;
mod handshake;
mod supervisor;

pub use child::{ChildArgs, ChildError, ChildSettings, PORT_FILE, run};
pub use engine::OpenError;
pub use supervisor::{Supervisor, SupervisorError, SupervisorSettings};
