//! A redacted text of any length, in little memory: what a step's commands printed, the middle cut when it is long.

use std::collections::VecDeque;

use super::Redacted;

/// Bytes kept of the beginning and of the end, each; together the contract's 64 KiB.
const KEPT: usize = 32 * 1024;

/// Head and tail of a text of any length.
#[derive(Debug, Default)]
pub struct Bounded {
    head: String,
    tail: VecDeque<u8>,
    cut: u64,
}

impl Bounded {
    pub fn push(&mut self, text: &Redacted) {
        let text = text.as_str();
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
    pub fn text(&self) -> Redacted {
        let mut tail: Vec<u8> = self.tail.iter().copied().collect();
        // The cut may have gone through a character.
        let mut cut = self.cut;
        if cut > 0 {
            let broken = tail.iter().take_while(|byte| (0x80..0xc0).contains(*byte)).count();
            tail.drain(..broken);
            cut += broken as u64;
        }
        let tail = String::from_utf8_lossy(&tail);
        let text = if cut == 0 {
            format!("{}{tail}", self.head)
        } else {
            format!("{}\n[… {cut} bytes cut …]\n{tail}", self.head)
        };
        Redacted(text.into())
    }

    /// Whether anything was printed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_stays_and_a_long_one_keeps_head_and_tail() {
        let mut short = Bounded::default();
        short.push(&"a".into());
        short.push(&"b\n".into());
        assert_eq!(short.text(), "ab\n");
        let mut long = Bounded::default();
        long.push(&"begin".into());
        for _ in 0..10_000 {
            long.push(&"0123456789ä".into());
        }
        long.push(&"end".into());
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
}
