//! What a step's commands printed: masked, as text, the middle cut when it is long.

use std::collections::VecDeque;

use hearth_core::plain_text::PlainLines;

use crate::secrets::mask::{MaskedStream, Masker};

/// Bytes kept of the beginning and of the end, each; together the contract's 64 KiB.
const KEPT: usize = 32 * 1024;
/// Lines of standard error that an error message quotes.
const QUOTED_LINES: usize = 3;
/// Lines of both outputs that tell how a command ended.
const LAST_LINES: usize = 8;
/// Longest quote in an error message, bytes.
const QUOTED_BYTES: usize = 1000;

/// Head and tail of a text of any length.
#[derive(Debug, Default)]
pub struct Capped {
    head: String,
    tail: VecDeque<u8>,
    cut: u64,
}

impl Capped {
    /// Appends.
    pub fn push(&mut self, text: &str) {
        let room = KEPT - self.head.len().min(KEPT);
        let mut split = text
            .len()
            .min(if self.tail.is_empty() && self.cut == 0 { room } else { 0 });
        while !text.is_char_boundary(split) {
            split -= 1;
        }
        self.head.push_str(&text[..split]);
        self.tail.extend(&text.as_bytes()[split..]);
        while self.tail.len() > KEPT {
            self.tail.pop_front();
            self.cut += 1;
        }
    }

    /// The text so far; a cut says how much is missing.
    #[must_use]
    pub fn text(&self) -> String {
        let mut tail: Vec<u8> = self.tail.iter().copied().collect();
        // The cut may have gone through a character.
        let mut cut = self.cut;
        if cut > 0 {
            let broken = tail.iter().take_while(|byte| (0x80..0xc0).contains(*byte)).count();
            tail.drain(..broken);
            cut += broken as u64;
        }
        let tail = String::from_utf8_lossy(&tail);
        if cut == 0 {
            format!("{}{tail}", self.head)
        } else {
            format!("{}\n[… {cut} bytes cut …]\n{tail}", self.head)
        }
    }

    /// Whether anything was printed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.is_empty()
    }
}

/// Turns bytes into text piece by piece; a character split over two pieces stays whole, other rubbish becomes `�`.
#[derive(Debug, Default)]
struct Utf8Stream {
    held: Vec<u8>,
}

impl Utf8Stream {
    fn push(&mut self, piece: &[u8]) -> String {
        self.held.extend_from_slice(piece);
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    if let Some(length) = error.error_len() {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = &rest[length..];
                        continue;
                    }
                }
            }
            break;
        }
        self.held = rest.to_vec();
        text
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// One of a command's two outputs.
#[derive(Debug)]
struct Side {
    masked: MaskedStream,
    text: Utf8Stream,
}

impl Side {
    fn new(masker: &Masker) -> Self {
        Self {
            masked: masker.stream(),
            text: Utf8Stream::default(),
        }
    }

    fn push(&mut self, piece: &[u8]) -> String {
        let shown = self.masked.push(piece);
        self.text.push(&shown)
    }

    fn finish(&mut self) -> String {
        let rest = self.masked.finish();
        let mut text = self.text.push(&rest);
        text.push_str(&self.text.finish());
        text
    }
}

/// The outputs of one command, on their way to a step's entry and to the clients that follow.
#[derive(Debug)]
pub struct CommandOutput {
    stdout: Side,
    stderr: Side,
    /// Standard error as lines.
    plain_errors: PlainLines,
    plain_output: PlainLines,
    /// The last lines of both.
    last_lines: VecDeque<String>,
    /// The last of them.
    error_lines: VecDeque<String>,
}

impl CommandOutput {
    /// For one command.
    #[must_use]
    pub fn new(masker: &Masker) -> Self {
        Self {
            stdout: Side::new(masker),
            stderr: Side::new(masker),
            plain_errors: PlainLines::default(),
            plain_output: PlainLines::default(),
            last_lines: VecDeque::new(),
            error_lines: VecDeque::new(),
        }
    }

