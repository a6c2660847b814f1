//! Outgoing webhooks: made, listed, deleted; their deliveries, and sending one again.

use axum::Json;
use axum::extract::State;
use hearth_api::error::ErrorCode;
use hearth_api::ids::{DeliveryId, WebhookId};
use hearth_api::page::Items;
use hearth_api::token::Scope;
use hearth_api::webhook::{CreateWebhook, Delivery, WebhookCreated, WebhookDeleted, WebhookItem, WebhookReplayed};
use hearth_core::tenant::FIRST_TENANT;
use jiff::Timestamp;
use serde::Deserialize;
use url::Url;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Path, Query};
use crate::store::{NewWebhook, WebhookReach};
use crate::webhooks::new_secret;

/// Deliveries of the list when nothing else is asked for.
const DEFAULT_LIMIT: u32 = 50;
/// Longest URL.
const MAX_URL_BYTES: usize = 2048;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeliveriesQuery {
    /// Only those that were given up.
    #[param(nullable = false, required = false, default = false)]
    failed: Option<bool>,
    /// Most deliveries; 50 when absent.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = json!(DEFAULT_LIMIT))]
    limit: Option<u32>,
}

/// Which webhooks the caller may see. The server posts from where it is, so only the installation's first tenant has any: what it reaches is
/// open to that tenant anyway.
fn reach(caller: &Caller) -> Result<WebhookReach<'_>, ApiError> {
    caller.need(Scope::Admin)?;
    if caller.0.tenant != FIRST_TENANT {
        let why = "only the installation's first tenant has webhooks: the server posts them from its own network";
        return Err(ApiError::new(ErrorCode::Forbidden, why));
    }
    Ok(WebhookReach {
        tenant: &caller.0.tenant,
        project: caller.0.project_id.as_ref(),
    })
}

/// List webhooks
///
/// Without their secrets. For admins of the installation's first tenant, as all operations on webhooks.
#[utoipa::path(
    get,
    path = "/webhooks",
    tag = "events",
    responses((status = 200, body = Items<WebhookItem>, description = "The webhooks"))
)]
pub async fn list_webhooks(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<Json<Items<WebhookItem>>, ApiError> {
    let items = state.store().webhooks(reach(&caller)?).await?;
    Ok(Json(Items { items }))
}

/// Make a webhook
///
/// Events that are written from now on are posted to its URL, as `{type, timestamp, data: Event}`, signed as Standard Webhooks
/// (<https://www.standardwebhooks.com>) are, in `webhook-id`, `webhook-timestamp` and `webhook-signature`. What is not answered with 2xx within 15
/// seconds is tried again seven times, in 28 hours. The secret is shown this once.
#[utoipa::path(
    post,
    path = "/webhooks",
    tag = "events",
    request_body = CreateWebhook,
    responses((status = 200, body = WebhookCreated, description = "The new webhook"), (status = 404, description = "refused"))
)]
pub async fn create_webhook(
    State(state): State<AppState>,
    caller: Caller,
    Body(body): Body<CreateWebhook>,
) -> Result<Json<WebhookCreated>, ApiError> {
    let reach = reach(&caller)?;
    check_url(&body.url).map_err(|fault| ApiError::field("url", fault))?;
    let project = match &body.project_id {
        Some(id) => Some(caller.project(&state, id, Scope::Admin).await?.id),
        None => reach.project.cloned(),
    };
    let (id, secret) = (WebhookId::generate(), new_secret());
    let new = NewWebhook {
        id: &id,
        tenant: reach.tenant,
        project: project.as_ref(),
        url: &body.url,
        kinds: body.kinds.as_deref().filter(|kinds| !kinds.is_empty()),
        secret: &secret,
    };
    state.store().insert_webhook(&new, Timestamp::now()).await?;
    state.webhooks.check();
    Ok(Json(WebhookCreated { id, secret }))
}

/// Delete a webhook
///
/// With its deliveries, those that are on their way too.
#[utoipa::path(
    delete,
    path = "/webhooks/{webhookId}",
    tag = "events",
    responses((status = 200, body = WebhookDeleted, description = "It is gone"))
)]
pub async fn delete_webhook(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<WebhookId>,
) -> Result<Json<WebhookDeleted>, ApiError> {
    if !state.store().delete_webhook(reach(&caller)?, &id).await? {
        return Err(ApiError::not_found("webhook"));
    }
    Ok(Json(WebhookDeleted { id, deleted: true }))
}

/// List the deliveries of a webhook
///
/// Newest first: what was posted, how it was answered, when it is tried next. Those that ended are kept for a week.
#[utoipa::path(
    get,
    path = "/webhooks/{webhookId}/deliveries",
    tag = "events",
    params(DeliveriesQuery),
    responses((status = 200, body = Items<Delivery>, description = "The deliveries"))
)]
pub async fn list_deliveries(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<WebhookId>,
    Query(query): Query<DeliveriesQuery>,
) -> Result<Json<Items<Delivery>>, ApiError> {
    let (failed, limit) = (query.failed.unwrap_or(false), query.limit.unwrap_or(DEFAULT_LIMIT));
    let found = state.store().deliveries(reach(&caller)?, &id, failed, limit).await?;
    let items = found.ok_or_else(|| ApiError::not_found("webhook"))?;
    Ok(Json(Items { items }))
}

/// Send a delivery again
///
/// At once, with the same id and body, however it ended, and with all its attempts before it.
#[utoipa::path(
    post,
    path = "/webhooks/{webhookId}/deliveries/{delivery}/replay",
    tag = "events",
    responses((status = 200, body = WebhookReplayed, description = "It is on its way"))
)]
pub async fn replay_delivery(
    State(state): State<AppState>,
    caller: Caller,
    Path((webhook, id)): Path<(WebhookId, DeliveryId)>,
) -> Result<Json<WebhookReplayed>, ApiError> {
    let store = state.store();
    if !store
        .replay_delivery(reach(&caller)?, &webhook, &id, Timestamp::now())
        .await?
    {
        return Err(ApiError::not_found("delivery"));
    }
    state.webhooks.check();
    Ok(Json(WebhookReplayed { id, replayed: true }))
}

/// What a URL must be; else why not.
fn check_url(text: &str) -> Result<(), String> {
    let wanted = "must be a URL like `https://example.org/hearth`";
    if text.len() > MAX_URL_BYTES {
        return Err(format!("must be {MAX_URL_BYTES} bytes at most"));
    }
    let url = Url::parse(text).map_err(|error| format!("{wanted}: {error}"))?;
    if !["https", "http"].contains(&url.scheme()) || url.host().is_none() {
        return Err(wanted.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must be without user and password: all who read the list of webhooks would see them".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_one_of_the_web_and_holds_no_secret() {
        for text in ["https://example.org/hook", "http://127.0.0.1:9/x?y=z", "https://[::1]/"] {
            assert_eq!(check_url(text), Ok(()), "{text}");
        }
        for (text, says) in [
            ("example.org", "must be a URL"),
            ("file:///etc/passwd", "must be a URL"),
            ("ftp://example.org", "must be a URL"),
            ("https://", "must be a URL"),
            ("https://user@example.org", "without user"),
            ("https://a:b@example.org", "without user"),
        ] {
            assert!(check_url(text).unwrap_err().contains(says), "{text}");
        }
    }
}
