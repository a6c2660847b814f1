//! What a program printed for a terminal, as plain lines: without control sequences, and of a line that was written over again
//! and again (a progress bar) the last state. No picture of a screen: moves up and down are ignored.

use anstyle_parse::{DefaultCharAccumulator, Params, Parser, Perform};

/// A line without end must not fill the memory, bytes.
const LONGEST_LINE: usize = 64 * 1024;

/// Cuts a stream of text into plain lines; the last one waits for its end.
#[derive(Debug, Default)]
pub struct PlainLines {
    parser: Parser<DefaultCharAccumulator>,
    screen: Screen,
}

#[derive(Debug, Default)]
struct Screen {
    lines: Vec<String>,
    /// The line as it is.
    line: String,
    /// What stood there before it was last written over.
    before: String,
    /// It was written over at least once.
    is_state: bool,
    /// What comes next is written over the line.
    returned: bool,
}

impl PlainLines {
    /// The lines that are whole now.
    pub fn push(&mut self, text: &str) -> Vec<String> {
        for byte in text.bytes() {
            self.parser.advance(&mut self.screen, byte);
            if self.screen.line.len() > LONGEST_LINE {
                self.screen.end_line();
            }
        }
        std::mem::take(&mut self.screen.lines)
    }

    /// What has no end yet; empty when every line has.
    #[must_use]
    pub fn pending(&self) -> &str {
        self.screen.shown()
    }

    /// The last line, if it has no end: more than one when a progress bar and what came after it stand in it.
    pub fn finish(&mut self) -> Vec<String> {
        if !self.pending().is_empty() {
            self.screen.end_line();
        }
        *self = Self {
            screen: Screen {
                lines: std::mem::take(&mut self.screen.lines),
                ..Screen::default()
            },
            parser: Parser::default(),
        };
        std::mem::take(&mut self.screen.lines)
    }
}

/// A whole text as plain lines.
#[must_use]
pub fn plain_lines(text: &str) -> Vec<String> {
    let mut lines = PlainLines::default();
    let mut all = lines.push(text);
    all.extend(lines.finish());
    all
}

impl Screen {
    /// What a person would see of the line.
    fn shown(&self) -> &str {
        if self.line.is_empty() { &self.before } else { &self.line }
    }

    fn end_line(&mut self) {
        let text = self.shown().to_owned();
        match glued_at(self.is_state, &self.before, &text) {
            Some(at) => {
                self.lines.push(text[..at].to_owned());
                self.lines.push(text[at..].to_owned());
            }
            None => self.lines.push(text),
        }
        self.line.clear();
        self.before.clear();
        (self.is_state, self.returned) = (false, false);
    }

    fn erase(&mut self) {
        self.line.clear();
        self.before.clear();
        self.returned = false;
    }
}

impl Perform for Screen {
    fn print(&mut self, c: char) {
        if std::mem::take(&mut self.returned) {
            self.is_state = true;
            if !self.line.is_empty() {
                self.before = std::mem::take(&mut self.line);
            }
        }
        self.line.push(c);
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\n' => self.end_line(),
            b'\r' => self.returned = true,
            b'\t' => self.print('\t'),
            0x08 => drop(self.line.pop()),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, _: &[u8], ignore: bool, action: u8) {
        let first = params
            .iter()
            .next()
            .and_then(|param| param.first().copied())
            .unwrap_or(0);
        match action {
            _ if ignore => {}
            // The line is erased: all of it, or from its beginning on.
            b'K' if first == 2 || self.returned => {
                self.erase();
                self.is_state = true;
            }
            // To the line's beginning.
            b'G' if first <= 1 => self.returned = true,
            _ => {}
        }
    }
}

/// Where the last state of a progress bar ends and something else begins that was printed right behind it; `None` when nothing was.
fn glued_at(is_state: bool, before: &str, line: &str) -> Option<usize> {
    if !is_state {
        return None;
    }
    let begins_words = |at: &usize| line[*at..].starts_with(char::is_alphabetic);
    let percent = line.match_indices('%').map(|(at, sign)| at + sign.len()).find(|at| {
        let figure = line[..at - 1].ends_with(|c: char| c.is_ascii_digit());
        figure && begins_words(at)
    });
    percent.or_else(|| end_of_shape(before, line).filter(begins_words))
}

