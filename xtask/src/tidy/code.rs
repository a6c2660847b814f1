//! Rust code in tokens: a rule that asks about code, comments or texts must not mistake one for another. As little of a lexer as that
//! takes: a crate for it would bring a dependency that all procedural macros have, and make Cargo compile each of them once more.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `///` and what follows.
    ItemComment,
    /// Any other comment.
    Comment,
    /// A text between quotation marks, raw or not; not of bytes.
    Text,
    /// A name or a number.
    Word,
    /// One sign, or a character or bytes between quotation marks.
    Other,
}

/// A token that is no white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// From 1.
    pub(super) line: usize,
}

impl Token<'_> {
    pub(super) fn is_comment(&self) -> bool {
        matches!(self.kind, Kind::ItemComment | Kind::Comment)
    }
}

/// The tokens of a file, comments included, without its modules of tests.
pub(super) fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut all = Vec::new();
    let (mut rest, mut line) = (code, 1);
    while let Some(first) = rest.chars().next() {
        let (kind, length) = if first.is_whitespace() {
            (None, first.len_utf8())
        } else {
            let (kind, length) = token(rest, first);
            (Some(kind), length)
        };
        let (text, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        if let Some(kind) = kind {
            all.push(Token { kind, text, line });
        }
        line += text.matches('\n').count();
        rest = after;
    }
    without_tests(all)
}

/// The kind and the length of the token that a code begins with.
fn token(code: &str, first: char) -> (Kind, usize) {
    let to_end_of_line = || code.find('\n').unwrap_or(code.len());
    if code.starts_with("///") && !code.starts_with("////") {
        return (Kind::ItemComment, to_end_of_line());
    }
    if code.starts_with("//") {
        return (Kind::Comment, to_end_of_line());
    }
    if code.starts_with("/*") {
        return (Kind::Comment, block_comment(code));
    }
    if first == '"' {
        return (Kind::Text, quoted(code, '"'));
    }
    if first == '\'' {
        // A lifetime has no second mark.
        let mut next = code.chars().skip(1);
        let is_character = next.next() == Some('\\') || next.next() == Some('\'');
        return (Kind::Other, if is_character { quoted(code, '\'') } else { 1 });
    }
    if is_of_word(first) {
        let length = code.find(|c: char| !is_of_word(c)).unwrap_or(code.len());
        let after = &code[length..];
        let is_raw = matches!(&code[..length], "r" | "br" | "cr");
        if is_raw && after.trim_start_matches('#').starts_with('"') {
            let kind = if length == 1 { Kind::Text } else { Kind::Other };
            return (kind, length + raw(after));
        }
        if matches!(&code[..length], "b" | "c") && after.starts_with('"') {
            return (Kind::Other, length + quoted(after, '"'));
        }
        return (Kind::Word, length);
    }
    (Kind::Other, first.len_utf8())
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of what begins with a mark and ends with the next one that no backslash stands before.
fn quoted(code: &str, mark: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in code.char_indices().skip(1) {
        if !is_escaped && c == mark {
            return at + 1;
        }
        is_escaped = !is_escaped && c == '\\';
    }
    code.len()
}

/// The length of `#"…"#`, with as many `#` as there are.
fn raw(code: &str) -> usize {
    let hashes = code.len() - code.trim_start_matches('#').len();
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = hashes + 1;
    code[begin..].find(&end).map_or(code.len(), |at| begin + at + end.len())
}

/// The length of a comment that may hold others.
fn block_comment(code: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < code.len() {
        if code[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if code[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += code[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    code.len()
}

/// Leaves out `#[cfg(test)] mod name { … }`.
fn without_tests(all: Vec<Token<'_>>) -> Vec<Token<'_>> {
    const MARK: [&str; 8] = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let mut kept = Vec::new();
    let mut at = 0;
    while let Some(token) = all.get(at) {
        let is_marked = all[at..].iter().map(|token| token.text).take(MARK.len()).eq(MARK);
        if is_marked && all.get(at + MARK.len() + 1).is_some_and(|next| next.text == "{") {
            at += MARK.len() + 1;
            at += block(&all[at..]);
        } else {
            kept.push(*token);
            at += 1;
        }
    }
    kept
}

/// How many tokens the block has that begins here, its braces included.
pub(super) fn block(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_know_their_lines_and_tests_are_left_out() {
        let code = "//! a\nfn b() { \"x\ny\"; }\n#[cfg(test)]\nmod tests { fn c() {} }\nfn d() {}\n";
        let all = tokens(code);
        let found = |text: &str| all.iter().find(|token| token.text == text).map(|token| token.line);
        assert!(all[0].is_comment());
        assert_eq!(found("b"), Some(2));
        assert_eq!(found("\"x\ny\""), Some(2));
        assert_eq!(found("c"), None);
        assert_eq!(found("d"), Some(6));
    }

    #[test]
    fn texts_comments_and_characters_are_told_apart() {
        let kinds = |code: &str| -> Vec<(Kind, String)> {
            tokens(code)
                .iter()
                .map(|token| (token.kind, token.text.to_owned()))
                .collect()
        };
        let texts = |code: &str| -> Vec<String> {
            let of_text = |(kind, text): (Kind, String)| (kind == Kind::Text).then_some(text);
            kinds(code).into_iter().filter_map(of_text).collect()
        };
        assert_eq!(texts(r#"f("a \" b", '"', "c")"#), [r#""a \" b""#, r#""c""#]);
        assert_eq!(
            texts(r##"f(r#"a " b"#, r"c", br"d", b"e")"##),
            [r##"r#"a " b"#"##, r#"r"c""#]
        );
        assert_eq!(
            texts(r"fn f<'a>(x: &'a str, y: char) { '\''; '\\'; 'ü' }"),
            Vec::<String>::new()
        );
        assert_eq!(texts("// \"a\"\n/* /* \"b\" */ \"c\" */ \"d"), ["\"d"]);
        assert_eq!(kinds("/// a\n//// b")[0], (Kind::ItemComment, "/// a".to_owned()));
        assert_eq!(kinds("/// a\n//// b")[1].0, Kind::Comment);
    }
}
