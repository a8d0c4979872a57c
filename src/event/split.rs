//! A body split into its events: checked to be JSON and cut, in one pass over its bytes.
//!
//! A general parser spends two thirds of its time on what nobody asks here (numbers and texts as values). This one only
//! says yes. Whatever it does not say yes to, the parser decides, and tells what is wrong and where: so it may give up on
//! anything that is rare, and must never take what is no JSON.
//!
//! The grammar is that of [RFC 8259](https://www.rfc-editor.org/rfc/rfc8259). In strings eight bytes are looked at at a time, by
//! the well-known sums that find a byte in a word
//! ([Bit Twiddling Hacks](https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord)).

use std::ops::Range;

use super::{
    field::Field,
    scan::{Checked, space, unquoted},
};

/// How deep objects and arrays may stand in one another; deeper ones are the parser's.
const DEPTH: usize = 64;
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

/// Behind the value at `at`, and whether it is anything but a string with an escape in it.
fn value(bytes: &[u8], at: usize, depth: usize) -> Option<(usize, bool)> {
    let ends = match bytes.get(at)? {
        b'"' => return string(bytes, at),
        b'{' => {
            let depth = depth.checked_sub(1)?;
            members(bytes, at, |_, _, at| value(bytes, at, depth).map(|(ends, _)| ends))
        }
        b'[' => {
            let depth = depth.checked_sub(1)?;
            items(bytes, at, |at| value(bytes, at, depth).map(|(ends, _)| ends))
        }
        b't' => word(bytes, at, b"true"),
        b'f' => word(bytes, at, b"false"),
        b'n' => word(bytes, at, b"null"),
        _ => number(bytes, at),
    };
    Some((ends?, true))
}

/// Behind the object at `at`; `each` is given where a name stands, whether it has no escape in it, and where its value begins,
/// and gives where that ends.
fn members(bytes: &[u8], at: usize, mut each: impl FnMut(Range<usize>, bool, usize) -> Option<usize>) -> Option<usize> {
    let mut at = space(bytes, at + 1);
    if bytes.get(at)? == &b'}' {
        return Some(at + 1);
    }
    loop {
        if bytes.get(at)? != &b'"' {
            return None;
        }
        let (name_ends, plain) = string(bytes, at)?;
        let colon = space(bytes, name_ends);
        if bytes.get(colon)? != &b':' {
            return None;
        }
        let ends = each(at..name_ends, plain, space(bytes, colon + 1))?;
        at = space(bytes, ends);
        match bytes.get(at)? {
            b',' => at = space(bytes, at + 1),
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// Behind the array at `at`; `each` is given where an item begins, and gives where it ends.
fn items(bytes: &[u8], at: usize, mut each: impl FnMut(usize) -> Option<usize>) -> Option<usize> {
    if bytes.get(at)? != &b'[' {
        return None;
    }
    let mut at = space(bytes, at + 1);
    if bytes.get(at)? == &b']' {
        return Some(at + 1);
    }
    loop {
        let ends = each(at)?;
        at = space(bytes, ends);
        match bytes.get(at)? {
            b',' => at = space(bytes, at + 1),
            b']' => return Some(at + 1),
            _ => return None,
        }
    }
}

fn word(bytes: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    bytes.get(at..)?.starts_with(word).then_some(at + word.len())
}

/// Behind the number at `at`.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let is = |at: usize, wanted: &[u8]| bytes.get(at).is_some_and(|byte| wanted.contains(byte));
    let digits = |at: usize| {
        let count = bytes.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then_some(at + count)
    };
    let whole = if is(at, b"-") { at + 1 } else { at };
    let mut at = if is(whole, b"0") { whole + 1 } else { digits(whole)? };
    if is(at, b".") {
        at = digits(at + 1)?;
    }
    if is(at, b"eE") {
        let sign = usize::from(is(at + 1, b"+-"));
        at = digits(at + 1 + sign)?;
    }
    Some(at)
}

/// Behind the string at `at`, whose quote stands there, and whether there is no escape in it.
pub(super) fn string(bytes: &[u8], at: usize) -> Option<(usize, bool)> {
    let (mut at, mut is_plain) = (at + 1, true);
    loop {
        at = plain(bytes, at);
        match bytes.get(at)? {
            b'"' => return Some((at + 1, is_plain)),
            b'\\' => {
                is_plain = false;
                at += match bytes.get(at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                    b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => 6,
                    _ => return None,
                };
            }
            // A control character.
            _ => return None,
        }
    }
}

/// Of every byte the lowest bit, and the highest.
const LOW: u64 = u64::MAX / 0xff;
const HIGH: u64 = LOW << 7;

/// The first byte from `at` on that is a quote, a backslash or a control character; the end when there is none.
fn plain(bytes: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        // A borrow marks only bytes above one that is marked rightly, so that the lowest mark is right.
        let below = |word: u64, bound: u64| word.wrapping_sub(LOW * bound) & !word;
        let marks = (below(word, 0x20) | below(word ^ (LOW * 0x22), 1) | below(word ^ (LOW * 0x5c), 1)) & HIGH;
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| **byte >= 0x20 && !matches!(byte, b'"' | b'\\')).count()
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

        #[test]
        fn special_bytes_are_found_wherever_they_stand(bytes in prop::collection::vec(any::<u8>(), 0..40), at in 0_usize..8) {
            let expected = bytes.iter().enumerate().skip(at).find(|(_, byte)| **byte < 0x20 || matches!(byte, b'"' | b'\\'));
            prop_assert_eq!(plain(&bytes, at), expected.map_or(bytes.len().max(at), |(place, _)| place));
        }
    }
}
