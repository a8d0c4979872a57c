//! What the source keeps in the metadata of its group's offset commit: the range in flight.
//!
//! ```text
//! offset of the commit   first offset of the range, or the next one to be read
//! metadata               "r1:<last>"  a range up to and including <last> is in flight
//!                        "r1:"        none is
//! ```
//!
//! Only this is fenced: a member that lost its partitions cannot commit any more, so it cannot record a range either.

/// Version of the format, with a prefix that tells it from another program's metadata.
const PREFIX: &str = "r1:";

/// The metadata for a range that ends at `last`, or for none.
pub(super) fn write(last: Option<u64>) -> String {
    last.map_or_else(|| PREFIX.to_owned(), |last| format!("{PREFIX}{last}"))
}

/// Whether the broker kept what was written: a commit of this engine always has metadata.
pub(super) fn is_kept(metadata: &str) -> bool {
    metadata.starts_with(PREFIX)
}

/// What `metadata` says: `Some(last)` for a range in flight that starts at `first`. What another program wrote, or
/// what cannot be, is no range.
pub(super) fn read(metadata: &str, first: u64) -> Option<u64> {
    let last = metadata.strip_prefix(PREFIX)?.parse().ok()?;
    (last >= first).then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(write(Some(42)), "r1:42");
        assert_eq!(write(None), "r1:");
        let cases = [
            ("r1:42", 40, Some(42)),
            ("r1:42", 42, Some(42)),
            ("r1:18446744073709551615", 0, Some(u64::MAX)),
            ("r1:42", 43, None),
            ("r1:", 0, None),
            ("", 0, None),
            ("r2:42", 0, None),
            ("r1:-1", 0, None),
            ("somebody else's", 0, None),
        ];
        for (metadata, first, expected) in cases {
            assert_eq!(read(metadata, first), expected, "{metadata}");
        }
    }
}
