//! A plugin's instance in this process: calls across the contract, and what comes back held against it.
//!
//! - Every entry into the plugin's code goes through [`Worker::call`], so that a crash is laid at its door and a hang is
//!   noticed. Reading what it returned is part of the call, because its pointers may be garbage.
//! - `release` follows every `process`, on the same thread, whatever came of it.
//! - What is checked: the status, that every event has a known outcome, that lengths are within the limits before anything
//!   is read, UTF-8, the form of codes. What cannot be checked from here: that a plausible length is the true one.
//! - A panic that a plugin lets out of its functions ends the process (`extern "C"` aborts, and so does unwinding into
//!   Rust from foreign code). The SDK catches panics inside the plugin; whoever writes without it must.

#![allow(unsafe_code, reason = "calls foreign code")]

mod output;

pub(super) use output::read as read_verdicts;

use std::{ffi::c_void, ptr::NonNull, time::Duration};

use ingestion_plugin_abi::{self as abi, Status};
use thiserror::Error;

use super::{
    call::{Backend, Call, Fault, Verdict},
    descriptor::{self, DESCRIPTOR_BYTES, Descriptor, DescriptorError},
    host::Host,
    library::{Functions, Library, Unreadable, lent},
    threads::{Caller, Worker},
};

/// What `describe`, `create` and `destroy` are given: they happen once, and may read a dictionary or close a connection.
pub const LIFECYCLE_DEADLINE: Duration = Duration::from_secs(10);

/// What `health` is given: it answers from what the plugin knows.
pub const HEALTH_DEADLINE: Duration = Duration::from_secs(1);

/// Most bytes of the words of a failure.
const FAILURE_BYTES: usize = 4096;

/// What a plugin may return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Most bytes of one event: [`output_bytes`] of what its sender may send.
    pub event_bytes: usize,
}

impl Limits {
    /// Most bytes of everything that one call returns, after `input` bytes of events. The memory of requests is bounded by
    /// what their senders sent, so what a plugin makes of it is bounded by that too: four times as much, which is generous
    /// for enrichment, or sixteen of the largest events, so that a few small events may become large ones.
    pub fn call_bytes(self, input: usize) -> usize {
        input.saturating_mul(4).max(self.event_bytes.saturating_mul(16))
    }
}

/// Most bytes of an event that a plugin returns where senders may send `event_bytes`. More than that, or a sender could
/// make the plugin fail by events of just the size that is allowed; and no more than everything behind carries well.
pub fn output_bytes(event_bytes: usize) -> usize {
    event_bytes.max(256 << 10)
}

/// Why a plugin could not be asked what it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DescribeError {
    /// It did not answer.
    #[error("`describe` did not answer: {0}")]
    Fault(#[from] Fault),
    /// Its answer cannot be used.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
}

/// Why an instance was not made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CreateError {
    /// It did not answer.
    #[error("`create` did not answer: {0}")]
    Fault(#[from] Fault),
    /// It did not want to, and said why.
    #[error("it does not start: {message}; see its configuration, [plugins.config.<name>]")]
    Refused {
        /// In its words.
        message: String,
    },
    /// It did not want to.
    #[error("it does not start, and does not say why: `create` returned null")]
    Silent,
}

/// Asks a library what plugin it is. Blocking.
///
/// # Errors
/// [`DescribeError`]
pub fn describe(worker: &Worker, caller: &Caller, library: &Library) -> Result<Descriptor, DescribeError> {
    let describe = library.functions.describe;
    let judged = worker.call(caller, LIFECYCLE_DEADLINE, || {
        // SAFETY: the library is never unloaded, and the contract lets `describe` be called at any time by one thread.
        let bytes = unsafe { describe() };
        // SAFETY: the contract: the bytes are there until the process ends.
        match unsafe { lent(bytes, DESCRIPTOR_BYTES) } {
            Ok(bytes) => descriptor::parse(bytes),
            Err(Unreadable::Null { .. }) => Err(DescriptorError::Missing),
            Err(Unreadable::TooLong { len, .. }) => Err(DescriptorError::TooLong { bytes: len }),
            Err(Unreadable::NoMemory { .. }) => Err(DescriptorError::Garbage),
        }
    })?;
    Ok(judged?)
}

/// A plugin's instance. Dropping it leaves the plugin's own memory and threads as they are: only [`Instance::retire`]
/// ends it, because code of the plugin must run for that, under guard.
pub struct Instance {
    functions: Functions,
    pointer: NonNull<c_void>,
    caller: Caller,
    limits: Limits,
}

// SAFETY: the contract lets `process` and `release` be called by many threads at once with one instance, `health` beside
// them, and `destroy` by any thread once nothing else is under way.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

impl Instance {
    /// Makes an instance with the configuration `config`, a JSON object. Blocking.
    ///
    /// # Errors
    /// [`CreateError`]
    pub fn create(
        worker: &Worker,
        caller: Caller,
        library: &Library,
        host: Host,
        config: &str,
        limits: Limits,
    ) -> Result<Self, CreateError> {
        let functions = library.functions;
        let made = worker.call(&caller, LIFECYCLE_DEADLINE, || {
            let mut words = Words::new();
            // SAFETY: the library is never unloaded; the host lives for good; config and words outlive the call.
            let pointer = unsafe { (functions.create)(host.as_ptr(), abi::Bytes::of(config.as_bytes()), words.room()) };
            NonNull::new(pointer).map(Pointer).ok_or_else(|| words.text())
        })?;
        match made {
            Ok(Pointer(pointer)) => Ok(Self { functions, pointer, caller, limits }),
            Err(message) if message.is_empty() => Err(CreateError::Silent),
            Err(message) => Err(CreateError::Refused { message }),
        }
    }

