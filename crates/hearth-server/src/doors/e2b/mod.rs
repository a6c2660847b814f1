//! E2B's protocol, so that its clients work against Hearth unchanged: the control plane (sandboxes, which are claims of a project's
//! pool), and what speaks for each sandbox (processes, files), which the agent in its VM does.
//!
//! All of it is served below [`PREFIX`]; by host names where a wildcard domain is set up ([`hosts`]). What is not served says so, or is
//! above the version that is replied ([`wire::ENVD_VERSION`]), so that no client dares it.

mod access;
mod audited;
mod body;
mod builds;
mod fault;
mod files;
mod filesystem;
mod find;
mod forks;
mod frames;
mod hosts;
mod list;
mod metrics;
mod network;
mod pause;
mod process;
mod sandboxes;
mod settling;
mod steps;
mod stream;
mod tags;
mod templates;
mod users;
mod variables;
mod watch;
mod wire;

use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn_with_state, map_request};
use axum::routing::{any, delete, get, post, put};
use axum::{Extension, Router};
use serde_json::json;
use tower_http::compression::{CompressionLayer, CompressionLevel};
use tower_http::decompression::RequestDecompressionLayer;

use self::access::Key;
use self::fault::Refusal;
use crate::http::{AppState, Subject};

pub use hosts::around;
pub use pause::run;

/// Below this everything is.
pub const PREFIX: &str = "/e2b";

/// Everything below [`PREFIX`]. `api` is Hearth's own, for what it does already.
pub fn routes(state: AppState, api: &Router) -> Router<AppState> {
    let control = Router::new()
        .route("/sandboxes", post(sandboxes::create).get(list::list_running))
        .route("/v2/sandboxes", post(sandboxes::create).get(list::list))
        .route("/sandboxes/{id}", get(sandboxes::info).delete(sandboxes::kill))
        .route("/sandboxes/{id}/connect", post(sandboxes::connect))
        .route("/v2/sandboxes/{id}/connect", post(sandboxes::connect))
        .route("/sandboxes/{id}/resume", post(sandboxes::connect))
        .route("/sandboxes/{id}/timeout", post(sandboxes::set_timeout))
        .route("/sandboxes/{id}/refreshes", post(sandboxes::refresh))
        .route("/sandboxes/{id}/pause", post(pause::pause))
        .route("/sandboxes/{id}/fork", post(forks::fork))
        .route("/sandboxes/{id}/snapshots", post(forks::snapshot))
        .route("/snapshots", get(forks::list))
        .route("/sandboxes/{id}/network", put(network::update))
        .route("/sandboxes/{id}/metrics", get(metrics::list))
        .route("/sandboxes/{id}/logs", get(logs))
        .route("/v2/sandboxes/{id}/logs", get(logs))
        .route("/v3/templates", post(templates::begin))
        .route("/v2/templates", get(templates::list))
        .route("/templates", get(templates::list))
        .route("/templates/aliases/{name}", get(templates::alias))
        .route(
            "/templates/tags",
            post(templates::give_tags).delete(templates::take_tags),
        )
        .route("/templates/{id}/tags", get(templates::list_tags))
        .route("/templates/{id}", delete(delete_template))
        .route(
            "/templates/{id}/files/{hash}",
            get(templates::archive).put(templates::upload),
        )
        .route("/v2/templates/{id}/builds/{build}", post(templates::build))
        .route("/templates/{id}/builds/{build}/status", get(templates::status))
        .layer(Extension(builds::Api(api.clone())))
        .layer(from_fn_with_state(state.clone(), audited::write_down));
    let files = Router::new()
        .route("/files", get(files::read).post(files::write))
        .layer(DefaultBodyLimit::disable())
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
        .layer(map_request(compressed_on_purpose))
        .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true));
    let daemon = Router::new()
        .route("/health", get(files::health))
        .route("/metrics", get(metrics::one))
        .route("/process.Process/Start", post(process::start))
        .route("/process.Process/Connect", post(process::connect))
        .route("/process.Process/List", post(process::list))
        .route("/process.Process/Update", post(process::update))
        .route("/process.Process/SendInput", post(process::send_input))
        .route("/process.Process/StreamInput", post(process::stream_input))
        .route("/process.Process/CloseStdin", post(process::close_stdin))
        .route("/process.Process/SendSignal", post(process::send_signal))
        .route("/filesystem.Filesystem/Stat", post(filesystem::stat))
        .route("/filesystem.Filesystem/ListDir", post(filesystem::list_dir))
        .route("/filesystem.Filesystem/MakeDir", post(filesystem::make_dir))
        .route("/filesystem.Filesystem/Move", post(filesystem::rename))
        .route("/filesystem.Filesystem/Remove", post(filesystem::remove))
        .route("/filesystem.Filesystem/WatchDir", post(watch::watch_dir))
        .route("/filesystem.Filesystem/CreateWatcher", post(watch::create_watcher))
        .route("/filesystem.Filesystem/GetWatcherEvents", post(watch::watcher_events))
        .route("/filesystem.Filesystem/RemoveWatcher", post(watch::remove_watcher));
    let all = control
        .merge(files)
        .merge(daemon)
        .fallback(any(hosts::nowhere))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .layer(from_fn_with_state(state.clone(), hosts::ports));
    // The root of a server in a sandbox, which nesting leaves out.
    let root = Router::new()
        .route(&format!("{PREFIX}/"), any(hosts::nowhere))
        .layer(from_fn_with_state(state, hosts::ports));
    Router::new().nest(PREFIX, all).merge(root)
}

/// Clients of HTTP offer gzip on their own, among others; to compress takes longer than to send. Who wants it names it alone.
async fn compressed_on_purpose(mut request: Request) -> Request {
    let accepted = request.headers().get(header::ACCEPT_ENCODING);
    if accepted.is_some_and(|value| value != "gzip") {
        request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    request
}

/// What a request below [`PREFIX`] is about, where its path or its headers say so.
pub fn about(parts: &axum::http::request::Parts) -> Option<Subject> {
    let rest = parts.uri.path().strip_prefix(PREFIX)?;
    let named = parts.headers.get(access::SANDBOX).and_then(|name| name.to_str().ok());
    let mut path = rest
        .trim_start_matches('/')
        .split('/')
        .skip_while(|part| ["v2", "v3"].contains(part));
    let below = (path.next(), path.next());
    match (named, below) {
        (Some(name), _) => access::instance_id(name).map(Subject::Instance),
        (None, (Some("sandboxes"), Some(name))) => access::instance_id(name).map(Subject::Instance),
        (None, (Some("templates"), Some(id))) => id.parse().ok().map(Subject::Project),
        _ => None,
    }
}

/// What runs in a sandbox prints to who started it: there is no log beside that.
async fn logs(
    State(state): State<AppState>,
    key: Key,
    Path(name): Path<String>,
) -> Result<axum::Json<serde_json::Value>, Refusal> {
    access::managed(&state, &key, &name).await?;
    Ok(axum::Json(json!({ "logs": [], "logEntries": [] })))
}

/// Deletes a snapshot. A project is deleted with Hearth's own means, for more than its sandboxes goes with it.
async fn delete_template(
    State(state): State<AppState>,
    key: Key,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    if forks::delete(&state, &key, &id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    match find::template(&state, &key, &id).await? {
        find::Template::Project(project) => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!(
                "`{id}` is the project {}: delete it with `hearth project delete`",
                project.name
            ),
        )),
        find::Template::Checkpoint(..) => Err(Refusal::not_found(format!("template `{id}` was not found"))),
    }
}
