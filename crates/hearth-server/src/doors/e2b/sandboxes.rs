//! Sandboxes: made, connected to, shown, ended. Each is a claim of a project's pool.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hearth_api::claim::{ClaimReply, MAX_LEASE_MINUTES, Miss};
use hearth_api::error::ErrorCode;
use hearth_api::ids::InstanceId;
use hearth_api::token::Scope;
use hearth_api::values::{TaskId, VariableName};
use hearth_core::claim::ClaimOrder;
use hearth_core::state::InstanceState;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::access::{Key, access_token, held, managed, sandbox_id, traffic_token};
use super::audited::Claimed;
use super::body::Json;
use super::fault::Refusal;
use super::find::{Template, slug_or_id, template};
use super::hosts::sandbox_domain;
use super::wire::{CLIENT_ID, ENVD_VERSION, Lifecycle, Made, More, NewSandbox, PAUSED, RUNNING, Shown};
use super::{network, pause, templates, variables};
use crate::claims::{ClaimError, ClaimTask, FIELDS_OF_A_KEY};
use crate::http::{ApiError, AppState, Relayed, need_allowed, need_owner};
use crate::store::{AskedFields, E2bRow, Moved, ProjectRow, SandboxSeen};

/// Lifetime of a sandbox that is not told.
const DEFAULT_TIMEOUT: i64 = 300;
/// Where it is done.
const CREATE: &str = "/e2b/v2/sandboxes";
/// How long a VM is waited for.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long clients wait in all, for every answer and between them (`REQUEST_TIMEOUT` of E2B's SDKs).
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// What is added to that for a VM that is being handed over.
const HAND_OVER: Duration = Duration::from_secs(13);
/// When a client is to ask again for a VM that is being made.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Longest idempotency key.
const LONGEST_KEY: usize = 190;
/// The code of a refusal that is worth another try.
const NO_CAPACITY: &str = "sandbox_capacity_unavailable";
/// What a key of this door begins with, so that it is no task of another client.
const KEY_PREFIX: &str = "e2b:";
/// How long a paused sandbox is kept.
pub const PAUSED_LEASE: SignedDuration = SignedDuration::from_mins(MAX_LEASE_MINUTES as i64);

/// The length of a life, in whole seconds from now.
pub fn lifetime(seconds: Option<i64>) -> Result<SignedDuration, Refusal> {
    let most = i64::try_from(MAX_LEASE_MINUTES * 60).unwrap_or(i64::MAX);
    match seconds.unwrap_or(DEFAULT_TIMEOUT) {
        seconds if (0..=most).contains(&seconds) => Ok(SignedDuration::from_secs(seconds.max(1))),
        _ => Err(Refusal::wrong(format!(
            "`timeout` must be 0 to {most} seconds (7 days)"
        ))),
    }
}

/// Makes a sandbox.
pub async fn create(
    State(state): State<AppState>,
    key: Key,
    headers: HeaderMap,
    relayed: Option<Extension<Relayed>>,
    Json(body): Json<NewSandbox>,
) -> Result<Response, Refusal> {
    let came = Instant::now();
    key.0.need(Scope::Claim)?;
    let again = serde_json::to_vec(&body).unwrap_or_default();
    let wanted = Wanted::of(&key, &headers, body, came)?;
    let from = template(&state, &key, &wanted.row.template).await?;
    if let Template::Project(project) = &from {
        templates::must_be_built(&state, project).await?;
    }
    need_allowed(from.project())?;
    let (relayed, project) = (relayed.map(|Extension(relayed)| relayed), &from.project().id);
    let home = state.relay.to_home(project, CREATE, &headers, relayed, again.into());
    if let Some(answer) = home.await? {
        return Ok(answer);
    }
    let reply = wanted.claim(&state, &key, &from).await?;
    let begun = wanted.begin(&state, &reply, &from).await;
    if let Err(refusal) = begun {
        // Nobody would ever know of it.
        release(&state, &reply.id, "what its client asked for could not be done in it").await;
        return Err(refusal);
    }
    tracing::info!(instance = %reply.id, "handed over to a client of E2B");
    let made = made(&state, &headers, &reply.id, &wanted.row.template, from.project());
    let mut response = (StatusCode::CREATED, axum::Json(made)).into_response();
    response.extensions_mut().insert(Claimed(reply.id));
    Ok(response)
}

/// What is asked for, checked.
struct Wanted {
    row: E2bRow,
    variables: BTreeMap<String, String>,
    policy: Option<hearth_api::egress::EgressPolicy>,
    task: ClaimTask,
}

