//! Refusals as E2B's clients read them: those of the control plane, and those of what speaks for a sandbox.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hearth_api::error::ErrorCode;
use hearth_guest::client::AgentError;
use hearth_guest::files::FaultCode;
use serde_json::{Value, json};

use super::frames;
use crate::http::{ApiError, status_of};
use crate::store::StoreError;

/// Says whether a client is to ask again; without it clients do at 429, 502, 503 and 504.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// Whether asking again helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// The status says it.
    Unsaid,
    Never,
    After(Duration),
}

/// A refusal of the control plane.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
    error_code: Option<&'static str>,
    again: Again,
}

impl Refusal {
    /// What the client is told.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            error_code: None,
            again: Again::Unsaid,
        }
    }

    /// 400.
    pub fn wrong(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 404 for a sandbox.
    pub fn no_sandbox(id: &str) -> Self {
        Self::not_found(format!(
            "sandbox {id} was not found: it was killed, its time is over, or it never was"
        ))
    }

    pub fn coded(self, error_code: &'static str) -> Self {
        Self {
            error_code: Some(error_code),
            ..self
        }
    }

    pub fn never_again(self) -> Self {
        Self {
            again: Again::Never,
            ..self
        }
    }

    pub fn again_after(self, wait: Duration) -> Self {
        Self {
            again: Again::After(wait),
            ..self
        }
    }

    /// A client that has waited this long, and would wait for `patience` again, may reach its own end in between and then know no reason. It is
    /// told a time beyond that end instead, so that it shows this refusal.
    pub fn worth_waiting_for(self, waited: Duration, patience: Duration, end: Duration) -> Self {
        match self.again {
            Again::After(wait) if waited + wait + patience > end => {
                let beyond = end.saturating_sub(waited) + Duration::from_secs(1);
                self.again_after(wait.max(beyond))
            }
            _ => self,
        }
    }

    fn body(&self) -> Value {
        let mut body = json!({ "code": self.status.as_u16(), "message": self.message });
        if let Some(code) = self.error_code {
            body["error_code"] = json!(code);
        }
        body
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.again {
            Again::Unsaid => {}
            Again::Never => drop(headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"))),
            Again::After(wait) => {
                let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("true"));
            }
        }
        response
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let status = match error.code() {
            ErrorCode::ValidationError => StatusCode::BAD_REQUEST,
            ErrorCode::Gone => StatusCode::CONFLICT,
            code => status_of(code),
        };
        let refusal = Self::new(status, error.message());
        match error.retry_after() {
            Some(wait) => refusal.again_after(wait),
            None => refusal,
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        ApiError::from(error).into()
    }
}

/// Codes of the Connect protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    InvalidArgument,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    ResourceExhausted,
    NoSpace,
    Unimplemented,
    Internal,
    Unavailable,
    DeadlineExceeded,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::FailedPrecondition => "failed_precondition",
            Self::ResourceExhausted | Self::NoSpace => "resource_exhausted",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound | Self::Unimplemented => StatusCode::NOT_FOUND,
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// A refusal of what speaks for a sandbox.
#[derive(Debug, Clone)]
pub enum Fault {
    Rpc {
        code: Code,
        message: String,
    },
    /// There is no such sandbox, or it does not run.
    NoSandbox(String),
    /// Nothing listens on this port of it.
    NoPort(String, u16),
}

impl Fault {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self::Rpc {
            code,
            message: message.into(),
        }
    }

    pub fn wrong(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// The error of a message: what a stream ends with, and what a call is answered.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Rpc { code, message } => json!({ "code": code.name(), "message": message }),
            other => json!({ "code": Code::Unavailable.name(), "message": other.sentence() }),
        }
    }

    /// Clients look for these very words.
    pub fn sentence(&self) -> &str {
        match self {
            Self::Rpc { message, .. } => message,
            Self::NoSandbox(_) => "The sandbox was not found",
            Self::NoPort(..) => "The sandbox is running but port is not open",
        }
    }

    fn of_proxy(&self) -> Option<Response> {
        let (id, port) = match self {
            Self::Rpc { .. } => return None,
            Self::NoSandbox(id) => (id, None),
            Self::NoPort(id, port) => (id, Some(port)),
        };
        let mut body = json!({ "sandboxId": id, "message": self.sentence(), "code": StatusCode::BAD_GATEWAY.as_u16() });
        if let Some(port) = port {
            body["port"] = json!(port);
        }
        Some((StatusCode::BAD_GATEWAY, Json(body)).into_response())
    }

    /// As a call is answered that streams: it has begun, and this is its end.
    pub fn into_stream(self) -> Response {
        match self.of_proxy() {
            Some(response) => response,
            None => frames::response(Body::from(frames::end(Some(&self)))),
        }
    }

    /// As plain HTTP is answered.
    pub fn into_plain(self) -> Response {
        if let Some(response) = self.of_proxy() {
            return response;
        }
        let Self::Rpc { code, message } = &self else {
            return self.into_response();
        };
        let status = code.status();
        (status, Json(json!({ "code": status.as_u16(), "message": message }))).into_response()
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        if let Some(response) = self.of_proxy() {
            return response;
        }
        let status = match &self {
            Self::Rpc { code, .. } => code.status(),
            _ => StatusCode::BAD_GATEWAY,
        };
        (status, Json(self.to_json())).into_response()
    }
}

