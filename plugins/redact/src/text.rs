//! Texts as JSON writes them.

use std::borrow::Cow;

/// What the inside of a JSON string says, between its quotes. Half of a surrogate pair, which JSON can write and which is no
/// character, becomes U+FFFD: the engine lets it pass inside of `properties`.
pub fn unescaped(inside: &str) -> Cow<'_, str> {
    if memchr::memchr(b'\\', inside.as_bytes()).is_none() {
        return Cow::Borrowed(inside);
    }
    let mut text = String::with_capacity(inside.len());
    let mut rest = inside;
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let mut chars = escape.chars();
        let (character, length) = match chars.next() {
            Some('u') => unicode(escape),
            Some('n') => ('\n', 1),
            Some('t') => ('\t', 1),
            Some('r') => ('\r', 1),
            Some('b') => ('\u{8}', 1),
            Some('f') => ('\u{c}', 1),
            Some(itself) => (itself, itself.len_utf8()),
            None => (char::REPLACEMENT_CHARACTER, 0),
        };
        text.push(character);
        rest = escape.get(length..).unwrap_or_default();
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// Reads `uXXXX`, or two of them that are one character. Returns it, and how many bytes it took.
fn unicode(escape: &str) -> (char, usize) {
    let unit = |from: usize| escape.get(from..from + 4).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let Some(first) = unit(1) else { return (char::REPLACEMENT_CHARACTER, 1) };
    let second = if escape.get(5..7) == Some("\\u") { unit(7) } else { None };
    match (first, second) {
        (0xd800..=0xdbff, Some(second @ 0xdc00..=0xdfff)) => {
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11)
        }
        _ => (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 5),
    }
}

/// `text` as a JSON string, with its quotes.
pub fn quoted(text: &str) -> String {
    // Writing a text to memory does not fail.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_read_as_json_means_them() {
        for inside in ["plain", r#"\"\\\/\b\f\n\r\t"#, r"\u0061\u00e9é", r"\ud83d\ude00!", r"a\u0040b"] {
            let expected: Option<String> = serde_json::from_str(&format!("\"{inside}\"")).ok();
            assert_eq!(Some(unescaped(inside).into_owned()), expected, "{inside}");
        }
    }

    #[test]
    fn half_a_character_is_none() {
        for (inside, expected) in [
            (r"a\ud83dz", "a\u{fffd}z"),
            (r"\ude00", "\u{fffd}"),
            (r"\ud83d\u0061", "\u{fffd}a"),
            (r"\ud83d\n", "\u{fffd}\n"),
        ] {
            assert_eq!(unescaped(inside), expected, "{inside}");
        }
    }
}
