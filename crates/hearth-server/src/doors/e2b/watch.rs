//! Watching folders: a stream of events, or a watcher whose events are asked for.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use hearth_api::ids::InstanceId;
use hearth_guest::client::AgentError;
use hearth_guest::files::{Change, ChangeKind};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access::{AsUser, Opened, opened};
use super::fault::{Code, Fault};
use super::frames::{self, Call, First, time_limit};
use super::users;
use crate::http::{AppState, answered};

/// A stream in which nothing happens says so this often.
const PING: Duration = Duration::from_secs(50);
/// Watchers of one sandbox.
const MOST_WATCHERS: usize = 64;
/// Events that a watcher keeps; older ones go first.
const MOST_EVENTS: usize = 10_000;
/// A watcher that nobody asks is removed.
const FORGOTTEN: Duration = Duration::from_secs(60 * 60);

#[derive(Deserialize)]
pub struct WatchRequest {
    #[serde(default)]
    path: String,
    #[serde(default)]
    recursive: bool,
}

type Changes = BoxStream<'static, Result<Change, AgentError>>;

/// What a change is for clients; a new name is one that went and one that came.
fn events(change: &Change) -> Vec<Value> {
    let event = |name: &str, kind: &str| json!({ "name": name, "type": kind });
    let path = change.path.as_str();
    match change.kind {
        ChangeKind::Created => vec![event(path, "EVENT_TYPE_CREATE")],
        ChangeKind::Written => vec![event(path, "EVENT_TYPE_WRITE")],
        ChangeKind::Removed => vec![event(path, "EVENT_TYPE_REMOVE")],
        ChangeKind::Attributes => vec![event(path, "EVENT_TYPE_CHMOD")],
        ChangeKind::Renamed => {
            let before = change.from.as_deref().unwrap_or(path);
            vec![event(before, "EVENT_TYPE_RENAME"), event(path, "EVENT_TYPE_CREATE")]
        }
        ChangeKind::Started | ChangeKind::Overflow | ChangeKind::Ended | ChangeKind::Unknown => Vec::new(),
    }
}

/// The changes of a folder, once it is watched.
async fn watched(
    state: &AppState,
    sandbox: &super::access::Sandbox,
    user: Option<&str>,
    request: &WatchRequest,
) -> Result<(crate::http::Inside, Changes), Fault> {
    let path = users::path(user, &request.path)?;
    let inside = sandbox.enter(state).await?;
    let entry = answered(state, &sandbox.row, inside.agent.list_folder(&path, user, 1, 1)).await?;
    // A file is not watched.
    entry?;
    let changes = inside.agent.watch_files(&path, user, request.recursive).await?;
    Ok((inside, changes))
}

