//! A plugin of contract 1.0, compiled from a frozen source with a frozen header, still works with today's structs.
#![allow(unsafe_code, reason = "calls a C interface")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::{
    ffi::c_void,
    slice,
    sync::atomic::{AtomicU64, Ordering},
};

use ingestion_plugin_abi::{
    ABI_MINOR, Batch, Bytes, Event, Failure, Header, Host, Level, MAGIC, Outcome, PLUGIN_SIZE_1_0, Plugin, Purpose,
    SYMBOL, Status, Verdict,
};
use support::{compile, here};

unsafe extern "C" fn log(context: *mut c_void, level: Level, message: Bytes) {
    assert_eq!((level, text(message)), (Level::INFO, "created"));
    // SAFETY: the host below.
    unsafe { &*context.cast::<AtomicU64>() }.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn now_ms(_context: *mut c_void) -> i64 {
    1_767_225_600_000
}

unsafe extern "C" fn count(_context: *mut c_void, _name: Bytes, _by: u64) {
    panic!("minor 0 has no counters");
}

unsafe extern "C" fn gauge(_context: *mut c_void, _name: Bytes, _value: f64) {
    panic!("minor 0 has no gauges");
}

fn text<'a>(bytes: Bytes) -> &'a str {
    if bytes.len == 0 {
        return "";
    }
    // SAFETY: texts of the plugin that are not released while the test looks at them.
    let bytes = unsafe { slice::from_raw_parts(bytes.data, usize::try_from(bytes.len).unwrap()) };
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_plugin_of_contract_1_0_still_runs() {
    let source = here().join("../../tests/fixtures/plugins/v1_0/plugin.c");
    let library = compile("cc", &["-std=c11", "-shared", "-fPIC"], &source, "libv1_0.so");
    // SAFETY: a library of ours without constructors.
    let library = unsafe { libloading::Library::new(library) }.unwrap();
    // SAFETY: the symbol is a `Plugin` of minor 0; only its first 64 bytes are read below.
    let plugin = unsafe { library.get::<*const Plugin>(SYMBOL) }.unwrap();
    let plugin: *const Plugin = *plugin;

    // SAFETY: every plugin begins with a header.
    let header: Header = unsafe { (&raw const (*plugin).header).read() };
    assert_eq!(header, Header { magic: MAGIC, abi_major: 1, abi_minor: 0, struct_size: PLUGIN_SIZE_1_0 });
    // SAFETY: fields within the plugin's size.
    let (describe, create, process, release, destroy) =
        unsafe { ((*plugin).describe, (*plugin).create, (*plugin).process, (*plugin).release, (*plugin).destroy) };

    // SAFETY: nothing was called before.
    let description = text(unsafe { describe() });
    let descriptor: ingestion_plugin_abi::descriptor::Descriptor = serde_json::from_str(description).unwrap();
    assert_eq!((descriptor.name.as_str(), descriptor.adds[0].name.as_str()), ("legacy", "legacy_note"));

    let logged = AtomicU64::new(0);
    let host = Host {
        struct_size: size_of::<Host>() as u64,
        abi_minor: ABI_MINOR,
        reserved: 0,
        context: (&raw const logged).cast_mut().cast(),
        log,
        now_ms,
        count,
        gauge,
    };
    let mut room = [0_u8; 256];
    let mut failure = Failure { data: room.as_mut_ptr(), capacity: room.len() as u64, len: 0 };
    // SAFETY: all arguments live until the end of the test.
    let instance = unsafe { create(&raw const host, Bytes::of(b"{}"), &raw mut failure) };
    assert!(!instance.is_null());
    assert_eq!(logged.load(Ordering::Relaxed), 1);

    let call = |says: &[&str], failure: &mut Failure| {
        let texts: Vec<String> = says.iter().map(|say| format!(r#"{{"type":"legacy_note","say":"{say}"}}"#)).collect();
        let events: Vec<Event> = texts
            .iter()
            .map(|json| Event { json: Bytes::of(json.as_bytes()), kind: Bytes::of(b"legacy_note"), id: [7; 16] })
            .collect();
        let batch = Batch {
            struct_size: size_of::<Batch>() as u64,
            tenant_id: [1; 16],
            received_at_ms: 0,
            events: events.as_ptr(),
            count: events.len() as u64,
            purpose: Purpose::LIVE,
            reserved: 0,
        };
        let mut verdicts = vec![Verdict::NONE; events.len()];
        // SAFETY: all arguments live until it returns, and so does the instance.
        let status = unsafe { process(instance, &raw const batch, verdicts.as_mut_ptr(), failure) };
        let said: Vec<(Outcome, String, String)> = verdicts
            .iter()
            .map(|verdict| (verdict.outcome, text(verdict.first).to_owned(), text(verdict.second).to_owned()))
            .collect();
        // SAFETY: once, after the call.
        unsafe { release(instance, verdicts.as_mut_ptr(), verdicts.len() as u64) };
        (status, said)
    };
    let (status, said) = call(&["keep", "replace", "reject", "drop"], &mut failure);
    assert_eq!(status, Status::OK);
    let replacement = r#"{"type":"legacy_note","say":"replaced"}"#;
    assert_eq!(
        said,
        [
            (Outcome::KEEP, String::new(), String::new()),
            (Outcome::REPLACE, replacement.to_owned(), String::new()),
            (Outcome::REJECT, "told_to".to_owned(), r#"the event says "reject""#.to_owned()),
            (Outcome::DROP, "told_to".to_owned(), String::new()),
        ]
    );
    assert_eq!(call(&["replace", "fail"], &mut failure).0, Status::FAILED);
    let len = usize::try_from(failure.len).unwrap();
    assert_eq!(std::str::from_utf8(&room[..len]).unwrap(), r#"the event says "fail""#);
    // SAFETY: once, at the end.
    unsafe { destroy(instance) };
}
