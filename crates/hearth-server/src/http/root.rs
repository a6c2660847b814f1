//! `GET /`: for users who have only the server's address. A browser is redirected to the page for people, a program gets
//! the places as JSON. Says nothing of the installation and needs no token.

use axum::Json;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use serde_json::json;

use super::{BASE, openapi};

/// The page for people.
const DOCS: &str = "/docs/";

/// Answers by what is asked for.
pub(super) async fn root(headers: HeaderMap) -> Response {
    let wants_a_page = headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|accept| accept.contains("text/html")));
    let mut response = if wants_a_page {
        Redirect::to(DOCS).into_response()
    } else {
        Json(json!({
            "name": "hearth",
            "version": env!("CARGO_PKG_VERSION"),
            "api": BASE,
            "openapi": openapi::PATH,
            "docs": DOCS,
        }))
        .into_response()
    };
    response
        .headers_mut()
        .insert(header::VARY, header::HeaderValue::from_static("accept"));
    response
}