    /// Bytes from standard output; gives what may be shown.
    pub fn stdout(&mut self, piece: &[u8]) -> String {
        let text = self.stdout.push(piece);
        let lines = self.plain_output.push(&text);
        keep_last(&mut self.last_lines, LAST_LINES, lines);
        text
    }

    /// Bytes from standard error; gives what may be shown.
    pub fn stderr(&mut self, piece: &[u8]) -> String {
        let text = self.stderr.push(piece);
        let lines = self.plain_errors.push(&text);
        self.remember(lines);
        text
    }

    /// The command ended; gives what was held back.
    pub fn finish(&mut self) -> String {
        let mut text = self.stdout.finish();
        let mut lines = self.plain_output.push(&text);
        lines.extend(self.plain_output.finish());
        keep_last(&mut self.last_lines, LAST_LINES, lines);
        let rest = self.stderr.finish();
        let mut lines = self.plain_errors.push(&rest);
        lines.extend(self.plain_errors.finish());
        self.remember(lines);
        text.push_str(&rest);
        text
    }

    /// The last lines of standard error, for an error message: as a terminal would show them, without control sequences.
    #[must_use]
    pub fn last_error_lines(&self) -> String {
        let lines: Vec<_> = self.error_lines.iter().map(|line| line.trim_end()).collect();
        let mut quote = lines.join("\n");
        if quote.len() > QUOTED_BYTES {
            let mut at = quote.len() - QUOTED_BYTES;
            while !quote.is_char_boundary(at) {
                at += 1;
            }
            quote.replace_range(..at, "…");
        }
        quote
    }

    /// The last lines of both outputs.
    pub fn last_lines(&mut self) -> &[String] {
        self.last_lines.make_contiguous()
    }

    fn remember(&mut self, lines: Vec<String>) {
        keep_last(&mut self.last_lines, LAST_LINES, lines.clone());
        keep_last(&mut self.error_lines, QUOTED_LINES, lines);
    }
}

/// Keeps the last lines with something in them.
fn keep_last(kept: &mut VecDeque<String>, most: usize, lines: Vec<String>) {
    kept.extend(lines.into_iter().filter(|line| !line.trim().is_empty()));
    let too_many = kept.len().saturating_sub(most);
    kept.drain(..too_many);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_stays_and_a_long_one_keeps_head_and_tail() {
        let mut short = Capped::default();
        short.push("a");
        short.push("b\n");
        assert_eq!(short.text(), "ab\n");
        let mut long = Capped::default();
        long.push("begin");
        for _ in 0..10_000 {
            long.push("0123456789ä");
        }
        long.push("end");
        let text = long.text();
        assert!(text.starts_with("begin0123") && text.ends_with("äend"));
        let kept = text
            .lines()
            .filter(|line| !line.starts_with("[…"))
            .map(str::len)
            .sum::<usize>();
        let cut: usize = text
            .split("[… ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(kept + cut, 5 + 10_000 * 12 + 3);
    }

    #[test]
    fn a_character_split_over_two_pieces_stays_whole_and_rubbish_is_replaced() {
        let mut stream = Utf8Stream::default();
        assert_eq!(stream.push(b"a\xc3"), "a");
        assert_eq!(stream.push(b"\xa4\xffb"), "ä\u{fffd}b");
        assert_eq!(stream.push(b"\xe2\x82"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    #[test]
    fn the_error_quotes_the_last_lines_of_standard_error() {
        let mut output = CommandOutput::new(&Masker::new(["geheim"]));
        output.stderr(b"one\ntwo\n\nthree geh");
        output.stderr(b"eim\nfour\n");
        output.finish();
        assert_eq!(output.last_error_lines(), "two\nthree ***\nfour");
    }

    #[test]
    fn of_a_progress_bar_the_error_quotes_the_last_state() {
        let mut output = CommandOutput::new(&Masker::new([]));
        output.stderr(b"useful\n");
        for percent in 1..=100 {
            output.stderr(format!("\rdownload {percent:3}%").as_bytes());
        }
        output.stderr(b"\x1b[31merror\x1b[0m: no such package\n");
        output.finish();
        assert_eq!(
            output.last_error_lines(),
            "useful\ndownload 100%\nerror: no such package"
        );
    }
}
