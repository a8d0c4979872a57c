//! `plugins new`: a plugin's crate that builds, with a test.
//!
//! ```text
//! NAME/Cargo.toml, src/lib.rs, tests/plugin.rs, README.md, .gitignore    from the templates beside this file
//! NAME/sdk/, NAME/abi/                                                   the crates of this very engine
//! ```
//!
//! - The SDK and the contract are compiled into the engine and written next to the plugin. So a plugin builds on any machine,
//!   without the engine's repository, and against the contract of exactly the engine that made it.
//! - It is a plugin that works, not a skeleton with gaps: it can be dropped into the folder as it is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::descriptor::RESERVED;
use crate::event::Types;

/// Most bytes of a name, as the contract has it.
const NAME_BYTES: usize = 40;

/// Files of the crates that go with a plugin, by their path below `plugins/`.
macro_rules! sources {
    ($($path:literal),+ $(,)?) => {
        &[$(($path, include_str!(concat!("../../plugins/", $path)))),+]
    };
}

const SOURCES: &[(&str, &str)] = sources![
    "abi/Cargo.toml",
    "abi/include/ingestion_plugin.h",
    "abi/src/descriptor.rs",
    "abi/src/lib.rs",
    "sdk/Cargo.toml",
    "sdk/src/config.rs",
    "sdk/src/description.rs",
    "sdk/src/event.rs",
    "sdk/src/ffi/callbacks.rs",
    "sdk/src/ffi/lent.rs",
    "sdk/src/ffi/mod.rs",
    "sdk/src/lib.rs",
    "sdk/src/object.rs",
    "sdk/src/tables.rs",
    "sdk/src/testing/check.rs",
    "sdk/src/testing/engine.rs",
    "sdk/src/testing/mod.rs",
    "sdk/src/verdict.rs",
];

/// The plugin's own files. `{{name}}` stands for its name, `{{Name}}` for the same as the name of a Rust type.
const TEMPLATES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("scaffold/Cargo.toml.template")),
    (".gitignore", include_str!("scaffold/gitignore.template")),
    ("README.md", include_str!("scaffold/README.md.template")),
    ("src/lib.rs", include_str!("scaffold/lib.rs.template")),
    ("tests/plugin.rs", include_str!("scaffold/test.rs.template")),
];

/// What a crate cannot be called: words of the language, and crates that it needs itself.
const TAKEN: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "schemars",
    "self",
    "serde",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// Why no plugin was made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScaffoldError {
    /// The name cannot be one of a plugin.
    #[error("{name:?} cannot be a plugin's name: {problem}")]
    BadName {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The folder is there already.
    #[error("{} is there already; choose another name, or move it away", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes the crate of a plugin called `name` to the new folder `parent/name`, and returns the folder.
///
/// # Errors
/// [`ScaffoldError`]: the name is none, the folder is there, or it cannot be written. What was written until then stays.
pub fn create(name: &str, parent: &Path) -> Result<PathBuf, ScaffoldError> {
    if let Err(problem) = check(name) {
        return Err(ScaffoldError::BadName { name: name.to_owned(), problem });
    }
    let folder = parent.join(name);
    fs::create_dir(&folder).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => ScaffoldError::Exists { path: folder.clone() },
        _ => ScaffoldError::Write { path: folder.clone(), source },
    })?;
    let type_name = type_name(name);
    for (path, template) in TEMPLATES {
        write(&folder.join(path), &template.replace("{{name}}", name).replace("{{Name}}", &type_name))?;
    }
    for (path, source) in SOURCES {
        write(&folder.join(path), source)?;
    }
    Ok(folder)
}

/// What to do with the plugin `name` in `folder`, from a build to a row in ClickHouse: for a person, ends with a line break.
/// `drop_folder` is the engine's `plugins.dir`.
pub fn next_steps(name: &str, folder: &Path, drop_folder: &Path) -> String {
    let (folder, drop_folder) = (folder.display(), drop_folder.display());
    format!(
        "A plugin is in {folder}. It builds as it is; the engine need not be restarted:

  cargo test --manifest-path {folder}/Cargo.toml
  cargo build --release --manifest-path {folder}/Cargo.toml
  cp {folder}/target/release/lib{name}.so {drop_folder}/
  curl -X POST http://127.0.0.1:8080/ingest -H 'Authorization: Bearer TENANT_ID:API_KEY' \\
    -d '{{ \"type\": \"{name}\", \"label\": \"Pro\", \"value\": 12.5 }}'
  curl http://127.0.0.1:8123/ -d 'SELECT * FROM overwatch.plugin_{name}_events FORMAT Vertical'

What it does is in {folder}/src/lib.rs.
"
    )
}

