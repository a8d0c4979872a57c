//! The fields of a JSON object whose grammar a parser has checked: their ends are looked for, and nothing else.
//!
//! A body is read once as a whole (see `split`), so that what is no JSON is refused with its line and column. Parsing each
//! event again to find its fields would cost as much a second time.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::field::Field;
use crate::json::{members, string};

/// JSON text, without space around it, that a parser has read to its end.
#[derive(Clone, Copy, Debug)]
pub struct Checked<'a>(&'a str);

impl<'a> Checked<'a> {
    /// Parses `text`; nothing when it is not JSON.
    pub fn check(text: &'a str) -> Option<Self> {
        serde_json::from_str::<IgnoredAny>(text).is_ok().then(|| Self::by_parser(text))
    }

    /// Of `text` that a parser has read to its end.
    pub(super) fn by_parser(text: &'a str) -> Self {
        Self(text.trim_ascii())
    }

    /// The text.
    pub const fn text(self) -> &'a str {
        self.0
    }

    /// The fields in the order in which they stand; nothing when this is no object, or a name is no text (half of a
    /// surrogate pair).
    pub(super) fn fields(self) -> Option<Vec<Field<'a>>> {
        let (text, bytes) = (self.0, self.0.as_bytes());
        if bytes.first() != Some(&b'{') {
            return None;
        }
        // A typical event has about fifteen fields.
        let mut fields = Vec::with_capacity(16);
        members(bytes, 0, |name, plain_name, at| {
            let (ends, plain) = value(bytes, at)?;
            let name = unquoted(text.get(name)?, plain_name)?;
            fields.push(Field { name, value: text.get(at..ends)?, plain });
            Some(ends)
        })?;
        Some(fields)
    }
}

/// The text of a string, borrowed if it is `plain`: without an escape.
pub(super) fn unquoted(string: &str, plain: bool) -> Option<Cow<'_, str>> {
    if plain { string.get(1..string.len() - 1).map(Cow::Borrowed) } else { serde_json::from_str(string).ok() }
}

/// Behind the value at `at`, and whether it is anything but a string with an escape in it.
fn value(bytes: &[u8], at: usize) -> Option<(usize, bool)> {
    let ends = match bytes.get(at)? {
        b'"' => return string(bytes, at),
        b'{' | b'[' => nested(bytes, at),
        _ => {
            let rest = bytes.get(at..)?;
            let length = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r'));
            length.filter(|length| *length > 0).map(|length| at + length)
        }
    };
    Some((ends?, true))
}

/// Behind the object or array at `at`. In JSON that is right each bracket is closed by one of its own kind, so that all may
/// be counted together.
fn nested(bytes: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at, 0_usize);
    loop {
        match bytes.get(at)? {
            b'"' => {
                at = string(bytes, at)?.0;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return Some(at + 1),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;
    use serde_json::{Map, Value, value::RawValue};

    use super::*;

    fn scanned(text: &str) -> Option<Vec<(String, String)>> {
        let fields = Checked::check(text)?.fields()?;
        Some(fields.into_iter().map(|field| (field.name.into_owned(), field.value.to_owned())).collect())
    }

    #[test]
    fn fields_are_found_whatever_is_between_and_in_them() {
        let text = " {\n\"a\" : \"}\\\",{\" ,\t\"b\":{\"c\":[1,{\"d\":\"]\"}]}, \"\\u0065\\\"\":-1.5e3,\"\":true,\"a\": null }\r\n";
        let fields =
            [("a", "\"}\\\",{\""), ("b", "{\"c\":[1,{\"d\":\"]\"}]}"), ("e\"", "-1.5e3"), ("", "true"), ("a", "null")];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(scanned(text).unwrap(), fields);
        assert_eq!(scanned("{}").unwrap(), []);
        assert_eq!(scanned("{ }").unwrap(), []);
        for other in ["[]", "1", "\"{}\"", "{\"\\ud800\":1}", "{\"a\":1", "{\"a\":01}", ""] {
            assert_eq!(scanned(other), None, "{other}");
        }
    }

    /// What never was checked is no reason to panic, or not to end.
    #[test]
    fn what_is_no_json_is_survived() {
        let text = r#"{"a":"\"b","c":[{"d":1},2],"e":null}"#;
        for cut in 0..=text.len() {
            for byte in "\"\\{}[],: x".chars() {
                let wrong = format!("{}{byte}{}", &text[..cut], &text[cut..]);
                drop(Checked::by_parser(&wrong).fields());
                drop(Checked::by_parser(&text[..cut]).fields());
            }
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\x00-\\x7fé\u{1f600}\"\\\\{}\\[\\],:]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,8}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_parser_finds_the_same(value in json(), pretty: bool) {
            let write = if pretty { serde_json::to_string_pretty } else { serde_json::to_string };
            let text = write(&value).unwrap();
            let parsed = serde_json::from_str::<std::collections::BTreeMap<String, &RawValue>>(&text).ok();
            let parsed = parsed.map(|map| map.into_iter().map(|(name, value)| (name, value.get().to_owned())).collect::<Vec<_>>());
            let scanned = scanned(&text).map(|mut fields| {
                fields.sort();
                fields
            });
            prop_assert_eq!(scanned, parsed);
        }
    }
}
