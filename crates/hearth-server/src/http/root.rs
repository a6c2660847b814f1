//! What `GET /` says to a program, and what tells programs and browsers apart.

use axum::Json;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use super::{BASE, openapi};

/// The page that shows the API.
const DOCS: &str = "/docs/";

/// Whether a person reads the answer.
pub fn wants_page(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|accept| accept.contains("text/html")))
}

/// For users who have only the server's address: where the API is. Says nothing of the installation and needs no token.
pub fn places() -> Response {
    Json(json!({
        "name": "hearth",
        "version": env!("CARGO_PKG_VERSION"),
        "api": BASE,
        "openapi": openapi::PATH,
        "docs": DOCS,
    }))
    .into_response()
}
