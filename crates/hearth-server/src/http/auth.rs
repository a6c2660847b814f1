//! Who asks, and what they may do.

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use hearth_api::error::ErrorCode;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::token::Scope;
use hearth_core::tenant::FIRST_TENANT;
use jiff::{SignedDuration, Timestamp};
use rand::RngExt as _;
use sha2::{Digest, Sha256};

use super::AppState;
use super::audit::Asked;
use super::error::ApiError;
use crate::store::{InstanceRow, ProjectRow, TokenRow};

/// Every token begins with this, so that leak scanners find it.
pub const TOKEN_PREFIX: &str = "hearth_";
/// Random bytes of a token.
const SECRET_BYTES: usize = 32;
/// `lastUsedAt` is written at most this often, so that a busy client costs no writes.
const TOUCH_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// A new token and its hash.
pub fn new_token() -> (String, String) {
    let secret: [u8; SECRET_BYTES] = rand::rng().random();
    let token = format!("{TOKEN_PREFIX}{}", hex::encode(secret));
    let hash = hash(&token);
    (token, hash)
}

fn hash(token: &str) -> String {
    hex::encode(Sha256::digest(token))
}

/// The token of the request.
#[derive(Debug, Clone)]
pub struct Caller(pub TokenRow);

impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let refuse = |message: &str| ApiError::new(ErrorCode::Unauthorized, message);
        // Nothing that comes over the network has one: the pages call the API for whom they have signed in.
        if let Some(caller) = parts.extensions.get::<Self>() {
            if let Some(asked) = parts.extensions.get::<Asked>() {
                asked.note(&caller.0);
            }
            return Ok(caller.clone());
        }
        let token = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| refuse("send a token: `Authorization: Bearer hearth_…`"))?;
        let caller = Self::of_token(state, token).await?;
        if let Some(asked) = parts.extensions.get::<Asked>() {
            asked.note(&caller.0);
        }
        Ok(caller)
    }
}

impl Caller {
    /// The owner of this token.
    pub async fn of_token(state: &AppState, token: &str) -> Result<Self, ApiError> {
        let refuse = |message: &str| ApiError::new(ErrorCode::Unauthorized, message);
        let row = state.store().token_by_hash(&hash(token)).await?;
        Self::of_row(
            state,
            row.ok_or_else(|| refuse("this token is not known; it may have been revoked"))?,
        )
    }

    /// The owner of a token that was looked up, if it may ask now.
    pub fn of_row(state: &AppState, row: TokenRow) -> Result<Self, ApiError> {
        let refuse = |message: &str| ApiError::new(ErrorCode::Unauthorized, message);
        let now = Timestamp::now();
        if row.expires_at.is_some_and(|end| end <= now) {
            return Err(refuse("this token has expired"));
        }
        if let Some(wait) = state.pace.must_wait(&row.id) {
            return Err(ApiError::too_often("this token", wait));
        }
        if row.last_used_at.is_none_or(|at| now.duration_since(at) > TOUCH_EVERY) {
            let (store, id) = (state.store().clone(), row.id.clone());
            // Not worth making the request wait, nor failing it.
            tokio::spawn(async move {
                if let Err(error) = store.touch_token(&id, now).await {
                    tracing::debug!(%error, "a token's last use could not be written");
                }
            });
        }
        Ok(Self(row))
    }

    /// Whether the token has this scope; `admin` has all.
    pub fn has(&self, scope: Scope) -> bool {
        self.0.scopes.contains(&Scope::Admin) || self.0.scopes.contains(&scope)
    }

    /// 403 without the scope.
    pub fn need(&self, scope: Scope) -> Result<(), ApiError> {
        if self.has(scope) {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::Forbidden,
            format!("this token lacks the scope `{}`", scope.as_str()),
        ))
    }

    /// 403 unless the token may see what belongs to the whole host: an admin of the first tenant, for no one project.
    pub fn need_host(&self) -> Result<(), ApiError> {
        self.need(Scope::Admin)?;
        if self.0.tenant == FIRST_TENANT && self.0.project_id.is_none() {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::Forbidden,
            "only an admin of the installation's first tenant may do this",
        ))
    }

    /// 403 unless a project that this token makes, or names anew, may be called so.
    pub fn may_name(&self, name: &str) -> Result<(), ApiError> {
        match &self.0.name_prefix {
            Some(prefix) if !name.trim().starts_with(prefix) => Err(ApiError::new(
                ErrorCode::Forbidden,
                format!("this token is for projects whose names begin with `{prefix}`: choose such a name"),
            )),
            _ => Ok(()),
        }
    }

    /// The project, if it is this tenant's and the token is for it. Everything else is 404.
    pub async fn project(&self, state: &AppState, id: &ProjectId, scope: Scope) -> Result<ProjectRow, ApiError> {
        self.project_by(state, id, &[scope]).await
    }

    /// The same where one of several scopes is enough.
    pub async fn project_by(&self, state: &AppState, id: &ProjectId, scopes: &[Scope]) -> Result<ProjectRow, ApiError> {
        let project = state.store().project(id).await?;
        let project = project
            .filter(|project| project.tenant == self.0.tenant)
            .filter(|project| self.0.project_id.as_ref().is_none_or(|only| *only == project.id))
            .filter(|project| {
                self.0
                    .name_prefix
                    .as_ref()
                    .is_none_or(|prefix| project.name.starts_with(prefix))
            })
            .ok_or_else(|| ApiError::not_found("project"))?;
        if !scopes.iter().any(|scope| self.has(*scope)) {
            for scope in scopes {
                self.need(*scope)?;
            }
        }
        Ok(project)
    }

    /// The instance, if its project is visible. An instance that is as good as gone is 404.
    pub async fn instance(&self, state: &AppState, id: &InstanceId, scope: Scope) -> Result<InstanceRow, ApiError> {
        Ok(self.instance_by(state, id, &[scope]).await?.0)
    }

    /// The same with its project, where one of several scopes is enough.
    pub async fn instance_by(
        &self,
        state: &AppState,
        id: &InstanceId,
        scopes: &[Scope],
    ) -> Result<(InstanceRow, ProjectRow), ApiError> {
        let gone = || ApiError::not_found("instance");
        let row = state
            .store()
            .instance(id)
            .await?
            .filter(|row| row.status().is_some())
            .ok_or_else(gone)?;
        match self.project_by(state, &row.project, scopes).await {
            Ok(project) => Ok((row, project)),
            Err(error) if scopes.iter().any(|scope| self.has(*scope)) => {
                drop(error);
                Err(gone())
            }
            Err(error) => Err(error),
        }
    }
}
