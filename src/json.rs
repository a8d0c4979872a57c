//! The grammar of JSON ([RFC 8259](https://www.rfc-editor.org/rfc/rfc8259)): where a value ends, for those who only say yes.
//!
//! A general parser spends two thirds of its time on numbers and texts as values. Who needs none of these asks here, and
//! leaves to the parser whatever is not said yes to, which then tells what is wrong and where: so this may give up on
//! anything that is rare, and must never take what is no JSON.
//!
//! In strings eight bytes are looked at at a time, by the well-known sums that find a byte in a word
//! ([Bit Twiddling Hacks](https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord)).

use std::ops::Range;

/// How deep objects and arrays may stand in one another; deeper ones are the parser's.
pub(crate) const DEPTH: usize = 64;

/// Behind the space at `at`.
pub(crate) fn space(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

/// Behind the value at `at`, and whether it is anything but a string with an escape in it.
pub(crate) fn value(bytes: &[u8], at: usize, depth: usize) -> Option<(usize, bool)> {
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
pub(crate) fn members(
    bytes: &[u8],
    at: usize,
    mut each: impl FnMut(Range<usize>, bool, usize) -> Option<usize>,
) -> Option<usize> {
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
pub(crate) fn items(bytes: &[u8], at: usize, mut each: impl FnMut(usize) -> Option<usize>) -> Option<usize> {
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
pub(crate) fn number(bytes: &[u8], at: usize) -> Option<usize> {
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
pub(crate) fn string(bytes: &[u8], at: usize) -> Option<(usize, bool)> {
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
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn special_bytes_are_found_wherever_they_stand(bytes in prop::collection::vec(any::<u8>(), 0..40), at in 0_usize..8) {
            let expected = bytes.iter().enumerate().skip(at).find(|(_, byte)| **byte < 0x20 || matches!(byte, b'"' | b'\\'));
            prop_assert_eq!(plain(&bytes, at), expected.map_or(bytes.len().max(at), |(place, _)| place));
        }
    }
}
