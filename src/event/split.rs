//! A body split into its events: checked to be JSON and cut, in one pass over its bytes.
//!
//! This only says yes ([`crate::json`]). Whatever it does not say yes to, the parser decides, and tells what is wrong and
//! where.

use std::ops::Range;

use super::{
    field::Field,
    scan::{Checked, unquoted},
};
use crate::json::{DEPTH, items, members, space, value};

/// So many fields are kept in memory beside a body: those of a thousand common events. Those of the others are found again.
const FIELDS: usize = 16 << 10;

/// A body that was split.
#[derive(Debug, Default)]
pub(super) struct Split<'a> {
    /// The events, and where their fields stand in `fields`: nowhere, when they have none or are yet to be found.
    pub events: Vec<(Checked<'a>, Range<usize>)>,
    pub fields: Vec<Field<'a>>,
}

impl<'a> Split<'a> {
    /// The events of `text`, which is `{"events":[...]}`, an array, or one event; nothing when that is not certain, or they
    /// are none or more than `limit`.
    pub fn of(text: &'a str, limit: usize) -> Option<Self> {
        let bytes = text.as_bytes();
        let begins = space(bytes, 0);
        let (mut split, mut found) = (Self::default(), false);
        let ends = match bytes.get(begins)? {
            b'[' => {
                found = true;
                split.take_array(text, begins, limit)?
            }
            b'{' => members(bytes, begins, |name, plain, at| match bytes.get(name)? {
                br#""events""# if found => None,
                br#""events""# => {
                    found = true;
                    split.take_array(text, at, limit)
                }
                // With an escape it may spell the same.
                _ if !plain => None,
                _ => value(bytes, at, DEPTH).map(|(ends, _)| ends),
            })?,
            _ => return None,
        };
        if space(bytes, ends) != bytes.len() {
            return None;
        }
        if !found {
            split.events.push((Checked::by_parser(text), 0..0));
        }
        (!split.events.is_empty()).then_some(split)
    }

    /// Takes the items of the array at `at`; gives where it ends.
    fn take_array(&mut self, text: &'a str, at: usize, limit: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        items(bytes, at, |at| {
            if self.events.len() == limit {
                return None;
            }
            let (first, mut kept) = (self.fields.len(), true);
            let ends = if bytes.get(at) == Some(&b'{') {
                members(bytes, at, |name, plain_name, at| {
                    let (ends, plain) = value(bytes, at, DEPTH)?;
                    // A name that is no text is no reason to refuse the whole body.
                    kept &= self.fields.len() < FIELDS;
                    match unquoted(text.get(name)?, plain_name) {
                        Some(name) if kept => self.fields.push(Field { name, value: text.get(at..ends)?, plain }),
                        _ => kept = false,
                    }
                    Some(ends)
                })?
            } else {
                value(bytes, at, DEPTH)?.0
            };
            if !kept {
                self.fields.truncate(first);
            }
            self.events.push((Checked::by_parser(text.get(at..ends)?), first..self.fields.len()));
            Some(ends)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::string_slice, reason = "tests")]

    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    /// As the parser sees an array of events.
    fn parsed(text: &str) -> Option<Vec<String>> {
        let items = serde_json::from_str::<Vec<&RawValue>>(text).ok()?;
        Some(items.into_iter().map(|item| item.get().to_owned()).collect())
    }

    fn split(text: &str) -> Option<Vec<String>> {
        let Split { events, fields } = Split::of(text, 100)?;
        for (event, places) in &events {
            let found = event.fields().unwrap_or_default();
            let same = |(one, other): (&Field<'_>, &Field<'_>)| {
                one.name == other.name && one.value == other.value && one.plain == other.plain
            };
            assert!(places.is_empty() || places.len() == found.len(), "{text}");
            assert!(fields[places.clone()].iter().zip(&found).all(same), "{text}");
        }
        Some(events.into_iter().map(|(event, _)| event.text().to_owned()).collect())
    }

    #[test]
    fn what_is_json_is_cut_and_the_rest_is_left_to_the_parser() {
        let event = r#"{"a":"\"é\u00e9\\","b":[-0.5e+3,0,12,{"c":{}}],"d":[[],[true,false,null]],"":""}"#;
        assert_eq!(split(event).unwrap(), [event]);
        assert_eq!(split(&format!(" [ {event} ,\n1,\t\"x\" ]\r\n")).unwrap(), [event, "1", "\"x\""]);
        assert_eq!(split(&format!("{{\"sent\":1, \"events\" : [{event}] ,\"x\":{{}}}}")).unwrap(), [event]);
        for left in [
            "",
            "[]",
            "{\"events\":[]}",
            "{\"events\":[1],\"events\":[2]}",
            "{\"event\\u0073\":[1]}",
            "1",
            "{\"events\":1}",
        ] {
            assert_eq!(split(left), None, "{left}");
        }
        assert!(Split::of("[1,2]", 2).is_some() && Split::of("[1,2,3]", 2).is_none());
        let nested = |depth: usize| format!("[{}{}]", "[".repeat(depth), "]".repeat(depth));
        assert!(split(&nested(DEPTH)).is_some() && split(&nested(DEPTH + 1)).is_none());
    }

    #[test]
    fn fields_are_kept_of_events_that_have_names_as_far_as_there_is_room() {
        let places = |text: &str| -> Vec<usize> {
            Split::of(text, 100).unwrap().events.into_iter().map(|(_, places)| places.len()).collect()
        };
        assert_eq!(places(r#"[{"a":1,"b":{"c":2}},{},7,{"\ud800":1,"d":2},{"\u0065":3}]"#), [2, 0, 0, 0, 1]);
        let many = |count: usize| format!("{{{}}}", vec!["\"a\":1"; count].join(","));
        let text = format!("[{},{},{},{}]", many(FIELDS - 2), many(2), many(1), many(2));
        assert_eq!(places(&text), [FIELDS - 2, 2, 0, 0]);
        assert_eq!(places(&format!("[{},{}]", many(FIELDS + 1), many(3))), [0, 3]);
    }

    #[test]
    fn what_is_no_json_is_never_taken() {
        let wrong = [
            "[01]",
            "[-]",
            "[1.]",
            "[.5]",
            "[1e]",
            "[1e+]",
            "[+1]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[tru]",
            "[truex]",
            "[\"\n\"]",
            "[\"\u{0}\"]",
            "[\"\\x\"]",
            "[\"\\u12g4\"]",
            "[\"\\u12\"]",
            "[\"a]",
            "[{]",
            "[{\"a\"}]",
            "[{\"a\":}]",
            "[{\"a\":1,}]",
            "[{a:1}]",
            "[{\"a\":1]",
            "[1}",
            "[1",
            "[1]]",
            "[1] x",
            "{\"a\":1}}",
            "[{1:2}]",
            "['a']",
            "[NaN]",
        ];
        for text in wrong {
            assert!(parsed(text).is_none() && split(text).is_none(), "{text}");
        }
    }

    /// Each byte of some JSON replaced by each of those that mean something.
    #[test]
    fn of_json_with_a_byte_changed_it_takes_what_a_parser_takes() {
        let text = r#"[{"a":"b\n\u12aB","c":[1.5e-3,-20],"d":{"e":true,"f":[null, {}]}} ,"0123456789abcdef"]"#;
        let mut taken = 0;
        for place in 0..text.len() {
            for byte in "\"\\/{}[]:, \n\t\u{1}\u{1f}aeEu019.-+tx".chars() {
                let changed = format!("{}{byte}{}", &text[..place], &text[place + 1..]);
                assert_eq!(split(&changed), parsed(&changed), "{changed}");
                taken += usize::from(split(&changed).is_some());
            }
        }
        assert!(taken > 500, "{taken}");
    }

    proptest! {
        #[test]
        fn of_bytes_that_mean_something_it_takes_what_a_parser_takes(inner in r#"[\[\]{},:"\\0-9eE.+\-a-fnrtu \n\x01\x1f\x20é]{0,24}"#) {
            let text = format!("[{inner}]");
            if let Some(found) = split(&text) {
                prop_assert_eq!(Some(found), parsed(&text));
            } else if let Some(found) = parsed(&text) {
                // An empty array is the parser's.
                prop_assert!(found.is_empty(), "{} is left to the parser", text);
            }
        }
    }
}
