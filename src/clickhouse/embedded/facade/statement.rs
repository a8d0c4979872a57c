//! What a statement is, as far as the facade must know: where an INSERT's data starts, and which format a query names.
//!
//! An INSERT may carry its data behind its own text, in any format and any bytes. The engine must get text and data
//! apart (its call for whole texts ends data at the first empty line), so the split is made here, by ClickHouse's own
//! rules: data starts behind `VALUES`, or behind `FORMAT name`, blanks and at most one line end.

use super::{
    super::engine::QueryError,
    lexer::{Lexer, Token},
};

/// The kind of a statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// Data follows, or is expected in the body.
    Insert(InsertHead),
    /// Everything else, INSERT ... SELECT included.
    Query {
        /// The format that a trailing FORMAT clause names.
        format: Option<String>,
    },
}

/// An INSERT without its data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InsertHead {
    /// The statement without FORMAT clause and data.
    pub(super) sql: Vec<u8>,
    /// The data's format, if the statement names one.
    pub(super) format: Option<String>,
    /// Where the data starts in the text that was analysed.
    pub(super) data: usize,
}

/// Analyses the statement at the start of `text`. `complete`: nothing follows `text`.
///
/// # Errors
/// What no server allows over HTTP: several statements, files on the client's side; and the function `file`.
pub(super) fn analyse(text: &[u8], complete: bool) -> Result<Statement, QueryError> {
    let mut lexer = Lexer::new(text);
    match lexer.next() {
        Some((_, first)) if first.is("INSERT") => match insert(text, lexer.clone(), complete)? {
            Some(head) => Ok(Statement::Insert(head)),
            None => query(lexer),
        },
        _ => query(Lexer::new(text)),
    }
}

/// Whether `text` starts with the keyword INSERT, SET or USE; None for any other.
pub(super) fn first_keyword(text: &[u8]) -> Option<&'static str> {
    let (_, first) = Lexer::new(text).next()?;
    ["INSERT", "SET", "USE"].into_iter().find(|keyword| first.is(keyword))
}

/// Behind INSERT: the head, or None for INSERT ... SELECT without data.
fn insert(text: &[u8], mut lexer: Lexer<'_>, complete: bool) -> Result<Option<InsertHead>, QueryError> {
    let mut depth = 0_usize;
    let mut previous = Token::Other;
    let mut calls = Calls::default();
    let mut selects = false;
    let mut reads_input = false;
    while let Some((start, token)) = lexer.next() {
        calls.see(token)?;
        // A name may be spelled like a keyword where only a name can stand.
        let names = names_follow(previous);
        match token {
            Token::Open => {
                reads_input |= previous.is("input");
                depth += 1;
            }
            Token::Close => depth = depth.saturating_sub(1),
            Token::Semicolon if depth == 0 && !selects => break,
            _ if token.is("INFILE") && previous.is("FROM") => return Err(client_side("FROM INFILE")),
            Token::Word(_) if depth == 0 && !names => {
                if token.is("SELECT") || token.is("WITH") {
                    selects = true;
                } else if token.is("VALUES") && !selects {
                    let sql = text.get(..start).unwrap_or_default().to_vec();
                    return Ok(Some(InsertHead { sql, format: Some("Values".to_owned()), data: lexer.position() }));
                } else if token.is("FORMAT")
                    && (!selects || reads_input)
                    && let Some((_, Token::Word(name))) = lexer.clone().next()
                {
                    if selects {
                        return Err(QueryError::new(
                            48,
                            "NOT_IMPLEMENTED",
                            "the embedded engine takes no data for INSERT ... SELECT FROM input(): insert it as it is",
                        ));
                    }
                    lexer.next();
                    return behind_format(text, start, name, lexer).map(Some);
                }
            }
            _ => {}
        }
        previous = token;
    }
    if selects {
        return Ok(None);
    }
    if !complete {
        return Err(QueryError::new(62, "SYNTAX_ERROR", "Max query size exceeded before the data of the INSERT"));
    }
    let sql = text.trim_ascii_end();
    let sql = sql.strip_suffix(b";").unwrap_or(sql).to_vec();
    Ok(Some(InsertHead { sql, format: None, data: text.len() }))
}

