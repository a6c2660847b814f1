//! The HTTP API. Only this module knows axum, and only [`error`] chooses a status.

mod auth;
mod claims;
mod error;
mod exec;
mod extract;
mod instances;
mod pool;
mod projects;
mod tokens;
mod validate;
mod variables;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use hearth_api::error::ErrorCode;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::trace::TraceLayer;

use crate::reconcile::Reconciler;
use crate::store::Store;
use error::ApiError;

pub use auth::new_token;

/// What every handler has.
#[derive(Debug, Clone)]
pub struct AppState {
    pub reconciler: Reconciler,
    /// Where repositories without a URL come from.
    pub git_base_url: String,
}

impl AppState {
    fn store(&self) -> &Store {
        &self.reconciler.context().store
    }
}

/// Answers requests until `stop`, then lets those under way end.
pub async fn answer(
    listener: tokio::net::TcpListener,
    state: AppState,
    stop: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router(state))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// The whole route table.
fn router(state: AppState) -> Router {
    let project = "/projects/{project_id}";
    let pool = "/projects/{project_id}/warm-pool";
    let shared = "/projects/{project_id}/environment-variables/shared";
    let api = Router::new()
        .route("/projects", get(projects::list_projects).post(projects::create_project))
        .route(
            project,
            get(projects::get_project)
                .patch(projects::patch_project)
                .delete(projects::delete_project),
        )
        .route(
            shared,
            get(variables::list_shared_variables).put(variables::put_shared_variables),
        )
        .route(&format!("{shared}/{{name}}"), delete(variables::delete_shared_variable))
        .route(pool, get(pool::get_pool).patch(pool::patch_pool))
        .route(&format!("{pool}/test"), post(pool::test_pool))
        .route(&format!("{pool}/clear"), post(pool::clear_pool))
        .route(&format!("{pool}/claim"), post(claims::claim_instance))
        .route(&format!("{pool}/instances"), get(instances::list_instances))
        .route(
            &format!("{pool}/instances/{{instance_id}}"),
            get(instances::get_instance),
        )
        .route("/instances/{instance_id}/follow", get(instances::follow_instance))
        .route("/instances/{instance_id}/release", post(claims::release_instance))
        .route("/instances/{instance_id}/heartbeat", post(claims::heartbeat_instance))
        .route("/instances/{instance_id}/exec", post(exec::exec_in_instance))
        .route("/tokens", get(tokens::list_tokens).post(tokens::create_token))
        .route("/tokens/{token_id}", delete(tokens::revoke_token));
    let request_id = HeaderName::from_static("x-request-id");
    Router::new()
        .nest("/api/v1", api)
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(async || ApiError::not_found("path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(ErrorCode::MethodNotAllowed, "this path does not take this method")
        })
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            ApiError::new(
                ErrorCode::InternalError,
                "the server has a bug here; its log says more, see the request id",
            )
            .into_response()
        }))
        // The path and nothing else of the request: no header, no query, no body.
        .layer(TraceLayer::new_for_http().make_span_with(|request: &Request| {
            let id = request
                .extensions()
                .get::<RequestId>()
                .and_then(|id| id.header_value().to_str().ok());
            tracing::info_span!("request", method = %request.method(), path = request.uri().path(), id)
        }))
        .layer(PropagateRequestIdLayer::new(request_id.clone()))
        .layer(SetRequestIdLayer::new(request_id, NewRequestId))
        .with_state(state)
}

/// Request ids that sort by time.
#[derive(Clone)]
struct NewRequestId;

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        HeaderValue::from_str(&id).ok().map(RequestId::new)
    }
}

/// The process answers.
async fn healthz() -> Response {
    axum::Json(serde_json::json!({ "status": "ok" })).into_response()
}

/// The process can do its work.
async fn readyz(State(state): State<AppState>) -> Result<Response, ApiError> {
    state
        .store()
        .ping()
        .await
        .map_err(|error| ApiError::unavailable(error.to_string()))?;
    Ok(healthz().await)
}
