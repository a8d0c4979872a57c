//! What the engine lends to a plugin: the host, a batch, room for the words of an error.
//!
//! An engine may be older than this crate: a field that lies beyond the `struct_size` of the engine's struct is not there,
//! and no reference to the whole struct is ever made.
#![allow(unsafe_code, reason = "reads what the engine points to")]

use std::{ffi::c_void, fmt, mem::offset_of, ptr, slice};

use crate::{
    abi::{self, Bytes, Level, Purpose},
    event::{Event, Id},
};

/// The field of a struct that the engine lends, if its struct, which is `$size` bytes large, goes that far.
macro_rules! field {
    ($pointer:expr, $size:expr, $type:ty, $field:ident) => {{
        let pointer: *const $type = $pointer;
        // SAFETY: only an address; nothing is read.
        let field = unsafe { &raw const (*pointer).$field };
        let end = (offset_of!($type, $field) + size_of_pointed(field)) as u64;
        // SAFETY: `pointer` is to `$size` bytes of a `$type`, and the field lies within.
        (end <= $size).then(|| unsafe { field.read() })
    }};
}

const fn size_of_pointed<T>(_: *const T) -> usize {
    size_of::<T>()
}

/// The text in `bytes`.
///
/// # Safety
/// `bytes` are readable and not changed during `'a`, and are UTF-8: the contract says so of every text.
pub(super) unsafe fn text<'a>(bytes: Bytes) -> &'a str {
    if bytes.len == 0 {
        return "";
    }
    // SAFETY: the caller's; the length is one of memory, so it fits.
    unsafe { str::from_utf8_unchecked(slice::from_raw_parts(bytes.data, usize::try_from(bytes.len).unwrap_or(0))) }
}

/// Writes the words of an error to where the engine wants them; what does not fit is cut off.
///
/// # Safety
/// `failure` is null or what the engine lent for this call.
pub(super) unsafe fn fail(failure: *mut abi::Failure, words: &str) {
    // SAFETY: the caller's; nobody else has it during the call.
    let Some(failure) = (unsafe { failure.as_mut() }) else { return };
    let capacity = usize::try_from(failure.capacity).unwrap_or(usize::MAX);
    let len = words.floor_char_boundary(capacity.min(words.len()));
    if !failure.data.is_null() {
        // SAFETY: `data` has room for `capacity` bytes, and does not overlap with a text of ours.
        unsafe { ptr::copy_nonoverlapping(words.as_ptr(), failure.data, len) };
        failure.len = len as u64;
    }
}

/// What the engine does for a plugin: logging, metrics, time. It is a handle; copies do the same, from any thread, for as
/// long as the process runs.
#[derive(Clone, Copy)]
pub struct Host {
    context: *mut c_void,
    log: unsafe extern "C" fn(*mut c_void, Level, Bytes),
    now_ms: unsafe extern "C" fn(*mut c_void) -> i64,
    count: Option<unsafe extern "C" fn(*mut c_void, Bytes, u64)>,
    gauge: Option<unsafe extern "C" fn(*mut c_void, Bytes, f64)>,
}

// SAFETY: the contract says of every function of the host "any thread", and of the host that it stays.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// # Safety
    /// `host` is what the engine gave to `create`.
    pub(super) unsafe fn new(host: *const abi::Host) -> Self {
        // SAFETY: every host has the fields of minor 0.
        let (size, context, log, now_ms) =
            unsafe { ((*host).struct_size, (*host).context, (*host).log, (*host).now_ms) };
        Self {
            context,
            log,
            now_ms,
            count: field!(host, size, abi::Host, count),
            gauge: field!(host, size, abi::Host, gauge),
        }
    }

    /// Logs that somebody has to act.
    pub fn error(&self, message: impl fmt::Display) {
        self.log(Level::ERROR, &message);
    }

    /// Logs that somebody should look.
    pub fn warn(&self, message: impl fmt::Display) {
        self.log(Level::WARN, &message);
    }

    /// Logs what happens seldom and is as it should be.
    pub fn info(&self, message: impl fmt::Display) {
        self.log(Level::INFO, &message);
    }

    /// Logs for whoever looks for a fault.
    pub fn debug(&self, message: impl fmt::Display) {
        self.log(Level::DEBUG, &message);
    }

    fn log(&self, level: Level, message: &dyn fmt::Display) {
        let message = message.to_string();
        // SAFETY: a function of the host with its context; `message` lives until it returns.
        unsafe { (self.log)(self.context, level, Bytes::of(message.as_bytes())) }
    }

    /// Adds `by` to the plugin's counter `name` in the engine's `/metrics`. Names have the form `[a-z][a-z0-9_]*`; a plugin
    /// has at most 100 of them, counters and gauges together. An engine of contract 1.0 has none: nothing happens.
    pub fn count(&self, name: &str, by: u64) {
        if let Some(count) = self.count {
            // SAFETY: a function of the host with its context; `name` lives until it returns.
            unsafe { count(self.context, Bytes::of(name.as_bytes()), by) }
        }
    }

    /// Sets the plugin's gauge `name`, as for [`Host::count`].
    pub fn gauge(&self, name: &str, value: f64) {
        if let Some(gauge) = self.gauge {
            // SAFETY: a function of the host with its context; `name` lives until it returns.
            unsafe { gauge(self.context, Bytes::of(name.as_bytes()), value) }
        }
    }

    /// Now, in milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        // SAFETY: a function of the host with its context.
        unsafe { (self.now_ms)(self.context) }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("metrics", &self.count.is_some()).finish_non_exhaustive()
    }
}

