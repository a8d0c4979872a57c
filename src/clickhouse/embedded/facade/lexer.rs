//! A lexer for as much of ClickHouse's SQL as it takes to find keywords outside quotes, comments and brackets.

/// What stands at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// An unquoted identifier, keyword or number.
    Word(&'a [u8]),
    /// `(`, `[` or `{`.
    Open,
    /// `)`, `]` or `}`.
    Close,
    /// `;`
    Semicolon,
    /// `,`
    Comma,
    /// `=`
    Equals,
    /// `.`
    Dot,
    /// A quoted text or name, quotes included.
    Quoted(&'a [u8]),
    /// Any other byte.
    Other,
}

impl Token<'_> {
    /// Whether this is the keyword `keyword` (any case).
    pub(super) fn is(self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword.as_bytes()))
    }
}

/// Reads tokens from a text, which may end anywhere.
#[derive(Clone)]
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    position: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, position: 0 }
    }

    /// Where the next token is looked for: just behind the last one.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The next token and where it starts.
    pub(super) fn next(&mut self) -> Option<(usize, Token<'a>)> {
        self.skip_blank();
        let start = self.position;
        let first = *self.text.get(start)?;
        self.position += 1;
        let token = match first {
            b'(' | b'[' | b'{' => Token::Open,
            b')' | b']' | b'}' => Token::Close,
            b';' => Token::Semicolon,
            b',' => Token::Comma,
            b'=' => Token::Equals,
            b'.' => Token::Dot,
            b'\'' | b'"' | b'`' => {
                self.skip_quoted(first);
                Token::Quoted(self.text.get(start..self.position).unwrap_or_default())
            }
            b'$' => self.heredoc(start),
            letter if is_word(letter) => {
                self.skip_while(is_word);
                Token::Word(self.text.get(start..self.position).unwrap_or_default())
            }
            _ => Token::Other,
        };
        Some((start, token))
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.position..).unwrap_or_default()
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        self.position += self.rest().iter().take_while(|&&byte| wanted(byte)).count();
    }

    /// Behind the next `end`, or to the end of the text.
    fn skip_past(&mut self, end: &[u8]) {
        self.position += memchr::memmem::find(self.rest(), end).map_or(self.rest().len(), |at| at + end.len());
    }

    fn skip_blank(&mut self) {
        loop {
            self.skip_while(|byte| byte.is_ascii_whitespace() || byte == 0x0b);
            let rest = self.rest();
            if rest.starts_with(b"--") || rest.starts_with(b"#!") || rest.starts_with(b"# ") {
                self.skip_past(b"\n");
            } else if rest.starts_with(b"/*") {
                self.position += 2;
                self.skip_past(b"*/");
            } else {
                return;
            }
        }
    }

    /// To behind the closing quote. A backslash escapes; a doubled quote simply starts the next quoted token.
    fn skip_quoted(&mut self, quote: u8) {
        while let Some(at) = memchr::memchr2(quote, b'\\', self.rest()) {
            let escape = self.rest().get(at) == Some(&b'\\');
            self.position = (self.position + at + if escape { 2 } else { 1 }).min(self.text.len());
            if !escape {
                return;
            }
        }
        self.position = self.text.len();
    }

    /// `$tag$ ... $tag$`, or a lone dollar sign.
    fn heredoc(&mut self, start: usize) -> Token<'a> {
        let tag_length = self.rest().iter().take_while(|&&byte| is_word(byte)).count();
        if self.rest().get(tag_length) != Some(&b'$') {
            return Token::Other;
        }
        self.position += tag_length + 1;
        let tag = self.text.get(start..self.position).unwrap_or_default();
        self.skip_past(tag);
        Token::Quoted(tag)
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}
