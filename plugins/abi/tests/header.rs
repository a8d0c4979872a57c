//! `include/ingestion_plugin.h` is what cbindgen makes of the crate, and C and C++ compilers take it.
//!
//! After a change of the contract: `BLESS=1 cargo test -p ingestion-plugin-abi --test header`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{env, fmt::Write, fs, path::Path, process::Command};

use ingestion_plugin_abi::{Batch, Bytes, Event, Failure, Header, Host, Plugin, Verdict};
use support::{compile, here};

/// Types of `u32`, whose constants get names in capitals.
const NEWTYPES: [&str; 4] = ["Status", "Outcome", "Level", "Purpose"];

#[test]
fn the_committed_header_is_made_from_this_crate() {
    let path = here().join("include/ingestion_plugin.h");
    let made = header();
    if env::var_os("BLESS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(made.lines()).find(|(committed, made)| committed != made);
    assert!(
        committed == made,
        "include/ingestion_plugin.h is not what src/lib.rs says (first difference: {differs:?}); \
         `BLESS=1 cargo test -p ingestion-plugin-abi --test header` writes it"
    );
}

#[test]
fn c_and_cpp_compilers_see_what_rust_sees() {
    let include = format!("-I{}", here().join("include").display());
    let sizes = [
        ("header", size_of::<Header>()),
        ("bytes", size_of::<Bytes>()),
        ("failure", size_of::<Failure>()),
        ("event", size_of::<Event>()),
        ("batch", size_of::<Batch>()),
        ("verdict", size_of::<Verdict>()),
        ("host", size_of::<Host>()),
        ("plugin", size_of::<Plugin>()),
    ];
    let mut program = "#include \"ingestion_plugin.h\"\n#include <assert.h>\n#include <stddef.h>\n".to_owned();
    for (name, size) in sizes {
        writeln!(program, "static_assert(sizeof(ingestion_{name}_t) == {size}, \"size of {name}\");").unwrap();
    }
    program.push_str(
        "static_assert(offsetof(ingestion_plugin_t, health) == INGESTION_PLUGIN_SIZE_1_0, \"minor 0\");\n\
         static const ingestion_header_t header = INGESTION_HEADER;\n\
         int main(void) { return header.magic != INGESTION_MAGIC; }\n",
    );
    for (compiler, standard, extension) in [("cc", "-std=c11", "c"), ("c++", "-std=c++11", "cpp")] {
        if compiler == "c++" && Command::new(compiler).arg("--version").output().is_err() {
            eprintln!("no C++ compiler here: not tried");
            continue;
        }
        let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("header.{extension}"));
        fs::write(&source, &program).unwrap();
        compile(compiler, &[standard, &include], &source, &format!("header_{extension}"));
    }
}

/// The header as it should be.
fn header() -> String {
    let config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_config(config).with_src(here().join("src/lib.rs")).generate().unwrap();
    let mut code = Vec::new();
    bindings.write(&mut code);
    let mut code = String::from_utf8(code).unwrap();
    for newtype in NEWTYPES {
        let made = format!("ingestion_{}_t_", newtype.to_lowercase());
        code = code.replace(&made, &format!("INGESTION_{}_", newtype.to_uppercase()));
    }
    let text = format!(
        "// Made from plugins/abi/src by `BLESS=1 cargo test -p ingestion-plugin-abi --test header`: do not edit.\n//\n{}//\n// # The descriptor\n//\n{}",
        module_text("src/lib.rs"),
        module_text("src/descriptor.rs")
    );
    c_names(&format!("{text}\n{code}"))
}

/// The `//!` lines at the top of a file, as comments of C.
fn module_text(file: &str) -> String {
    let source = fs::read_to_string(here().join(file)).unwrap();
    source.lines().map_while(|line| line.strip_prefix("//!")).map(|line| format!("//{line}\n")).collect()
}

/// Writes Rust's references, [`Type::CONSTANT`] and [`Type::field`], as C knows them.
fn c_names(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[`") {
        let (reference, after) = after.split_once("`]").unwrap();
        out.push_str(before);
        out.push('`');
        out.push_str(&c_name(reference));
        out.push('`');
        rest = after;
    }
    out.push_str(rest);
    out
}

fn c_name(reference: &str) -> String {
    let path: Vec<&str> = reference.trim_start_matches("crate::").split("::").collect();
    match path.as_slice() {
        ["SYMBOL"] => "ingestion_plugin".to_owned(),
        ["descriptor"] => "descriptor".to_owned(),
        [constant] if constant.chars().all(|c| !c.is_lowercase()) => format!("INGESTION_{constant}"),
        [kind] => format!("ingestion_{}_t", kind.to_lowercase()),
        [kind, constant] if constant.chars().all(|c| !c.is_lowercase()) => {
            format!("INGESTION_{}_{constant}", kind.to_uppercase())
        }
        [kind, field] => format!("ingestion_{}_t.{field}", kind.to_lowercase()),
        _ => panic!("[`{reference}`] has no name in C"),
    }
}
