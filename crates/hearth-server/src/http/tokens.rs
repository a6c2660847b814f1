//! API tokens. The secret is shown once, when it is made.

use axum::Json;
use axum::extract::State;
use hearth_api::error::ErrorCode;
use hearth_api::ids::TokenId;
use hearth_api::page::Items;
use hearth_api::token::{CreateToken, Scope, TokenCreated, TokenItem, TokenRevoked};
use hearth_core::tenant::FIRST_TENANT;
use jiff::Timestamp;

use super::AppState;
use super::auth::{Caller, new_token};
use super::error::ApiError;
use super::extract::{Body, Path};
use super::validate::Faults;
use crate::store::{NewToken, TokenReach};

/// Which tokens the caller may see and revoke. Who makes tokens for other tenants sees them and can take them back; a token
/// for one project reaches that project's alone, and nothing once the project is gone.
async fn reach<'a>(state: &AppState, caller: &'a Caller) -> Result<TokenReach<'a>, ApiError> {
    caller.need(Scope::Admin)?;
    let token = &caller.0;
    if let Some(project) = &token.project_id {
        caller.project(state, project, Scope::Admin).await?;
        return Ok(TokenReach::Project(project));
    }
    Ok(if token.tenant == FIRST_TENANT {
        TokenReach::Everywhere
    } else {
        TokenReach::Tenant(&token.tenant)
    })
}

/// The owner of a token when none is named. The owner decides whose personal variables the VMs get that it claims, so a person who makes
/// a token for an agent must not give away their own without a word.
fn default_owner(name: &str, scopes: &[Scope], creator: &Caller) -> String {
    if scopes.contains(&Scope::Admin) {
        creator.0.owner.clone()
    } else {
        name.to_owned()
    }
}

/// List tokens
///
/// Those of your tenant; an admin of the installation's first tenant sees all, a token for one project that project's.
#[utoipa::path(
    get,
    path = "/tokens",
    tag = "tokens",
    responses(
        (status = 200, body = Items<TokenItem>, description = "The tokens, without their secrets"),
        (status = 404, description = "refused")
    )
)]
pub async fn list_tokens(State(state): State<AppState>, caller: Caller) -> Result<Json<Items<TokenItem>>, ApiError> {
    let reach = reach(&state, &caller).await?;
    Ok(Json(Items {
        items: state.store().tokens(reach).await?,
    }))
}

/// Make a token
///
/// A token never makes one that may do more than itself. The secret is in this reply and nowhere else. VMs claimed with the token
/// get the personal variables of its owner: say whose, or it is an owner of its own.
#[utoipa::path(
    post,
    path = "/tokens",
    tag = "tokens",
    request_body = CreateToken,
    responses(
        (status = 200, body = TokenCreated, description = "The token with its secret"),
        (status = 404, description = "refused")
    )
)]
pub async fn create_token(
    State(state): State<AppState>,
    caller: Caller,
    Body(body): Body<CreateToken>,
) -> Result<Json<TokenCreated>, ApiError> {
    caller.need(Scope::Admin)?;
    // A token never makes one that may do more than itself.
    let refuse = |message: &str| Err(ApiError::new(ErrorCode::Forbidden, message));
    if caller.0.project_id.is_some() && body.project_id != caller.0.project_id {
        return refuse("this token is for one project and can make tokens for that project only");
    }
    let foreign = body.tenant.as_ref().is_some_and(|tenant| *tenant != caller.0.tenant);
    if foreign && (caller.0.tenant != FIRST_TENANT || caller.0.project_id.is_some()) {
        return refuse("only an admin of the installation's first tenant can make tokens of another tenant");
    }
    if let Some(end) = caller.0.expires_at
        && body.expires_at.is_none_or(|wanted| wanted > end)
    {
        return refuse(
            "this token expires and cannot make one that lives longer: give an `expiresAt` not after its own",
        );
    }
    let now = Timestamp::now();
    let mut faults = Faults::default();
    faults.check(
        body.expires_at.is_none_or(|end| end > now),
        "expiresAt",
        "must be in the future",
    );
    // An admin makes tokens, so a limit of its own would hold it to nothing.
    let is_admin = body.scopes.contains(&Scope::Admin);
    let why = "does not go with the scope `admin`, whose tokens can make others; give `project:read`, `project:write` and `claim`";
    faults.check(!is_admin || body.name_prefix.is_none(), "namePrefix", why);
    faults.check(!is_admin || body.max_vms.is_none(), "maxVms", why);
    faults.finish()?;
    if let Some(project) = &body.project_id {
        caller.project(&state, project, Scope::Admin).await?;
        if foreign {
            return Err(ApiError::not_found("project of that tenant"));
        }
    }
    let (token, hash) = new_token();
    let mut scopes = body.scopes;
    scopes.sort_by_key(|scope| scope.as_str());
    scopes.dedup();
    let item = TokenItem {
        id: TokenId::generate(),
        owner: body
            .owner
            .map_or_else(|| default_owner(&body.name, &scopes, &caller), String::from),
        name: body.name.into(),
        tenant: body.tenant.map_or_else(|| caller.0.tenant.clone(), String::from),
        scopes,
        project_id: body.project_id,
        name_prefix: body.name_prefix.map(String::from),
        max_vms: body.max_vms,
        created_at: now,
        last_used_at: None,
        expires_at: body.expires_at,
    };
    state
        .store()
        .insert_token(&NewToken {
            item: &item,
            hash: &hash,
        })
        .await?;
    Ok(Json(TokenCreated { item, token }))
}

/// Revoke a token
#[utoipa::path(
    delete,
    path = "/tokens/{tokenId}",
    tag = "tokens",
    responses((status = 200, body = TokenRevoked, description = "It works no more"))
)]
pub async fn revoke_token(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<TokenId>,
) -> Result<Json<TokenRevoked>, ApiError> {
    let reach = reach(&state, &caller).await?;
    if !state.store().delete_token(reach, &id).await? {
        return Err(ApiError::not_found("token"));
    }
    Ok(Json(TokenRevoked { id, revoked: true }))
}
