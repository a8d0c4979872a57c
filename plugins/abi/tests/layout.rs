//! Where everything lies, for ever: the size of every struct, the offset of every field, the value of every constant.
//!
//! Compiled plugins out there have these numbers in them. A line may only be added here: for a field that a minor version
//! appends, or for a new constant. `minor_0_ends_where_it_did` keeps what the first minor version had.
#![cfg(target_pointer_width = "64")]

use std::mem::{align_of, offset_of};

use ingestion_plugin_abi::{
    ABI_MAJOR, ABI_MINOR, Batch, Bytes, Event, Failure, Header, Host, Level, MAGIC, Outcome, PLUGIN_SIZE_1_0, Plugin,
    Purpose, SYMBOL, Status, Verdict,
};

/// Notes what differs from the golden value.
macro_rules! layout {
    ($wrong:ident, $type:ident: $size:literal bytes, aligned to $align:literal { $($field:ident: $offset:literal),+ $(,)? }) => {
        golden(&mut $wrong, concat!("size of ", stringify!($type)), size_of::<$type>() as u64, $size);
        golden(&mut $wrong, concat!("alignment of ", stringify!($type)), align_of::<$type>() as u64, $align);
        $(golden(
            &mut $wrong,
            concat!("offset of ", stringify!($type), "::", stringify!($field)),
            offset_of!($type, $field) as u64,
            $offset,
        );)+
        // A field without a line here does not compile.
        let _ = |value: $type| { let $type { $($field: _),+ } = value; };
    };
}

macro_rules! constants {
    ($wrong:ident, $type:ident { $($name:ident: $value:literal),+ $(,)? }) => {
        golden(&mut $wrong, concat!("size of ", stringify!($type)), size_of::<$type>() as u64, 4);
        $(golden(&mut $wrong, concat!(stringify!($type), "::", stringify!($name)), u64::from($type::$name.0), $value);)+
    };
}

fn golden(wrong: &mut Vec<String>, what: &str, is: u64, was: u64) {
    if is != was {
        wrong.push(format!("{what}: was {was}, is {is}"));
    }
}

fn verdict(wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "the contract has changed; plugins that are compiled would read the wrong memory:\n  {}\n\
         a minor version only appends; anything else needs another ABI_MAJOR",
        wrong.join("\n  ")
    );
}

#[test]
fn nothing_moves() {
    let mut wrong = Vec::new();
    layout!(wrong, Header: 24 bytes, aligned to 8 { magic: 0, abi_major: 8, abi_minor: 12, struct_size: 16 });
    layout!(wrong, Bytes: 16 bytes, aligned to 8 { data: 0, len: 8 });
    layout!(wrong, Failure: 24 bytes, aligned to 8 { data: 0, capacity: 8, len: 16 });
    layout!(wrong, Event: 48 bytes, aligned to 8 { json: 0, kind: 16, id: 32 });
    layout!(wrong, Batch: 56 bytes, aligned to 8 {
        struct_size: 0, tenant_id: 8, received_at_ms: 24, events: 32, count: 40, purpose: 48, reserved: 52,
    });
    layout!(wrong, Verdict: 48 bytes, aligned to 8 { outcome: 0, reserved: 4, first: 8, second: 24, owner: 40 });
    layout!(wrong, Host: 56 bytes, aligned to 8 {
        struct_size: 0, abi_minor: 8, reserved: 12, context: 16, log: 24, now_ms: 32, count: 40, gauge: 48,
    });
    layout!(wrong, Plugin: 72 bytes, aligned to 8 {
        header: 0, describe: 24, create: 32, process: 40, release: 48, destroy: 56, health: 64,
    });
    verdict(&wrong);
}

#[test]
fn no_value_gets_another_meaning() {
    let mut wrong = Vec::new();
    constants!(wrong, Status { OK: 0, FAILED: 1, PANICKED: 2 });
    constants!(wrong, Outcome { NONE: 0, KEEP: 1, REPLACE: 2, REJECT: 3, DROP: 4 });
    constants!(wrong, Level { ERROR: 1, WARN: 2, INFO: 3, DEBUG: 4 });
    constants!(wrong, Purpose { LIVE: 0, REPROCESS: 1, CHECK: 2 });
    golden(&mut wrong, "MAGIC", MAGIC, u64::from_le_bytes(*b"INGESTPL"));
    golden(&mut wrong, "ABI_MAJOR", u64::from(ABI_MAJOR), 1);
    golden(&mut wrong, "ABI_MINOR", u64::from(ABI_MINOR), 1);
    verdict(&wrong);
    assert_eq!(SYMBOL, "ingestion_plugin");
}

/// What minor 0 had ends where the first field of minor 1 begins, so a plugin or an engine of minor 0 is a prefix of ours.
#[test]
fn minor_0_ends_where_it_did() {
    let mut wrong = Vec::new();
    golden(&mut wrong, "PLUGIN_SIZE_1_0", PLUGIN_SIZE_1_0, 64);
    golden(&mut wrong, "end of minor 0 in Plugin", offset_of!(Plugin, health) as u64, PLUGIN_SIZE_1_0);
    golden(&mut wrong, "end of minor 0 in Host", offset_of!(Host, count) as u64, 40);
    golden(&mut wrong, "end of minor 0 in Batch", offset_of!(Batch, purpose) as u64, 48);
    verdict(&wrong);
}

#[test]
fn a_header_says_how_large_its_plugin_is() {
    let header = Header::current();
    assert_eq!((header.magic, header.abi_major, header.abi_minor), (MAGIC, ABI_MAJOR, ABI_MINOR));
    assert_eq!(header.struct_size, size_of::<Plugin>() as u64);
}
