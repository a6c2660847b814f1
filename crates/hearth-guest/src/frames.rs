//! The frames inside an exec's bodies: `[kind u8][length u32, big endian][payload]`. No IO; both ends use it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::FrameKind;

/// Longest payload of one frame. Output comes in far smaller chunks; a specification with a long text must fit.
pub const MAX_FRAME: usize = 8 * 1024 * 1024;

const HEADER: usize = 5;

/// Why a body could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A kind nobody knows.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// Longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is longer than allowed")]
    TooLong(usize),
    /// A frame that should not be here.
    #[error("a frame of kind {} in the wrong place", .0.as_str())]
    Misplaced(FrameKind),
    /// The payload is not the JSON it should be.
    #[error("a frame's JSON is wrong: {0}")]
    Json(#[from] serde_json::Error),
    /// The body ended in the middle.
    #[error("the body ended in the middle of a frame")]
    Cut,
}

impl TryFrom<u8> for FrameKind {
    type Error = FrameError;

    fn try_from(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            1 => Self::Spec,
            2 => Self::Stdin,
            3 => Self::StdinEnd,
            4 => Self::Stdout,
            5 => Self::Stderr,
            6 => Self::End,
            7 => Self::Resize,
            8 => Self::Session,
            9 => Self::Dropped,
            unknown => return Err(FrameError::UnknownKind(unknown)),
        })
    }
}

/// One frame as bytes.
#[must_use]
pub fn encode(kind: FrameKind, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + payload.len());
    out.put_u8(kind as u8);
    // Callers send chunks far below 4 GiB; a longer one would be refused by the other end as too long.
    out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_slice(payload);
    out.freeze()
}

/// One frame that holds JSON.
pub fn encode_json<T: Serialize>(kind: FrameKind, value: &T) -> Result<Bytes, FrameError> {
    Ok(encode(kind, &serde_json::to_vec(value)?))
}

/// Reads a frame's JSON.
pub fn decode_json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(payload)?)
}

/// Finds frames in a body that comes in arbitrary chunks.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Takes a chunk of the body.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole frame, if there is one.
    pub fn next_frame(&mut self) -> Result<Option<(FrameKind, Bytes)>, FrameError> {
        let Some([kind, length @ ..]) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let kind = FrameKind::try_from(*kind)?;
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        Ok(Some((kind, self.buffer.split_to(length).freeze())))
    }

    /// To be called at the end of the body.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.buffer.is_empty() {
            Ok(())
        } else {
            Err(FrameError::Cut)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let whole = [encode(FrameKind::Stdout, b"hello"), encode(FrameKind::StdinEnd, b"")].concat();
        for cut in 0..whole.len() {
            let mut decoder = FrameDecoder::default();
            let mut found = Vec::new();
            for chunk in [&whole[..cut], &whole[cut..]] {
                decoder.feed(chunk);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    found.push(frame);
                }
            }
            decoder.finish().unwrap();
            assert_eq!(found[0], (FrameKind::Stdout, Bytes::from_static(b"hello")));
            assert_eq!(found[1], (FrameKind::StdinEnd, Bytes::new()));
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut decoder = FrameDecoder::default();
        decoder.feed(&[99, 0, 0, 0, 0]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::UnknownKind(99))));
        let mut decoder = FrameDecoder::default();
        decoder.feed(&[1, 255, 255, 255, 255]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(_))));
    }
}
