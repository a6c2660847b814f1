//! Who is signed in: a cookie that no script can read, the session behind it, and what proves that a page of ours asks.
//!
//! A page of a VM can be on the same host as ours (a port that is reached by path), where a browser sends it our cookie. So a page is
//! given only to a person who opens it; whatever else asks must show the session's proof, which stands in our pages alone.

use axum::http::{HeaderMap, HeaderValue, header};
use jiff::{SignedDuration, Timestamp};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::http::{Caller, outer_host, outer_scheme};
use crate::store::{Store, StoreError, TokenRow};

/// The cookie. Those that begin like this never reach a server in a VM.
const COOKIE: &str = "hearth_session";
/// The header that carries the proof.
pub const PROOF_HEADER: &str = "x-hearth-page";
/// The same as a field of a form or a parameter.
pub const PROOF_FIELD: &str = "page";
/// A person signs in again after a week.
const LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Random bytes of a session.
const SECRET_BYTES: usize = 32;

/// A browser's session.
#[derive(Debug, Clone)]
pub struct Session(String);

impl Session {
    /// The one that a request names.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        cookie_of(headers, COOKIE).map(|secret| Self(secret.to_owned()))
    }

    /// A new one of a token, and its cookie.
    pub async fn begin(store: &Store, caller: &Caller, headers: &HeaderMap) -> Result<HeaderValue, StoreError> {
        let secret: [u8; SECRET_BYTES] = rand::rng().random();
        let session = Self(hex::encode(secret));
        let now = Timestamp::now();
        let end = caller.0.expires_at.unwrap_or(Timestamp::MAX).min(now + LIFETIME);
        store
            .insert_web_session(&session.hash(), &caller.0.id, now, end)
            .await?;
        Ok(cookie(&session.0, end.duration_since(now).as_secs(), headers))
    }

    /// Ends it; the cookie that removes it.
    pub async fn end(&self, store: &Store, headers: &HeaderMap) -> Result<HeaderValue, StoreError> {
        store.delete_web_session(&self.hash()).await?;
        Ok(cookie("", 0, headers))
    }

    /// Its token.
    pub async fn token(&self, store: &Store) -> Result<Option<TokenRow>, StoreError> {
        store.token_of_web_session(&self.hash(), Timestamp::now()).await
    }

    fn hash(&self) -> String {
        hex::encode(Sha256::digest(&self.0))
    }

    /// What proves that a page of this session asks: it says nothing of the session.
    pub fn proof(&self) -> String {
        hex::encode(Sha256::new().chain_update("page of ").chain_update(&self.0).finalize())
    }

    /// Whether this is that proof.
    pub fn is_proof(&self, shown: &str) -> bool {
        shown.as_bytes().ct_eq(self.proof().as_bytes()).into()
    }
}

/// The cookie of this name that a request brings.
pub fn cookie_of<'a>(headers: &'a HeaderMap, cookie: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).into_iter();
    let mut pairs = all
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, value)| (name == cookie).then_some(value))
}

/// Who sends a cookie along.
#[derive(Debug, Clone, Copy)]
pub enum SentFrom {
    /// Our own pages alone.
    OwnPages,
    /// Also a page of another site that leads here.
    AnyLink,
}

/// A cookie that no script can read.
pub fn cookie_text(
    name: &str,
    value: &str,
    path: &str,
    from: SentFrom,
    seconds: i64,
    headers: &HeaderMap,
) -> HeaderValue {
    let same_site = match from {
        SentFrom::OwnPages => "Strict",
        SentFrom::AnyLink => "Lax",
    };
    let secure = if outer_scheme(headers) == "https" {
        "; Secure"
    } else {
        ""
    };
    let text = format!("{name}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite={same_site}{secure}");
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

fn cookie(value: &str, seconds: i64, headers: &HeaderMap) -> HeaderValue {
    cookie_text(COOKIE, value, "/", SentFrom::OwnPages, seconds, headers)
}

fn said<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether a person opens this in a window of its own. Browsers say so of every request to a host that they trust (`https`, this machine);
/// others do not, and nothing is known.
pub fn is_opened(headers: &HeaderMap) -> bool {
    match said(headers, "sec-fetch-mode") {
        None => true,
        Some("navigate") => said(headers, "sec-fetch-dest") == Some("document"),
        Some(_) => false,
    }
}

/// Whether a page of this host asks, as far as the browser says.
pub fn is_own_origin(headers: &HeaderMap) -> bool {
    if let Some(site) = said(headers, "sec-fetch-site") {
        return site == "same-origin";
    }
    let Some(origin) = said(headers, "origin") else {
        return true;
    };
    let host = origin.split_once("://").map(|(_, host)| host);
    host.zip(outer_host(headers))
        .is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = axum::http::HeaderName::from_static(name);
            (name, HeaderValue::from_str(value).unwrap())
        });
        pairs.collect()
    }

    #[test]
    fn session_is_found_among_other_cookies_and_its_proof_is_its_own() {
        let session = Session::of(&headers(&[("cookie", "a=1; hearth_session=abc; b=2")])).unwrap();
        assert_eq!(session.0, "abc");
        assert!(session.is_proof(&session.proof()));
        assert!(!session.is_proof("") && !session.is_proof("abc") && !session.is_proof(&session.hash()));
        assert!(Session::of(&headers(&[("cookie", "hearth_sessions=abc")])).is_none());
    }

    #[test]
    fn only_what_a_person_opens_and_what_our_own_pages_send_is_ours() {
        let fetch = |mode: &str, to: &str| is_opened(&headers(&[("sec-fetch-mode", mode), ("sec-fetch-dest", to)]));
        assert!(fetch("navigate", "document") && is_opened(&headers(&[])));
        assert!(!fetch("cors", "empty") && !fetch("navigate", "iframe") && !fetch("same-origin", "empty"));
        for (given, own) in [
            (vec![("sec-fetch-site", "same-origin")], true),
            (vec![("sec-fetch-site", "same-site")], false),
            (
                vec![("sec-fetch-site", "cross-site"), ("host", "a"), ("origin", "http://a")],
                false,
            ),
            (vec![("host", "a:1"), ("origin", "http://a:1")], true),
            (vec![("host", "a:1"), ("origin", "http://b:1")], false),
            (vec![("host", "a:1"), ("origin", "null")], false),
            (vec![], true),
        ] {
            assert_eq!(is_own_origin(&headers(&given)), own, "{given:?}");
        }
    }

    #[test]
    fn cookie_is_strict_and_secure_behind_https() {
        let plain = cookie("x", 60, &headers(&[]));
        assert_eq!(plain, "hearth_session=x; Path=/; Max-Age=60; HttpOnly; SameSite=Strict");
        let https = cookie("x", 60, &headers(&[("x-forwarded-proto", "https")]));
        assert!(https.to_str().unwrap().ends_with("; Secure"));
    }
}
