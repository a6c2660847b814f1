//! What forms and addresses hold: fields in their order, ids, and a form that one of our pages sent.

use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use hearth_api::error::ErrorCode;

use super::Pages;
use super::refusal::Refusal;
use super::session::PROOF_FIELD;
use super::visitor::{Visitor, sign_in_first};
use crate::http::read;

/// Longest form: a set-up with many long scripts.
const MAX_FORM_BYTES: usize = 8 * 1024 * 1024;
/// How long one may take to arrive.
const FORM_PATIENCE: Duration = Duration::from_secs(30);

/// Fields, in the order in which they stand in the form.
#[derive(Debug, Clone, Default)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    pub fn parse(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes());
        // Browsers send line ends as mail does.
        Self(
            pairs
                .map(|(name, value)| (name.into_owned(), value.replace("\r\n", "\n")))
                .collect(),
        )
    }

    /// The first of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// The same where it is not blank, without blanks around it.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).map(str::trim).filter(|text| !text.is_empty())
    }

    /// Which page of so many things is asked for, from 1, and how many pages there are. There is always one.
    pub fn page(&self, things: usize, per_page: usize) -> (usize, usize) {
        let pages = things.div_ceil(per_page).max(1);
        let asked = self.get("p").and_then(|page| page.parse().ok()).unwrap_or(1);
        (asked.clamp(1, pages), pages)
    }

    /// Whether a box of this name is ticked.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All of this name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// A number where one is given; what is no number stays a text, for the API to refuse by its name.
    pub fn number(&self, name: &str) -> Option<serde_json::Value> {
        let text = self.filled(name)?;
        Some(text.parse::<i64>().map_or_else(|_| text.into(), Into::into))
    }
}

/// What stands behind the `?` of an address: those that have a value.
pub fn pairs(all: &[(&str, Option<&str>)]) -> String {
    let mut pairs = form_urlencoded::Serializer::new(String::new());
    pairs.extend_pairs(all.iter().filter_map(|(name, value)| Some((name, (*value)?))));
    pairs.finish()
}

impl FromRequestParts<Pages> for Fields {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, _: &Pages) -> Result<Self, Response> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

/// An id in the path, by its name there: what cannot be one names nothing.
pub struct Named<T>(pub T);

/// Which part of a path an id stands in.
pub trait InPath: FromStr {
    const NAME: &'static str;
}

impl InPath for hearth_api::ids::ProjectId {
    const NAME: &'static str = "project";
}
impl InPath for hearth_api::ids::InstanceId {
    const NAME: &'static str = "instance";
}
impl InPath for hearth_api::ids::TokenId {
    const NAME: &'static str = "token";
}

impl<T: InPath + Send> FromRequestParts<Pages> for Named<T> {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, pages: &Pages) -> Result<Self, Response> {
        let found = match RawPathParams::from_request_parts(parts, pages).await {
            Ok(named) => named
                .iter()
                .find(|(name, _)| *name == T::NAME)
                .and_then(|(_, id)| id.parse().ok()),
            Err(_) => None,
        };
        found.map(Self).ok_or_else(|| {
            let why = format!("there is no such {}", T::NAME);
            Refusal::new(ErrorCode::NotFound, why).into_response()
        })
    }
}

/// A form, without a word about who sent it.
pub async fn fields_of(request: Request) -> Result<Fields, Refusal> {
    let bytes = read(request, MAX_FORM_BYTES, FORM_PATIENCE).await?;
    Ok(Fields::parse(&String::from_utf8_lossy(&bytes)))
}

/// A form that one of our pages sent, and whose page that is.
pub struct Posted {
    pub visitor: Visitor,
    pub fields: Fields,
}

impl FromRequest<Pages> for Posted {
    type Rejection = Response;
    async fn from_request(request: Request, pages: &Pages) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let visitor = Visitor::by_cookie(&parts.headers, &parts.extensions, pages).await;
        let Some(visitor) = visitor.map_err(Refusal::into_response)? else {
            return Err(sign_in_first(&parts));
        };
        let headers = parts.headers.clone();
        let fields = fields_of(Request::from_parts(parts, body))
            .await
            .map_err(Refusal::into_response)?;
        visitor
            .check(fields.get(PROOF_FIELD), &headers)
            .map_err(Refusal::into_response)?;
        Ok(Self { visitor, fields })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_numbers_are_numbers() {
        let fields = Fields::parse("name=a&name=b&size=+3+&blank=+&text=x%0D%0Ay&odd=1.5");
        assert_eq!(fields.all("name").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(fields.number("size"), Some(3.into()));
        assert_eq!(fields.number("odd"), Some("1.5".into()));
        assert_eq!((fields.filled("blank"), fields.get("text")), (None, Some("x\ny")));
    }
}
