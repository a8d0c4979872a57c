//! Personal data inside of texts: addresses of e-mail, and values of query parameters.
//!
//! Both passes go through a text once, with a bounded look back: a text that was made to be slow is not. What is doubtful is
//! taken for personal (`logo@2x.png` has the form of an address).

use std::borrow::Cow;

/// Most bytes of an address before its `@`. The standard has 64; a few more do no harm, and no limit would.
const LOCAL_BYTES: usize = 256;

/// Replaces every address of e-mail by what `replace` makes of it; `None` if there is none. `%40` counts as `@`: that is how
/// it stands in a URL.
pub fn emails(text: &str, mut replace: impl FnMut(&str) -> String) -> Option<String> {
    let bytes = text.as_bytes();
    let mut scrubbed: Option<String> = None;
    // Up to where the text has been copied, and up to where it has been looked at.
    let (mut copied, mut seen) = (0, 0);
    while let Some((sign, after)) = at_sign(bytes, seen) {
        seen = after;
        let earliest = text.floor_char_boundary(sign.saturating_sub(LOCAL_BYTES)).max(copied);
        let local = bytes.get(earliest..sign).unwrap_or_default();
        let start = earliest + local.iter().rposition(|byte| !is_local(*byte)).map_or(0, |at| at + 1);
        let domain = domain(bytes.get(after..).unwrap_or_default());
        let (true, Some(end)) = (start < sign, domain.map(|length| after + length)) else { continue };
        let (before, address) = (text.get(copied..start), text.get(start..end));
        let out = scrubbed.get_or_insert_default();
        out.push_str(before.unwrap_or_default());
        out.push_str(&replace(&address.unwrap_or_default().replace("%40", "@")));
        (copied, seen) = (end, end);
    }
    if let Some(out) = &mut scrubbed {
        out.push_str(text.get(copied..).unwrap_or_default());
    }
    scrubbed
}

/// The next `@` or `%40` from `from` on: where it begins and where it ends.
fn at_sign(bytes: &[u8], from: usize) -> Option<(usize, usize)> {
    let mut rest = from;
    loop {
        let at = rest + memchr::memchr2(b'@', b'%', bytes.get(rest..)?)?;
        if bytes.get(at) == Some(&b'@') {
            return Some((at, at + 1));
        }
        if bytes.get(at..at + 3) == Some(b"%40") {
            return Some((at, at + 3));
        }
        rest = at + 1;
    }
}

/// What may stand before the `@`. `/ ? & =` may, by the standard; in a URL they mean something else.
fn is_local(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b".!#$%'*+-^_`{|}~".contains(&byte)
}

/// How long the domain is with which `bytes` begin; `None` if it is none that mail is sent to.
fn domain(bytes: &[u8]) -> Option<usize> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte >= 0x80 || matches!(byte, b'-' | b'.');
    let length = bytes.iter().position(|byte| !is_part(byte)).unwrap_or(bytes.len());
    let whole = bytes.get(..length)?;
    // The full stop of a sentence.
    let length = whole.iter().rposition(|byte| !matches!(byte, b'-' | b'.'))? + 1;
    let mut labels = whole.get(..length)?.rsplitn(2, |byte| *byte == b'.');
    let (top, rest) = (labels.next()?, labels.next()?);
    let good = top.len() >= 2 && top.first().is_some_and(|first| !first.is_ascii_digit()) && !rest.is_empty();
    good.then_some(length)
}

