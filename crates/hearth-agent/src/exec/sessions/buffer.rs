//! What a session has printed: the newest of it, in memory. Positions count from the first byte ever printed.

use std::collections::VecDeque;

use bytes::Bytes;
use hearth_guest::FrameKind;

/// Longest chunk: what is dropped, and read, at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// What a chunk takes besides its bytes. Output in single bytes must not take many times its size.
const CHUNK_COST: usize = 64;

#[derive(Debug)]
struct Chunk {
    kind: FrameKind,
    position: u64,
    bytes: Vec<u8>,
}

impl Chunk {
    fn cost(&self) -> usize {
        self.bytes.capacity() + CHUNK_COST
    }

    fn end(&self) -> u64 {
        self.position + self.bytes.len() as u64
    }
}

/// The newest output of one session.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    chunks: VecDeque<Chunk>,
    /// The position behind the last byte.
    written: u64,
    cost: usize,
}

/// What is at a position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This output, and maybe more.
    Output(FrameKind, Bytes),
    /// So many bytes that are not kept any more.
    Dropped(u64),
    Nothing,
}

impl Buffer {
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that are not kept any more: all of them came before the ones that are.
    pub(super) fn dropped(&self) -> u64 {
        self.chunks.front().map_or(self.written, |first| first.position)
    }

    /// How much memory it takes.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// Adds output to the end.
    pub(super) fn add(&mut self, kind: FrameKind, mut bytes: &[u8]) {
        if let Some(last) = self.chunks.back_mut()
            && last.kind == kind
            && last.bytes.len() + bytes.len() <= CHUNK_BYTES
        {
            self.cost -= last.cost();
            last.bytes.extend_from_slice(bytes);
            self.cost += last.cost();
            self.written += bytes.len() as u64;
            return;
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES));
            let chunk = Chunk {
                kind,
                position: self.written,
                bytes: now.to_vec(),
            };
            self.cost += chunk.cost();
            self.written += now.len() as u64;
            self.chunks.push_back(chunk);
            bytes = later;
        }
    }

    /// Drops the oldest output until the rest takes no more memory than this.
    pub(super) fn shrink(&mut self, most: usize) {
        while self.cost > most
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.cost -= chunk.cost();
        }
    }

    /// Drops what lies before this position.
    pub(super) fn drop_before(&mut self, position: u64) {
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= position)
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.cost -= chunk.cost();
        }
    }

    /// What is at this position.
    pub(super) fn at(&self, position: u64) -> Found {
        if position < self.dropped() {
            return Found::Dropped(self.dropped() - position);
        }
        let index = self.chunks.partition_point(|chunk| chunk.end() <= position);
        let Some(chunk) = self.chunks.get(index) else {
            return Found::Nothing;
        };
        let skipped = usize::try_from(position - chunk.position).unwrap_or(usize::MAX);
        let rest = chunk.bytes.get(skipped..).unwrap_or_default();
        Found::Output(chunk.kind, Bytes::copy_from_slice(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(buffer: &Buffer, mut position: u64) -> (u64, Vec<(FrameKind, Vec<u8>)>) {
        let (mut dropped, mut output) = (0, Vec::new());
        loop {
            match buffer.at(position) {
                Found::Nothing => return (dropped, output),
                Found::Dropped(bytes) => {
                    dropped += bytes;
                    position += bytes;
                }
                Found::Output(kind, bytes) => {
                    position += bytes.len() as u64;
                    output.push((kind, bytes.to_vec()));
                }
            }
        }
    }

    #[test]
    fn outputs_stay_in_order_and_are_read_from_any_position() {
        let mut buffer = Buffer::default();
        buffer.add(FrameKind::Stdout, b"one");
        buffer.add(FrameKind::Stdout, b"two");
        buffer.add(FrameKind::Stderr, b"bad");
        buffer.add(FrameKind::Stdout, b"three");
        let (dropped, output) = all(&buffer, 0);
        assert_eq!(dropped, 0);
        assert_eq!(
            output,
            [
                (FrameKind::Stdout, b"onetwo".to_vec()),
                (FrameKind::Stderr, b"bad".to_vec()),
                (FrameKind::Stdout, b"three".to_vec())
            ]
        );
        assert_eq!(
            buffer.at(7),
            Found::Output(FrameKind::Stderr, Bytes::from_static(b"ad"))
        );
        assert_eq!(buffer.at(buffer.written()), Found::Nothing);
    }

    #[test]
    fn the_newest_is_kept_and_the_rest_is_counted() {
        const MOST: usize = 100_000;
        let mut buffer = Buffer::default();
        for number in 0..200_000_u32 {
            let kind = if number % 2 == 0 {
                FrameKind::Stdout
            } else {
                FrameKind::Stderr
            };
            buffer.add(kind, &[u8::try_from(number % 251).unwrap()]);
            buffer.shrink(MOST);
            assert!(buffer.cost() <= MOST);
        }
        buffer.add(FrameKind::Stdout, &vec![7; 50_000]);
        buffer.shrink(MOST);
        let (dropped, output) = all(&buffer, 10);
        let read: usize = output.iter().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(10 + dropped + read as u64, buffer.written());
        assert_eq!(buffer.written(), 250_000);
        assert!(output.last().unwrap().1.iter().all(|byte| *byte == 7));
        buffer.shrink(0);
        assert_eq!((buffer.cost(), buffer.dropped()), (0, 250_000));
        assert_eq!(buffer.at(0), Found::Dropped(250_000));
    }
}
