//! Copies of sandboxes: forks that run, and snapshots that others are made from. A snapshot is a named checkpoint of the project; its id is
//! the checkpoint's key.

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hearth_api::values::CheckpointName;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access::{Key, instance_id, managed, sandbox_id};
use super::body::Json;
use super::fault::Refusal;
use super::pause::row_of;
use super::sandboxes::{PAUSED_LEASE, lifetime, made, template_of};
use crate::claims::ForkOrder;
use crate::http::{ApiError, AppState, after_stop, claimed_and_there, keep_checkpoint, need_owner};
use crate::store::{E2bRow, NamedCheckpoint};

/// Most copies of one request.
const MOST: i64 = 20;
/// Lifetime of a copy that is not told.
const DEFAULT_TIMEOUT: i64 = 15;
/// How the names of snapshots begin that have none.
const UNNAMED: &str = "e2b-";
/// Snapshots of a page.
const PAGE: usize = 100;

#[derive(Deserialize)]
pub struct ForkBody {
    timeout: Option<i64>,
    count: Option<i64>,
}

/// Copies a sandbox that runs, with its processes and memory.
pub async fn fork(
    State(state): State<AppState>,
    key: Key,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(body): Json<ForkBody>,
) -> Result<Response, Refusal> {
    let came = Instant::now();
    let seen = managed(&state, &key, &name).await?;
    let count = body.count.unwrap_or(1);
    if !(1..=MOST).contains(&count) {
        return Err(Refusal::wrong(format!("`count` must be 1 to {MOST}")));
    }
    let timeout = lifetime(Some(body.timeout.unwrap_or(DEFAULT_TIMEOUT)))?;
    let row = claimed_and_there(&state, &key.0, &seen.id).await?;
    let kept = row_of(&seen);
    let order = ForkOrder {
        came,
        count: usize::try_from(count).unwrap_or(1),
        task: None,
        lease: Some(if kept.auto_pause {
            timeout + PAUSED_LEASE
        } else {
            timeout
        }),
    };
    let reply = state.claims.fork(&row, order).await;
    let reply = reply.map_err(|error| Refusal::from(ApiError::from(error)))?;
    after_stop(&state, &row, false).await;
    let project = state.store.project(&seen.project).await?;
    let project = project.ok_or_else(|| Refusal::no_sandbox(&name))?;
    let mut all = Vec::new();
    for item in reply.items {
        let of_copy = E2bRow {
            timeout,
            ends_at: kept.auto_pause.then(|| Timestamp::now() + timeout),
            paused_at: None,
            ..kept.clone()
        };
        state.store.put_e2b(&item.claim.id, &of_copy).await?;
        let made = made(&state, &headers, &item.claim.id, &template_of(&seen), &project);
        all.push(json!({ "sandbox": made }));
    }
    Ok((StatusCode::CREATED, axum::Json(all)).into_response())
}

#[derive(Deserialize)]
pub struct SnapshotBody {
    name: Option<String>,
}

/// Keeps a sandbox as it is now; it continues.
pub async fn snapshot(
    State(state): State<AppState>,
    key: Key,
    Path(name): Path<String>,
    Json(body): Json<SnapshotBody>,
) -> Result<Response, Refusal> {
    let seen = managed(&state, &key, &name).await?;
    let row = claimed_and_there(&state, &key.0, &seen.id).await?;
    let chosen = match body.name.filter(|name| !name.is_empty()) {
        Some(name) => CheckpointName::try_from(name.as_str())
            .map_err(|fault| Refusal::wrong(format!("`name` {fault}")))?
            .to_string(),
        None => format!("{UNNAMED}{}", uuid::Uuid::new_v4().simple()),
    };
    let made = keep_checkpoint(&state, &row, chosen, None, false).await?;
    Ok((StatusCode::CREATED, axum::Json(shown(&made))).into_response())
}

fn shown(of: &NamedCheckpoint) -> Value {
    let named = !of.name.starts_with(UNNAMED);
    let names: Vec<&str> = named.then_some(of.name.as_str()).into_iter().collect();
    json!({
        "snapshotID": of.key.as_str(),
        "names": names,
        "sandboxID": sandbox_id(&of.instance),
        "createdAt": of.created_at.to_string(),
    })
}

/// Lists snapshots, newest first.
pub async fn list(State(state): State<AppState>, key: Key, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let (mut of, mut name, mut limit, mut after) = (None, None, PAGE, None);
    for (field, value) in form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes()) {
        match &*field {
            "sandboxID" if !value.is_empty() => of = Some(value.into_owned()),
            "name" if !value.is_empty() => name = Some(value.into_owned()),
            "limit" => {
                let said = value.parse().ok().filter(|limit| (1..=PAGE).contains(limit));
                limit = said.ok_or_else(|| Refusal::wrong(format!("`limit` must be 1 to {PAGE}")))?;
            }
            "nextToken" if !value.is_empty() => after = Some(value.into_owned()),
            _ => {}
        }
    }
    let mut all = state.store.checkpoints_in_sight(key.0.sees(None)).await?;
    all.retain(|one| need_owner(&key.0, one).is_ok());
    if let Some(of) = &of {
        let id = instance_id(of);
        all.retain(|one| Some(&one.instance) == id.as_ref());
    }
    if let Some(name) = &name {
        all.retain(|one| one.name == *name || one.key.as_str() == name);
    }
    if let Some(after) = &after {
        let at = all.iter().position(|one| one.key.as_str() == after);
        let at = at.ok_or_else(|| Refusal::wrong("`nextToken` names a snapshot that is gone: begin anew"))?;
        all.drain(..=at);
    }
    let more = all.len() > limit;
    all.truncate(limit);
    let mut response = axum::Json(all.iter().map(shown).collect::<Vec<_>>()).into_response();
    if let Some(last) = all.last().filter(|_| more)
        && let Ok(next) = last.key.as_str().parse()
    {
        response.headers_mut().insert("x-next-token", next);
    }
    Ok(response)
}

/// Deletes a snapshot, if this is one of the key's; sandboxes that were made from it stay.
pub async fn delete(state: &AppState, key: &Key, id: &str) -> Result<bool, Refusal> {
    let all = state.store.checkpoints_in_sight(key.0.sees(None)).await?;
    let Some(found) = all.iter().find(|one| one.key.as_str() == id || one.name == id) else {
        return Ok(false);
    };
    need_owner(&key.0, found)?;
    let gone = state.store.forget_named_checkpoint(&found.key).await?;
    state.gc.run_soon();
    Ok(gone)
}
