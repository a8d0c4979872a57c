//! The members of an event, to change a few of them.
//!
//! Values are kept as the text that was sent: numbers keep all their digits, and what is not touched costs no parsing.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, MapAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};

use crate::verdict::Verdict;

/// A JSON object whose values were not looked into. Made by [`crate::Event::object`].
#[derive(Clone, Debug, Default)]
pub struct Object<'a> {
    members: Vec<(Cow<'a, str>, Cow<'a, RawValue>)>,
    changed: bool,
    failed: Option<String>,
}

impl<'a> Object<'a> {
    /// The JSON text of a member.
    pub fn get(&self, name: &str) -> Option<&str> {
        // The last one counts if a name occurs twice, as for the engine.
        self.members.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.get())
    }

    /// A member as `T`; `None` if it is not there or is something else.
    pub fn read<'b, T: Deserialize<'b>>(&'b self, name: &str) -> Option<T> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// Whether there is such a member.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Adds a member, or gives it another value. A value that cannot be written as JSON (a map whose keys are not texts)
    /// makes the verdict one that fails.
    pub fn set<T: Serialize + ?Sized>(&mut self, name: impl Into<Cow<'a, str>>, value: &T) {
        let name = name.into();
        match to_raw_value(value) {
            Ok(value) => {
                self.members.retain(|(known, _)| *known != name);
                self.members.push((name, Cow::Owned(value)));
                self.changed = true;
            }
            Err(error) => self.failed = Some(format!("`{name}` cannot be written as JSON: {error}")),
        }
    }

    /// Takes a member away. Returns whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.members.len();
        self.members.retain(|(known, _)| known != name);
        let removed = self.members.len() != before;
        self.changed |= removed;
        removed
    }

    /// Names and JSON texts of the members, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.members.iter().map(|(name, value)| (name.as_ref(), value.get()))
    }

    /// Keeps the event if nothing was changed, or replaces it.
    pub fn into_verdict(self) -> Verdict {
        match self.failed {
            Some(words) => Verdict::fail(words),
            None if self.changed => Verdict::replace(&self),
            None => Verdict::keep(),
        }
    }
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.members.iter().map(|(name, value)| (name, value.as_ref())))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(Cow<'de, str>, Cow<'de, RawValue>)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                // A pageview has about this many.
                let mut members = Vec::with_capacity(16);
                while let Some(name) = map.next_key_seed(Name)? {
                    members.push((name, Cow::Borrowed(map.next_value::<&RawValue>()?)));
                }
                Ok(members)
            }
        }

        let members = deserializer.deserialize_map(Members)?;
        Ok(Self { members, changed: false, failed: None })
    }
}

/// A name, borrowed unless it has escapes: `Cow<str>` by itself always copies.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    fn object(json: &str) -> Object<'_> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_not_touched_stays_as_it_was_sent() {
        let sent =
            r#"{ "type":"a" , "big": 12345678901234567890123 , "price":1.10,"deep":{ "x" : [ 1e2 ] },"t":"\u00e9" }"#;
        let mut event = object(sent);
        assert_eq!(event.get("price"), Some("1.10"));
        assert_eq!(event.read::<String>("t").as_deref(), Some("é"));
        assert_eq!(event.read::<u8>("t"), None);
        event.set("rating", &["good"]);
        assert!(event.remove("type"));
        assert!(!event.remove("type"));
        let verdict = event.into_verdict();
        assert_eq!(
            verdict.replacement(),
            Some(
                r#"{"big":12345678901234567890123,"price":1.10,"deep":{ "x" : [ 1e2 ] },"t":"\u00e9","rating":["good"]}"#
            )
        );
    }

    #[test]
    fn an_object_without_changes_is_kept() {
        let mut event = object(r#"{"a":1}"#);
        assert!(!event.remove("b"));
        assert!(event.contains("a"));
        assert_eq!(event.iter().collect::<Vec<_>>(), [("a", "1")]);
        assert!(event.into_verdict().is_keep());
    }

    #[test]
    fn set_leaves_one_member_of_a_name() {
        let mut event = object(r#"{"a":1,"\u0061":2,"b":3}"#);
        assert_eq!(event.get("a"), Some("2"));
        event.set("a", &json!(null));
        assert_eq!(event.into_verdict().replacement(), Some(r#"{"b":3,"a":null}"#));
    }

    #[test]
    fn what_cannot_be_written_fails_the_call() {
        let mut event = object("{}");
        event.set("a", &std::collections::BTreeMap::from([((1, 2), 3)]));
        assert_eq!(event.into_verdict(), Verdict::fail("`a` cannot be written as JSON: key must be a string"));
    }

    #[test]
    fn only_an_object_is_one() {
        assert!(serde_json::from_str::<Object<'_>>("[1]").is_err());
    }
}
