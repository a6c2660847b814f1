//! The error body that every reply outside 2xx carries.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `{"error":{…}}`, the only shape of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what happened and what to do.
    pub message: String,
    /// Which fields of the request are at fault, when it is about fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub details: Option<Vec<FieldError>>,
}

/// One field of a request that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Where: `setupCommands[2].name`; `.` is the whole body.
    pub path: String,
    /// What must be different.
    pub message: String,
}

/// The closed list of error codes; each belongs to one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 409
    Conflict,
    /// 410
    Gone,
    /// 413
    PayloadTooLarge,
    /// 416
    RangeNotSatisfiable,
    /// 422
    ValidationError,
    /// 429
    TooManyRequests,
    /// 500
    InternalError,
    /// 502
    BadGateway,
    /// 503
    Unavailable,
    /// 507
    InsufficientStorage,
}

impl ErrorCode {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::Gone,
        Self::PayloadTooLarge,
        Self::RangeNotSatisfiable,
        Self::ValidationError,
        Self::TooManyRequests,
        Self::InternalError,
        Self::BadGateway,
        Self::Unavailable,
        Self::InsufficientStorage,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::PayloadTooLarge => "payload_too_large",
            Self::RangeNotSatisfiable => "range_not_satisfiable",
            Self::ValidationError => "validation_error",
            Self::TooManyRequests => "too_many_requests",
            Self::InternalError => "internal_error",
            Self::BadGateway => "bad_gateway",
            Self::Unavailable => "unavailable",
            Self::InsufficientStorage => "insufficient_storage",
        }
    }
}

/// An error and everything beneath it, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(inner) = next {
        let inner_text = inner.to_string();
        // Several layers repeat what lies beneath them.
        if !text.contains(&inner_text) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {inner_text}");
        }
        next = inner.source();
    }
    text
}
