//! The event types that an engine knows beside its built-in ones.

use std::collections::{HashMap, HashSet};

use super::kind::Kind;

/// Types that plugins have added, and those that they had.
#[derive(Clone, Debug, Default)]
pub struct Types {
    added: HashSet<Box<str>>,
    retired: HashMap<Box<str>, Box<str>>,
}

impl Types {
    /// Names of the built-in types.
    pub const BUILT_IN: [&'static str; 5] = Kind::NAMES;

    /// `added` names the types that events may have; `retired` those that they might have had, each with the plugin that
    /// is gone.
    pub fn new<'a>(
        added: impl IntoIterator<Item = &'a str>,
        retired: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let added: HashSet<Box<str>> = added.into_iter().map(Box::from).collect();
        let retired = retired
            .into_iter()
            .filter(|(name, _)| !added.contains(*name))
            .map(|(name, plugin)| (name.into(), plugin.into()))
            .collect();
        Self { added, retired }
    }

    pub(super) fn is_added(&self, name: &str) -> bool {
        self.added.contains(name)
    }

    /// What to tell the sender of an event whose type nobody knows.
    pub(super) fn unknown(&self, name: &str) -> String {
        let shown: String = name.chars().take(64).collect();
        if let Some(plugin) = self.retired.get(name) {
            return format!("\"type\" is {shown:?}, which plugin {plugin:?} added; that plugin has been removed");
        }
        let mut known: Vec<&str> = self.added.iter().map(AsRef::as_ref).collect();
        known.sort_unstable();
        let known: Vec<&str> = Kind::NAMES.into_iter().chain(known).collect();
        format!("\"type\" is {shown:?}; this engine knows {}", known.join(", "))
    }
}
