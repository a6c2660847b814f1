//! Webhooks. A signature with the secret shows that something was pushed, and nothing more: a webhook only makes the
//! server look, so one that is sent again does no harm.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use hearth_api::error::ErrorCode;
use hearth_api::hook::{GitHook, GitHookReply};
use tokio::sync::Semaphore;

use super::AppState;
use super::error::{ACCEPTED, ApiError, OK};
use super::extract::{check_content_type, parse, read};
use super::pace::Pace;
use super::relay::Relayed;
use crate::repos::watch::{Pushed, WebhookSecret};

/// Longest body: as long as GitHub's longest.
const MAX_HOOK_BYTES: usize = 25 * 1024 * 1024;
/// How long a body may take to arrive: git hosts give up after as long.
const HOOK_PATIENCE: Duration = Duration::from_secs(10);
/// What bodies that are not known to be signed may take of the memory together, KiB.
const ROOM_KIB: u32 = 128 * 1024;

/// What stands before the webhooks.
#[derive(Debug, Clone)]
pub struct HookGate {
    secret: Arc<RwLock<Option<WebhookSecret>>>,
    /// One bucket, as a token has one.
    pace: Pace<()>,
    /// KiB that are free for bodies.
    room: Arc<Semaphore>,
}

impl HookGate {
    /// Closed without a secret.
    #[must_use]
    pub fn new(secret: Option<WebhookSecret>, per_second: u32) -> Self {
        Self {
            secret: Arc::new(RwLock::new(secret)),
            pace: Pace::new(per_second),
            room: Arc::new(Semaphore::new(ROOM_KIB as usize)),
        }
    }

    /// Another secret and pace from now on.
    pub fn change(&self, secret: Option<WebhookSecret>, per_second: u32) {
        *self.secret.write().unwrap_or_else(PoisonError::into_inner) = secret;
        self.pace.change(per_second);
    }

    fn secret(&self) -> Option<WebhookSecret> {
        self.secret.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a request shows that it knows the secret.
enum Proof {
    /// GitLab: the secret itself.
    Token(Vec<u8>),
    /// Others: a signature of the body, in hexadecimal.
    Signature(String),
}

impl Proof {
    fn of(headers: &HeaderMap) -> Option<Self> {
        if let Some(token) = headers.get("x-gitlab-token") {
            return Some(Self::Token(token.as_bytes().to_owned()));
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let signature = text("x-hub-signature-256")
            .and_then(|value| value.strip_prefix("sha256="))
            .or_else(|| text("x-gitea-signature"))
            .or_else(|| text("x-forgejo-signature"))?;
        Some(Self::Signature(signature.to_owned()))
    }
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Push,
    Ping,
    Other,
}

impl Event {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let names = ["x-forgejo-event", "x-gitea-event", "x-github-event", "x-gitlab-event"];
        let value = names.iter().find_map(|name| headers.get(*name))?;
        Some(match value.as_bytes() {
            b"push" | b"Push Hook" => Self::Push,
            b"ping" => Self::Ping,
            _ => Self::Other,
        })
    }
}

/// Take a webhook
///
/// Push webhooks of GitHub, GitLab, Gitea and Forgejo, as JSON. The repository they name is polled as soon as no other
/// webhook for it has come for a moment. Instead of a token they carry the secret that the server was started with
/// (`hearth serve --webhook-secret-file`): as a signature of the body in `X-Hub-Signature-256`, `X-Gitea-Signature` or
/// `X-Forgejo-Signature`, or itself in `X-Gitlab-Token`.
#[utoipa::path(
    post,
    path = "/hooks/git",
    tag = "server",
    request_body = GitHook,
    responses(
        (status = 200, body = GitHookReply, description = "A ping, or an event that is no push: nothing is polled"),
        (status = 202, body = GitHookReply, description = "A push: the repositories it concerns are polled soon"),
        (status = 401, description = "refused"),
        (status = 403, description = "refused"),
        (status = 422, description = "refused"),
        (status = 429, description = "refused")
    )
)]
pub async fn take_git_hook(
    State(state): State<AppState>,
    request: Request,
) -> Result<(StatusCode, Json<GitHookReply>), ApiError> {
    let gate = &state.hooks;
    let Some(secret) = gate.secret() else {
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            "webhooks are off; start the server with `hearth serve --webhook-secret-file FILE`, or with the secret in \
             HEARTH_WEBHOOK_SECRET, and give the git host the same secret",
        ));
    };
    let relayed = request.extensions().get::<Relayed>().is_some();
    let (headers, body) = signed(gate, &secret, request).await?;
    if !relayed {
        state.relay.tell_others("/hooks/git", &headers, &body).await;
    }
    if let Some(wait) = gate.pace.must_wait(&()) {
        // What it says is not lost: it may be the last one for a long time.
        state.watch.hook_unread();
        return Err(ApiError::too_often("the sender of these webhooks", wait));
    }
    check_content_type(&headers)?;
    let GitHook(body) = parse(&body)?;
    let event = Event::of(&headers).ok_or_else(|| {
        ApiError::field(
            "X-GitHub-Event",
            "is missing, and so are X-Gitlab-Event, X-Gitea-Event and X-Forgejo-Event: one of them must say what happened",
        )
    })?;
    let pushed = Pushed::read(&body);
    let (status, repositories) = match event {
        Event::Push => (ACCEPTED, state.watch.hook(&pushed)),
        Event::Ping => (OK, state.watch.count(&pushed)),
        Event::Other => (OK, 0),
    };
    let repositories = repositories as u64;
    Ok((status, Json(GitHookReply { repositories })))
}

/// Headers and body of a request that knows the secret; of any other as little as possible is read.
async fn signed(
    gate: &HookGate,
    secret: &WebhookSecret,
    request: Request,
) -> Result<(HeaderMap, bytes::Bytes), ApiError> {
    let refused = || ApiError::new(ErrorCode::Unauthorized, "the webhook's signature is missing or wrong");
    let headers = request.headers().clone();
    let proof = Proof::of(&headers).ok_or_else(refused)?;
    if let Proof::Token(token) = &proof
        && !secret.is(token)
    {
        return Err(refused());
    }
    let _room = gate
        .room
        .try_acquire_many(announced_kib(&headers))
        .map_err(|_| ApiError::unavailable("too many webhooks arrive at once; send this one again"))?;
    let body = read(request, MAX_HOOK_BYTES, HOOK_PATIENCE).await?;
    if let Proof::Signature(signature) = &proof
        && !secret.has_signed(&body, signature)
    {
        return Err(refused());
    }
    Ok((headers, body))
}

/// What a body may take: what its length says, or the most where it says none.
fn announced_kib(headers: &HeaderMap) -> u32 {
    const MOST_KIB: u32 = MAX_HOOK_BYTES as u32 / 1024;
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let kib = length.and_then(|text| Some(text.parse::<u64>().ok()?.div_ceil(1024)));
    kib.and_then(|kib| u32::try_from(kib).ok())
        .map_or(MOST_KIB, |kib| kib.min(MOST_KIB))
}