    /// Ends the instance. Blocking. A fault leaves it as it is, and is only worth a log line.
    ///
    /// # Errors
    /// [`Fault::Deadline`]
    pub fn retire(self, worker: &Worker) -> Result<(), Fault> {
        worker.call(&self.caller, LIFECYCLE_DEADLINE, || {
            // SAFETY: `self` is owned here, so no other call is under way, and none can follow.
            unsafe { (self.functions.destroy)(self.pointer.as_ptr()) }
        })
    }

    fn enter(&self, batch: &abi::Batch, count: usize, input: usize) -> Result<Vec<Verdict>, Fault> {
        let mut verdicts = vec![abi::Verdict::NONE; count];
        let mut words = Words::new();
        let release = Release { instance: self, verdicts: verdicts.as_mut_ptr(), count: batch.count };
        // SAFETY: the instance lives as long as `self`; batch, verdicts and words outlive the call, and there are as many
        // verdicts as events.
        let status = unsafe { (self.functions.process)(self.pointer.as_ptr(), batch, release.verdicts, words.room()) };
        match status {
            // SAFETY: what the verdicts point to is there until `release` runs, when `release` is dropped below.
            Status::OK => unsafe {
                let raw = std::slice::from_raw_parts(release.verdicts.cast_const(), count);
                output::read(raw, input, self.limits)
            },
            Status::PANICKED => Err(Fault::Panicked { message: words.or("it does not say where") }),
            Status::FAILED => Err(Fault::Failed { message: words.or("it does not say why") }),
            Status(other) => {
                Err(Fault::Failed { message: format!("status {other}, which is none: {}", words.or("no words")) })
            }
        }
    }
}

impl Backend for Instance {
    fn process(&self, worker: &Worker, call: &Call<'_>, deadline: Duration) -> Result<Vec<Verdict>, Fault> {
        let events: Vec<abi::Event> = call
            .events
            .iter()
            .map(|event| abi::Event {
                json: abi::Bytes::of(event.json.as_bytes()),
                kind: abi::Bytes::of(event.kind.as_bytes()),
                id: event.id.0.into_bytes(),
            })
            .collect();
        let batch = abi::Batch {
            struct_size: size_of::<abi::Batch>() as u64,
            tenant_id: call.tenant.0.into_bytes(),
            received_at_ms: call.received_at_ms,
            events: events.as_ptr(),
            count: events.len() as u64,
            purpose: call.purpose,
            reserved: 0,
        };
        let input = call.events.iter().map(|event| event.json.len()).sum();
        worker.call(&self.caller, deadline, || self.enter(&batch, events.len(), input))?
    }

    fn health(&self, worker: &Worker) -> Result<(), String> {
        let Some(health) = self.functions.health else { return Ok(()) };
        let answer = worker.call(&self.caller, HEALTH_DEADLINE, || {
            let mut words = Words::new();
            // SAFETY: the instance lives as long as `self`, the words outlive the call.
            match unsafe { health(self.pointer.as_ptr(), words.room()) } {
                Status::OK => Ok(()),
                _ => Err(words.or("it does not say why")),
            }
        });
        answer.unwrap_or_else(|fault| Err(fault.to_string()))
    }
}

/// An instance's address on its way out of a call.
struct Pointer(NonNull<c_void>);

// SAFETY: as for `Instance`.
unsafe impl Send for Pointer {}

/// Calls `release` when it is dropped: after every `process`, whatever came of it.
struct Release<'a> {
    instance: &'a Instance,
    verdicts: *mut abi::Verdict,
    count: u64,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        // SAFETY: `process` was called with these verdicts on this thread, and nothing that they point to is used any
        // more: what was read was copied.
        unsafe { (self.instance.functions.release)(self.instance.pointer.as_ptr(), self.verdicts, self.count) }
    }
}

/// Room for the words of a failure.
struct Words {
    room: abi::Failure,
    bytes: Vec<u8>,
}

impl Words {
    fn new() -> Self {
        let mut bytes = vec![0; FAILURE_BYTES];
        Self { room: abi::Failure { data: bytes.as_mut_ptr(), capacity: FAILURE_BYTES as u64, len: 0 }, bytes }
    }

    fn room(&mut self) -> &mut abi::Failure {
        &mut self.room
    }

    /// What was written. A length beyond the room counts as all of it.
    fn text(&self) -> String {
        let length = usize::try_from(self.room.len).unwrap_or(FAILURE_BYTES).min(FAILURE_BYTES);
        String::from_utf8_lossy(self.bytes.get(..length).unwrap_or_default()).trim().to_owned()
    }

    fn or(&self, otherwise: &str) -> String {
        let text = self.text();
        if text.is_empty() { otherwise.to_owned() } else { text }
    }
}

#[cfg(test)]
mod tests;
