//! What a command printed, on its way to a step's entry and to readers of the live log: the one place where output of a guest is redacted.

use std::collections::VecDeque;

use hearth_core::plain_text::PlainLines;
use hearth_core::redact::{Redacted, RedactedStream, Redactor};
use hearth_core::redacted;

/// Lines of standard error that an error message quotes.
const QUOTED_LINES: usize = 3;
/// Lines of both outputs that tell how a command ended.
const LAST_LINES: usize = 8;
/// What package managers print after their error, about themselves: no line that has one of these is quoted.
const ASIDES: [&str; 6] = [
    "A complete log of this run can be found in",
    "Run \"npm help",
    "/.npm/_logs/",
    "npm notice",
    "[notice]",
    "run with `RUST_BACKTRACE=1`",
];
/// Longest quote in an error message, bytes.
const QUOTED_BYTES: usize = 1000;

/// The outputs of one command, on their way to a step's entry and to readers of the live log.
#[derive(Debug)]
pub struct CommandOutput {
    redactor: Redactor,
    stdout: RedactedStream,
    stderr: RedactedStream,
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
    pub fn new(redactor: &Redactor) -> Self {
        Self {
            redactor: redactor.clone(),
            stdout: redactor.stream(),
            stderr: redactor.stream(),
            plain_errors: PlainLines::default(),
            plain_output: PlainLines::default(),
            last_lines: VecDeque::new(),
            error_lines: VecDeque::new(),
        }
    }

    /// Bytes from standard output; gives what may be shown.
    pub fn stdout(&mut self, chunk: &[u8]) -> Redacted {
        let text = self.stdout.push(chunk);
        let lines = self.plain_output.push(&text);
        keep_last(&mut self.last_lines, LAST_LINES, lines);
        text
    }

    /// Bytes from standard error; gives what may be shown.
    pub fn stderr(&mut self, chunk: &[u8]) -> Redacted {
        let text = self.stderr.push(chunk);
        let lines = self.plain_errors.push(&text);
        self.remember(lines);
        text
    }

    /// The command ended; gives what was held back.
    pub fn finish(&mut self) -> Redacted {
        let mut text = self.stdout.finish();
        let mut lines = self.plain_output.push(&text);
        lines.extend(self.plain_output.finish());
        keep_last(&mut self.last_lines, LAST_LINES, lines);
        let rest = self.stderr.finish();
        let mut lines = self.plain_errors.push(&rest);
        lines.extend(self.plain_errors.finish());
        self.remember(lines);
        text.push(&rest);
        text
    }

    /// The last lines of standard error, for an error message: as a terminal would show them, without control sequences. A value
    /// that those had cut in chunks is whole in these lines, so they are a text of their own for the redactor.
    #[must_use]
    pub fn last_error_lines(&self) -> Redacted {
        let lines: Vec<_> = self.error_lines.iter().map(|line| line.trim_end()).collect();
        let quote = self.redactor.redact(&lines.join("\n"));
        if quote.len() <= QUOTED_BYTES {
            return quote;
        }
        redacted!["…", quote.last(QUOTED_BYTES)]
    }

    /// The last lines of both outputs.
    pub fn last_lines(&mut self) -> &[String] {
        self.last_lines.make_contiguous()
    }

    fn remember(&mut self, lines: Vec<String>) {
        keep_last(&mut self.last_lines, LAST_LINES, lines.clone());
        let is_aside = |line: &String| ASIDES.iter().any(|aside| line.contains(aside));
        let errors = lines.into_iter().filter(|line| !is_aside(line)).collect();
        keep_last(&mut self.error_lines, QUOTED_LINES, errors);
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
    fn the_error_quotes_the_last_lines_of_standard_error() {
        let mut output = CommandOutput::new(&Redactor::new(["geheim"]));
        output.stderr(b"one\ntwo\n\nthree geh");
        output.stderr(b"eim\nfour\n");
        output.finish();
        assert_eq!(output.last_error_lines(), "two\nthree ***\nfour");
    }

    #[test]
    fn what_npm_says_after_its_error_is_not_quoted() {
        let mut output = CommandOutput::new(&Redactor::new([]));
        output.stderr(
            b"npm error code EUSAGE\nnpm error `npm ci` can only install with a package-lock.json\nnpm error\n",
        );
        output.stderr(b"npm error Run \"npm help ci\" for more info\nnpm notice\n");
        output.stderr(b"npm error A complete log of this run can be found in: /root/.npm/_logs/x.log\n");
        output.finish();
        assert!(
            output
                .last_error_lines()
                .contains("can only install with a package-lock.json")
        );
        assert!(!output.last_error_lines().contains("npm help"));
    }

    #[test]
    fn a_value_that_control_sequences_cut_in_pieces_is_not_quoted() {
        let mut output = CommandOutput::new(&Redactor::new(["geheim"]));
        let shown = output.stderr(b"no rule for ge\x1b[1mheim\x1b[0m\n");
        output.finish();
        assert!(!shown.contains("geheim"), "{shown}");
        assert_eq!(output.last_error_lines(), "no rule for ***");
    }

    #[test]
    fn of_a_progress_bar_the_error_quotes_the_last_state() {
        let mut output = CommandOutput::new(&Redactor::new([]));
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