impl From<AgentError> for Fault {
    fn from(error: AgentError) -> Self {
        let AgentError::Refused { status, message, code } = error else {
            return Self::unavailable(error.to_string());
        };
        if message.starts_with("there is no user") {
            return Self::new(Code::Unauthenticated, message);
        }
        let code = match (status, code) {
            (_, Some(FaultCode::NotFound)) => Code::NotFound,
            (_, Some(FaultCode::Denied)) => Code::PermissionDenied,
            (_, Some(FaultCode::Exists)) => Code::AlreadyExists,
            (_, Some(FaultCode::NoSpace)) => Code::NoSpace,
            (_, Some(FaultCode::NotEmpty | FaultCode::Conflict)) => Code::FailedPrecondition,
            (
                _,
                Some(
                    FaultCode::IsFolder
                    | FaultCode::NotFolder
                    | FaultCode::NotFile
                    | FaultCode::Range
                    | FaultCode::Invalid,
                ),
            )
            | (400, _) => Code::InvalidArgument,
            (404, None) => {
                let message = "the agent in this VM is older than this operation: build the image again";
                return Self::new(Code::Unimplemented, message);
            }
            (409, _) => Code::FailedPrecondition,
            _ => Code::Internal,
        };
        Self::new(code, message)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        ApiError::from(error).into()
    }
}

/// Where the sandbox itself is known to be there.
impl From<ApiError> for Fault {
    fn from(error: ApiError) -> Self {
        let code = match error.code() {
            ErrorCode::Unauthorized => Code::Unauthenticated,
            ErrorCode::Forbidden => Code::PermissionDenied,
            ErrorCode::NotFound => Code::NotFound,
            ErrorCode::Conflict => Code::FailedPrecondition,
            ErrorCode::ValidationError | ErrorCode::PayloadTooLarge | ErrorCode::RangeNotSatisfiable => {
                Code::InvalidArgument
            }
            ErrorCode::TooManyRequests => Code::ResourceExhausted,
            ErrorCode::InsufficientStorage => Code::NoSpace,
            ErrorCode::InternalError => Code::Internal,
            _ => Code::Unavailable,
        };
        Self::new(code, error.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_that_would_give_up_while_it_waits_again_is_told_to_stop() {
        let s = Duration::from_secs;
        for (wait, waited, told) in [(s(5), s(0), s(5)), (s(5), s(40), s(21)), (s(30), s(40), s(30))] {
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy").again_after(wait);
            let refusal = refusal.worth_waiting_for(waited, s(40), s(60));
            assert_eq!(refusal.again, Again::After(told), "{wait:?} after {waited:?}");
        }
        let never = Refusal::wrong("no")
            .never_again()
            .worth_waiting_for(s(40), s(40), s(60));
        assert_eq!(never.again, Again::Never);
    }
}
