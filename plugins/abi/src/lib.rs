//! # The contract between the engine and a plugin
//!
//! A plugin is a shared library that exports one symbol, [`SYMBOL`]: a constant [`Plugin`]. It begins with a
//! [`Header`], which never changes; the engine reads it before it touches anything else. Everything here is `repr(C)`, so
//! that a plugin can be written in any language that C can call; `include/ingestion_plugin.h` is made from this file.
//!
//! ```text
//! describe()                        once, before anything else: who are you (JSON, see `descriptor`)
//! create(host, config)              an instance, once for each time that the plugin is taken into use
//! process(instance, batch, results) many times, on many threads at once
//! release(instance, results)        after every process, whatever it returned
//! destroy(instance)                 once, when no call is under way any more
//! ```
//!
//! # Growth
//! - A **minor** version appends: fields at the end of [`Plugin`], [`Host`] and [`Batch`], values to the `u32` types.
//!   Nothing is moved, removed or given another meaning. Each of the three says how large it is (`struct_size`); a field
//!   that lies beyond that size is not there. So an old plugin runs in a new engine, and a new one in an old engine of the
//!   same major version.
//! - [`Header`], [`Bytes`], [`Event`], [`Verdict`] and [`Failure`] are frozen within a major version: they stand in
//!   arrays or are made by both sides.
//! - `tests/layout.rs` holds the place of every field, and `tests/minor_0.rs` runs a plugin of the first minor version.
//! - A **major** version may change everything but [`Header`] and [`SYMBOL`]. The engine refuses another major version.
//!
//! | minor | what came |
//! | --- | --- |
//! | 0 | everything not named below |
//! | 1 | [`Plugin::health`], [`Batch::purpose`], [`Host::count`], [`Host::gauge`] |
//!
//! # Memory
//! Whoever allocates frees. What one side lends to the other is valid until the function that it was given to returns,
//! unless the field says otherwise. Texts are UTF-8 with a length and without a terminating zero.
//!
//! # Threads
//! Every function says which threads may call it. No function may keep a thread to itself for longer than the
//! engine's deadline, and none may unwind (a Rust panic, a C++ exception) into the engine: the process would end.

#![no_std]

extern crate alloc;

pub mod descriptor;

use core::{ffi::c_void, ptr};

/// Name of the exported [`Plugin`], as `dlsym` finds it. Frozen.
pub const SYMBOL: &str = "ingestion_plugin";

/// The first eight bytes of a [`Header`]: `INGESTPL` in the order of memory on a little-endian machine. Frozen.
pub const MAGIC: u64 = 0x4c50_5453_4547_4e49;

/// Version of what is not compatible.
pub const ABI_MAJOR: u32 = 1;

/// Version of what was appended.
pub const ABI_MINOR: u32 = 1;

/// What is checked before anything else is touched. Frozen for ever, across major versions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`ABI_MAJOR`] that the plugin was compiled with.
    pub abi_major: u32,
    /// [`ABI_MINOR`] that the plugin was compiled with.
    pub abi_minor: u32,
    /// Size of the plugin's [`Plugin`], in bytes, the header included.
    pub struct_size: u64,
}

impl Header {
    /// The header of a plugin that is compiled with this version of the contract.
    pub const fn current() -> Self {
        Self { magic: MAGIC, abi_major: ABI_MAJOR, abi_minor: ABI_MINOR, struct_size: size_of::<Plugin>() as u64 }
    }
}

/// Bytes with their length; UTF-8 wherever a text is meant. `data` may be anything while `len` is 0. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// The first byte.
    pub data: *const u8,
    /// Number of bytes.
    pub len: u64,
}

impl Bytes {
    /// No bytes.
    pub const EMPTY: Self = Self { data: ptr::null(), len: 0 };

    /// Borrows `bytes`; the caller keeps them alive for as long as the receiver may read them.
    pub const fn of(bytes: &[u8]) -> Self {
        Self { data: bytes.as_ptr(), len: bytes.len() as u64 }
    }
}

