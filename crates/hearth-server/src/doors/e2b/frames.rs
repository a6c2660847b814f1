//! Connect over HTTP/1.1, JSON alone: calls that are one message each way, and streams of messages in frames.
//!
//! A frame is a byte of flags, four bytes of length and that many bytes of JSON. The last one of an answer has the flag [`END`] and
//! holds an error or nothing.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{Buf as _, BufMut as _, BytesMut};
use futures::{Stream, TryStreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::codec::{Decoder, FramedRead};
use tokio_util::io::StreamReader;

use super::fault::{Code, Fault};
use crate::http::read;

/// What streams are.
pub const STREAM: &str = "application/connect+json";
/// What calls are.
const CALL: &str = "application/json";
/// The flag of an answer's last frame.
const END: u8 = 2;
/// Flags and length.
const HEAD_BYTES: usize = 5;
/// Longest message that is taken.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// How long the message of a call may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a call may take, in milliseconds.
const TIMEOUT: &str = "connect-timeout-ms";

/// One frame.
fn frame(flags: u8, message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + message.len());
    bytes.put_u8(flags);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// A message of a stream.
pub fn message(of: &impl Serialize) -> Bytes {
    // Our own types always have a JSON form.
    frame(0, &serde_json::to_vec(of).unwrap_or_default())
}

/// The end of a stream.
pub fn end(error: Option<&Fault>) -> Bytes {
    let body = match error {
        Some(error) => json!({ "error": error.to_json() }),
        None => json!({}),
    };
    frame(END, body.to_string().as_bytes())
}

/// An answer of frames.
pub fn response(frames: Body) -> Response {
    let mut response = frames.into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(STREAM));
    response
}

/// How long the call may take; nothing where it does not say.
pub fn time_limit(headers: &HeaderMap) -> Option<Duration> {
    let said = headers.get(TIMEOUT)?.to_str().ok()?.trim().parse().ok()?;
    (said > 0).then(|| Duration::from_millis(said))
}

fn has_type(headers: &HeaderMap, wanted: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case(wanted)
}

fn unsupported(wanted: &str) -> Response {
    let why = format!("this call takes {wanted} alone: Connect with JSON");
    let body = axum::Json(json!({ "code": "unknown", "message": why }));
    (axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE, body).into_response()
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    // The parser's own message would quote the value.
    serde_json::from_slice(bytes).map_err(|error| {
        Fault::wrong(format!(
            "the message is not what this call takes (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

/// The message of a call.
pub struct Call<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Call<T> {
    type Rejection = Response;
    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        if !has_type(request.headers(), CALL) {
            return Err(unsupported(CALL));
        }
        let bytes = read(request, MAX_MESSAGE_BYTES, PATIENCE).await;
        let bytes = bytes.map_err(|error| Fault::from(error).into_response())?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        parse(bytes).map(Self).map_err(Fault::into_response)
    }
}

/// The one message that a stream of answers begins with.
pub struct First<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for First<T> {
    type Rejection = Response;
    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        if !has_type(request.headers(), STREAM) {
            return Err(unsupported(STREAM));
        }
        let bytes = read(request, MAX_MESSAGE_BYTES, PATIENCE).await;
        let bytes = bytes.map_err(|error| Fault::from(error).into_stream())?;
        let mut bytes = BytesMut::from(&bytes[..]);
        let first = Frames.decode(&mut bytes).ok().flatten();
        let first = first.ok_or_else(|| Fault::wrong("the request holds no whole message").into_stream())?;
        parse(&first).map(Self).map_err(Fault::into_stream)
    }
}

/// The messages of a request that streams them.
pub struct Messages(pub std::pin::Pin<Box<dyn Stream<Item = Result<Value, Fault>> + Send>>);

impl<S: Send + Sync> FromRequest<S> for Messages {
    type Rejection = Response;
    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        if !has_type(request.headers(), STREAM) {
            return Err(unsupported(STREAM));
        }
        let body = request.into_body().into_data_stream().map_err(io::Error::other);
        let frames = FramedRead::new(StreamReader::new(body), Frames);
        let messages = frames
            .map_err(|error| Fault::wrong(format!("the request broke off: {error}")))
            .and_then(async |bytes| parse(&bytes));
        Ok(Self(Box::pin(messages)))
    }
}

/// Reads frames.
struct Frames;

impl Decoder for Frames {
    type Item = Bytes;
    type Error = io::Error;
    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Bytes>, io::Error> {
        let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let [flags, length @ ..] = *head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if flags != 0 {
            return Err(io::Error::other("a message is compressed, or no message"));
        }
        if length > MAX_MESSAGE_BYTES {
            return Err(io::Error::other("a message is too long"));
        }
        if bytes.len() < HEAD_BYTES + length {
            bytes.reserve(HEAD_BYTES + length - bytes.len());
            return Ok(None);
        }
        bytes.advance(HEAD_BYTES);
        Ok(Some(bytes.split_to(length).freeze()))
    }
}

/// An answer that ends with its first message.
pub fn one(of: &impl Serialize) -> Response {
    let mut bytes = BytesMut::from(&message(of)[..]);
    bytes.put(end(None));
    response(Body::from(bytes.freeze()))
}

/// What is not known here.
pub fn unknown() -> Response {
    Fault::new(Code::Unimplemented, "there is no such method here").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written_however_they_are_cut() {
        let mut whole = BytesMut::new();
        for text in ["a", "", "third"] {
            whole.put(message(&text));
        }
        let (mut open, mut read) = (BytesMut::new(), Vec::new());
        for byte in whole {
            open.put_u8(byte);
            while let Some(found) = Frames.decode(&mut open).unwrap() {
                read.push(serde_json::from_slice::<String>(&found).unwrap());
            }
        }
        assert_eq!(read, ["a", "", "third"]);
        assert!(open.is_empty());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for head in [[1, 0, 0, 0, 1], [0, 255, 255, 255, 255]] {
            let mut bytes = BytesMut::from(&head[..]);
            assert!(Frames.decode(&mut bytes).is_err(), "{head:?}");
        }
    }

    #[test]
    fn end_says_an_error_or_nothing() {
        assert_eq!(&end(None)[..], b"\x02\0\0\0\x02{}");
        let text = String::from_utf8(end(Some(&Fault::wrong("no")))[HEAD_BYTES..].to_vec()).unwrap();
        let said: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            said,
            json!({ "error": { "code": "invalid_argument", "message": "no" } })
        );
    }
}