/// How far `line` looks as `before` did, figures and bars apart; `None` when it does not.
fn end_of_shape(before: &str, line: &str) -> Option<usize> {
    let is_moving =
        |c: char| c.is_ascii_digit() || " .,:#=>-|/\\*[]()".contains(c) || ('\u{2580}'..='\u{28ff}').contains(&c);
    let mut fixed = before.chars().filter(|c| !is_moving(*c)).peekable();
    // A bar without a word in it could be anything.
    fixed.peek()?;
    let mut end = 0;
    for (at, c) in line.char_indices() {
        if is_moving(c) {
            // Figures behind the last word belong to it.
            end = at + c.len_utf8();
        } else if fixed.peek() == Some(&c) {
            fixed.next();
            end = at + c.len_utf8();
        } else {
            break;
        }
    }
    (fixed.peek().is_none() && end < line.len()).then_some(end)
}

/// A sentence as the beginning of a longer one: without the full stop, colon or semicolon at its end. What ends in an ellipsis
/// stays.
#[must_use]
pub fn clause(message: &str) -> &str {
    let mut text = message.trim_end();
    while let Some(shorter) = text.strip_suffix(['.', ';', ':', ',']) {
        if shorter.ends_with('.') || shorter.ends_with('/') || shorter.is_empty() {
            break;
        }
        text = shorter.trim_end();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_that_goes_on_loses_its_full_stop() {
        for (message, clause_of_it) in [
            ("fatal: not found.\n", "fatal: not found"),
            ("no rule", "no rule"),
            ("fatal: said:;", "fatal: said"),
            ("wait...", "wait..."),
            ("in ./.", "in ./."),
            (".", "."),
            ("", ""),
        ] {
            assert_eq!(clause(message), clause_of_it, "{message}");
        }
    }

    #[test]
    fn control_sequences_are_gone_and_the_last_state_stays() {
        assert_eq!(plain_lines("\u{1b}[31mred\u{1b}[0m\u{7}\n"), ["red"]);
        assert_eq!(plain_lines("\u{1b}]0;title\u{7}a\tb"), ["a\tb"]);
        assert_eq!(plain_lines("10%\r50%\r100%\r\nnext"), ["100%", "next"]);
        assert_eq!(plain_lines("\r 1%\r 2%"), [" 2%"]);
        assert_eq!(plain_lines("a\r\u{1b}[Kb\n"), ["b"]);
        assert_eq!(plain_lines("spin|\u{8}/\u{8}-\u{1b}[1G\u{1b}[0K\ndone\n"), ["", "done"]);
        assert_eq!(plain_lines("a\n\nb\r\n"), ["a", "", "b"]);
    }

    #[test]
    fn what_is_printed_right_behind_a_progress_bar_is_a_line_of_its_own() {
        assert_eq!(
            plain_lines("\rdownload  99%\rdownload 100%error: no such package\n"),
            ["download 100%", "error: no such package"]
        );
        assert_eq!(plain_lines("\rdownload 100%error: x"), ["download 100%", "error: x"]);
        assert_eq!(
            plain_lines("\rgot 9/12 files\rgot 12/12 filesfatal: broken\n"),
            ["got 12/12 files", "fatal: broken"]
        );
        // No progress bar, and a bar that only changed its words.
        assert_eq!(plain_lines("100%sure\n"), ["100%sure"]);
        assert_eq!(plain_lines("Reading... 5%\rReading... Done\n"), ["Reading... Done"]);
    }

    #[test]
    fn pieces_make_the_lines_of_the_whole() {
        let text = "one\r\u{1b}[2Ktwo ä\nthr";
        let mut lines = PlainLines::default();
        let mut all = Vec::new();
        for c in text.chars() {
            all.extend(lines.push(c.encode_utf8(&mut [0; 4])));
        }
        assert_eq!((all, lines.pending()), (vec!["two ä".to_owned()], "thr"));
        assert_eq!(lines.finish(), ["thr"]);
        assert_eq!(lines.finish(), Vec::<String>::new());
    }
}
