//! What a session has printed before, shown again. A program may have asked the terminal of that time for something: the cursor's
//! place, its colours, what it can do. That has been answered; the terminal here is not to answer again, because its answer would be
//! typed into whatever runs in the session now.

use anstyle_parse::{DefaultCharAccumulator, Params, Parser, Perform};

/// Leaves the questions out of what was printed up to a place.
pub(super) struct Replay {
    /// Where the new output begins.
    until: u64,
    parser: Parser<DefaultCharAccumulator>,
    /// A sequence that has no end yet.
    pending: Vec<u8>,
    /// It is known to be a question, up to its end.
    asks: bool,
    /// It was a question that ends with `ESC \`, and the backslash is still to come.
    drops_backslash: bool,
}

/// What one byte came to.
#[derive(Default)]
struct Seen {
    /// A text or a sequence is whole.
    ended: bool,
    /// It is a question, or the beginning of one.
    asks: bool,
}

impl Replay {
    pub(super) fn until(until: u64) -> Self {
        Self {
            until,
            parser: Parser::<DefaultCharAccumulator>::new(),
            pending: Vec::new(),
            asks: false,
            drops_backslash: false,
        }
    }

    /// What of these bytes, the first at this place, the terminal gets.
    pub(super) fn pass(&mut self, at: u64, bytes: &[u8]) -> Vec<u8> {
        let old = usize::try_from(self.until.saturating_sub(at)).unwrap_or(usize::MAX);
        let (old, new) = bytes.split_at(old.min(bytes.len()));
        let mut shown = Vec::with_capacity(bytes.len());
        for byte in old {
            self.byte(*byte, &mut shown);
        }
        if !new.is_empty() {
            // A sequence that began before and ends here was being printed as we came.
            shown.append(&mut self.pending);
            shown.extend_from_slice(new);
        }
        shown
    }

    fn byte(&mut self, byte: u8, shown: &mut Vec<u8>) {
        let mut seen = Seen::default();
        self.parser.advance(&mut seen, byte);
        if std::mem::take(&mut self.drops_backslash) && byte == b'\\' {
            return;
        }
        self.pending.push(byte);
        self.asks |= seen.asks;
        if !seen.ended {
            return;
        }
        if std::mem::take(&mut self.asks) {
            self.pending.clear();
            self.drops_backslash = byte == ESCAPE;
        } else {
            shown.append(&mut self.pending);
        }
    }
}

const ESCAPE: u8 = 0x1b;

impl Perform for Seen {
    fn print(&mut self, _c: char) {
        self.ended = true;
    }

    fn execute(&mut self, _byte: u8) {
        self.ended = true;
    }

    fn hook(&mut self, _params: &Params, intermediates: &[u8], _ignore: bool, action: u8) {
        // DECRQSS and XTGETTCAP.
        self.asks = action == b'q' && matches!(intermediates, b"$" | b"+");
    }

    fn unhook(&mut self) {
        self.ended = true;
    }

    fn osc_dispatch(&mut self, params: &[&[u8]], _bell_terminated: bool) {
        self.ended = true;
        // Colours and the clipboard are asked for with `?` in place of a value.
        self.asks = params.iter().skip(1).any(|param| *param == b"?");
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], _ignore: bool, action: u8) {
        self.ended = true;
        let first = params.iter().next().and_then(|param| param.first().copied());
        self.asks = match action {
            // What it is.
            b'c' => true,
            // Its state, and where the cursor is.
            b'n' => true,
            // A mode.
            b'p' => intermediates.ends_with(b"$"),
            // Its name and version.
            b'q' => intermediates == b">",
            // The keyboard's protocol.
            b'u' => intermediates == b"?",
            // Sizes, title.
            b't' => first.is_some_and(|first| (11..=21).contains(&first)),
            // Parameters of the terminal, checksums.
            b'x' | b'y' => true,
            _ => false,
        };
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], _ignore: bool, byte: u8) {
        self.ended = true;
        // DECID.
        self.asks = intermediates.is_empty() && byte == b'Z';
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown, whatever pieces the text comes in.
    fn shown(text: &[u8]) -> Vec<u8> {
        let until = text.len() as u64;
        let whole = Replay::until(until).pass(0, text);
        let mut replay = Replay::until(until);
        let pieces = (0u64..).zip(text).flat_map(|(at, byte)| replay.pass(at, &[*byte]));
        assert_eq!(whole, pieces.collect::<Vec<_>>());
        whole
    }

    #[test]
    fn questions_are_left_out_and_nothing_else() {
        let asked: [&[u8]; 12] = [
            b"\x1b[6n",
            b"\x1b[5n",
            b"\x1b[?6n",
            b"\x1b[c",
            b"\x1b[>c",
            b"\x1b[>q",
            b"\x1b[?2026$p",
            b"\x1b[?u",
            b"\x1b[18t",
            b"\x1b]11;?\x07",
            b"\x1b]10;?\x1b\\",
            b"\x1bP+q544e\x1b\\",
        ];
        for one in asked {
            let text = [b"a".as_slice(), one, b"b"].concat();
            assert_eq!(shown(&text), b"ab", "{:?}", one.escape_ascii().to_string());
        }
        let kept: [&[u8]; 9] = [
            b"plain\r\nlines\t\xc3\xbc\x08",
            b"\x1b[1;31mred\x1b[0m\x1b[2J\x1b[3;4H\x1b[?1049h\x1b[?25l",
            b"\x1b]0;title\x07\x1b]2;title\x1b\\",
            b"\x1b]11;#112233\x07",
            b"\x1b(B\x1b7\x1b8\x1b=\x1b>",
            b"\x1bP1$tx\x1b\\",
            b"\x1b[22;0;0t\x1b[2 q\x1b[!p",
            b"\x1b[>1u\x1b[<u",
            b"\xff\xfe\x00",
        ];
        for text in kept {
            assert_eq!(shown(text).escape_ascii().to_string(), text.escape_ascii().to_string());
        }
    }

    #[test]
    fn what_is_printed_from_now_on_is_asked_of_this_terminal() {
        let mut replay = Replay::until(4);
        assert_eq!(replay.pass(0, b"\x1b[6n\x1b[6n"), b"\x1b[6n");
        let mut replay = Replay::until(2);
        assert_eq!(replay.pass(0, b"\x1b["), b"");
        assert_eq!(replay.pass(2, b"6n"), b"\x1b[6n");
        assert_eq!(replay.pass(4, b"x"), b"x");
    }
}
