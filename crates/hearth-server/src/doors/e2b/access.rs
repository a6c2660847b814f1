//! Who may: keys of the control plane, which are Hearth's tokens, and the secret of each sandbox, which is derived and stored nowhere.

use std::fmt;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hearth_api::error::ErrorCode;
use hearth_api::ids::InstanceId;
use hearth_api::token::Scope;
use hearth_core::state::InstanceState;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::fault::{Code, Fault, Refusal};
use crate::http::{ApiError, AppState, Asked, Caller, Inside, reach};
use crate::store::{InstanceRow, SandboxSeen};

/// The header of the control plane's key.
const KEY: &str = "x-api-key";
/// Names the sandbox that a request is for.
pub const SANDBOX: &str = "e2b-sandbox-id";
/// Names the port of it.
pub const PORT: &str = "e2b-sandbox-port";
/// Proves that the client may work in the sandbox.
pub const ACCESS: &str = "x-access-token";
/// Proves that the client may reach its ports.
pub const TRAFFIC: &str = "e2b-traffic-access-token";
/// How tokens begin that clients insist on.
const THEIR_PREFIX: &str = "e2b_";
/// How ours do.
const OUR_PREFIX: &str = "hearth_";
/// How ids of instances begin; those of sandboxes are what follows.
const ID_PREFIX: &str = "wpi_";
/// What the secrets of sandboxes are derived for.
const PURPOSE: &str = "e2b sandbox";

/// Who asks the control plane.
#[derive(Debug, Clone)]
pub struct Key(pub Caller);

impl FromRequestParts<AppState> for Key {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Refusal> {
        let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION.as_str())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token);
        let Some(key) = text(KEY).or(bearer).map(str::trim).filter(|key| !key.is_empty()) else {
            let why = "send a Hearth token as the API key: set E2B_API_KEY";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, why));
        };
        let caller = Caller::of_token(state, &our_spelling(key)).await.map_err(|error| match error.code() {
                ErrorCode::Unauthorized => {
                    let why = "this API key is not a Hearth token that is valid here: check E2B_API_KEY, and that E2B_API_URL is this server";
                    Refusal::new(StatusCode::UNAUTHORIZED, why)
                }
                _ => error.into(),
            })?;
        if let Some(asked) = parts.extensions.get::<Asked>() {
            asked.note(&caller.0);
        }
        Ok(Self(caller))
    }
}

/// A token may be spelt as clients insist on.
fn our_spelling(key: &str) -> String {
    match key.strip_prefix(THEIR_PREFIX) {
        Some(rest) => format!("{OUR_PREFIX}{}", rest.strip_prefix(OUR_PREFIX).unwrap_or(rest)),
        None => key.to_owned(),
    }
}

/// The name of a claim for clients of E2B: small letters and digits, so that it fits into a host name.
pub fn sandbox_id(id: &InstanceId) -> &str {
    id.as_str().strip_prefix(ID_PREFIX).unwrap_or(id.as_str())
}

/// The claim of this name. Also under Hearth's own name for it.
pub fn instance_id(text: &str) -> Option<InstanceId> {
    match text.starts_with(ID_PREFIX) {
        true => text.parse().ok(),
        false => format!("{ID_PREFIX}{text}").parse().ok(),
    }
}

/// The secret that opens a sandbox.
pub fn access_token(state: &AppState, id: &InstanceId) -> String {
    state.ports.links.secret_of(&format!("{PURPOSE} {id}"))
}

/// The secret that opens its ports and nothing else.
pub fn traffic_token(state: &AppState, id: &InstanceId) -> String {
    state.ports.links.secret_of(&format!("{PURPOSE} ports {id}"))
}

fn same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

/// A sandbox that a client may work in.
#[derive(Clone)]
pub struct Sandbox {
    pub seen: SandboxSeen,
    pub row: InstanceRow,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sandbox({})", self.seen.id)
    }
}