impl Wanted {
    fn of(key: &Key, headers: &HeaderMap, body: NewSandbox, came: Instant) -> Result<Self, Refusal> {
        for (field, given) in [
            ("mcp", body.mcp.is_some()),
            ("iam", body.iam.is_some()),
            (
                "volumeMounts",
                body.volume_mounts.as_ref().is_some_and(|mounts| !mounts.is_empty()),
            ),
        ] {
            if given {
                let why = format!("`{field}` is not served by Hearth; leave it out");
                return Err(Refusal::wrong(why).never_again());
            }
        }
        let timeout = lifetime(body.timeout)?;
        let policy = network::policy(body.allow_internet_access, body.network.as_ref())?;
        let hash = |field: &str| {
            // Keyed with the token's id: the hash of what may hold secrets must not be guessable from the database.
            let bytes = serde_json::to_vec(&body).unwrap_or_default();
            let digest = Sha256::new()
                .chain_update(key.0.0.id.as_str())
                .chain_update(field)
                .chain_update(bytes);
            hex::encode(digest.finalize())
        };
        let asked: AskedFields = FIELDS_OF_A_KEY
            .iter()
            .map(|field| ((*field).to_owned(), hash(field)))
            .collect();
        let body_hash = hash("");
        let variables = body.env_vars.unwrap_or_default();
        for name in variables.keys() {
            let fault = VariableName::try_from(name.as_str())
                .err()
                .map(|fault| fault.to_string());
            if let Some(why) = fault.or_else(|| hearth_api::variables::refusal(name)) {
                return Err(Refusal::wrong(format!("the variable `{name}` cannot be set: it {why}")));
            }
        }
        let now = Timestamp::now();
        let auto_pause = body.auto_pause.unwrap_or(false);
        let row = E2bRow {
            template: body.template_id.unwrap_or_else(|| "base".to_owned()),
            metadata: body.metadata.unwrap_or_default(),
            timeout,
            auto_pause,
            auto_resume: body.auto_resume.is_some_and(|resume| resume.enabled),
            public_traffic: network::is_public(body.network.as_ref()),
            network: network::kept(body.allow_internet_access, body.network),
            ends_at: auto_pause.then(|| now + timeout),
            paused_at: None,
        };
        let task = ClaimTask {
            came,
            order: ClaimOrder {
                strict: false,
                miss: Miss::Prefer,
                patience: PATIENCE,
            },
            key: idempotency_key(headers)?,
            body_hash,
            asked,
            token: key.0.0.id.clone(),
            user: key.0.0.owner.clone(),
            branch: None,
            lease: if auto_pause { timeout + PAUSED_LEASE } else { timeout },
            env: variables.clone(),
            git_identity: None,
        };
        Ok(Self {
            row,
            variables,
            policy,
            task,
        })
    }

    async fn claim(&self, state: &AppState, key: &Key, from: &Template) -> Result<ClaimReply, Refusal> {
        let mut task = self.task.clone();
        task.order.patience = PATIENCE.min(state.longest_wait);
        let begun = Instant::now();
        match from {
            Template::Project(project) => {
                let claimed = tokio::time::timeout(task.order.patience + HAND_OVER, state.claims.claim(project, &task));
                let (refusal, code) = match claimed.await {
                    Ok(Ok(reply)) => return Ok(reply),
                    Ok(Err(error)) => refused(error),
                    // What was begun serves the next one that asks.
                    Err(_) => (no_capacity(state, project).await, ErrorCode::Unavailable),
                };
                state.metrics.claim_refused(&project.id, code);
                Err(refusal.worth_waiting_for(begun.elapsed(), task.order.patience, CLIENT_PATIENCE))
            }
            Template::Checkpoint(_, checkpoint) => {
                need_owner(&key.0, checkpoint)?;
                let made = state.claims.claim_checkpoint(checkpoint, &task).await;
                made.map_err(|error| Refusal::from(ApiError::from(error)))
            }
        }
    }

    /// What the claim itself does not do.
    async fn begin(&self, state: &AppState, reply: &ClaimReply, from: &Template) -> Result<(), Refusal> {
        state.store.put_e2b(&reply.id, &self.row).await?;
        if let Some(policy) = &self.policy {
            network::hold(state, &reply.id, Some(policy)).await?;
        }
        if matches!(from, Template::Checkpoint(..)) && !self.variables.is_empty() {
            variables::add(state, &reply.id, &self.variables).await?;
        }
        Ok(())
    }
}

/// A repeated request gets the same sandbox.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let wrong = || Refusal::wrong("the header Idempotency-Key must be 1 to 190 small letters, digits and hyphens");
    let text = value.to_str().map_err(|_| wrong())?;
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > LONGEST_KEY || !text.bytes().all(fits) {
        return Err(wrong());
    }
    let key = TaskId::try_from(format!("{KEY_PREFIX}{text}")).map_err(|_| wrong())?;
    Ok(Some(key.into()))
}

