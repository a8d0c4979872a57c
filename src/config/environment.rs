//! The layer of the environment: `INGESTION_` and a key's path, in capitals, joined by underscores.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    error::{ConfigError, Origin, Problem, Warning},
    raw::{Raw, Setting},
    schema::{KEYS, Key},
    text::nearest,
};

/// What all names begin with.
pub(super) const PREFIX: &str = "INGESTION_";

/// Ends the name of a variable that names a file which holds the value.
const FILE_SUFFIX: &str = "_FILE";

/// Short names for two keys that everybody sets.
pub(super) const ALIASES: &[(&str, &str)] = &[("INGESTION_HOST", "server.host"), ("INGESTION_PORT", "server.port")];

/// Stands for `log.level` where `INGESTION_LOG_LEVEL` is not given.
const RUST_LOG: &str = "RUST_LOG";

/// What the environment says.
#[derive(Default)]
pub(super) struct EnvironmentLayer {
    pub(super) settings: BTreeMap<&'static str, Setting>,
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<Warning>,
}

/// Every name that sets a key, with the key.
pub(super) fn names() -> impl Iterator<Item = (String, &'static Key)> {
    let derived = KEYS.iter().filter_map(|key| key.environment().map(|name| (name, key)));
    let aliases = ALIASES
        .iter()
        .filter_map(|(name, path)| KEYS.iter().find(|key| key.path == *path).map(|key| ((*name).to_owned(), key)));
    derived.chain(aliases)
}

/// Reads the environment given as a map.
pub(super) fn read(environment: &BTreeMap<String, String>) -> EnvironmentLayer {
    let known: BTreeMap<String, &'static Key> = names().collect();
    let mut layer = EnvironmentLayer::default();
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        if is_service_link(name, value) {
            let message = "ignored: Kubernetes sets it for a service named \"ingestion...\", it is not meant for the \
                           engine (enableServiceLinks: false keeps such variables away)";
            layer.warnings.push(Warning::new(name, message));
        } else if let Some(key) = known.get(name) {
            layer.set(key, name, value);
        } else if let Some(key) = name.strip_suffix(FILE_SUFFIX).and_then(|name| known.get(name)) {
            match std::fs::read_to_string(value) {
                Ok(text) => layer.set(key, name, without_line_end(&text)),
                Err(error) => {
                    let what = format!("the file cannot be read, {error}");
                    let problem = Problem::new(what, "give the path of a readable file that holds the value");
                    layer.error(key, name, Some(Raw::Text(value.clone()).to_string()), problem);
                }
            }
        } else {
            layer.warnings.push(Warning::new(name, unknown(name, &known)));
        }
    }
    // What every Rust program understands, unless the engine's own name says otherwise.
    if let (Some(key), Some(value)) = (KEYS.iter().find(|key| key.path == "log.level"), environment.get(RUST_LOG))
        && !value.is_empty()
        && !layer.settings.contains_key(key.path)
    {
        layer.set(key, RUST_LOG, value);
    }
    layer
}

impl EnvironmentLayer {
    fn set(&mut self, key: &Key, name: &str, value: &str) {
        let origin = Origin::Environment { name: name.to_owned() };
        if let Some(earlier) = self.settings.get(key.path) {
            let problem = Problem::new(format!("also given by {}", earlier.origin), "give one of the two");
            return self.error(key, name, None, problem);
        }
        self.settings.insert(key.path, Setting { raw: Raw::from_environment(value, key.shape), origin });
    }

    fn error(&mut self, key: &Key, name: &str, value: Option<String>, problem: Problem) {
        let origin = Some(Origin::Environment { name: name.to_owned() });
        self.errors.push(ConfigError { key: key.path.to_owned(), value, origin, problem });
    }
}

fn without_line_end(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

fn unknown(name: &str, known: &BTreeMap<String, &'static Key>) -> String {
    if let Some(table) = KEYS.iter().find(|key| {
        key.environment().is_none() && name.strip_prefix(PREFIX) == Some(&key.path.replace('.', "_").to_uppercase())
    }) {
        return format!("ignored: {} can be given in the configuration file only", table.path);
    }
    let mut names: BTreeSet<String> = known.keys().cloned().collect();
    if name.ends_with(FILE_SUFFIX) {
        names.extend(known.keys().map(|name| format!("{name}{FILE_SUFFIX}")));
    }
    // Without the prefix, which all have in common, so that only what differs decides what is near.
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    match nearest(bare, names.iter().filter_map(|name| name.strip_prefix(PREFIX))) {
        Some(near) => format!("ignored: no such setting, did you mean {PREFIX}{near}?"),
        None => "ignored: no such setting".to_owned(),
    }
}

/// Whether Kubernetes set the variable for a service of the namespace: `X_SERVICE_HOST`, `X_SERVICE_PORT[_NAME]`,
/// `X_PORT=tcp://...` and `X_PORT_<n>_TCP[_PROTO|_PORT|_ADDR]`. A `tcp://` value under any other name was set by
/// somebody for the engine, and ignoring it would hide a mistake.
fn is_service_link(name: &str, value: &str) -> bool {
    let protocols = ["tcp", "udp", "sctp"];
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    if name.ends_with("_PORT") && protocols.iter().any(|protocol| value.starts_with(&format!("{protocol}://"))) {
        return true;
    }
    name.match_indices("_PORT_").any(|(at, matched)| {
        let rest = name.get(at + matched.len()..).unwrap_or("");
        let Some((number, rest)) = rest.split_once('_') else { return false };
        let protocol = rest.split('_').next().unwrap_or("");
        number.parse::<u16>().is_ok() && protocols.iter().any(|known| known.eq_ignore_ascii_case(protocol))
    })
}
