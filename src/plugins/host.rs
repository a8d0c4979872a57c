//! What the engine does for a plugin: log lines, counters, gauges, the time.
//!
//! - A plugin's host is made once for its name and lives until the process ends, because a thread that the plugin started
//!   may use it at any time, also after the plugin was replaced. Its successor is given the same one, so that its counters
//!   go on.
//! - Every function may be called on any thread, at any time, with anything: texts are read within bounds, and nothing
//!   unwinds into the plugin. What cannot be used is left out; a plugin learns nothing of it.
//! - A plugin has at most [`MOST_SERIES`] series, because each costs memory for good and is scraped every time.

#![allow(unsafe_code, reason = "functions that foreign code calls, with pointers of its own")]

use std::{
    borrow::Cow,
    collections::HashMap,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
    sync::atomic::{AtomicBool, Ordering},
};

use ingestion_plugin_abi as abi;
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::counter::Counter;

use super::descriptor::is_name;
use crate::metrics::{FloatGauge, PluginMetrics};

/// Most series of one plugin, counters and gauges together: part of the contract ([`abi::Host::count`]).
pub const MOST_SERIES: usize = 100;

/// Most bytes of a log line: enough for a page of text, too little to flood a log with one call.
const LOG_BYTES: usize = 8 << 10;

/// Most bytes of a series' name, as of a code.
const NAME_BYTES: usize = 64;

/// The hosts of all plugins, each made when it is first asked for.
#[derive(Default)]
pub struct Hosts {
    metrics: PluginMetrics,
    made: Mutex<HashMap<Box<str>, Host>>,
}

impl Hosts {
    /// No hosts yet; their series appear in `metrics`.
    pub fn new(metrics: PluginMetrics) -> Self {
        Self { metrics, made: Mutex::default() }
    }

    /// The host of the plugin `name`: always the same one.
    pub fn of(&self, name: &str) -> Host {
        let mut made = self.made.lock();
        if let Some(host) = made.get(name) {
            return *host;
        }
        let host = Host::new(name, self.metrics.clone());
        made.insert(name.into(), host);
        host
    }
}

/// Series by their names, with their values.
pub(super) type Values<T> = Vec<(Box<str>, T)>;

/// The engine, as one plugin sees it. Lives until the process ends.
#[derive(Clone, Copy)]
pub struct Host(&'static abi::Host);

// SAFETY: the struct and its context are never written to again, and the context is Sync (checked below).
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    fn new(name: &str, metrics: PluginMetrics) -> Self {
        let context: &'static Context = Box::leak(Box::new(Context {
            name: name.to_owned(),
            metrics,
            series: RwLock::default(),
            full: AtomicBool::new(false),
        }));
        Self(Box::leak(Box::new(abi::Host {
            struct_size: size_of::<abi::Host>() as u64,
            abi_minor: abi::ABI_MINOR,
            reserved: 0,
            context: std::ptr::from_ref(shared(context)).cast_mut().cast::<c_void>(),
            log,
            now_ms,
            count,
            gauge,
        })))
    }

    pub(super) fn as_ptr(self) -> *const abi::Host {
        self.0
    }

    fn context(self) -> &'static Context {
        // SAFETY: made in `new`, never freed and never written to.
        unsafe { &*self.0.context.cast::<Context>() }
    }

    /// As the plugin's own call of [`abi::Host::count`], for one that runs elsewhere.
    pub(super) fn count(self, name: &str, by: u64) {
        self.context().count(name, by);
    }

    /// As the plugin's own call of [`abi::Host::gauge`], for one that runs elsewhere.
    pub(super) fn gauge(self, name: &str, value: f64) {
        self.context().gauge(name, value);
    }

    /// Every counter and every gauge of the plugin, with their values now.
    pub(super) fn series(self) -> (Values<u64>, Values<f64>) {
        let series = self.context().series.read();
        let counters = series.counters.iter().map(|(name, counter)| (name.clone(), counter.get())).collect();
        let gauges = series.gauges.iter().map(|(name, gauge)| (name.clone(), gauge.get())).collect();
        (counters, gauges)
    }
}

/// Only what may be used by many threads at once becomes a context.
fn shared<T: Sync>(value: &T) -> &T {
    value
}

struct Context {
    name: String,
    metrics: PluginMetrics,
    series: RwLock<Series>,
    /// That a further series was asked for is said once.
    full: AtomicBool,
}

#[derive(Default)]
struct Series {
    counters: HashMap<Box<str>, Counter>,
    gauges: HashMap<Box<str>, FloatGauge>,
}

impl Context {
    fn count(&self, name: &str, by: u64) {
        let known = |series: &Series| series.counters.get(name).cloned();
        if let Some(counter) = self.series(name, |series| &mut series.counters, known, PluginMetrics::counter) {
            counter.inc_by(by);
        }
    }

    fn gauge(&self, name: &str, value: f64) {
        let known = |series: &Series| series.gauges.get(name).cloned();
        if let Some(gauge) = self.series(name, |series| &mut series.gauges, known, PluginMetrics::gauge) {
            gauge.set(value);
        }
    }

    /// The series `name` in `of`, made by `make` if there is room.
    fn series<T: Clone>(
        &self,
        name: &str,
        of: impl Fn(&mut Series) -> &mut HashMap<Box<str>, T>,
        known: impl Fn(&Series) -> Option<T>,
        make: impl Fn(&PluginMetrics, &str, &str) -> T,
    ) -> Option<T> {
        if let Some(series) = known(&self.series.read()) {
            return Some(series);
        }
        if !is_name(name, NAME_BYTES) {
            return None;
        }
        let mut all = self.series.write();
        if let Some(series) = known(&all) {
            return Some(series);
        }
        if all.counters.len() + all.gauges.len() >= MOST_SERIES {
            drop(all);
            if !self.full.swap(true, Ordering::Relaxed) {
                let plugin = &*self.name;
                tracing::warn!(plugin, series = name, "the plugin has {MOST_SERIES} series; further ones are ignored");
            }
            return None;
        }
        let series = make(&self.metrics, &self.name, name);
        of(&mut all).insert(name.into(), series.clone());
        Some(series)
    }
}

