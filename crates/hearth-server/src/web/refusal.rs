//! What the API refused, as a page.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use hearth_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use maud::{Markup, html};

use super::frame;
use super::parts::sentence;
use crate::http::{ApiError, status_of};
use crate::store::StoreError;

/// A refusal of the API.
#[derive(Debug)]
pub struct Refusal(ErrorDetail);

impl Refusal {
    /// One of our own.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ApiError::new(code, message).into()
    }

    /// From the body of the API's answer.
    pub fn of_body(body: &[u8]) -> Self {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => Self(body.error),
            Err(_) => Self::new(ErrorCode::InternalError, "the server could not do it; its log says why"),
        }
    }

    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    pub fn status(&self) -> StatusCode {
        status_of(self.0.code)
    }

    /// The same as a box in a page, with every field that is at fault.
    pub fn notice(&self) -> Markup {
        let fields = self.0.details.as_deref().unwrap_or_default();
        html! {
            div.notice.bad role="alert" {
                p { (sentence(&self.0.message)) }
                @if fields.len() > 1 {
                    ul { @for field in fields { li { code { (field.path) } " " (field.message) } } }
                }
            }
        }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error.into_detail())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        ApiError::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        if self.code() == ErrorCode::Unauthorized {
            return Redirect::to("/sign-in").into_response();
        }
        let title = match self.code() {
            ErrorCode::NotFound => "Not found",
            ErrorCode::Forbidden => "Not allowed",
            ErrorCode::TooManyRequests => "Too many requests",
            ErrorCode::Conflict => "Conflicts with the current state",
            ErrorCode::Gone => "Gone",
            ErrorCode::Unavailable | ErrorCode::BadGateway => "Unavailable",
            ErrorCode::ValidationError => "Not valid",
            _ => "It did not work",
        };
        let body = html! {
            h1 { (title) }
            (self.notice())
            p { a href="/" { "All projects" } " · " a href="/claims" { "Claims" } }
        };
        let mut response = (self.status(), frame::bare(title, &body)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(frame::HTML));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_sentences_and_escaped() {
        let refusal = Refusal::new(ErrorCode::Conflict, "there is no <b>");
        assert!(refusal.notice().into_string().contains("There is no &lt;b&gt;."));
    }
}
