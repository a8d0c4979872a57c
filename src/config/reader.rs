//! Takes keys out of the layers, one by one, and remembers every one that is wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    error::{ConfigError, Problem},
    kinds::Kind,
    raw::Setting,
    schema::KEYS,
};

/// Reads settings by key and collects errors.
pub(super) struct Reader<'a> {
    defaults: &'a BTreeMap<&'static str, Setting>,
    given: &'a BTreeMap<&'static str, Setting>,
    wrong: BTreeSet<&'static str>,
    pub(super) errors: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        defaults: &'a BTreeMap<&'static str, Setting>,
        given: &'a BTreeMap<&'static str, Setting>,
    ) -> Self {
        Self { defaults, given, wrong: BTreeSet::new(), errors: Vec::new() }
    }

    fn setting(&self, key: &str) -> Option<&'a Setting> {
        self.given.get(key).or_else(|| self.defaults.get(key))
    }

    /// The value of `key`. A wrong one is recorded and replaced by the default, so that reading goes on.
    pub(super) fn get<K: Kind>(&mut self, key: &'static str) -> Option<K::Value> {
        let Some(setting) = self.setting(key) else {
            let problem = Problem::new("no default", "give a value");
            self.errors.push(ConfigError { key: key.to_owned(), value: None, origin: None, problem });
            return None;
        };
        match K::parse(&setting.raw) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.wrong.insert(key);
                self.errors.push(ConfigError {
                    key: key.to_owned(),
                    value: Some(K::shown(&setting.raw).to_string()),
                    origin: Some(setting.origin.clone()),
                    problem,
                });
                self.defaults.get(key).and_then(|setting| K::parse(&setting.raw).ok())
            }
        }
    }

    /// Records that `key` does not go together with `others`, unless one of them is wrong by itself already: then its
    /// value here is not the operator's.
    pub(super) fn conflict(&mut self, key: &'static str, others: &[&'static str], problem: Problem) {
        if self.wrong.contains(key) || others.iter().any(|other| self.wrong.contains(other)) {
            return;
        }
        let setting = self.setting(key);
        let shown =
            |setting: &Setting| KEYS.iter().find(|known| known.path == key).map(|known| (known.shown)(&setting.raw));
        self.errors.push(ConfigError {
            key: key.to_owned(),
            value: setting.and_then(shown).map(|raw| raw.to_string()),
            origin: setting.map(|setting| setting.origin.clone()),
            problem,
        });
    }
}
