//! Enough of Rust's lexical grammar to see code without its comments and literals.
//!
//! A rule that speaks of code must not trip over a comment that explains the rule, so
//! comments (doc comments too), string and character literals and numbers vanish here;
//! words, `::` and other punctuation stay, each with its line.

/// One piece of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// What it is.
    pub(crate) kind: Kind,
    /// Line in the file, from 1.
    pub(crate) line: usize,
}

/// The kinds that the rules tell apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier or keyword. A raw identifier loses its `r#`, unless it spells a
    /// keyword that the rules look for.
    Word(String),
    /// `::`
    PathSeparator,
    /// Any other character.
    Mark(char),
}

const KEYWORDS: [&str; 7] = ["use", "unsafe", "extern", "crate", "mod", "as", "self"];

/// Splits source text into tokens. Anything unterminated ends with the text.
pub(crate) fn lex(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { text: source.as_bytes(), at: 0, line: 1, tokens: Vec::new() };
    while let Some(byte) = lexer.peek(0) {
        lexer.token(byte);
    }
    lexer.tokens
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    /// Moves on, counting lines.
    fn skip(&mut self, count: usize) {
        let end = (self.at + count).min(self.text.len());
        self.line += self.text[self.at..end].iter().filter(|&&b| b == b'\n').count();
        self.at = end;
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    fn token(&mut self, byte: u8) {
        match (byte, self.peek(1)) {
            (b'/', Some(b'/')) => {
                while self.peek(0).is_some_and(|byte| byte != b'\n') {
                    self.skip(1);
                }
            }
            (b'/', Some(b'*')) => self.block_comment(),
            (b'"', _) => self.quoted(b'"'),
            (b'\'', _) => self.quote_or_lifetime(),
            (b':', Some(b':')) => {
                self.push(Kind::PathSeparator);
                self.skip(2);
            }
            (b'0'..=b'9', _) => self.number(),
            _ if is_word(byte) => self.word(),
            _ => {
                if !byte.is_ascii_whitespace() {
                    self.push(Kind::Mark(char::from(byte)));
                }
                self.skip(1);
            }
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.skip(2);
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.skip(2);
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.skip(1),
            }
        }
    }

    /// A literal with backslash escapes, from its opening quote to its closing one.
    fn quoted(&mut self, quote: u8) {
        self.skip(1);
        while let Some(byte) = self.peek(0) {
            self.skip(if byte == b'\\' { 2 } else { 1 });
            if byte == quote {
                return;
            }
        }
    }

    /// `'a'` and `'\n'` are literals, `'a` is a lifetime or a label.
    fn quote_or_lifetime(&mut self) {
        let rest = String::from_utf8_lossy(
            &self.text[self.at + 1..(self.at + 6).min(self.text.len())],
        )
        .into_owned();
        let mut characters = rest.chars();
        let first = characters.next();
        if first == Some('\\') || (first.is_some() && characters.next() == Some('\'')) {
            self.quoted(b'\'');
            return;
        }
        self.skip(1);
        while self.peek(0).is_some_and(is_word) {
            self.skip(1);
        }
    }

    fn number(&mut self) {
        while let Some(byte) = self.peek(0) {
            let fraction =
                byte == b'.' && self.peek(1).is_some_and(|next| next.is_ascii_digit());
            if !is_word(byte) && !fraction {
                return;
            }
            self.skip(1);
        }
    }

    fn word(&mut self) {
        let start = self.at;
        let mut end = start;
        while self.text.get(end).copied().is_some_and(is_word) {
            end += 1;
        }
        let word = String::from_utf8_lossy(&self.text[start..end]).into_owned();
        let hashes = self.text[end..].iter().take_while(|&&byte| byte == b'#').count();
        let after = self.text.get(end + hashes).copied();
        match word.as_str() {
            "r" | "br" | "cr" if after == Some(b'"') => {
                self.skip(end - start + hashes + 1);
                self.raw_string(hashes);
            }
            "b" | "c" if hashes == 0 && after == Some(b'"') => {
                self.skip(end - start);
                self.quoted(b'"');
            }
            "b" if hashes == 0 && after == Some(b'\'') => {
                self.skip(end - start);
                self.quoted(b'\'');
            }
            "r" if hashes == 1 && after.is_some_and(is_word) => {
                self.skip(2);
                self.word();
                if let Some(Token { kind: Kind::Word(raw), .. }) = self.tokens.last_mut()
                    && KEYWORDS.contains(&raw.as_str())
                {
                    raw.insert_str(0, "r#");
                }
            }
            _ => {
                self.push(Kind::Word(word));
                self.skip(end - start);
            }
        }
    }

    fn raw_string(&mut self, hashes: usize) {
        while let Some(byte) = self.peek(0) {
            self.skip(1);
            let closes = (0..hashes).all(|ahead| self.peek(ahead) == Some(b'#'));
            if byte == b'"' && closes {
                self.skip(hashes);
                return;
            }
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric() || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        lex(source)
            .into_iter()
            .filter_map(|token| match token.kind {
                Kind::Word(word) => Some(word),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn comments_and_literals_vanish() {
        let source = r####"
            //! hidden
            /// hidden /* hidden
            a /* hidden /* hidden */ hidden */ b
            "hidden \" hidden // hidden" c b"hidden" d c"hidden" e
            r"hidden" f r#"hidden " hidden"# g br##"hidden "# hidden"## h
            'x' i '\'' j b'\'' k '\u{1F600}' l 'é' m 1.5e3_f32 n 0xhidden o
        "####;
        let expected: Vec<_> = ('a'..='o').map(String::from).collect();
        assert_eq!(words(source), expected);
    }

    #[test]
    fn lifetimes_do_not_swallow_code() {
        assert_eq!(
            words("fn f<'a>(x: &'a str) -> &'static T { 'outer: loop {} }"),
            ["fn", "f", "x", "str", "T", "loop"]
        );
        assert_eq!(words("impl<'a, 'b> T<'a, 'b>"), ["impl", "T"]);
    }

    #[test]
    fn raw_identifiers_are_words_and_never_keywords() {
        assert_eq!(words("r#type r#unsafe"), ["type", "r#unsafe"]);
    }

    #[test]
    fn lines_are_counted_through_comments_and_strings() {
        let tokens = lex("/*\n*/ \"\n\n\" x\n// y\nz");
        let lines: Vec<_> = tokens.iter().map(|token| token.line).collect();
        assert_eq!(lines, [4, 6]);
    }

    #[test]
    fn unterminated_text_ends() {
        for source in ["\"", "'", "/*", "r#\"x", "b'", "'\\", "\"\\", "r#", "é"] {
            lex(source);
        }
    }

    #[test]
    fn range_of_numbers_is_not_a_fraction() {
        assert_eq!(words("0..end 1.max(2)"), ["end", "max"]);
    }
}
