//! Signing in by OpenID Connect: to the provider, and back with a code. Who comes back gets a token without a secret, one for each person,
//! whose scopes and tenant the rules give anew with each sign-in; the browser's session is one of that token's.

mod attempt;
mod provider;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use hearth_api::error::{ErrorCode, chain};
use hearth_api::ids::TokenId;
use hearth_api::token::TokenItem;
use jiff::{SignedDuration, Timestamp};
use maud::html;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use self::attempt::Attempt;
use self::provider::{Person, ProviderError};
use super::Pages;
use super::form::Fields;
use super::refusal::Refusal;
use super::session::Session;
use super::{frame, sign_in};
use crate::http::{About, Asked, Caller, Came, outer_host, outer_scheme};
use crate::options::claim;
use crate::store::{NewToken, SIGN_IN_PREFIX, TokenReach, TokenRow};

pub use self::provider::Provider;

/// Where the provider sends people back to; an admin tells it this address.
const BACK: &str = "/sign-in/openid/back";
/// The rules are asked again after this time, at the latest.
const LIFETIME: SignedDuration = SignedDuration::from_hours(12);
/// In the audit log.
const OPERATION: &str = "sign_in_with_openid";
/// Longest name of an owner; OpenID Connect's subjects have at most as many bytes.
const LONGEST_OWNER: usize = 255;
/// Begins the owner's name where there is no better one than the subject.
const SUBJECT_PREFIX: &str = "sub:";

/// `GET /sign-in/openid`: to the provider.
pub async fn begin(
    State(pages): State<Pages>,
    query: Fields,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let provider = pages.provider()?;
    let attempt = Attempt::begin(&pages.state.ports.links, query.get("next"));
    match provider.address_for(&attempt, &callback(&uri, &headers)?).await {
        Ok(address) => {
            let cookie = attempt.cookie(&headers);
            Ok(([(header::SET_COOKIE, cookie)], Redirect::to(&address)).into_response())
        }
        Err(error) => Ok(sign_in::form(&pages, attempt.next.as_deref(), Some(&error.into()))),
    }
}