/// None became ready in time. What keeps the pool from having one is said where it is known.
async fn no_capacity(state: &AppState, project: &ProjectRow) -> Refusal {
    let why = match state.claims.blockers.blocker(project).await {
        Ok(Some(blocker)) => format!("no VM of this template became ready in time: {}", blocker.message),
        _ => "no VM of this template became ready in time; one is being made, ask again".to_owned(),
    };
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why)
        .coded(NO_CAPACITY)
        .again_after(ASK_AGAIN)
}

/// Why there is no VM, and whether waiting helps.
fn refused(error: ClaimError) -> (Refusal, ErrorCode) {
    let message = error.to_string();
    let busy = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message.clone()).coded(NO_CAPACITY);
    let refusal = match &error {
        ClaimError::NothingReady { retry_after, .. } => Some(busy().again_after(*retry_after)),
        // A person must do something first.
        ClaimError::Disabled => Some(busy().never_again()),
        ClaimError::TooManyHeld { retry_after, .. } => {
            let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, message.clone());
            Some(refusal.again_after(*retry_after))
        }
        ClaimError::OtherBody(_) => {
            let why = "this Idempotency-Key was used before for another request: use a new one, or ask for the same";
            Some(
                Refusal::new(StatusCode::CONFLICT, why)
                    .coded("idempotency_request_mismatch")
                    .never_again(),
            )
        }
        ClaimError::Ended => {
            let why = "the sandbox of this Idempotency-Key was killed or its time is over: use a new one";
            Some(Refusal::new(StatusCode::CONFLICT, why).never_again())
        }
        ClaimError::Failed {
            blames_recipe: true, ..
        }
        | ClaimError::Script(_)
        | ClaimError::Stuck(_) => Some(Refusal::new(StatusCode::CONFLICT, message.clone()).never_again()),
        _ => None,
    };
    let api = ApiError::from(error);
    let code = api.code();
    (refusal.unwrap_or_else(|| api.into()), code)
}

/// A sandbox for who made it, or connected to it.
pub fn made(state: &AppState, headers: &HeaderMap, id: &InstanceId, template: &str, project: &ProjectRow) -> Made {
    Made {
        template_id: template.to_owned(),
        sandbox_id: sandbox_id(id).to_owned(),
        client_id: CLIENT_ID,
        envd_version: ENVD_VERSION,
        alias: slug_or_id(project),
        envd_access_token: access_token(state, id),
        traffic_access_token: traffic_token(state, id),
        domain: sandbox_domain(state, headers),
    }
}

#[derive(Deserialize)]
pub struct ConnectBody {
    timeout: Option<i64>,
}

/// Connects to a sandbox: one that is paused runs again. Its life is made longer, never shorter.
pub async fn connect(
    State(state): State<AppState>,
    key: Key,
    headers: HeaderMap,
    Path(name): Path<String>,
    Json(body): Json<ConnectBody>,
) -> Result<Response, Refusal> {
    let seen = managed(&state, &key, &name).await?;
    let timeout = lifetime(body.timeout)?;
    // Who connects is told now, and not by the first command.
    if let Some(row) = state.store.instance(&seen.id).await?
        && state.probes.ends().check(&row).await?.is_some()
    {
        return Err(Refusal::no_sandbox(&name));
    }
    let was_paused = seen.is_paused();
    if was_paused {
        pause::wake(&state, &seen, timeout).await.map_err(|fault| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("the sandbox could not be resumed: {}", fault.sentence()),
            )
        })?;
    } else {
        set_later_end(&state, &seen, timeout).await?;
    }
    let project = project_of(&state, &seen).await?;
    let made = made(&state, &headers, &seen.id, &template_of(&seen), &project);
    let status = if was_paused {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, axum::Json(made)).into_response())
}

/// What a sandbox was made from.
pub fn template_of(seen: &SandboxSeen) -> String {
    let kept = seen.kept.as_ref().map(|kept| kept.template.clone());
    kept.unwrap_or_else(|| seen.project.to_string())
}

async fn project_of(state: &AppState, seen: &SandboxSeen) -> Result<ProjectRow, Refusal> {
    let project = state.store.project(&seen.project).await?;
    project.ok_or_else(|| Refusal::no_sandbox(sandbox_id(&seen.id)))
}

