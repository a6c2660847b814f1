//! The audit log: one layer over all operations writes who asked for what, and how it was answered. It sees the path, the token's row and the
//! status; of a body it reads the id of what was made, and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, OnceLock};

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hearth_api::audit::AuditEntry;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::page::Items;
use hearth_api::token::Scope;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;
use tower_http::request_id::RequestId;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::Query;
use super::openapi;
use crate::store::{AuditFilter, AuditedBy, NewAuditEntry, TokenRow};

/// Entries of the list when nothing else is asked for.
const DEFAULT_LIMIT: u32 = 100;
/// Operations that change something and are not written: they come every few seconds, or with each key that is pressed, and say no more than what
/// began them; and the webhook, for which nobody has a token.
const UNWRITTEN: [&str; 4] = [
    "heartbeat_instance",
    "write_session_stdin",
    "resize_session",
    "take_git_hook",
];
/// Operations that begin with a GET and work in a VM.
const ENTERING: [&str; 5] = [
    "attach_exec",
    "open_terminal",
    "open_ssh",
    "open_tunnel",
    "attach_session",
];
/// Operations whose reply has the id of what they made, and what that is.
const MAKING: [(&str, Made); 5] = [
    ("create_project", Made::Project),
    ("claim_instance", Made::Instance),
    ("test_pool", Made::Instance),
    ("create_token", Made::Subject),
    ("create_webhook", Made::Subject),
];

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Project,
    Instance,
    Subject,
}

/// Who asks: the extractor of the token writes it here, for the layer.
#[derive(Debug, Clone, Default)]
pub struct Asked(Arc<OnceLock<AuditedBy>>);

impl Asked {
    /// This token asks.
    pub fn note(&self, token: &TokenRow) {
        // A request has one token.
        let _ = self.0.set(AuditedBy {
            tenant: token.tenant.clone(),
            token: token.id.to_string(),
            name: token.name.clone(),
            owner: token.owner.clone(),
        });
    }
}

/// A request that is audited, as it came.
pub struct Came {
    at: Timestamp,
    asked: Asked,
    address: Option<String>,
    id: Option<String>,
}

/// What a request is about, as far as it says.
#[derive(Debug, Default)]
pub struct About {
    pub project: Option<String>,
    pub instance: Option<String>,
    pub subject: Option<String>,
}

impl Came {
    /// What reads the token finds in the request where to write whose it is.
    pub fn of(request: &mut Request) -> Self {
        let extensions = request.extensions_mut();
        let address = extensions.get::<ConnectInfo<SocketAddr>>();
        let address = address.map(|ConnectInfo(address)| address.ip().to_string());
        let id = extensions.get::<RequestId>();
        let id = id.and_then(|id| id.header_value().to_str().ok()).map(str::to_owned);
        let asked = Asked::default();
        extensions.insert(asked.clone());
        Self {
            at: Timestamp::now(),
            asked,
            address,
            id,
        }
    }

    /// Writes how it was answered. A token that is not known does nothing, so there is nothing to write of it.
    pub async fn note(self, state: &AppState, operation: &'static str, about: About, status: StatusCode) {
        let Some(by) = self.asked.0.get().cloned() else { return };
        let entry = NewAuditEntry {
            at: self.at,
            by,
            address: self.address,
            operation,
            project: about.project,
            instance: about.instance,
            subject: about.subject,
            status: status.as_u16(),
            request: self.id,
        };
        state.audit.note(entry).await;
    }
}

/// The audited operations by method and path.
static OPERATIONS: LazyLock<HashMap<(Method, String), &'static str>> = LazyLock::new(|| {
    let mut found = HashMap::new();
    for (path, methods) in openapi::DOCUMENT["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let (Ok(method), Some(id)) = (
                method.to_uppercase().parse::<Method>(),
                operation["operationId"].as_str(),
            ) else {
                continue;
            };
            let changes = !method.is_safe() && !UNWRITTEN.contains(&id);
            if changes || ENTERING.contains(&id) {
                found.insert((method, path.clone()), id);
            }
        }
    }
    found
});

