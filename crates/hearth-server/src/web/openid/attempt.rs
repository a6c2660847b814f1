//! One sign-in on its way to the provider and back. Nothing of it is kept here: the browser keeps the attempt's name, signed by this
//! installation, and all that must be secret or unforgeable is derived from that name.

use axum::http::{HeaderMap, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use rand::RngExt as _;
use subtle::ConstantTimeEq as _;

use crate::secrets::links::LinkKey;
use crate::web::session::{SentFrom, cookie_of, cookie_text};

/// The cookie. Those that begin like this never reach a server in a VM.
const COOKIE: &str = "hearth_openid";
/// Only the way back needs it.
const PATH: &str = "/sign-in/openid";
/// How long somebody may take at the provider.
const LIFETIME: SignedDuration = SignedDuration::from_mins(15);
const NAME_BYTES: usize = 16;
/// The longest address that somebody is sent back to.
const LONGEST_NEXT: usize = 1000;

/// The attempt.
pub struct Attempt {
    name: String,
    /// Where somebody is sent then.
    pub next: Option<String>,
    key: LinkKey,
}

impl Attempt {
    /// A new one.
    pub fn begin(key: &LinkKey, next: Option<&str>) -> Self {
        let name: [u8; NAME_BYTES] = rand::rng().random();
        Self {
            name: hex::encode(name),
            // Browsers drop a cookie of more than 4 KB.
            next: next.filter(|next| next.len() <= LONGEST_NEXT).map(str::to_owned),
            key: key.clone(),
        }
    }

    /// The one that a browser brings back, if we began it, not long ago.
    pub fn of(headers: &HeaderMap, key: &LinkKey) -> Option<Self> {
        let text = cookie_of(headers, COOKIE)?;
        let mut parts = text.splitn(3, '.');
        let (name, signature, next) = (parts.next()?, parts.next()?, parts.next()?);
        let next = String::from_utf8(hex::decode(next).ok()?).ok()?;
        let attempt = Self {
            name: name.to_owned(),
            next: Some(next).filter(|next| !next.is_empty()),
            key: key.clone(),
        };
        key.check(&attempt.signed(), signature, Timestamp::now()).ok()?;
        Some(attempt)
    }

    /// The cookie that keeps it. It comes along when the provider sends the browser back, which a strict one would not.
    pub fn cookie(&self, headers: &HeaderMap) -> HeaderValue {
        let signature = self.key.sign(&self.signed(), Timestamp::now() + LIFETIME);
        let next = hex::encode(self.next.as_deref().unwrap_or_default());
        let value = format!("{}.{signature}.{next}", self.name);
        cookie_text(COOKIE, &value, PATH, SentFrom::AnyLink, LIFETIME.as_secs(), headers)
    }

    /// The cookie that ends it.
    pub fn end(headers: &HeaderMap) -> HeaderValue {
        cookie_text(COOKIE, "", PATH, SentFrom::AnyLink, 0, headers)
    }

    fn signed(&self) -> String {
        format!(
            "openid attempt {} {}",
            self.name,
            self.next.as_deref().unwrap_or_default()
        )
    }

    fn secret(&self, what: &str) -> String {
        self.key.secret_of(&format!("openid {what} {}", self.name))
    }

    /// What the provider gives back: it proves that this browser began.
    pub fn state(&self) -> String {
        self.secret("state")
    }

    pub fn is_state(&self, given: &str) -> bool {
        given.as_bytes().ct_eq(self.state().as_bytes()).into()
    }

    /// What stands in the ID token then: it proves that it was made for this attempt.
    pub fn nonce(&self) -> String {
        self.secret("nonce")
    }

    /// PKCE's verifier: 64 characters, of which the browser and the provider see a hash.
    pub fn verifier(&self) -> String {
        self.secret("verifier")
    }
}
