//! What an error of ClickHouse means for the one who must decide whether to wait, to stop or to look at the data.
//!
//! The client library hands on the server's text (`Code: 60. DB::Exception: ...`), so that is what is read here.

use std::time::Duration;

use thiserror::Error;

use crate::error_chain::chain;

/// Longest summary, in bytes: it is shown in `/health` and in every log line about the error.
const SUMMARY_BYTES: usize = 400;

/// Codes that ClickHouse raises while it reads the rows of an insert, converts them to the table's columns and looks at its
/// constraints, before anything is written: the rows are at fault, and a repeat of the same bytes fails in the same way.
const DATA_CODES: &[u32] = &[
    6,   // CANNOT_PARSE_TEXT
    25,  // CANNOT_PARSE_ESCAPE_SEQUENCE
    26,  // CANNOT_PARSE_QUOTED_STRING
    27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
    32,  // ATTEMPT_TO_READ_AFTER_EOF, also of an empty text that is to become a number
    33,  // CANNOT_READ_ALL_DATA
    38,  // CANNOT_PARSE_DATE
    41,  // CANNOT_PARSE_DATETIME
    53,  // TYPE_MISMATCH
    69,  // ARGUMENT_OUT_OF_BOUND
    70,  // CANNOT_CONVERT_TYPE
    72,  // CANNOT_PARSE_NUMBER
    117, // INCORRECT_DATA
    128, // TOO_LARGE_ARRAY_SIZE
    130, // CANNOT_READ_ARRAY_FROM_TEXT
    131, // TOO_LARGE_STRING_SIZE
    153, // ILLEGAL_DIVISION
    190, // SIZES_OF_ARRAYS_DONT_MATCH
    321, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
    349, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
    376, // CANNOT_PARSE_UUID
    395, // FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
    407, // DECIMAL_OVERFLOW
    441, // CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING
    467, // CANNOT_PARSE_BOOL
    469, // VIOLATED_CONSTRAINT
    632, // UNEXPECTED_DATA_AFTER_PARSED_VALUE
    675, // CANNOT_PARSE_IPV4
    676, // CANNOT_PARSE_IPV6
    691, // UNKNOWN_ELEMENT_OF_ENUM
];

/// Codes that an operator must mend: who we are, or what we expect to be there.
const CONFIGURATION_CODES: &[u32] = &[
    16,  // NO_SUCH_COLUMN_IN_TABLE
    60,  // UNKNOWN_TABLE
    81,  // UNKNOWN_DATABASE
    115, // UNKNOWN_SETTING
    164, // READONLY
    192, // UNKNOWN_USER
    193, // WRONG_PASSWORD
    194, // REQUIRED_PASSWORD
    452, // SETTING_CONSTRAINT_VIOLATION
    497, // ACCESS_DENIED
    516, // AUTHENTICATION_FAILED
];

/// Codes of a machine that has too little of something, whatever the statement.
const MACHINE_CODES: &[u32] = &[
    74,  // CANNOT_READ_FROM_FILE_DESCRIPTOR
    75,  // CANNOT_WRITE_TO_FILE_DESCRIPTOR
    76,  // CANNOT_OPEN_FILE
    241, // MEMORY_LIMIT_EXCEEDED
    243, // NOT_ENOUGH_SPACE
    252, // TOO_MANY_PARTS
];

/// Who can mend an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Network, time-outs, a server that is starting, overloaded or out of space: wait and repeat.
    Infrastructure,
    /// Credentials, or a database or table that is not there: an operator mends it, then a repeat works.
    Configuration,
    /// The rows were refused before anything was written.
    Data,
    /// A materialized view failed, *after* the rows were written to the table itself.
    ViewPush {
        /// The view as ClickHouse names it.
        view: String,
    },
}

/// A statement that failed.
#[derive(Debug, Error)]
#[error("{summary}")]
pub struct QueryError {
    kind: Kind,
    code: Option<u32>,
    summary: String,
    #[source]
    source: clickhouse::error::Error,
}

impl QueryError {
    /// Who can mend it.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// ClickHouse's code, when the server answered with one.
    pub fn code(&self) -> Option<u32> {
        self.code
    }

    /// The first line of what the server has said, in its full length.
    pub fn text(&self) -> &str {
        match &self.source {
            clickhouse::error::Error::BadResponse(text) => first_line(text),
            _ => &self.summary,
        }
    }