/// Lets a sandbox end so long from now.
pub async fn set_end(state: &AppState, seen: &SandboxSeen, timeout: SignedDuration) -> Result<(), Refusal> {
    let now = Timestamp::now();
    let mut lease = timeout;
    if let Some(kept) = &seen.kept {
        if kept.auto_pause || kept.paused_at.is_some() {
            lease += PAUSED_LEASE;
        }
        let row = E2bRow {
            timeout,
            ends_at: kept.auto_pause.then(|| now + timeout),
            ..kept.clone()
        };
        state.store.put_e2b(&seen.id, &row).await?;
    }
    match state.store.set_lease(&seen.id, now + lease, lease).await? {
        true => Ok(()),
        false => Err(Refusal::no_sandbox(sandbox_id(&seen.id))),
    }
}

/// The same where that is later than it would end.
async fn set_later_end(state: &AppState, seen: &SandboxSeen, timeout: SignedDuration) -> Result<(), Refusal> {
    if Timestamp::now() + timeout > seen.ends_at() {
        set_end(state, seen, timeout).await?;
    }
    Ok(())
}

#[derive(Deserialize)]
pub struct TimeoutBody {
    timeout: Option<i64>,
}

/// A sandbox ends so long from now, earlier or later than it did.
pub async fn set_timeout(
    State(state): State<AppState>,
    key: Key,
    Path(name): Path<String>,
    Json(body): Json<TimeoutBody>,
) -> Result<StatusCode, Refusal> {
    let seconds = body.timeout.ok_or_else(|| Refusal::wrong("`timeout` is missing"))?;
    let timeout = lifetime(Some(seconds))?;
    let seen = managed(&state, &key, &name).await?;
    set_end(&state, &seen, timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub struct RefreshBody {
    duration: Option<i64>,
}

/// The same as older clients ask for it: never earlier.
pub async fn refresh(
    State(state): State<AppState>,
    key: Key,
    Path(name): Path<String>,
    Json(body): Json<RefreshBody>,
) -> Result<StatusCode, Refusal> {
    let timeout = lifetime(body.duration)?;
    let seen = managed(&state, &key, &name).await?;
    set_later_end(&state, &seen, timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A sandbox as lists show it.
pub fn shown(state: &AppState, seen: &SandboxSeen, project: &ProjectRow) -> Shown {
    let shape = state.claims.recipes.shape(project);
    Shown {
        template_id: template_of(seen),
        sandbox_id: sandbox_id(&seen.id).to_owned(),
        client_id: CLIENT_ID,
        started_at: seen.claimed_at,
        end_at: seen.ends_at(),
        envd_version: ENVD_VERSION,
        cpu_count: shape.vcpus,
        memory_mb: shape.memory_mib,
        disk_size_mb: u64::from(shape.disk_gib) * 1024,
        state: if seen.is_paused() { PAUSED } else { RUNNING },
        alias: slug_or_id(project),
        metadata: seen.kept.as_ref().map(|kept| kept.metadata.clone()).unwrap_or_default(),
        more: None,
    }
}

/// Shows a sandbox.
pub async fn info(
    State(state): State<AppState>,
    key: Key,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<axum::Json<Shown>, Refusal> {
    let seen = managed(&state, &key, &name).await?;
    let project = project_of(&state, &seen).await?;
    let kept = seen.kept.as_ref();
    let network = kept.and_then(|kept| kept.network.clone());
    let more = More {
        envd_access_token: access_token(&state, &seen.id),
        domain: sandbox_domain(&state, &headers),
        lifecycle: Lifecycle {
            auto_resume: kept.is_some_and(|kept| kept.auto_resume),
            on_timeout: if kept.is_some_and(|kept| kept.auto_pause) {
                "pause"
            } else {
                "kill"
            },
        },
        allow_internet_access: network::internet(network.as_ref()),
        network: network::said(network),
        pause_mode: seen.is_paused().then_some("full"),
    };
    Ok(axum::Json(Shown {
        more: Some(more),
        ..shown(&state, &seen, &project)
    }))
}

/// Ends a sandbox. Its VM is destroyed.
pub async fn kill(State(state): State<AppState>, key: Key, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    let seen = held(&state, &key, &name).await?;
    match release(&state, &seen.id, "a client of E2B killed it").await {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Refusal::no_sandbox(&name)),
    }
}

/// Whether it was there still.
pub async fn release(state: &AppState, id: &InstanceId, why: &str) -> bool {
    let moved = state
        .store
        .move_instance(id, InstanceState::Deleting, None, why, Timestamp::now())
        .await;
    state.wake.wake();
    match moved {
        Ok(moved) => moved != Moved::Lost,
        Err(error) => {
            tracing::error!(%error, instance = %id, "a sandbox could not be released; its lease ends it");
            false
        }
    }
}
