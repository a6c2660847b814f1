//! The one place that chooses a status: every refusal becomes an [`ApiError`] and leaves as the documented error body.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hearth_api::error::{ErrorBody, ErrorCode, ErrorDetail, FieldError};

use crate::claims::ClaimError;
use crate::repos::branches::BranchError;
use crate::repos::mirrors::MirrorError;
use crate::store::StoreError;
use crate::vms::connections::ConnectError;

/// A person must enable a disabled pool first; asking again sooner is of no use.
const DISABLED_RETRY_AFTER: Duration = Duration::from_secs(300);
/// It was done.
pub const OK: StatusCode = StatusCode::OK;
/// It will be done.
pub const ACCEPTED: StatusCode = StatusCode::ACCEPTED;

/// A reply outside 2xx.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    message: String,
    details: Option<Vec<FieldError>>,
    retry_after: Option<Duration>,
}

impl ApiError {
    /// Any error with a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: None,
            retry_after: None,
        }
    }

    /// 404 for a thing of this kind.
    pub fn not_found(what: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no such {what}"))
    }

    /// 422 for these fields.
    pub fn fields(fields: Vec<FieldError>) -> Self {
        let message = match fields.as_slice() {
            [one] if one.path == "." => format!("the request is not valid: {}", one.message),
            [one] => format!("the request is not valid: {}: {}", one.path, one.message),
            many => format!("the request is not valid: {} fields are wrong", many.len()),
        };
        Self {
            details: Some(fields),
            ..Self::new(ErrorCode::ValidationError, message)
        }
    }

    /// 422 for one field.
    pub fn field(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError {
            path: path.into(),
            message: message.into(),
        }])
    }

    /// Its code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// When asking again may help.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// What it says.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same with what it is about, item by item.
    pub fn with_details(self, details: Vec<FieldError>) -> Self {
        Self {
            details: (!details.is_empty()).then_some(details),
            ..self
        }
    }

    /// 500: the cause is for the operator's log.
    fn internal() -> Self {
        Self::new(
            ErrorCode::InternalError,
            "the server could not do it; its log says why, see the request id",
        )
    }

    /// The same in a message of a connection that has no status any more.
    pub fn into_detail(self) -> ErrorDetail {
        ErrorDetail {
            code: self.code,
            message: self.message,
            details: self.details,
        }
    }

    /// 503: try again soon.
    pub fn unavailable(message: impl Into<String>) -> Self {
        const RETRY_AFTER: Duration = Duration::from_secs(2);
        Self {
            retry_after: Some(RETRY_AFTER),
            ..Self::new(ErrorCode::Unavailable, message)
        }
    }

    /// 429: the limits leave no room now.
    pub fn no_room(message: impl Into<String>) -> Self {
        const RETRY_AFTER: Duration = Duration::from_secs(5);
        Self {
            retry_after: Some(RETRY_AFTER),
            ..Self::new(ErrorCode::TooManyRequests, message)
        }
    }

    /// 429: this one asks too often.
    pub fn too_often(who: &str, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait),
            ..Self::new(
                ErrorCode::TooManyRequests,
                format!("{who} sends too many requests; wait as long as `Retry-After` says"),
            )
        }
    }

    /// The documented error for a refusal that something below the handlers made, with its own status.
    pub fn of_status(status: StatusCode) -> Self {
        let code = ErrorCode::ALL.into_iter().find(|code| status_of(*code) == status);
        match code {
            Some(ErrorCode::Unavailable) => Self::unavailable("the server took too long; try again"),
            Some(ErrorCode::NotFound) => Self::not_found("path"),
            Some(code) => Self::new(code, status.canonical_reason().unwrap_or("the request failed")),
            None if status.is_server_error() => Self::internal(),
            None => Self::field(".", status.canonical_reason().unwrap_or("the request is not valid")),
        }
    }
}

/// The status that belongs to a code.
pub fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::Conflict => StatusCode::CONFLICT,
        ErrorCode::Gone => StatusCode::GONE,
        ErrorCode::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
        ErrorCode::ValidationError => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorCode::BadGateway => StatusCode::BAD_GATEWAY,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::InsufficientStorage => StatusCode::INSUFFICIENT_STORAGE,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = status_of(self.code);
        let body = ErrorBody {
            error: ErrorDetail {
                code: self.code,
                message: self.message,
                details: self.details,
            },
        };
        let mut response = (status, Json(body)).into_response();
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(
                header::RETRY_AFTER,
                HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64),
            );
        }
        if status == StatusCode::UNAUTHORIZED {
            let headers = response.headers_mut();
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if let StoreError::NameTaken { project } = &error {
            let message =
                format!("the name is taken by the project {project}; choose another one, or use that project");
            return Self {
                details: Some(vec![FieldError {
                    path: "name".to_owned(),
                    message: format!("is the name of the project {project}"),
                }]),
                ..Self::new(ErrorCode::Conflict, message)
            };
        }
        if matches!(error, StoreError::NotAtHome) {
            return Self::unavailable(error.to_string());
        }
        // The cause is for the operator's log; a client can only report it.
        tracing::error!(%error, "a request failed");
        if error.is_away() {
            return Self::unavailable(
                "the server's database does not answer; nothing is lost: see that PostgreSQL runs and can be reached, then try again",
            );
        }
        if error.is_disk_full() {
            return Self::unavailable(
                "the disk under the server's data folder is full; free some space, then try again",
            );
        }
        Self::internal()
    }
}

impl From<ClaimError> for ApiError {
    fn from(error: ClaimError) -> Self {
        let message = error.to_string();
        match error {
            ClaimError::NothingReady { retry_after, .. } | ClaimError::TooManyHeld { retry_after, .. } => Self {
                retry_after: Some(retry_after),
                ..Self::new(ErrorCode::TooManyRequests, message)
            },
            ClaimError::Disabled => Self {
                retry_after: Some(DISABLED_RETRY_AFTER),
                details: Some(vec![FieldError {
                    path: "enabled".to_owned(),
                    message: "is false for this pool".to_owned(),
                }]),
                ..Self::new(ErrorCode::TooManyRequests, message)
            },
            ClaimError::OtherBody(fields) => Self {
                details: (!fields.is_empty()).then(|| fields.into_iter().map(not_as_before).collect()),
                ..Self::new(ErrorCode::Conflict, message)
            },
            ClaimError::Branch(error) => match *error {
                BranchError::Nowhere { .. }
                | BranchError::Unknown {
                    source: MirrorError::Refused { .. },
                    ..
                } => Self::new(ErrorCode::Conflict, message),
                BranchError::Unknown { .. } => Self::unavailable(message),
            },
            ClaimError::Script(_) | ClaimError::Stuck(_) => Self::new(ErrorCode::Conflict, message),
            ClaimError::Ended => Self::new(ErrorCode::Gone, message),
            ClaimError::Failed {
                blames_recipe: true, ..
            } => Self::new(ErrorCode::Conflict, message),
            ClaimError::Failed { .. } | ClaimError::Host(_) => Self::unavailable(message),
            ClaimError::Store(error) => error.into(),
        }
    }
}

fn not_as_before(field: &'static str) -> FieldError {
    FieldError {
        path: field.to_owned(),
        message: "is not what the first claim of this task said".to_owned(),
    }
}

impl From<ConnectError> for ApiError {
    fn from(error: ConnectError) -> Self {
        Self::unavailable(format!("the VM does not answer: {error}"))
    }
}