/// A stream of events, for as long as its client reads it.
pub async fn watch_dir(
    State(state): State<AppState>,
    AsUser(user): AsUser,
    headers: HeaderMap,
    First(request): First<WatchRequest>,
) -> Response {
    let begun = async {
        let sandbox = opened(&state, &headers).await?;
        watched(&state, &sandbox, user.as_deref(), &request).await
    };
    let (inside, mut changes) = match begun.await {
        Ok(begun) => begun,
        Err(fault) => return fault.into_stream(),
    };
    let deadline = time_limit(&headers).and_then(|limit| Instant::now().checked_add(limit));
    let frames = async_stream::stream! {
        let _inside = inside;
        yield Ok::<Bytes, Infallible>(frames::message(&json!({ "start": {} })));
        let mut ping = tokio::time::interval(PING);
        ping.reset();
        let error = loop {
            let change = tokio::select! {
                change = changes.next() => change,
                _ = ping.tick() => {
                    yield Ok(frames::message(&json!({ "keepalive": {} })));
                    continue;
                }
                () = at(deadline) => break Some(Fault::new(Code::DeadlineExceeded, "the time of this stream is up")),
            };
            match change {
                Some(Ok(change)) if change.kind == ChangeKind::Ended => break None,
                Some(Ok(change)) => {
                    for event in events(&change) {
                        yield Ok(frames::message(&json!({ "filesystem": event })));
                    }
                }
                Some(Err(_)) => break Some(Fault::unavailable("the connection to the VM was lost")),
                None => break None,
            }
        };
        yield Ok(frames::end(error.as_ref()));
    };
    frames::response(Body::from_stream(frames))
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// One whose events are asked for.
struct Watcher {
    sandbox: InstanceId,
    kept: Arc<Mutex<Kept>>,
    task: tokio::task::AbortHandle,
}

struct Kept {
    events: VecDeque<Value>,
    asked_at: Instant,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Those of this server: one that is started again has none, and clients are told so.
static WATCHERS: LazyLock<Mutex<HashMap<String, Watcher>>> = LazyLock::new(Mutex::default);

fn watchers() -> MutexGuard<'static, HashMap<String, Watcher>> {
    WATCHERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kept(of: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

pub async fn create_watcher(
    State(state): State<AppState>,
    AsUser(user): AsUser,
    Opened(sandbox): Opened,
    Call(request): Call<WatchRequest>,
) -> Result<Json<Value>, Fault> {
    let id = sandbox.seen.id.clone();
    {
        let mut all = watchers();
        all.retain(|_, watcher| kept(&watcher.kept).asked_at.elapsed() < FORGOTTEN && !watcher.task.is_finished());
        if all.values().filter(|watcher| watcher.sandbox == id).count() >= MOST_WATCHERS {
            let why = format!("{MOST_WATCHERS} watchers of this sandbox are there: remove some first");
            return Err(Fault::new(Code::ResourceExhausted, why));
        }
    }
    let (inside, mut changes) = watched(&state, &sandbox, user.as_deref(), &request).await?;
    let events_of = Arc::new(Mutex::new(Kept {
        events: VecDeque::new(),
        asked_at: Instant::now(),
    }));
    let into = Arc::clone(&events_of);
    let task = tokio::spawn(async move {
        // It does not keep the VM from being paused.
        drop(inside.resumed);
        let _agent = inside.agent;
        while let Some(Ok(change)) = changes.next().await {
            let mut kept = kept(&into);
            kept.events.extend(events(&change));
            while kept.events.len() > MOST_EVENTS {
                kept.events.pop_front();
            }
        }
        // What was noted may still be asked for.
        tokio::time::sleep(FORGOTTEN).await;
    });
    let name = uuid::Uuid::new_v4().simple().to_string();
    let watcher = Watcher {
        sandbox: id,
        kept: events_of,
        task: task.abort_handle(),
    };
    watchers().insert(name.clone(), watcher);
    Ok(Json(json!({ "watcherId": name })))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OfWatcher {
    #[serde(default)]
    watcher_id: String,
}

fn none(id: &str) -> Fault {
    let why =
        format!("watcher with id {id} not found: it was removed, or the server was started again; make another one");
    Fault::new(Code::NotFound, why)
}

pub async fn watcher_events(Opened(sandbox): Opened, Call(request): Call<OfWatcher>) -> Result<Json<Value>, Fault> {
    let all = watchers();
    let watcher = all
        .get(&request.watcher_id)
        .filter(|watcher| watcher.sandbox == sandbox.seen.id);
    let mut kept = kept(&watcher.ok_or_else(|| none(&request.watcher_id))?.kept);
    kept.asked_at = Instant::now();
    let events: Vec<Value> = kept.events.drain(..).collect();
    Ok(Json(json!({ "events": events })))
}

pub async fn remove_watcher(Opened(sandbox): Opened, Call(request): Call<OfWatcher>) -> Result<Json<Value>, Fault> {
    let mut all = watchers();
    match all.get(&request.watcher_id) {
        Some(watcher) if watcher.sandbox == sandbox.seen.id => {
            all.remove(&request.watcher_id);
            Ok(Json(json!({})))
        }
        _ => Err(none(&request.watcher_id)),
    }
}
