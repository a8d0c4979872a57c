//! An error with its causes, in one line, for health and logs.

use std::error::Error;

/// `error` and all its sources, separated by colons. A cause whose words the text holds already is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        #[source]
        source: io::Error,
    }

    #[test]
    fn causes_follow_and_repeats_are_left_out() {
        let layer = |text| Layer { text, source: io::Error::other("disk is gone") };
        assert_eq!(chain(&layer("cannot write")), "cannot write: disk is gone");
        assert_eq!(chain(&layer("cannot write: disk is gone")), "cannot write: disk is gone");
    }
}