/// Events of one request, of one tenant; at least one. Lent for the length of a call.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    tenant: Id,
    received_at_ms: i64,
    purpose: Purpose,
    events: &'a [abi::Event],
}

impl<'a> Batch<'a> {
    /// # Safety
    /// `batch` is what the engine gave to `process`, which does not return during `'a`.
    pub(super) unsafe fn new(batch: *const abi::Batch) -> Self {
        // SAFETY: every batch has the fields of minor 0.
        let (size, tenant, received_at_ms, events, count) = unsafe {
            ((*batch).struct_size, (*batch).tenant_id, (*batch).received_at_ms, (*batch).events, (*batch).count)
        };
        let events = if count == 0 {
            &[]
        } else {
            // SAFETY: the engine says that there are so many. They are in memory, so the number fits.
            unsafe { slice::from_raw_parts(events, usize::try_from(count).unwrap_or(0)) }
        };
        let purpose = field!(batch, size, abi::Batch, purpose).unwrap_or(Purpose::LIVE);
        Self { tenant: Id(tenant), received_at_ms, purpose, events }
    }

    /// Whose events.
    pub fn tenant_id(&self) -> Id {
        self.tenant
    }

    /// When they were received, in milliseconds since 1970.
    pub fn received_at_ms(&self) -> i64 {
        self.received_at_ms
    }

    /// Why they are processed. An engine of contract 1.0 does not say: [`Purpose::LIVE`].
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// How many events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// One of them.
    pub fn get(&self, at: usize) -> Option<Event<'a>> {
        self.events.get(at).map(event)
    }

    /// The events, in their order.
    pub fn iter(&self) -> Iter<'a> {
        Iter(self.events.iter())
    }
}

/// The only ones who call it have an `abi::Event` of a [`Batch`].
fn event<'a>(event: &'a abi::Event) -> Event<'a> {
    // SAFETY: a `Batch` is only made of what the engine lends for `'a`, and its texts are UTF-8 by contract.
    let (kind, json) = unsafe { (text::<'a>(event.kind), text::<'a>(event.json)) };
    Event { id: Id(event.id), kind, json }
}

/// Iterator over the events of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Iter<'a>(slice::Iter<'a, abi::Event>);

impl<'a> Iterator for Iter<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        self.0.next().map(event)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &Batch<'a> {
    type Item = Event<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(words: &str, capacity: usize) -> String {
        let mut room = [b'#'; 8];
        let mut failure = abi::Failure { data: room.as_mut_ptr(), capacity: capacity as u64, len: 0 };
        // SAFETY: `room` has at least `capacity` bytes.
        unsafe { fail(&raw mut failure, words) };
        let len = usize::try_from(failure.len).unwrap_or(usize::MAX);
        String::from_utf8_lossy(&room).chars().take(len).collect()
    }

    #[test]
    fn words_are_cut_between_characters() {
        assert_eq!(written("short", 8), "short");
        assert_eq!(written("too long for it", 8), "too long");
        assert_eq!(written("aé", 2), "a");
        assert_eq!(written("a", 0), "");
        // SAFETY: null is allowed.
        unsafe { fail(ptr::null_mut(), "nowhere") };
    }
}
