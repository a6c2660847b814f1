//! What every handler answers with: a body type, and a fault that knows its status. No routing.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use futures::Stream;
use hearth_guest::AgentFault;
use hearth_guest::files::FaultCode;
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Reply = Response<Body>;

/// Why a request was refused.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Of faults about files.
    pub(crate) code: Option<FaultCode>,
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl Fault {
    /// The request itself is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self {
            code: None,
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
        }
    }

    /// A path of a newer host, or of nobody. It has no code: the host tells by that.
    pub(crate) fn unknown(path: &str) -> Self {
        Self {
            code: None,
            status: StatusCode::NOT_FOUND,
            message: format!("this agent ({}) does not know {path}", env!("CARGO_PKG_VERSION")),
        }
    }

    /// What the system said about `what`.
    pub(crate) fn from_io(what: &str, error: &io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::NotFound => StatusCode::NOT_FOUND,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
            io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidFilename => StatusCode::BAD_REQUEST,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self {
            code: None,
            status,
            message: format!("{what}: {error}"),
        }
    }

    pub(crate) fn into_reply(self) -> Reply {
        let fault = AgentFault {
            message: self.message,
            code: self.code,
        };
        json(self.status, &fault)
    }
}

pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    // Our own types always have a JSON form; if one had not, an empty body is still an answer.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let body = Full::new(Bytes::from(bytes))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync();
    with_body(status, "application/json", body)
}

pub(crate) fn done() -> Reply {
    let body = Full::new(Bytes::new())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync();
    with_body(StatusCode::NO_CONTENT, "application/octet-stream", body)
}

pub(crate) fn stream(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Reply {
    let frames = futures::StreamExt::map(chunks, |chunk| chunk.map(Frame::data));
    with_body(
        StatusCode::OK,
        "application/octet-stream",
        StreamBody::new(frames).boxed_unsync(),
    )
}

fn with_body(status: StatusCode, kind: &'static str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    reply
}