/// The layer.
pub(super) async fn write_down(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let operation = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| (request.method().clone(), path.as_str().to_owned()))
        .and_then(|key| Some((*OPERATIONS.get(&key)?, key.1)));
    let Some((operation, pattern)) = operation else {
        return next.run(request).await;
    };
    let mut named = named(&pattern, request.uri().path());
    let came = Came::of(&mut request);
    let mut response = next.run(request).await;
    let making = MAKING.iter().find(|(making, _)| *making == operation);
    let mut made = None;
    if let Some((_, what)) = making
        && response.status().is_success()
    {
        let (whole, id) = with_id(response).await;
        response = whole;
        made = id.map(|id| (*what, id));
    }
    let made = |wanted: Made| {
        made.as_ref()
            .filter(|(what, _)| *what == wanted)
            .map(|(_, id)| id.clone())
    };
    let instance = if pattern.contains("/instances/") {
        named.remove("id")
    } else {
        None
    };
    let about = About {
        project: named
            .remove("projectId")
            .filter(|id| id.parse::<ProjectId>().is_ok())
            .or_else(|| made(Made::Project)),
        instance: instance
            // What a caller writes in a path need not be an id.
            .filter(|id| id.parse::<InstanceId>().is_ok())
            .or_else(|| made(Made::Instance)),
        subject: made(Made::Subject).or_else(|| {
            let rest: Vec<String> = named.into_values().collect();
            (!rest.is_empty()).then(|| rest.join("/"))
        }),
    };
    came.note(&state, operation, about, response.status()).await;
    response
}

/// What a path names, by the pattern's names.
fn named(pattern: &str, path: &str) -> BTreeMap<String, String> {
    let pairs = pattern.split('/').zip(path.split('/'));
    let named = pairs.filter_map(|(name, value)| {
        let name = name.strip_prefix('{')?.strip_suffix('}')?;
        let value = percent_decode_str(value).decode_utf8_lossy();
        Some((name.to_owned(), value.into_owned()))
    });
    named.collect()
}

/// The same response, and the id that is in it.
async fn with_id(response: Response) -> (Response, Option<String>) {
    let (head, body) = response.into_parts();
    // A handler's own JSON: it is whole already, and small.
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(_) => {
            return (
                ApiError::unavailable("the reply could not be made").into_response(),
                None,
            );
        }
    };
    let value: Option<Value> = serde_json::from_slice(&bytes).ok();
    let id = value.and_then(|value| value["id"].as_str().map(str::to_owned));
    (Response::from_parts(head, Body::from(bytes)), id)
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only about this project.
    #[param(nullable = false)]
    project_id: Option<ProjectId>,
    /// Only entries older than this one: the last of the page before.
    #[param(nullable = false, minimum = 1)]
    before: Option<u64>,
    /// Most entries; 100 when absent.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = json!(DEFAULT_LIMIT))]
    limit: Option<u32>,
}

/// Read the audit log
///
/// Who asked for what, newest first: every request that changes something or enters a VM, with its result. No bodies and no secrets. For admins:
/// the tenant's entries, or the token's one project's.
#[utoipa::path(
    get,
    path = "/audit",
    tag = "audit",
    params(AuditQuery),
    responses((status = 200, body = Items<AuditEntry>, description = "The entries"))
)]
pub async fn read_audit(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Items<AuditEntry>>, ApiError> {
    caller.need(Scope::Admin)?;
    let own = caller.0.project_id.as_ref();
    if let (Some(own), Some(asked)) = (own, &query.project_id)
        && own != asked
    {
        return Err(ApiError::not_found("project"));
    }
    // One that is gone has entries, too, so it need not be there; of another tenant's there are none to see.
    let filter = AuditFilter {
        tenant: &caller.0.tenant,
        project: query.project_id.as_ref().or(own),
        before: query.before,
        limit: query.limit.unwrap_or(DEFAULT_LIMIT),
    };
    let items = state.store().audit(filter).await?;
    Ok(Json(Items { items }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_operations_that_change_something_are_written_but_those_that_are_named() {
        let count = OPERATIONS.len();
        let written = |id: &str| OPERATIONS.values().any(|written| *written == id);
        for id in [
            "patch_pool",
            "release_instance",
            "exec_in_instance",
            "write_file",
            "delete_project",
        ] {
            assert!(written(id), "{id}");
        }
        for id in ENTERING.iter().chain(MAKING.iter().map(|(id, _)| id)) {
            assert!(written(id), "{id}");
        }
        for id in UNWRITTEN.iter().chain(&["get_project", "watch_events"]) {
            assert!(!written(id), "{id}");
        }
        assert!(count > 40, "{count}");
    }

    #[test]
    fn path_is_read_by_the_names_of_its_pattern() {
        let found = named(
            "/api/v1/projects/{projectId}/environment-variables/shared/{name}",
            "/api/v1/projects/prj_1/environment-variables/shared/A%42",
        );
        let wanted = [("projectId", "prj_1"), ("name", "AB")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(found, wanted.into());
    }
}