/// Behind `FORMAT name`: a SETTINGS clause may stand here too; then blanks and one line end, then the data.
fn behind_format(
    text: &[u8],
    format_start: usize,
    name: &[u8],
    mut lexer: Lexer<'_>,
) -> Result<InsertHead, QueryError> {
    let mut sql = text.get(..format_start).unwrap_or_default().to_vec();
    let mut end = lexer.position();
    let mut ahead = lexer.clone();
    match ahead.next() {
        // On a line of its own the word is data.
        Some((start, token)) if token.is("SETTINGS") && !text.get(end..start).unwrap_or_default().contains(&b'\n') => {
            end = settings_end(&mut ahead)?;
            sql.extend_from_slice(text.get(start..end).unwrap_or_default());
            lexer = ahead;
            if let Some((_, Token::Semicolon)) = lexer.next() {
                end = lexer.position();
            }
        }
        Some((_, Token::Semicolon)) => end = ahead.position(),
        _ => {}
    }
    let mut data = text.get(end..).unwrap_or_default();
    data = data.trim_prefix_while(|byte| matches!(byte, b' ' | b'\t' | 0x0c));
    data = data.strip_prefix(b"\r").unwrap_or(data);
    data = data.strip_prefix(b"\n").unwrap_or(data);
    Ok(InsertHead { sql, format: Some(String::from_utf8_lossy(name).into_owned()), data: text.len() - data.len() })
}

/// Reads `name = value, name = value` and gives the position behind it.
fn settings_end(lexer: &mut Lexer<'_>) -> Result<usize, QueryError> {
    let broken = || QueryError::new(62, "SYNTAX_ERROR", "Syntax error in the SETTINGS behind FORMAT");
    loop {
        let Some((_, Token::Word(_))) = lexer.next() else { return Err(broken()) };
        let Some((_, Token::Equals)) = lexer.next() else { return Err(broken()) };
        let mut value = lexer.next();
        if let Some((_, Token::Other)) = value {
            // A sign.
            value = lexer.next();
        }
        let Some((_, Token::Word(_) | Token::Quoted(_))) = value else { return Err(broken()) };
        while let Some((_, Token::Dot)) = lexer.clone().next() {
            // A fraction.
            lexer.next();
            lexer.next();
        }
        let end = lexer.position();
        match lexer.clone().next() {
            Some((_, Token::Comma)) => {
                lexer.next();
            }
            _ => return Ok(end),
        }
    }
}

fn query(mut lexer: Lexer<'_>) -> Result<Statement, QueryError> {
    let mut depth = 0_usize;
    let mut previous = Token::Other;
    let mut calls = Calls::default();
    let mut ended = false;
    let mut settings = false;
    let mut format: Option<&[u8]> = None;
    while let Some((_, token)) = lexer.next() {
        if ended && token != Token::Semicolon {
            return Err(QueryError::new(62, "SYNTAX_ERROR", "Syntax error (Multi-statements are not allowed)"));
        }
        calls.see(token)?;
        if token.is("OUTFILE") && previous.is("INTO") {
            return Err(client_side("INTO OUTFILE"));
        }
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.saturating_sub(1),
            Token::Semicolon if depth == 0 => ended = true,
            Token::Word(word) if depth == 0 && previous.is("FORMAT") && format.is_none() => format = Some(word),
            _ if depth == 0 && token.is("SETTINGS") => settings = true,
            // Something follows: then it was no clause but a column or table named "format".
            _ if !settings => format = None,
            _ => {}
        }
        previous = token;
    }
    Ok(Statement::Query { format: format.map(|name| String::from_utf8_lossy(name).into_owned()) })
}

/// Whether only a table's name can stand behind `token`.
fn names_follow(token: Token<'_>) -> bool {
    ["INTO", "TABLE", "EXISTS"].into_iter().any(|keyword| token.is(keyword)) || token == Token::Dot
}

/// Watches for calls of the function `file`, which reads any file without asking for a privilege.
#[derive(Default)]
struct Calls<'a> {
    last: Option<Token<'a>>,
    before: Option<Token<'a>>,
}

impl<'a> Calls<'a> {
    fn see(&mut self, token: Token<'a>) -> Result<(), QueryError> {
        let named = match self.last {
            Some(Token::Word(word)) => word.eq_ignore_ascii_case(b"file"),
            // A name may be quoted, and then its letters may be escaped.
            Some(Token::Quoted(name)) if !name.starts_with(b"'") => {
                name.contains(&b'\\') || name.get(1..5).is_some_and(|name| name.eq_ignore_ascii_case(b"file"))
            }
            _ => false,
        };
        if token == Token::Open && named && !self.before.is_some_and(names_follow) {
            return Err(QueryError::new(
                497,
                "ACCESS_DENIED",
                "Not enough privileges: the embedded engine reads and writes no files",
            ));
        }
        self.before = self.last.replace(token);
        Ok(())
    }
}

fn client_side(what: &str) -> QueryError {
    QueryError::new(48, "NOT_IMPLEMENTED", format_args!("{what} is not allowed over HTTP: it names a client's file"))
}

/// `trim_start_matches` for bytes.
trait TrimPrefix {
    fn trim_prefix_while(&self, unwanted: impl Fn(&u8) -> bool) -> &Self;
}

