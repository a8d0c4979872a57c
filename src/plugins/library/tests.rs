#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::{fs, path::Path};

use super::{
    Library,
    fixture::{compile, plugin},
};
use crate::error_chain::chain;

fn refused(path: &Path) -> String {
    chain(&Library::open(path).unwrap_err())
}

fn refused_with(parts: &[(&str, &str)]) -> String {
    refused(&plugin(parts).path)
}

fn shared(source: &str) -> String {
    refused(&compile(source, &["-shared".to_owned()]).path)
}

#[test]
fn a_plugin_is_opened() {
    let library = Library::open(&plugin(&[]).path).unwrap();
    assert_eq!(library.abi_minor(), 1);
    assert!(library.functions.health.is_some());
}

#[test]
fn a_newer_minor_is_opened_and_an_older_has_no_health() {
    let newer = plugin(&[("HEADER", "{INGESTION_MAGIC, 1, 9, sizeof(ingestion_plugin_t)}")]);
    assert_eq!(Library::open(&newer.path).unwrap().abi_minor(), 9);
    for older in ["{INGESTION_MAGIC, 1, 0, 72}", "{INGESTION_MAGIC, 1, 1, 64}"] {
        let library = Library::open(&plugin(&[("HEADER", older)]).path).unwrap();
        assert!(library.functions.health.is_none(), "{older}");
    }
}

#[test]
fn what_is_no_library_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.so");
    assert!(refused(&file).contains("No such file"), "{}", refused(&file));
    for bytes in [&b""[..], b"#!/bin/sh", b"\x7fEL"] {
        fs::write(&file, bytes).unwrap();
        assert!(refused(&file).starts_with("the file is no shared library"), "{}", refused(&file));
    }
    let object = compile("int nothing;", &["-c".to_owned()]);
    assert!(refused(&object.path).contains("a program or an object file"), "{}", refused(&object.path));
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused_as_such() {
    let whole = fs::read(plugin(&[]).path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.so");
    for length in (6..whole.len()).step_by(509).chain([whole.len() - 1]) {
        fs::write(&file, &whole[..length]).unwrap();
        let problem = refused(&file);
        assert!(problem.starts_with(&format!("the file is cut off: it has {length} bytes")), "{length}: {problem}");
    }
}

#[test]
fn another_machine_is_named() {
    let mut bytes = fs::read(plugin(&[]).path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.so");
    // e_machine: SPARC.
    bytes[18..20].copy_from_slice(&2_u16.to_ne_bytes());
    fs::write(&file, &bytes).unwrap();
    assert!(
        refused(&file).contains("it is for machine 2 of the ELF list, and this engine runs on"),
        "{}",
        refused(&file)
    );
    // 32-bit.
    bytes[4] = 1;
    fs::write(&file, &bytes).unwrap();
    assert!(refused(&file).contains("word size or byte order"), "{}", refused(&file));
}

#[test]
fn a_library_that_is_no_plugin_is_refused() {
    let none = shared("int nothing;");
    assert!(none.starts_with("the library exports no \"ingestion_plugin\""), "{none}");
    let hidden = shared("__attribute__((visibility(\"hidden\"))) const char ingestion_plugin[72];");
    assert_eq!(hidden, none);
    let imported =
        shared("extern const char ingestion_plugin[72]; const char *other(void) { return ingestion_plugin; }");
    assert_eq!(imported, none);
    let function = shared("int ingestion_plugin(void) { return 0; }");
    assert!(function.starts_with("\"ingestion_plugin\" is not a constant"), "{function}");
    let small = shared("const char ingestion_plugin[8] = \"INGESTP\";");
    assert!(small.starts_with("\"ingestion_plugin\" has 8 bytes, less than a header"), "{small}");
    let zeros = shared("char ingestion_plugin[72];");
    assert!(zeros.starts_with("the header's magic is 0x0000000000000000"), "{zeros}");
}

#[test]
fn the_header_is_checked_before_any_code_runs() {
    // A constructor that would end this process.
    let constructor = "#include <stdlib.h>\n__attribute__((constructor)) static void now(void) { abort(); }\n";
    let words = shared(&format!("{constructor} const unsigned long ingestion_plugin[9] = {{1, 2, 3}};"));
    assert!(words.starts_with("the header's magic is 0x0000000000000001"), "{words}");
}

#[test]
fn every_field_of_the_header_has_its_error() {
    let words = refused_with(&[("HEADER", "{7, 1, 1, sizeof(ingestion_plugin_t)}")]);
    assert!(words.starts_with("the header's magic is 0x0000000000000007 and not 0x4c505453"), "{words}");
    let words = refused_with(&[("HEADER", "{INGESTION_MAGIC, 2, 0, sizeof(ingestion_plugin_t)}")]);
    assert!(
        words.contains("version 2 of the plugin contract, and this engine speaks version 1: use a newer"),
        "{words}"
    );
    let words = refused_with(&[("HEADER", "{INGESTION_MAGIC, 0, 0, sizeof(ingestion_plugin_t)}")]);
    assert!(
        words.contains("version 0 of the plugin contract") && words.contains("build it with a newer SDK"),
        "{words}"
    );
    let words = refused_with(&[("HEADER", "{INGESTION_MAGIC, 1, 1, 32}")]);
    assert!(words.contains("the struct has 32 bytes, less than the 64 of version 1.0"), "{words}");
    let words = refused_with(&[("HEADER", "{INGESTION_MAGIC, 1, 1, 4096}")]);
    assert!(words.contains("the struct has 4096 bytes, but the library holds 72"), "{words}");
}

#[test]
fn a_function_that_is_not_there_is_named() {
    let words = refused_with(&[("RELEASE_FUNCTION", "NULL")]);
    assert_eq!(words, "its function `release` is null: every plugin needs it");
}

#[test]
fn what_the_loader_says_is_passed_on() {
    let missing = plugin(&[("CREATE", "extern void nowhere(void); nowhere()")]);
    let words = refused(&missing.path);
    assert!(words.starts_with("the system cannot load it: ") && words.contains("undefined symbol: nowhere"), "{words}");
}