/// `GET /sign-in/openid/back`: from there, with a code.
pub async fn come_back(State(pages): State<Pages>, query: Fields, mut request: Request) -> Result<Response, Refusal> {
    let came = Came::of(&mut request);
    let (parts, _) = request.into_parts();
    let headers = &parts.headers;
    let attempt = Attempt::of(headers, &pages.state.ports.links);
    let next = attempt.as_ref().and_then(|attempt| attempt.next.clone());
    let ended = Attempt::end(headers);
    let caller = match signed_in(&pages, &query, &callback(&parts.uri, headers)?, attempt).await {
        Ok(caller) => caller,
        // The cookie stays: it may be that of a sign-in in another window.
        Err(refusal) => return Ok(sign_in::form(&pages, next.as_deref(), Some(&refusal))),
    };
    if let Some(asked) = parts.extensions.get::<Asked>() {
        asked.note(&caller.0);
    }
    let session = Session::begin(&pages.state.store, &caller, headers).await?;
    let to = sign_in::next(next.as_deref(), &caller);
    let about = About {
        subject: Some(caller.0.id.to_string()),
        ..About::default()
    };
    // A browser that another site sent here keeps the session's cookie to itself until a page of ours leads on.
    let page = html! {
        h1 { "Signed in" }
        p { "You are " strong { (caller.0.owner) } "." }
        p { a.button.main href=(to) autofocus { "Continue" } }
    };
    let page = (
        [
            (header::CONTENT_TYPE, frame::HTML.to_owned()),
            (header::REFRESH, format!("0; url={to}")),
        ],
        frame::bare("Signed in", &page),
    );
    let mut response = page.into_response();
    for cookie in [session, ended] {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    came.note(&pages.state, OPERATION, about, response.status()).await;
    Ok(response)
}

/// Who came back, as the rules have it.
async fn signed_in(pages: &Pages, query: &Fields, callback: &str, attempt: Option<Attempt>) -> Result<Caller, Refusal> {
    let provider = pages.provider()?;
    let stale = "this sign-in was not begun in this browser, or too long ago; begin again";
    let attempt = attempt
        .filter(|attempt| query.get("state").is_some_and(|state| attempt.is_state(state)))
        .ok_or_else(|| Refusal::new(ErrorCode::Forbidden, stale))?;
    if let Some(error) = query.get("error") {
        let more = query.get("error_description").map(|more| format!(": {more}"));
        let message = format!("the provider refused ({error}{})", more.unwrap_or_default());
        return Err(Refusal::new(ErrorCode::Forbidden, message));
    }
    let code = query
        .filled("code")
        .ok_or_else(|| Refusal::new(ErrorCode::ValidationError, "the provider sent no code; begin again"))?;
    let person = provider.person(&attempt, code, callback).await?;
    let key = key_of(&provider.settings().issuer, &person.subject);
    let item = match token_of(provider, &person) {
        Ok(item) => item,
        Err(refusal) => {
            // Whom no rule lets in any more is out at once.
            if let Some(token) = pages.state.store.token_by_hash(&key).await? {
                pages
                    .state
                    .store
                    .delete_token(TokenReach::Everywhere, &token.id)
                    .await?;
            }
            return Err(refusal);
        }
    };
    let new = NewToken {
        item: &item,
        hash: &key,
    };
    let row = pages.state.store.put_token(&new).await?;
    let revoked = "an admin revoked your sign-in in this moment; begin again";
    row.map(Caller)
        .ok_or_else(|| Refusal::new(ErrorCode::Forbidden, revoked))
}

/// The token of somebody, by the first rule that fits.
fn token_of(provider: &Provider, person: &Person) -> Result<TokenRow, Refusal> {
    let settings = provider.settings();
    let rule = settings.rules.iter().find(|rule| rule.fits(&person.claims));
    let is_name = |name: &str| {
        !name.is_empty() && name.trim() == name && name.len() <= LONGEST_OWNER && !name.chars().any(char::is_control)
    };
    if !is_name(&person.subject) {
        let why = "the provider names you by something that is no name: empty, too long, or with control characters";
        return Err(Refusal::new(ErrorCode::Forbidden, why));
    }
    // A subject is no name that people go by, and must not be taken for one.
    let named = claim(&person.claims, &settings.owner_claim).and_then(Value::as_str);
    let owner = match named.filter(|name| is_name(name)) {
        Some(name) => name.to_owned(),
        None => format!("{SUBJECT_PREFIX}{}", person.subject),
    };
    let rule = rule.ok_or_else(|| {
        tracing::info!(
            owner,
            subject = person.subject,
            "no rule lets somebody in whom the provider knows"
        );
        let message = format!(
            "the provider knows you as {owner}, and no rule of this server lets you in; its admins can add one"
        );
        Refusal::new(ErrorCode::Forbidden, message)
    })?;
    let now = Timestamp::now();
    Ok(TokenItem {
        id: TokenId::generate(),
        name: format!("sign-in of {owner}"),
        owner,
        tenant: rule.tenant.clone(),
        scopes: rule.scopes.clone(),
        project_id: None,
        name_prefix: None,
        max_vms: None,
        created_at: now,
        last_used_at: None,
        expires_at: Some(now + LIFETIME),
    })
}

/// A subject is unique within its issuer alone.
fn key_of(issuer: &str, subject: &str) -> String {
    let digest = Sha256::new()
        .chain_update(issuer)
        .chain_update("\n")
        .chain_update(subject);
    format!("{SIGN_IN_PREFIX}{}", hex::encode(digest.finalize()))
}

/// The address that the provider sends people back to, as this browser reaches us.
fn callback(uri: &Uri, headers: &HeaderMap) -> Result<String, Refusal> {
    // A request may have its host in its address alone.
    let host = outer_host(headers).or_else(|| uri.authority().map(|authority| authority.as_str()));
    let host = host.ok_or(ProviderError::OurAddress)?;
    Ok(format!("{}://{host}{BACK}", outer_scheme(headers)))
}

impl From<ProviderError> for Refusal {
    fn from(error: ProviderError) -> Self {
        let code = match &error {
            ProviderError::Away { .. } => ErrorCode::BadGateway,
            ProviderError::NotConfirmed(_) | ProviderError::Invalid(_) => ErrorCode::Forbidden,
            ProviderError::OurAddress => ErrorCode::ValidationError,
        };
        let text = chain(&error);
        tracing::warn!(error = text, "a sign-in by OpenID Connect failed");
        Self::new(code, text)
    }
}