/// How a function ended. A value that is not listed counts as [`Status::FAILED`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// It did what it should.
    pub const OK: Self = Self(0);
    /// It did not; [`Failure`] says why.
    pub const FAILED: Self = Self(1);
    /// It caught a panic or an exception of its own; [`Failure`] has its message.
    pub const PANICKED: Self = Self(2);
}

/// What becomes of an event.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome(pub u32);

impl Outcome {
    /// Nothing was said: the engine takes the whole call for a fault.
    pub const NONE: Self = Self(0);
    /// It is good as it is.
    pub const KEEP: Self = Self(1);
    /// It is good, with [`Verdict::first`] in its place: one JSON object with the same `type`, and with the same `id` and
    /// `tenant_id` or without them.
    pub const REPLACE: Self = Self(2);
    /// It is bad, and its sender is told so: [`Verdict::first`] is a code (`[a-z][a-z0-9_]*`, at most 64 bytes),
    /// [`Verdict::second`] says in words what is wrong and how to mend it.
    pub const REJECT: Self = Self(3);
    /// It is not wanted, and its sender is told "accepted": [`Verdict::first`] is a reason of the same form as a code.
    pub const DROP: Self = Self(4);
}

/// Severity of a log line.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(pub u32);

impl Level {
    /// Somebody has to act.
    pub const ERROR: Self = Self(1);
    /// Somebody should look.
    pub const WARN: Self = Self(2);
    /// What happens seldom and is as it should be.
    pub const INFO: Self = Self(3);
    /// For whoever looks for a fault.
    pub const DEBUG: Self = Self(4);
}

/// Why events are processed.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purpose(pub u32);

impl Purpose {
    /// They were just sent.
    pub const LIVE: Self = Self(0);
    /// They were parked while the plugin was quarantined.
    pub const REPROCESS: Self = Self(1);
    /// They are the plugin's own examples; nothing is stored.
    pub const CHECK: Self = Self(2);
}

/// Room for the words of an error. The caller provides it; the callee copies at most `capacity` bytes of UTF-8 to `data`
/// and sets `len`. Frozen.
#[repr(C)]
#[derive(Debug)]
pub struct Failure {
    /// Where to write.
    pub data: *mut u8,
    /// Bytes that may be written.
    pub capacity: u64,
    /// Bytes that were written; the caller sets it to 0 before.
    pub len: u64,
}

/// One event. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The event: a JSON object that the engine has found to be a valid event. Its `type` is one that the plugin
    /// handles.
    pub json: Bytes,
    /// Its type, unescaped.
    pub kind: Bytes,
    /// Its id (UUID, big-endian): the sender's, or the one that the engine made.
    pub id: [u8; 16],
}

/// Events of one request, at least one. They belong to one tenant.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Size of this struct as the engine has it.
    pub struct_size: u64,
    /// The tenant (UUID, big-endian).
    pub tenant_id: [u8; 16],
    /// When the events were received, milliseconds since 1970.
    pub received_at_ms: i64,
    /// The events.
    pub events: *const Event,
    /// How many.
    pub count: u64,
    /// Why. Since minor 1.
    pub purpose: Purpose,
    /// Zero. Since minor 1.
    pub reserved: u32,
}

/// What the plugin says of one event. The engine provides one for each, with [`Outcome::NONE`]. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// What becomes of it.
    pub outcome: Outcome,
    /// Zero.
    pub reserved: u32,
    /// See [`Outcome`]. Memory of the plugin, valid until [`Plugin::release`].
    pub first: Bytes,
    /// See [`Outcome`]. Memory of the plugin, valid until [`Plugin::release`].
    pub second: Bytes,
    /// For the plugin: the engine does not touch it.
    pub owner: *mut c_void,
}

impl Verdict {
    /// Nothing said yet.
    pub const NONE: Self =
        Self { outcome: Outcome::NONE, reserved: 0, first: Bytes::EMPTY, second: Bytes::EMPTY, owner: ptr::null_mut() };
}