    /// Nothing was said within `limit`.
    pub(super) fn silent(limit: Duration) -> Self {
        let summary = format!("no answer within {} s", limit.as_secs_f64());
        let source = clickhouse::error::Error::Other(summary.clone().into());
        Self { kind: Kind::Infrastructure, code: None, summary, source }
    }

    /// Whether the machine lacks something: not even a view that fails is at fault then.
    pub fn is_of_the_machine(&self) -> bool {
        self.code.is_some_and(|code| MACHINE_CODES.contains(&code))
    }

    /// Whether a table or its database is not there.
    pub fn is_missing_table(&self) -> bool {
        matches!(self.code, Some(60 | 81))
    }
}

impl From<clickhouse::error::Error> for QueryError {
    fn from(source: clickhouse::error::Error) -> Self {
        let text = match &source {
            clickhouse::error::Error::BadResponse(text) => text.clone(),
            other => chain(other),
        };
        let code = code(&text);
        Self { kind: classify(code, &text), code, summary: summarize(&text), source }
    }
}

fn classify(code: Option<u32>, text: &str) -> Kind {
    if let Some(view) = failed_view(text) {
        return Kind::ViewPush { view };
    }
    match code {
        Some(code) if DATA_CODES.contains(&code) => Kind::Data,
        Some(code) if CONFIGURATION_CODES.contains(&code) => Kind::Configuration,
        _ => Kind::Infrastructure,
    }
}

/// The number after the first `Code: `.
fn code(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("Code: ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).and_then(|end| rest.get(..end)).unwrap_or(rest);
    digits.parse().ok()
}

/// The view in `... while pushing to view db.name (uuid) ...`.
fn failed_view(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("while pushing to view ")?;
    let name = rest.split([' ', '\n', '(']).next().unwrap_or(rest);
    Some(name.trim_end_matches(['.', ',', ':']).to_owned())
}

/// The first line without the version at its end.
fn first_line(text: &str) -> &str {
    let line = text.trim().lines().next().unwrap_or_default();
    line.split(" (version ").next().unwrap_or(line)
}

/// The first line, cut to a length that fits into a health report.
fn summarize(text: &str) -> String {
    let line = first_line(text);
    if line.len() <= SUMMARY_BYTES {
        return line.to_owned();
    }
    let end = (0..=SUMMARY_BYTES).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", line.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Kind {
        QueryError::from(clickhouse::error::Error::BadResponse(text.to_owned())).kind
    }

    #[test]
    fn errors_are_told_apart_by_who_can_mend_them() {
        let table = [
            ("Code: 33. DB::Exception: Cannot read all data. (CANNOT_READ_ALL_DATA) (version 26.7)", Kind::Data),
            ("Code: 516. DB::Exception: default: Authentication failed", Kind::Configuration),
            ("Code: 60. DB::Exception: Table o.events does not exist", Kind::Configuration),
            ("Code: 252. DB::Exception: Too many parts", Kind::Infrastructure),
            ("Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space", Kind::Infrastructure),
            ("502 Bad Gateway", Kind::Infrastructure),
            (
                // A view's own error may carry a data code: the rows are in the table all the same.
                "Code: 395. DB::Exception: broken: while executing 'f': while pushing to view o.bad_mv (1c-2d). (X)",
                Kind::ViewPush { view: "o.bad_mv".into() },
            ),
        ];
        for (text, expected) in table {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn summaries_are_short_and_without_the_stack() {
        let long = format!("Code: 27. DB::Exception: {} (version 26.7)\nStack trace: 0. x", "é".repeat(900));
        let error = QueryError::from(clickhouse::error::Error::BadResponse(long));
        assert!(error.to_string().len() <= SUMMARY_BYTES + 3);
        let short = QueryError::from(clickhouse::error::Error::BadResponse("Code: 60. no table (version 1)".into()));
        assert_eq!((short.to_string().as_str(), short.is_missing_table()), ("Code: 60. no table", true));
    }

    #[test]
    fn network_errors_tell_their_cause_once() {
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = QueryError::from(clickhouse::error::Error::Network(Box::new(refused)));
        assert_eq!(error.to_string(), "network error: connection refused");
        assert_eq!((error.kind(), error.code()), (&Kind::Infrastructure, None));
    }
}