impl TrimPrefix for [u8] {
    fn trim_prefix_while(&self, unwanted: impl Fn(&u8) -> bool) -> &Self {
        let count = self.iter().take_while(|byte| unwanted(byte)).count();
        self.get(count..).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn head(text: &str) -> (String, Option<String>, String) {
        match analyse(text.as_bytes(), true).unwrap() {
            Statement::Insert(head) => {
                (String::from_utf8(head.sql).unwrap(), head.format, text[head.data..].to_owned())
            }
            Statement::Query { .. } => panic!("{text:?} is taken for a query"),
        }
    }

    fn format_of(text: &str) -> Option<String> {
        match analyse(text.as_bytes(), true).unwrap() {
            Statement::Query { format } => format,
            Statement::Insert(_) => panic!("{text:?} is taken for an insert"),
        }
    }

    #[test]
    fn data_starts_behind_format_and_one_line_end() {
        let some = |name: &str| Some(name.to_owned());
        for (text, sql, format, data) in [
            ("INSERT INTO t FORMAT CSV\n1,2\n\n3,4", "INSERT INTO t ", some("CSV"), "1,2\n\n3,4"),
            (
                "insert into d.t (a, b) format JSONEachRow {\"a\":1}",
                "insert into d.t (a, b) ",
                some("JSONEachRow"),
                "{\"a\":1}",
            ),
            ("INSERT INTO t FORMAT RowBinary\n\n\n", "INSERT INTO t ", some("RowBinary"), "\n\n"),
            ("INSERT INTO t FORMAT TSV\r\n1", "INSERT INTO t ", some("TSV"), "1"),
            ("INSERT INTO t FORMAT TSV;\n1", "INSERT INTO t ", some("TSV"), "1"),
            ("INSERT INTO t VALUES (1), (2)", "INSERT INTO t ", some("Values"), " (1), (2)"),
            (
                "/* FORMAT x */ INSERT INTO t -- VALUES\nVALUES (1)",
                "/* FORMAT x */ INSERT INTO t -- VALUES\n",
                some("Values"),
                " (1)",
            ),
            ("INSERT INTO `format` (`values`) FORMAT TSV\n1", "INSERT INTO `format` (`values`) ", some("TSV"), "1"),
            ("INSERT INTO db.format FORMAT TSV\n1", "INSERT INTO db.format ", some("TSV"), "1"),
            ("INSERT INTO file (a) VALUES (1)", "INSERT INTO file (a) ", some("Values"), " (1)"),
            ("INSERT INTO values VALUES (1)", "INSERT INTO values ", some("Values"), " (1)"),
            ("INSERT INTO t SETTINGS a = 1 FORMAT TSV\n1", "INSERT INTO t SETTINGS a = 1 ", some("TSV"), "1"),
            (
                "INSERT INTO t FORMAT CSV SETTINGS a = 'x', b=-1\n1",
                "INSERT INTO t SETTINGS a = 'x', b=-1",
                some("CSV"),
                "1",
            ),
            ("INSERT INTO t (a) ;", "INSERT INTO t (a) ", None, ""),
        ] {
            assert_eq!(head(text), (sql.to_owned(), format, data.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn a_query_tells_the_format_that_it_ends_with() {
        for (text, format) in [
            ("SELECT 1", None),
            ("SELECT 1 FORMAT JSON", Some("JSON")),
            ("SELECT 1 format Native;", Some("Native")),
            ("SELECT 1 FORMAT JSON SETTINGS max_threads = 1", Some("JSON")),
            ("SELECT format FROM t", None),
            ("SELECT 'x FORMAT JSON'", None),
            ("SELECT (1 FORMAT JSON)", None),
            ("SELECT 'it''s' FORMAT CSV", Some("CSV")),
            ("SELECT $$ ; $$ FORMAT CSV", Some("CSV")),
            ("INSERT INTO t SELECT 1", None),
            ("CREATE TABLE file (a String)", None),
            ("SELECT file FROM d.file", None),
        ] {
            assert_eq!(format_of(text).as_deref(), format, "{text:?}");
        }
    }

    #[test]
    fn what_a_server_refuses_is_refused() {
        for (text, code) in [
            ("SELECT 1; DROP TABLE t", 62),
            ("SELECT 1 INTO OUTFILE 'x'", 48),
            ("SELECT file('/etc/passwd')", 497),
            ("SELECT `file` /* */ ('/etc/passwd')", 497),
            ("SELECT \"f\\x69le\"('/etc/passwd')", 497),
            ("INSERT INTO t SELECT file('/etc/passwd')", 497),
            ("INSERT INTO t FROM INFILE 'x' FORMAT CSV", 48),
            ("INSERT INTO t SELECT x FROM input('x Int8') FORMAT CSV\n1", 48),
            ("INSERT INTO t SELECT 1; DROP TABLE t", 62),
        ] {
            assert_eq!(analyse(text.as_bytes(), true).unwrap_err().code, code, "{text:?}");
        }
    }
}