/// Runs `code` with the plugin's context. A panic of ours ends here: it must not unwind into the plugin.
///
/// # Safety
/// `context` is that of a [`Host`], or null.
unsafe fn guarded<T>(context: *mut c_void, otherwise: T, code: impl FnOnce(&Context) -> T) -> T {
    // SAFETY: the caller's promise; a context is never freed.
    let Some(context) = (unsafe { context.cast::<Context>().as_ref() }) else { return otherwise };
    catch_unwind(AssertUnwindSafe(|| code(context))).unwrap_or(otherwise)
}

/// The first `most` bytes of `text`.
///
/// # Safety
/// The plugin's promise: `text.len` bytes at `text.data` can be read while the call lasts.
unsafe fn read<'a>(text: abi::Bytes, most: usize) -> Cow<'a, str> {
    let length = usize::try_from(text.len).unwrap_or(usize::MAX).min(most);
    if text.data.is_null() || length == 0 {
        return Cow::Borrowed("");
    }
    // SAFETY: the caller's promise, for the first bytes of it.
    String::from_utf8_lossy(unsafe { slice::from_raw_parts(text.data, length) })
}

unsafe extern "C" fn log(context: *mut c_void, level: abi::Level, message: abi::Bytes) {
    // SAFETY: the contract asks the plugin to pass on its context, and a message that can be read.
    unsafe {
        guarded(context, (), |context| {
            let (plugin, message) = (&*context.name, read(message, LOG_BYTES));
            match level {
                abi::Level::ERROR => tracing::error!(plugin, "{message}"),
                abi::Level::WARN => tracing::warn!(plugin, "{message}"),
                abi::Level::DEBUG => tracing::debug!(plugin, "{message}"),
                _ => tracing::info!(plugin, "{message}"),
            }
        });
    }
}

unsafe extern "C" fn now_ms(_context: *mut c_void) -> i64 {
    catch_unwind(|| Timestamp::now().as_millisecond()).unwrap_or_default()
}

unsafe extern "C" fn count(context: *mut c_void, name: abi::Bytes, by: u64) {
    // SAFETY: as in `log`.
    unsafe {
        guarded(context, (), |context| {
            // One more byte than allowed, so that a longer name is refused and not cut.
            context.count(&read(name, NAME_BYTES + 1), by);
        });
    }
}

unsafe extern "C" fn gauge(context: *mut c_void, name: abi::Bytes, value: f64) {
    // SAFETY: as in `log`.
    unsafe {
        guarded(context, (), |context| context.gauge(&read(name, NAME_BYTES + 1), value));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::metrics::Metrics;

    fn bytes(text: &str) -> abi::Bytes {
        abi::Bytes::of(text.as_bytes())
    }

    #[test]
    fn counters_and_gauges_appear_and_go_on_with_the_next_instance() {
        let metrics = Metrics::new();
        let hosts = Hosts::new(metrics.of_plugins());
        for _ in 0..2 {
            let host = hosts.of("shop").0;
            // SAFETY: the host's own context, and texts that outlive the call.
            unsafe {
                (host.count)(host.context, bytes("orders"), 2);
                (host.gauge)(host.context, bytes("rate"), 1.5);
                (host.log)(host.context, abi::Level::DEBUG, bytes("words"));
                assert!((host.now_ms)(host.context) > 1_700_000_000_000);
            }
        }
        let text = metrics.render();
        assert!(text.contains("ingestion_plugin_counter_total{plugin=\"shop\",name=\"orders\"} 4"), "{text}");
        assert!(text.contains("ingestion_plugin_gauge{plugin=\"shop\",name=\"rate\"} 1.5"), "{text}");
    }

    #[test]
    fn a_plugin_has_so_many_series_and_no_more() {
        let metrics = Metrics::new();
        let host = Hosts::new(metrics.of_plugins()).of("shop").0;
        for number in 0..2 * MOST_SERIES {
            // SAFETY: as above.
            unsafe { (host.count)(host.context, bytes(&format!("c{number}")), 1) };
        }
        // SAFETY: as above.
        unsafe {
            (host.gauge)(host.context, bytes("further"), 1.0);
            (host.count)(host.context, bytes("c0"), 1);
        }
        let text = metrics.render();
        assert_eq!(text.matches("ingestion_plugin_counter_total{").count(), MOST_SERIES);
        assert!(text.contains("name=\"c0\"} 2") && !text.contains("further"), "{text}");
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let metrics = Metrics::new();
        let host = Hosts::new(metrics.of_plugins()).of("shop").0;
        let long = "a".repeat(NAME_BYTES + 1);
        let null = abi::Bytes { data: std::ptr::null(), len: 500 };
        let not_utf8 = abi::Bytes::of(b"a\xffb");
        for name in [bytes(""), bytes("A b"), bytes("\"} 1\n"), bytes(&long), null, not_utf8] {
            // SAFETY: as above; a null address is not read.
            unsafe {
                (host.count)(host.context, name, 1);
                (host.gauge)(std::ptr::null_mut(), name, 1.0);
                (host.log)(host.context, abi::Level(77), name);
            }
        }
        assert!(!metrics.render().contains("shop"));
    }
}
