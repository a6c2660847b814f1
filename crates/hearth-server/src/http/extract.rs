//! Extractors whose refusals are documented errors: bodies, queries, ids.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use hearth_api::error::ErrorCode;
use hearth_api::patch::Object;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// Longest request body: a PUT of 100 variables of 100,000 characters with room for escapes.
pub const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

/// A JSON body.
pub struct Body<T>(pub T);

/// A JSON body that may be missing or empty, which counts as `{}`, with or without a content type.
pub struct OptionalBody<T>(pub T);

/// The raw bytes of a JSON body and what they say.
pub struct RawBody<T>(pub Bytes, pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        parse(&read(request).await?).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        RawBody::from_request(request, state)
            .await
            .map(|RawBody(_, value)| Self(value))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for RawBody<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let typed = check_content_type(request.headers());
        let bytes = read(request).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(|value| Self(bytes, value));
        }
        typed?;
        let value = parse(&bytes)?;
        Ok(Self(bytes, value))
    }
}

/// No content type is taken for JSON; another one is a mistake that is better said than guessed at.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
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

async fn read(request: Request) -> Result<Bytes, ApiError> {
    match Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            ErrorCode::PayloadTooLarge,
            format!("the body is longer than {} MiB", MAX_BODY_BYTES / 1024 / 1024),
        )),
        Err(_) => Err(ApiError::field(".", "the body broke off")),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut from = serde_json::Deserializer::from_slice(bytes);
    let Object(value) = serde_path_to_error::deserialize(&mut from).map_err(|error| {
        let path = error.path().to_string();
        ApiError::field(
            if path == "?" { ".".to_owned() } else { path },
            error.into_inner().to_string(),
        )
    })?;
    from.end().map_err(|error| ApiError::field(".", error.to_string()))?;
    Ok(value)
}

/// The query of a request.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::try_from_uri(&parts.uri) {
            Ok(query) => Ok(Self(query.0)),
            Err(error) => Err(ApiError::field(
                "query",
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
            )),
        }
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
