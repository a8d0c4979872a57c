//! The effective configuration as TOML, for `check-config`.

use std::{collections::BTreeMap, fmt::Write};

use super::{error::Origin, raw::Setting, schema::KEYS};

/// Writes every key with its value; one that is not the default is followed by where it came from. Secrets are hidden.
pub(super) fn render(defaults: &BTreeMap<&'static str, Setting>, given: &BTreeMap<&'static str, Setting>) -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        let (of, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if of != section {
            section = of;
            line(&mut text, format_args!("\n[{section}]"));
        }
        let Some(setting) = given.get(key.path).or_else(|| defaults.get(key.path)) else { continue };
        entry(&mut text, name, &(key.shown)(&setting.raw), &setting.origin);
    }
    text
}

fn entry(text: &mut String, name: &str, value: &impl std::fmt::Display, origin: &Origin) {
    match origin {
        Origin::Default => line(text, format_args!("{name} = {value}")),
        _ => line(text, format_args!("{name} = {value} # {origin}")),
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    if text.write_fmt(arguments).is_ok() {
        text.push('\n');
    }
}
