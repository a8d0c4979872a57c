//! The engine's side of the contract, as small as it can be.
#![allow(unsafe_code, reason = "calls a C interface")]

use std::{
    collections::BTreeMap,
    ffi::c_void,
    mem::{self, offset_of},
    slice,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Deserialize;

use super::Fault;
use crate::{
    Error, Id, Plugin, Purpose, Verdict,
    abi::{self, Batch, Bytes, Event, Failure, Host, Level, Outcome, Status},
    ffi,
};

/// The tenant of every event.
const TENANT: [u8; 16] = [1; 16];

/// 2026-01-01T00:00:00Z, milliseconds.
const NOW: i64 = 1_767_225_600_000;

/// Room for the words of an error, as the engine has it.
const FAILURE_BYTES: usize = 4096;

/// One event, with what the engine knows of it.
pub(super) struct Input {
    json: String,
    kind: String,
    id: Id,
}

impl Input {
    /// Reads type and id from the event itself; an event without an id gets one of zeros.
    pub(super) fn new(json: String) -> Self {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Known {
            #[serde(rename = "type")]
            kind: String,
            id: String,
        }

        let known: Known = serde_json::from_str(&json).unwrap_or_default();
        let mut id = [0; 16];
        let digits = known.id.bytes().filter_map(|byte| char::from(byte).to_digit(16));
        for (at, digit) in digits.take(32).enumerate() {
            if let (Some(byte), Ok(digit)) = (id.get_mut(at / 2), u8::try_from(digit)) {
                *byte = *byte << 4 | digit;
            }
        }
        Self { json, kind: known.kind, id: Id(id) }
    }
}

/// What the plugin did with its host.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    log: Vec<(Level, String)>,
    counters: BTreeMap<String, u64>,
    gauges: BTreeMap<String, f64>,
    now: Option<i64>,
}

impl Record {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn log(&self) -> Vec<(Level, String)> {
        self.notes().log.clone()
    }

    pub(super) fn counters(&self) -> BTreeMap<String, u64> {
        self.notes().counters.clone()
    }

    pub(super) fn gauges(&self) -> BTreeMap<String, f64> {
        self.notes().gauges.clone()
    }

    pub(super) fn set_now(&self, now: i64) {
        self.notes().now = Some(now);
    }

    fn now(&self) -> i64 {
        self.notes().now.unwrap_or(NOW)
    }
}

/// A plugin and its instance.
pub(super) struct Engine {
    plugin: abi::Plugin,
    instance: *mut c_void,
    record: &'static Record,
    minor: u32,
}

// SAFETY: the contract lets many threads use one instance.
unsafe impl Send for Engine {}
// SAFETY: as above.
unsafe impl Sync for Engine {}

impl Engine {
    /// Makes an instance of a plugin in safe Rust, in an engine of the given minor version.
    pub(super) fn of<P: Plugin>(config: &str, minor: u32) -> Result<Self, Error> {
        // SAFETY: this crate keeps to the contract for every `P`.
        unsafe { Self::new(ffi::plugin::<P>(), config, minor) }
    }

    /// Makes an instance of any plugin.
    ///
    /// # Safety
    /// `plugin` keeps to the contract.
    pub(super) unsafe fn new(plugin: abi::Plugin, config: &str, minor: u32) -> Result<Self, Error> {
        // The contract: a host is there until the process ends.
        let record: &'static Record = Box::leak(Box::default());
        let host: &'static Host = Box::leak(Box::new(Host {
            struct_size: if minor == 0 { offset_of!(Host, count) } else { size_of::<Host>() } as u64,
            abi_minor: minor,
            reserved: 0,
            context: std::ptr::from_ref(record).cast_mut().cast(),
            log,
            now_ms,
            count,
            gauge,
        }));
        let mut words = Words::new();
        // SAFETY: all arguments live until it returns, and the host for ever.
        let instance = unsafe { (plugin.create)(host, Bytes::of(config.as_bytes()), &raw mut *words.failure()) };
        if instance.is_null() { Err(words.text().into()) } else { Ok(Self { plugin, instance, record, minor }) }
    }

    pub(super) fn record(&self) -> &'static Record {
        self.record
    }

    pub(super) fn describe(&self) -> String {
        // SAFETY: the plugin's bytes stay for ever.
        unsafe { owned((self.plugin.describe)()) }.unwrap_or_default()
    }

    pub(super) fn process(&self, events: &[Input], purpose: Purpose) -> Result<Vec<Verdict>, Fault> {
        let inputs: Vec<Event> = events
            .iter()
            .map(|event| Event {
                json: Bytes::of(event.json.as_bytes()),
                kind: Bytes::of(event.kind.as_bytes()),
                id: event.id.bytes(),
            })
            .collect();
        let batch = Batch {
            struct_size: if self.minor == 0 { offset_of!(Batch, purpose) } else { size_of::<Batch>() } as u64,
            tenant_id: TENANT,
            received_at_ms: self.record.now(),
            events: inputs.as_ptr(),
            count: inputs.len() as u64,
            purpose,
            reserved: 0,
        };
        let mut verdicts = vec![abi::Verdict::NONE; inputs.len()];
        let mut words = Words::new();
        // SAFETY: the instance lives, and so do all arguments until it returns.
        let status = unsafe {
            (self.plugin.process)(self.instance, &raw const batch, verdicts.as_mut_ptr(), &raw mut *words.failure())
        };
        let result = match status {
            Status::OK => verdicts.iter().map(read).collect(),
            Status::PANICKED => Err(Fault::Panicked(words.text())),
            _ => Err(Fault::Failed(words.text())),
        };
        // SAFETY: once after the call, on its thread, with its verdicts.
        unsafe { (self.plugin.release)(self.instance, verdicts.as_mut_ptr(), verdicts.len() as u64) };
        result
    }

    pub(super) fn health(&self) -> Result<(), Fault> {
        let Some(health) = self.plugin.health else { return Ok(()) };
        let mut words = Words::new();
        // SAFETY: the instance lives, and so does the argument until it returns.
        match unsafe { health(self.instance, &raw mut *words.failure()) } {
            Status::OK => Ok(()),
            Status::PANICKED => Err(Fault::Panicked(words.text())),
            _ => Err(Fault::Failed(words.text())),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: once; `&mut self` says that no call is under way.
        unsafe { (self.plugin.destroy)(self.instance) }
    }
}