/// What the engine does for a plugin. Valid, with everything that it points to, until the process ends.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Size of this struct as the engine has it.
    pub struct_size: u64,
    /// [`ABI_MINOR`] of the engine.
    pub abi_minor: u32,
    /// Zero.
    pub reserved: u32,
    /// The first argument of every function below.
    pub context: *mut c_void,
    /// Writes a log line with the plugin's name; copies `message`. Any thread; does not block.
    pub log: unsafe extern "C" fn(context: *mut c_void, level: Level, message: Bytes),
    /// Now, milliseconds since 1970. Any thread; does not block.
    pub now_ms: unsafe extern "C" fn(context: *mut c_void) -> i64,
    /// Adds `by` to the counter `name` of the plugin, shown in `/metrics`; copies `name`. Names have the form of a code; a
    /// plugin has at most 100 of them, counters and gauges together, further ones are ignored with a warning. Any thread;
    /// does not block. Since minor 1.
    pub count: unsafe extern "C" fn(context: *mut c_void, name: Bytes, by: u64),
    /// Sets the gauge `name` of the plugin; copies `name`. Any thread; does not block. Since minor 1.
    pub gauge: unsafe extern "C" fn(context: *mut c_void, name: Bytes, value: f64),
}

/// What a plugin exports under [`SYMBOL`]: a constant, so that no code of the plugin runs before its header was read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    /// Who speaks which version.
    pub header: Header,
    /// The plugin's description as JSON: see [`descriptor`]. The bytes are the plugin's, are valid until the process ends
    /// and are the same at every call. What is not a JSON object is shown as the words of a failure. One thread; before
    /// any other function.
    pub describe: unsafe extern "C" fn() -> Bytes,
    /// Makes an instance. `config` is a JSON object, the table `[plugins.config.<name>]`, lent for the call; `host` may be
    /// kept. What is returned is the plugin's, to be freed by `destroy`; null after a failure, with the reason in
    /// `failure`. One thread; an older instance, of this library or another, may still be in use on others.
    pub create: unsafe extern "C" fn(host: *const Host, config: Bytes, failure: *mut Failure) -> *mut c_void,
    /// Says what becomes of each event: fills `batch.count` verdicts, in the order of the events. Everything is lent for
    /// the call; what the verdicts point to is the plugin's until `release`. After another status than [`Status::OK`]
    /// the verdicts are not read. Many threads at once, with one instance.
    pub process: unsafe extern "C" fn(
        instance: *mut c_void,
        batch: *const Batch,
        verdicts: *mut Verdict,
        failure: *mut Failure,
    ) -> Status,
    /// Frees what the verdicts of one call point to: they are as `process` left them. Called once after every `process`
    /// that returned, on its thread, whatever it returned.
    pub release: unsafe extern "C" fn(instance: *mut c_void, verdicts: *mut Verdict, count: u64),
    /// Ends and frees the instance. One thread, once, when no other function is under way with it; not at all while a
    /// call of `process` hangs, nor when the engine stops at once.
    pub destroy: unsafe extern "C" fn(instance: *mut c_void),
    /// Whether the plugin can do its work, with the reason in `failure` if not: shown in `/health`. May be null. One
    /// thread at a time, beside `process`. Since minor 1.
    pub health: Option<unsafe extern "C" fn(instance: *mut c_void, failure: *mut Failure) -> Status>,
}

/// Size of [`Plugin`] in minor version 0, the least that a plugin may have.
pub const PLUGIN_SIZE_1_0: u64 = 64;

// A plugin of minor 0 ends where the first field of minor 1 begins. `tests/layout.rs` holds the rest.
#[cfg(target_pointer_width = "64")]
const _: () =
    assert!(core::mem::offset_of!(Plugin, health) as u64 == PLUGIN_SIZE_1_0, "a field was put before `health`");
