//! Output in a bounded reply: its beginning and its end, and how much is between.

use std::collections::VecDeque;

/// Bytes of the beginning that are kept.
const HEAD: usize = 4 * 1024;
/// Bytes of the end.
const TAIL: usize = 8 * 1024;

/// What was printed, from a position on.
#[derive(Debug)]
pub(crate) struct Bounded {
    from: u64,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
    /// Bytes of the beginning that were not printed.
    noted: usize,
    most_head: usize,
    most_tail: usize,
}

impl Bounded {
    /// Beginning and end.
    pub(crate) fn ends(from: u64) -> Self {
        Self::of(from, HEAD, TAIL)
    }

    /// The beginning alone, of all that a reply may have.
    pub(crate) fn beginning(from: u64) -> Self {
        Self::of(from, HEAD + TAIL, 0)
    }

    fn of(from: u64, most_head: usize, most_tail: usize) -> Self {
        Self {
            from,
            head: Vec::new(),
            tail: VecDeque::new(),
            total: 0,
            noted: 0,
            most_head,
            most_tail,
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.most_head.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at(room);
        self.head.extend_from_slice(first);
        self.tail.extend(&rest[rest.len().saturating_sub(self.most_tail)..]);
        let surplus = self.tail.len().saturating_sub(self.most_tail);
        self.tail.drain(..surplus);
    }

    /// So many bytes at the beginning are not kept any more.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.from += bytes;
        self.head
            .extend_from_slice(format!("[{bytes} bytes before this are not kept any more]\n").as_bytes());
        self.noted = self.head.len();
    }

    /// Whether more bytes would not be kept, and no end of them is.
    pub(crate) fn is_full(&self) -> bool {
        self.most_tail == 0 && self.head.len() >= self.most_head
    }

    /// The position after the last byte that came.
    pub(crate) fn end(&self) -> u64 {
        self.from + self.total
    }

    /// The position after the beginning.
    fn after_head(&self) -> u64 {
        self.from + (self.head.len() - self.noted) as u64
    }

    /// The text, and where something is left out what `how` says to read it from that position.
    pub(crate) fn text(&self, how: impl Fn(u64) -> String) -> String {
        let head = String::from_utf8_lossy(&self.head);
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        let tail = String::from_utf8_lossy(&tail);
        let left_out = self.total - (self.head.len() - self.noted) as u64 - self.tail.len() as u64;
        match left_out {
            0 => format!("{head}{tail}"),
            bytes => format!("{head}\n[{bytes} bytes left out; {}]\n{tail}", how(self.after_head())),
        }
    }
}

/// A text that was printed whole.
pub(crate) fn ends_of(text: &str, how: impl Fn(u64) -> String) -> String {
    let mut bounded = Bounded::ends(0);
    bounded.push(text.as_bytes());
    bounded.text(how)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_keeps_its_ends_and_says_where_the_rest_begins() {
        let mut bounded = Bounded::ends(100);
        for _ in 0..3000 {
            bounded.push(b"0123456789");
        }
        bounded.push(b"last");
        let text = bounded.text(|from| format!("from {from}"));
        let left_out = 30_004 - HEAD - TAIL;
        assert!(
            text.contains(&format!("[{left_out} bytes left out; from {}]", 100 + HEAD)),
            "{text}"
        );
        assert!(text.starts_with("0123456789") && text.ends_with("789last"));
        assert_eq!(bounded.end(), 30_104);
        assert!(text.len() < HEAD + TAIL + 100);
    }

    #[test]
    fn short_output_is_whole_however_it_comes() {
        let mut bounded = Bounded::ends(0);
        for chunk in ["a", "", "bc", "d"] {
            bounded.push(chunk.as_bytes());
        }
        assert_eq!(bounded.text(|_| unreachable!()), "abcd");
        let mut beginning = Bounded::beginning(0);
        beginning.push(&[b'x'; HEAD + TAIL]);
        assert!(beginning.is_full());
        assert_eq!(beginning.text(|_| unreachable!()).len(), HEAD + TAIL);
    }
}
