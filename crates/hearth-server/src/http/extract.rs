//! Extractors whose refusals are documented errors: bodies, queries, ids.

use std::time::Duration;

use axum::body::HttpBody as _;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use hearth_api::error::ErrorCode;
use hearth_api::patch::Object;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::ToSchema;

use super::error::ApiError;
use super::schema;

/// Longest request body: a PUT of 100 variables of 100,000 characters with room for escapes.
pub const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
/// How long a body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// A JSON body.
pub struct Body<T>(pub T);

/// A JSON body that may be missing or empty, which counts as `{}`, with or without a content type.
pub struct OptionalBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + ToSchema> FromRequest<S> for Body<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        parse(&read(request, MAX_BODY_BYTES, BODY_PATIENCE).await?).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + ToSchema> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let typed = check_content_type(request.headers());
        let bytes = read(request, MAX_BODY_BYTES, BODY_PATIENCE).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(Self);
        }
        typed?;
        parse(&bytes).map(Self)
    }
}

/// No content type is taken for JSON; another one is a mistake that is better said than guessed at.
pub fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = value
        .to_str()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    Err(ApiError::field(
        ".",
        "the body must be JSON with the content type application/json",
    ))
}

/// A whole body of at most `limit` bytes that arrives within `patience`.
pub async fn read(request: Request, limit: usize, patience: Duration) -> Result<Bytes, ApiError> {
    let too_long = || {
        ApiError::new(
            ErrorCode::PayloadTooLarge,
            format!("the body is longer than {} MiB", limit / 1024 / 1024),
        )
    };
    // A length that is announced is refused before anything of it is read.
    if request.body().size_hint().lower() > limit as u64 {
        return Err(too_long());
    }
    let body = Limited::new(request.into_body(), limit).collect();
    let Ok(body) = tokio::time::timeout(patience, body).await else {
        let seconds = patience.as_secs();
        return Err(ApiError::field(
            ".",
            format!("the body did not arrive within {seconds} s"),
        ));
    };
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_long()),
        Err(_) => Err(ApiError::field(".", "the body broke off")),
    }
}

/// The published schema is asked first: it finds all faults. What it lets pass and the type does not, the type says.
pub fn parse<T: DeserializeOwned + ToSchema>(bytes: &[u8]) -> Result<T, ApiError> {
    let body: Value = serde_json::from_slice(bytes).map_err(|error| ApiError::field(".", error.to_string()))?;
    let faults = schema::faults(&T::name(), &body);
    if !faults.is_empty() {
        return Err(ApiError::fields(faults));
    }
    let Object(value) = serde_path_to_error::deserialize(body).map_err(|error: serde_path_to_error::Error<_>| {
        let path = error.path().to_string();
        let path = if path == "?" { ".".to_owned() } else { path };
        // The type's own message would quote the value.
        tracing::debug!(path, "a body passed its schema and not its type");
        ApiError::field(path, "is not a value that this field can hold")
    })?;
    Ok(value)
}

/// The query of a request.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let text = parts.uri.query().unwrap_or_default();
        if percent_encoding::percent_decode_str(text).decode_utf8().is_err() {
            return Err(ApiError::field("query", "is not UTF-8 text"));
        }
        let given: Vec<_> = form_urlencoded::parse(text.as_bytes()).collect();
        // The published parameters of this operation are asked first, as for bodies: they find all faults.
        if let Some(route) = parts.extensions.get::<MatchedPath>() {
            let faults = schema::query_faults(route.as_str(), parts.method.as_str(), &given);
            if !faults.is_empty() {
                return Err(ApiError::fields(faults));
            }
        }
        let from = serde_urlencoded::Deserializer::new(form_urlencoded::parse(text.as_bytes()));
        serde_path_to_error::deserialize(from).map(Self).map_err(|error| {
            let path = error.path().to_string();
            let path = if path == "." || path == "?" {
                "query".to_owned()
            } else {
                path
            };
            ApiError::field(path, "is not a value that this parameter can hold")
        })
    }
}

/// Ids in the path. One that cannot be an id names nothing: 404.
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(path) => Ok(Self(path.0)),
            Err(_) => Err(ApiError::not_found("thing at this path")),
        }
    }
}