impl Sandbox {
    /// One that runs; who asks is not looked at.
    pub async fn running(state: &AppState, name: &str) -> Result<Self, Fault> {
        let gone = || Fault::NoSandbox(name.to_owned());
        let id = instance_id(name).ok_or_else(gone)?;
        let seen = state.store.sandbox(&id).await?.ok_or_else(gone)?;
        let now = Timestamp::now();
        if seen.expires_at <= now {
            return Err(gone());
        }
        let row = state.store.instance(&id).await?;
        let row = row.filter(|row| row.state == InstanceState::Claimed && !row.being_forked);
        let row = row.ok_or_else(gone)?;
        if row.vm_ended.is_some() {
            return Err(gone());
        }
        Ok(Self { seen, row })
    }

    /// Whether this secret opens it.
    pub fn opens(&self, state: &AppState, token: &str) -> bool {
        same(&access_token(state, &self.seen.id), token)
    }

    /// Who claimed it may have lost the right to since, and asks no more often than others.
    pub async fn need_owner(&self, state: &AppState) -> Result<(), Fault> {
        if !state.store.token_lives(&self.seen.token, Timestamp::now()).await? {
            let why = "the API key that made this sandbox was revoked or has expired";
            return Err(Fault::new(Code::Unauthenticated, why));
        }
        match state.pace.must_wait(&self.seen.token) {
            None => Ok(()),
            Some(wait) => Err(ApiError::too_often("this API key", wait).into()),
        }
    }

    /// Work in its VM begins. Unlike Hearth's own calls it keeps no lease: a sandbox ends when its client said.
    pub async fn enter(&self, state: &AppState) -> Result<Inside, Fault> {
        if let Some(kept) = &self.seen.kept
            && kept.paused_at.is_some()
        {
            if !kept.auto_resume {
                return Err(Fault::NoSandbox(self.name().to_owned()));
            }
            super::pause::wake(state, &self.seen, kept.timeout).await?;
        }
        reach(state, &self.row).await.map_err(|error| match error.code() {
            // Its VM has ended, or it is nobody's any more.
            ErrorCode::Conflict | ErrorCode::Gone | ErrorCode::NotFound => Fault::NoSandbox(self.name().to_owned()),
            _ => error.into(),
        })
    }

    pub fn name(&self) -> &str {
        sandbox_id(&self.seen.id)
    }
}

/// The sandbox that a request's headers name, opened by its secret.
pub async fn opened(state: &AppState, headers: &HeaderMap) -> Result<Sandbox, Fault> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let name = text(SANDBOX).ok_or_else(|| {
        Fault::wrong("the header E2b-Sandbox-Id names the sandbox, and this request has none: set E2B_SANDBOX_URL")
    })?;
    let sandbox = Sandbox::running(state, name).await?;
    if !text(ACCESS).is_some_and(|token| sandbox.opens(state, token)) {
        let why = "the header X-Access-Token does not open this sandbox: connect to it with its API key first";
        return Err(Fault::new(Code::Unauthenticated, why));
    }
    sandbox.need_owner(state).await?;
    Ok(sandbox)
}

/// For handlers of calls.
pub struct Opened(pub Sandbox);

impl FromRequestParts<AppState> for Opened {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Response> {
        opened(state, &parts.headers)
            .await
            .map(Self)
            .map_err(Fault::into_response)
    }
}

/// The user that a request chooses; no secret. Nothing is the default one.
pub struct AsUser(pub Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for AsUser {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let value = parts.headers.get(header::AUTHORIZATION);
        let named = value
            .and_then(|value| value.to_str().ok()?.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, text)| STANDARD.decode(text.trim()).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let user = named.and_then(|text| text.split(':').next().map(str::to_owned));
        Ok(Self(user.filter(|user| !user.is_empty())))
    }
}

