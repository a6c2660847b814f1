//! Makes text that came out of a VM safe to show: its writer must not control the reader's terminal.

/// Longest line shown while following; the record keeps all of it.
const MAX_LINE_CHARS: usize = 400;

use hearth_core::plain_text::{PlainLines, plain_lines};

/// One line without escape sequences and control characters. What a carriage return has overwritten is gone, as on a screen.
pub(crate) fn clean_line(line: &str) -> String {
    clean(&plain_lines(line).join(" "))
}

/// The lines of a text, each of them safe to show.
pub(crate) fn clean_lines(text: &str) -> Vec<String> {
    plain_lines(text).iter().map(|line| clean(line)).collect()
}

fn clean(line: &str) -> String {
    let mut clean: String = line
        .chars()
        .map(|c| if c == '\t' { ' ' } else { c })
        .filter(|c| !c.is_control() && !is_direction_mark(*c))
        .collect();
    if let Some((cut, _)) = clean.char_indices().nth(MAX_LINE_CHARS) {
        clean.truncate(cut);
        clean.push('…');
    }
    clean
}

/// Marks that turn the reading direction can make a line read as something it is not.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The last lines of a text that are not empty, cleaned.
pub(crate) fn last_lines(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = clean_lines(text)
        .into_iter()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(most)
        .collect();
    lines.reverse();
    lines
}

/// Cuts a stream of text into lines that are safe to show; the rest waits for more.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer(PlainLines);

impl LineBuffer {
    /// The lines that are whole now.
    pub(crate) fn push(&mut self, text: &str) -> Vec<String> {
        self.0.push(text).iter().map(|line| clean(line)).collect()
    }

    /// What has no end yet.
    pub(crate) fn pending(&self) -> String {
        clean(self.0.pending())
    }

    /// The last line, if it has no end.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        self.0.finish().iter().map(|line| clean(line)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_overwritten_text_are_gone() {
        assert_eq!(clean_line("\u{1b}[31mred\u{1b}[0m\u{7}\n"), "red");
        assert_eq!(clean_line("10%\r50%\r100%\r\n"), "100%");
        assert_eq!(clean_line("a\tb"), "a b");
        assert_eq!(clean_line("safe\u{202e}evil"), "safeevil");
    }

    #[test]
    fn lines_come_whole() {
        let mut buffer = LineBuffer::default();
        assert_eq!(buffer.push("one\ntw"), ["one"]);
        assert_eq!(buffer.push("o\n"), ["two"]);
        assert_eq!(buffer.push("rest"), Vec::<String>::new());
        assert_eq!(buffer.pending(), "rest");
        assert_eq!(buffer.finish(), ["rest"]);
        assert_eq!(buffer.finish(), Vec::<String>::new());
    }

    #[test]
    fn the_last_lines_are_those_with_something_in_them() {
        assert_eq!(last_lines("a\nb\n\nc\n\n", 2), ["b", "c"]);
    }
}