/// Replaces the value of every `name=value` whose name is one of `names`, which are lower case; `None` if there is none. A
/// name stands at the start of the text or after `?`, `&`, `#`, `;` or white space, in any case, percent-encoded or not. A
/// value goes to the next `&`, `#` or white space.
pub fn query_parameters(text: &str, names: &[String], mut replace: impl FnMut(&str) -> String) -> Option<String> {
    let mut scrubbed: Option<String> = None;
    let (mut copied, mut at) = (0, 0);
    let stop = |c: char| matches!(c, '=' | '?' | '&' | '#' | ';') || c.is_whitespace();
    while let Some((name, found)) = text.get(at..).and_then(|rest| rest.split_once(stop)) {
        let end = at + name.len();
        // What stopped it may have more than one byte: `found` is what comes after it.
        at = text.len() - found.len();
        if text.as_bytes().get(end) != Some(&b'=') || !is_one_of(name, names) {
            continue;
        }
        let length = found.find(|c: char| matches!(c, '&' | '#') || c.is_whitespace()).unwrap_or(found.len());
        if length == 0 {
            continue;
        }
        let (before, value) = (text.get(copied..at), found.get(..length));
        let out = scrubbed.get_or_insert_default();
        out.push_str(before.unwrap_or_default());
        out.push_str(&replace(value.unwrap_or_default()));
        at += length;
        copied = at;
    }
    if let Some(out) = &mut scrubbed {
        out.push_str(text.get(copied..).unwrap_or_default());
    }
    scrubbed
}

fn is_one_of(name: &str, names: &[String]) -> bool {
    let name = if name.contains('%') { Cow::Owned(percent_decoded(name)) } else { Cow::Borrowed(name) };
    names.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let mut digit = || ahead.next().and_then(|byte| char::from(byte).to_digit(16));
        match (byte, digit(), digit()) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap_or(byte));
                bytes = ahead;
            }
            _ => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailed(text: &str) -> String {
        emails(text, |address| format!("<{address}>")).unwrap_or_else(|| "-".to_owned())
    }

    #[test]
    fn addresses_are_found_in_texts() {
        for (text, expected) in [
            ("jane@example.com", "<jane@example.com>"),
            ("Write to jane.d+x@mail.example.co.uk.", "Write to <jane.d+x@mail.example.co.uk>."),
            ("a@b.co,c@d.co", "<a@b.co>,<c@d.co>"),
            ("https://x.test/?email=jane%40example.com&x=1", "https://x.test/?email=<jane@example.com>&x=1"),
            ("mailto:jane@example.com?subject=hi", "mailto:<jane@example.com>?subject=hi"),
            ("https://user:pw@host.example/", "https://user:<pw@host.example>/"),
            ("jörg@müller.example", "<jörg@müller.example>"),
            ("a%40b%40c.com", "<a@b@c.com>"),
            ("a@b@c.com", "a@<b@c.com>"),
        ] {
            assert_eq!(mailed(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_left() {
        for text in
            ["", "@", "a@b", "@b.co", "a@", "5 @ 3.50", "a@1.2.3.4", "@media (x)", "a@.co", "100%", "é@", "a@é."]
        {
            assert_eq!(mailed(text), "-", "{text}");
        }
    }

    #[test]
    fn a_text_that_was_made_to_be_slow_is_not() {
        // Squared, these would take minutes.
        for part in ["%40", "@a", "a@b.", "%", "a"] {
            let text = part.repeat(1 << 20);
            drop(emails(&text, |_| String::new()));
            drop(query_parameters(&text, &["a".to_owned()], |_| String::new()));
        }
        drop(query_parameters(&"b=".repeat(1 << 20), &["a".to_owned()], |_| String::new()));
    }

    #[test]
    fn values_of_parameters_are_found() {
        let names = ["email".to_owned(), "token".to_owned()];
        let scrubbed = |text: &str| query_parameters(text, &names, |value| format!("<{value}>"));
        for (text, expected) in [
            ("https://x.test/a?email=j%40x.test&page=2", Some("https://x.test/a?email=<j%40x.test>&page=2")),
            ("/a?page=2&Token=abc#token=def", Some("/a?page=2&Token=<abc>#token=<def>")),
            ("/a?%74oken=abc;def", Some("/a?%74oken=<abc;def>")),
            ("/a?x=1&amp;token=abc", Some("/a?x=1&amp;token=<abc>")),
            ("/a?next=/b?token=abc", Some("/a?next=/b?token=<abc>")),
            ("failed: token=abc\u{a0}again", Some("failed: token=<abc>\u{a0}again")),
            ("email=a", Some("email=<a>")),
            ("/a?email=&token=", None),
            ("/a?mytoken=abc&tokens=def", None),
            ("/token/=a", None),
            ("", None),
        ] {
            assert_eq!(scrubbed(text).as_deref(), expected, "{text}");
        }
    }
}