/// What a signed link says.
pub struct Link<'a> {
    pub path: &'a str,
    /// `read` or `write`.
    pub operation: &'a str,
    pub user: &'a str,
    /// Seconds since the Unix epoch.
    pub expiration: Option<&'a str>,
    pub signature: &'a str,
}

impl Link<'_> {
    fn expected(&self, token: &str) -> String {
        let mut text = format!("{}:{}:{}:{token}", self.path, self.operation, self.user);
        if let Some(expiration) = self.expiration {
            text.push(':');
            text.push_str(expiration);
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
    }

    /// The sandbox that a link opens. It names none: those that live are tried, unless the request says which.
    pub async fn open(&self, state: &AppState, named: Option<&str>) -> Result<Sandbox, Fault> {
        let refused = || {
            Fault::new(
                Code::Unauthenticated,
                "the signature of this link is not valid, or its sandbox is gone",
            )
        };
        if let Some(expiration) = self.expiration {
            let end = expiration
                .parse()
                .ok()
                .and_then(|seconds| Timestamp::from_second(seconds).ok());
            if end.is_none_or(|end| end <= Timestamp::now()) {
                return Err(Fault::new(
                    Code::Unauthenticated,
                    "this link has expired: ask for a new one",
                ));
            }
        }
        let ids = match named {
            Some(name) => instance_id(name).into_iter().collect(),
            None => state.store.e2b_ids().await?,
        };
        let opens = |id: &&InstanceId| same(&self.expected(&access_token(state, id)), self.signature);
        let id = ids.iter().find(opens).ok_or_else(refused)?;
        let sandbox = Sandbox::running(state, id.as_str()).await?;
        sandbox.need_owner(state).await?;
        Ok(sandbox)
    }
}

/// A claim that a key may manage: its own, or any of its tenant for an admin. One whose VM has ended by itself is no sandbox any more.
pub async fn managed(state: &AppState, key: &Key, name: &str) -> Result<SandboxSeen, Refusal> {
    let seen = held(state, key, name).await?;
    if seen.vm_ended {
        return Err(Refusal::no_sandbox(name));
    }
    Ok(seen)
}

/// The same, whatever became of its VM.
pub async fn held(state: &AppState, key: &Key, name: &str) -> Result<SandboxSeen, Refusal> {
    let gone = || Refusal::no_sandbox(name);
    let id = instance_id(name).ok_or_else(gone)?;
    key.0.need(Scope::Claim)?;
    let seen = state.store.sandbox(&id).await?.ok_or_else(gone)?;
    if seen.expires_at <= Timestamp::now() {
        return Err(gone());
    }
    match crate::http::own_claim(state, &key.0, &id).await {
        Ok(_) => Ok(seen),
        Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::Conflict) => Err(gone()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_may_be_spelt_as_clients_insist_on() {
        for key in ["hearth_ab", "e2b_ab", "e2b_hearth_ab"] {
            assert_eq!(our_spelling(key), "hearth_ab", "{key}");
        }
        assert_eq!(our_spelling("other"), "other");
    }

    #[test]
    fn id_fits_into_a_host_name_and_leads_back() {
        let id = InstanceId::generate();
        let name = sandbox_id(&id);
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
            "{name}"
        );
        assert_eq!(instance_id(name).as_ref(), Some(&id));
        assert_eq!(instance_id(id.as_str()), Some(id));
        assert_eq!(instance_id("../x"), None);
    }

    #[test]
    fn link_is_signed_as_clients_do() {
        // Made with the clients' own formula.
        let link = Link {
            path: "/a b",
            operation: "read",
            user: "",
            expiration: None,
            signature: "",
        };
        let plain = link.expected("secret");
        let later = Link {
            expiration: Some("17"),
            ..link
        }
        .expected("secret");
        let of = |text: &str| format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)));
        assert_eq!(plain, of("/a b:read::secret"));
        assert_eq!(later, of("/a b:read::secret:17"));
    }
}
