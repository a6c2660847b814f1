//! The audit log's entries of the control plane: who asked for what, and how it was answered.

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use hearth_api::ids::InstanceId;

use super::access::instance_id;
use crate::http::{About, AppState, Came};

/// What changes something, by method and the end of the route's path.
const OPERATIONS: [(Method, &str, &str); 16] = [
    (Method::POST, "/sandboxes", "e2b_create_sandbox"),
    (Method::DELETE, "/sandboxes/{id}", "e2b_kill_sandbox"),
    (Method::POST, "/sandboxes/{id}/connect", "e2b_connect_sandbox"),
    (Method::POST, "/sandboxes/{id}/resume", "e2b_connect_sandbox"),
    (Method::POST, "/sandboxes/{id}/timeout", "e2b_set_timeout"),
    (Method::POST, "/sandboxes/{id}/refreshes", "e2b_set_timeout"),
    (Method::POST, "/sandboxes/{id}/pause", "e2b_pause_sandbox"),
    (Method::POST, "/sandboxes/{id}/fork", "e2b_fork_sandbox"),
    (Method::POST, "/sandboxes/{id}/snapshots", "e2b_snapshot_sandbox"),
    (Method::PUT, "/sandboxes/{id}/network", "e2b_change_network"),
    (Method::POST, "/v3/templates", "e2b_begin_template"),
    (Method::DELETE, "/templates/{id}", "e2b_delete_template"),
    (Method::POST, "/templates/tags", "e2b_tag_template"),
    (Method::DELETE, "/templates/tags", "e2b_untag_template"),
    (Method::POST, "/v2/sandboxes", "e2b_create_sandbox"),
    (Method::POST, "/v2/templates/{id}/builds/{build}", "e2b_build_template"),
];

/// The claim that a request made: its path does not name it.
#[derive(Debug, Clone)]
pub struct Claimed(pub InstanceId);

/// The layer.
pub async fn write_down(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let path = path
        .as_deref()
        .map(|path| path.strip_prefix(super::PREFIX).unwrap_or(path));
    let known = |(method, end, _): &&(Method, &str, &str)| method == request.method() && path == Some(*end);
    let Some((_, pattern, operation)) = OPERATIONS.iter().find(known) else {
        return next.run(request).await;
    };
    let of_sandbox = pattern.contains("/sandboxes/{id}");
    let named = request.uri().path().rsplit('/');
    let named: Option<String> = named.into_iter().find(|part| part.len() >= 32).map(str::to_owned);
    let came = Came::of(&mut request);
    let response = next.run(request).await;
    let made = response.extensions().get::<Claimed>().map(|Claimed(id)| id.to_string());
    let instance = named.as_deref().filter(|_| of_sandbox).and_then(instance_id);
    let about = About {
        project: None,
        instance: instance.map(|id| id.to_string()).or(made),
        subject: named.filter(|_| !of_sandbox),
    };
    came.note(&state, operation, about, response.status()).await;
    response
}