fn write(path: &Path, text: &str) -> Result<(), ScaffoldError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, text))
        .map_err(|source| ScaffoldError::Write { path: path.to_owned(), source })
}

fn check(name: &str) -> Result<(), String> {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    if !name.starts_with(|first: char| first.is_ascii_lowercase()) || !name.bytes().all(plain) {
        let mended: String = name
            .to_ascii_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .skip_while(|c| !c.is_ascii_lowercase())
            .collect();
        let hint = if mended != name && check(&mended).is_ok() { format!(", like {mended:?}") } else { String::new() };
        return Err(format!("it must be lower-case letters, digits and _, and begin with a letter{hint}"));
    }
    if name.len() > NAME_BYTES {
        return Err(format!("it has {} bytes, more than the {NAME_BYTES} allowed", name.len()));
    }
    if Types::BUILT_IN.contains(&name) {
        return Err("it would add an event type of that name, which the engine has already".to_owned());
    }
    if RESERVED.contains(&name) {
        return Err("it would be misread where a plugin's name stands among other words".to_owned());
    }
    if TAKEN.contains(&name) {
        return Err("it is a word of Rust, or of a crate that the plugin needs".to_owned());
    }
    Ok(())
}

/// `sign_up` as `SignUp`.
fn type_name(name: &str) -> String {
    let capitalised = |part: &str| {
        let mut chars = part.chars();
        chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect::<String>()
    };
    name.split('_').map(capitalised).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::{collections::BTreeSet, process::Command};

    use super::*;

    fn engine() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    fn files(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
            } else {
                found.insert(path.strip_prefix(engine().join("plugins")).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn every_file_of_the_sdk_and_the_contract_is_compiled_in() {
        let mut expected = BTreeSet::from(["abi/Cargo.toml".to_owned(), "sdk/Cargo.toml".to_owned()]);
        for folder in ["abi/include", "abi/src", "sdk/src"] {
            files(&engine().join("plugins").join(folder), &mut expected);
        }
        let embedded: BTreeSet<String> = SOURCES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(embedded, expected, "SOURCES must name exactly these files");
    }

    #[test]
    fn a_name_that_cannot_be_one_is_refused_in_words() {
        let parent = tempfile::tempdir().unwrap();
        for (name, words) in [
            ("Sign-Up", "must be lower-case letters, digits and _, and begin with a letter, like \"sign_up\""),
            ("../signup", "like \"signup\""),
            ("9", "and begin with a letter"),
            ("", "and begin with a letter"),
            ("größe", "like \"gr__e\""),
            (&"a".repeat(41), "has 41 bytes, more than the 40 allowed"),
            ("pageview", "which the engine has already"),
            ("plugins", "would be misread"),
            ("serde", "a word of Rust"),
        ] {
            let error = create(name, parent.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_there_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join("signup")).unwrap();
        assert!(matches!(create("signup", parent.path()), Err(ScaffoldError::Exists { .. })));
        assert_eq!(fs::read_dir(parent.path().join("signup")).unwrap().count(), 0);
        let nowhere = create("signup", &parent.path().join("nowhere")).unwrap_err();
        assert!(matches!(nowhere, ScaffoldError::Write { .. }), "{nowhere}");
    }

    #[test]
    fn no_template_has_a_gap_left() {
        let parent = tempfile::tempdir().unwrap();
        let folder = create("sign_up", parent.path()).unwrap();
        for (path, _) in TEMPLATES {
            let text = fs::read_to_string(folder.join(path)).unwrap();
            assert!(!text.contains("{{"), "{path}");
        }
        assert!(fs::read_to_string(folder.join("src/lib.rs")).unwrap().contains("impl Plugin for SignUpPlugin"));
        let words = next_steps("sign_up", &folder, Path::new("data/plugins"));
        assert!(words.contains("libsign_up.so data/plugins/") && words.contains("plugin_sign_up_events"), "{words}");
    }

    #[test]
    fn a_new_plugin_builds_and_passes_its_own_tests() {
        let parent = tempfile::tempdir().unwrap();
        let folder = create("sign_up", parent.path()).unwrap();
        // The versions that the engine is built with are here already: nothing is fetched.
        fs::copy(engine().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
        let target = engine().join("target/scaffold");
        let library = target.join("release/libsign_up.so");
        match fs::remove_file(&library) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
        for arguments in [&["test"][..], &["build", "--release"]] {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let output = Command::new(cargo)
                .args(arguments)
                .args(["--quiet", "--offline"])
                .current_dir(&folder)
                .env("CARGO_TARGET_DIR", &target)
                .env("RUSTFLAGS", "-D warnings")
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{arguments:?}: {errors}");
        }
        assert!(library.exists(), "{}", library.display());
    }
}
