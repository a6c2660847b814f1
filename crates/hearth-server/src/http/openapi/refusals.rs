//! What refusals say: one response for each code, of which every operation names those that it has.

use std::collections::BTreeMap;

use hearth_api::error::{ErrorBody, ErrorCode, ErrorDetail, FieldError};
use serde_json::json;
use utoipa::ToSchema as _;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

use super::header_ref;
use super::operations::REQUEST_ID;

/// The name of the header that says when to ask again, in the document.
pub const RETRY_AFTER: &str = "RetryAfter";

/// All of them, by their names in the document.
pub fn responses() -> BTreeMap<String, RefOr<Response>> {
    ErrorCode::ALL
        .into_iter()
        .map(|code| (response_name(code).to_owned(), RefOr::T(response(code))))
        .collect()
}

/// The name of a refusal in the document.
pub fn response_name(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Unauthorized => "Unauthorized",
        ErrorCode::Forbidden => "Forbidden",
        ErrorCode::NotFound => "NotFound",
        ErrorCode::MethodNotAllowed => "MethodNotAllowed",
        ErrorCode::Conflict => "Conflict",
        ErrorCode::Gone => "Gone",
        ErrorCode::PayloadTooLarge => "PayloadTooLarge",
        ErrorCode::RangeNotSatisfiable => "RangeNotSatisfiable",
        ErrorCode::ValidationError => "ValidationError",
        ErrorCode::TooManyRequests => "TooManyRequests",
        ErrorCode::InternalError => "InternalError",
        ErrorCode::BadGateway => "BadGateway",
        ErrorCode::Unavailable => "Unavailable",
        ErrorCode::InsufficientStorage => "InsufficientStorage",
    }
}

fn response(code: ErrorCode) -> Response {
    let (description, message) = match code {
        ErrorCode::Unauthorized => (
            "No token, or one that is unknown, revoked or expired",
            "send a token: `Authorization: Bearer hearth_…`",
        ),
        ErrorCode::Forbidden => (
            "The token lacks the scope, or the project's own limit forbids it",
            "this token lacks the scope `claim`",
        ),
        ErrorCode::NotFound => (
            "There is no such thing, or not for this token",
            "there is no such project",
        ),
        ErrorCode::MethodNotAllowed => (
            "The path does not take this method",
            "this path does not take this method",
        ),
        ErrorCode::Conflict => (
            "It does not go with what is there",
            "this task id was used before for another claim (`branch` differs); use a new one, or ask for the same",
        ),
        ErrorCode::Gone => (
            "It is gone",
            "the VM of this task id was released or its lease ended; use a new task id",
        ),
        ErrorCode::PayloadTooLarge => ("The body is too long", "the body is longer than 64 MiB"),
        ErrorCode::RangeNotSatisfiable => (
            "The file has no such part",
            "/home/app/build.log has 120 bytes and no such part",
        ),
        ErrorCode::ValidationError => (
            "The request is not valid; `details` lists each field",
            "the request is not valid: targetSize: must be at most 20",
        ),
        ErrorCode::TooManyRequests => (
            "Nothing is ready, or the token asks too often",
            "no VM is ready (1 being made, 0 failed in 24 h); ask again, or claim with a wait",
        ),
        ErrorCode::InternalError => (
            "The server has a fault",
            "the server could not do it; its log says why, see the request id",
        ),
        ErrorCode::BadGateway => (
            "Nothing listens on the port in the VM, or what listens does not answer",
            "nothing listens on port 3000 in the VM; what does: 8080 (node)",
        ),
        ErrorCode::Unavailable => (
            "It cannot be done now",
            "the disk under the server's data folder is full; free some space, then try again",
        ),
        ErrorCode::InsufficientStorage => (
            "The disk of the VM is full",
            "the disk of the VM is full: /home/app/data could not be written; remove something, then try again",
        ),
    };
    let details = (code == ErrorCode::ValidationError).then(|| {
        vec![FieldError {
            path: "targetSize".to_owned(),
            message: "must be at most 20".to_owned(),
        }]
    });
    let example = ErrorBody {
        error: ErrorDetail {
            code,
            message: message.to_owned(),
            details,
        },
    };
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(ErrorBody::name())))
        .example(Some(json!(example)));
    let response = ResponseBuilder::new()
        .description(description)
        .header_ref("x-request-id", header_ref(REQUEST_ID))
        .content("application/json", content);
    match code {
        ErrorCode::TooManyRequests | ErrorCode::Unavailable => {
            response.header_ref("Retry-After", header_ref(RETRY_AFTER))
        }
        _ => response,
    }
    .build()
}