/// Copies a verdict while the plugin keeps what it points to.
fn read(verdict: &abi::Verdict) -> Result<Verdict, Fault> {
    // SAFETY: the plugin has filled it, and was not yet told to release it.
    let text = |bytes| unsafe { owned(bytes) }.ok_or_else(|| Fault::BadOutput("a text is not UTF-8".to_owned()));
    let code = |bytes| {
        text(bytes).and_then(|code| {
            if is_name(&code, 64) {
                Ok(code)
            } else {
                Err(Fault::BadOutput(format!(
                    "`{code}` must be lower-case letters, digits and _, at most 64, a letter first"
                )))
            }
        })
    };
    match verdict.outcome {
        Outcome::KEEP => Ok(Verdict::keep()),
        Outcome::REPLACE => {
            let json = text(verdict.first)?;
            match serde_json::from_str::<serde::de::IgnoredAny>(&json) {
                Ok(_) => Ok(Verdict::replace_json(json)),
                Err(error) => Err(Fault::BadOutput(format!("the replacement is not JSON ({error}): {json}"))),
            }
        }
        Outcome::REJECT => Ok(Verdict::reject(code(verdict.first)?, text(verdict.second)?)),
        Outcome::DROP => Ok(Verdict::drop(code(verdict.first)?)),
        other => Err(Fault::BadOutput(format!("unknown outcome {}", other.0))),
    }
}

/// Whether it has the form of a name or a code.
pub(super) fn is_name(text: &str, most: usize) -> bool {
    text.len() <= most
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// # Safety
/// The bytes are readable.
unsafe fn owned(bytes: Bytes) -> Option<String> {
    if bytes.len == 0 {
        return Some(String::new());
    }
    // SAFETY: the caller's.
    let bytes = unsafe { slice::from_raw_parts(bytes.data, usize::try_from(bytes.len).ok()?) };
    String::from_utf8(bytes.to_vec()).ok()
}

/// Room for the words of an error.
struct Words {
    room: Vec<u8>,
    failure: Failure,
}

impl Words {
    fn new() -> Self {
        let mut room = vec![0; FAILURE_BYTES];
        let failure = Failure { data: room.as_mut_ptr(), capacity: room.len() as u64, len: 0 };
        Self { room, failure }
    }

    fn failure(&mut self) -> &mut Failure {
        &mut self.failure
    }

    fn text(mut self) -> String {
        let mut room = mem::take(&mut self.room);
        room.truncate(usize::try_from(self.failure.len).unwrap_or(0));
        String::from_utf8_lossy(&room).into_owned()
    }
}

/// # Safety
/// `context` is the one that the host was made with.
unsafe fn record<'a>(context: *mut c_void) -> &'a Record {
    // SAFETY: it points to a `Record` that stays until the process ends, and is only shared.
    unsafe { &*context.cast::<Record>() }
}

unsafe extern "C" fn log(context: *mut c_void, level: Level, message: Bytes) {
    // SAFETY: the plugin's arguments, valid until this returns.
    let (record, message) = unsafe { (record(context), owned(message)) };
    record.notes().log.push((level, message.unwrap_or_default()));
}

unsafe extern "C" fn now_ms(context: *mut c_void) -> i64 {
    // SAFETY: the plugin's argument.
    unsafe { record(context) }.now()
}

unsafe extern "C" fn count(context: *mut c_void, name: Bytes, by: u64) {
    // SAFETY: the plugin's arguments, valid until this returns.
    let (record, name) = unsafe { (record(context), owned(name)) };
    *record.notes().counters.entry(name.unwrap_or_default()).or_default() += by;
}

unsafe extern "C" fn gauge(context: *mut c_void, name: Bytes, value: f64) {
    // SAFETY: the plugin's arguments, valid until this returns.
    let (record, name) = unsafe { (record(context), owned(name)) };
    record.notes().gauges.insert(name.unwrap_or_default(), value);
}
