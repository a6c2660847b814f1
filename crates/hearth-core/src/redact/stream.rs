//! A stream of bytes on its way to people: values are hidden first, then bytes become text.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::values::{Inside, Values, key};
use super::{IN_PLACE_OF_VALUE, Redacted};

/// One stream: gives text for bytes, some of it later. A value split over two chunks is found.
pub struct RedactedStream {
    bytes: Option<RedactedBytes>,
    text: Utf8Stream,
}

/// What is held back may be the beginning of a value.
impl fmt::Debug for RedactedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedactedStream")
    }
}

impl RedactedStream {
    pub(super) fn new(values: Option<Arc<Values>>) -> Self {
        Self {
            bytes: values.map(RedactedBytes::new),
            text: Utf8Stream::default(),
        }
    }

    /// Takes a chunk and gives what is safe to show.
    pub fn push(&mut self, chunk: &[u8]) -> Redacted {
        let shown = match &mut self.bytes {
            Some(bytes) => Cow::Owned(bytes.push(chunk)),
            None => Cow::Borrowed(chunk),
        };
        Redacted(self.text.push(&shown).into())
    }

    /// Nothing follows: gives the rest.
    pub fn finish(&mut self) -> Redacted {
        let rest = self.bytes.as_mut().map(RedactedBytes::finish).unwrap_or_default();
        let mut text = self.text.push(&rest);
        text.push_str(&self.text.finish());
        Redacted(text.into())
    }
}

/// A longer control sequence is text.
const LONGEST_CONTROL: usize = 1024;
const ESCAPE: u8 = 0x1b;
const BELL: u8 = 0x07;

/// Bytes in, bytes without values out. Control sequences of terminals are no part of a value: one that is coloured in its middle is hidden too.
struct RedactedBytes {
    values: Arc<Values>,
    /// The end of what came so far, when it may be the beginning of a value; without control sequences.
    held: Vec<u8>,
    /// The control sequences that stood before this place of what is held.
    controls: VecDeque<(usize, Vec<u8>)>,
    /// A control sequence that has not ended.
    open: Vec<u8>,
    /// The long value that was found and whose rest is still to come.
    inside: Option<Inside>,
}

impl RedactedBytes {
    fn new(values: Arc<Values>) -> Self {
        Self {
            values,
            held: Vec::new(),
            controls: VecDeque::new(),
            open: Vec::new(),
            inside: None,
        }
    }

    fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut rest = chunk;
        while !rest.is_empty() {
            if self.open.is_empty() {
                let text = rest.iter().position(|byte| *byte == ESCAPE).unwrap_or(rest.len());
                self.held.extend_from_slice(&rest[..text]);
                rest = &rest[text..];
            }
            if let [byte, after @ ..] = rest {
                self.open.push(*byte);
                rest = after;
                if is_whole_control(&self.open) {
                    self.controls
                        .push_back((self.held.len(), std::mem::take(&mut self.open)));
                } else if self.open.len() > LONGEST_CONTROL {
                    self.held.append(&mut self.open);
                }
            }
        }
        self.advance(false)
    }

    fn finish(&mut self) -> Vec<u8> {
        self.held.append(&mut self.open);
        self.advance(true)
    }

    /// The control sequences up to this place of what is held.
    fn show_controls(&mut self, up_to: usize, shown: &mut Vec<u8>) {
        while self.controls.front().is_some_and(|(at, _)| *at <= up_to) {
            shown.extend(self.controls.pop_front().into_iter().flat_map(|(_, control)| control));
        }
    }

    fn advance(&mut self, is_end: bool) -> Vec<u8> {
        let known = self.values.clone();
        let mut shown = Vec::with_capacity(self.held.len());
        let mut done = 0;
        while done < self.held.len() {
            self.show_controls(done, &mut shown);
            let rest = &self.held[done..];
            if let Some(inside) = self.inside.take() {
                let (hidden, inside) = known.follow(inside, rest);
                done += hidden;
                self.inside = inside;
                continue;
            }
            if !is_end && known.may_grow(rest) {
                break;
            }
            match known.longest_at(rest) {
                None => {
                    shown.push(rest[0]);
                    done += 1;
                }
                Some(found) => {
                    shown.extend_from_slice(IN_PLACE_OF_VALUE.as_bytes());
                    done += key(known.form(found)).len();
                    self.inside = known.inside_of(found);
                }
            }
        }
        self.show_controls(done, &mut shown);
        self.held.drain(..done);
        self.controls.iter_mut().for_each(|(at, _)| *at -= done);
        shown
    }
}

/// Whether a control sequence has its end, by ECMA-48: with `[` parameters and one last character, with `]` a text up to a bell or
/// `ESC \\`, else perhaps some characters between and one last.
fn is_whole_control(bytes: &[u8]) -> bool {
    match bytes {
        [] | [_] => false,
        [_, b'['] | [_, b']'] => false,
        [_, b'[', .., last] => !(0x20..0x40).contains(last),
        [_, b']', .., BELL] | [_, b']', .., ESCAPE, b'\\'] => true,
        [_, b']', ..] => false,
        [.., last] => !(0x20..0x30).contains(last),
    }
}

/// Turns bytes into text in chunks; a character split over two chunks stays whole, other rubbish becomes `�`.
#[derive(Debug, Default)]
struct Utf8Stream {
    held: Vec<u8>,
}

impl Utf8Stream {
    fn push(&mut self, chunk: &[u8]) -> String {
        self.held.extend_from_slice(chunk);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_split_over_two_pieces_stays_whole_and_rubbish_is_replaced() {
        let mut stream = Utf8Stream::default();
        assert_eq!(stream.push(b"a\xc3"), "a");
        assert_eq!(stream.push(b"\xa4\xffb"), "ä\u{fffd}b");
        assert_eq!(stream.push(b"\xe2\x82"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
