//! Builds of templates that were begun, and how they ask Hearth's own API.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use hearth_api::error::ErrorBody;
use hearth_api::ids::{InstanceId, ProjectId};
use serde_json::Value;
use tower::ServiceExt as _;

use super::access::Key;
use super::fault::Refusal;
use crate::http::{BASE, MAX_BODY_BYTES, status_of};

/// Hearth's API, in this process.
#[derive(Debug, Clone)]
pub struct Api(pub Router);

impl Api {
    pub async fn ask(&self, key: &Key, method: Method, path: &str, body: &Value) -> Result<Value, Refusal> {
        let broken = || {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server could not read its own answer",
            )
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{BASE}{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .extension(key.0.clone());
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        let request = request.body(body).map_err(|_| broken())?;
        let Ok(response) = self.0.clone().oneshot(request).await;
        let is_done = response.status().is_success();
        let bytes = to_bytes(response.into_body(), MAX_BODY_BYTES)
            .await
            .map_err(|_| broken())?;
        if is_done {
            return serde_json::from_slice(&bytes).map_err(|_| broken());
        }
        let refused: ErrorBody = serde_json::from_slice(&bytes).map_err(|_| broken())?;
        let details = refused.error.details.unwrap_or_default();
        let details: Vec<String> = details
            .iter()
            .map(|one| format!("{}: {}", one.path, one.message))
            .collect();
        let message = match details.is_empty() {
            true => refused.error.message,
            false => format!("{} ({})", refused.error.message, details.join("; ")),
        };
        let status = match status_of(refused.error.code) {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            status => status,
        };
        Err(Refusal::new(status, message))
    }
}

/// A build that was begun. What is not known any more after a restart of the server is asked for anew: its steps are checkpointed.
#[derive(Debug, Clone)]
pub struct Begun {
    pub build: String,
    pub project: ProjectId,
    pub tags: Vec<String>,
    /// Its test boot, once there is one.
    pub boot: Option<InstanceId>,
    /// Whether it succeeded, once its tags are given or the set-up before it is back.
    pub succeeded: Option<bool>,
}

/// A file that a client has uploaded for its next build.
pub struct Archive {
    pub tenant: String,
    pub hash: String,
    pub bytes: Bytes,
}

/// What builds leave in this process, oldest first.
#[derive(Default)]
pub struct Kept {
    pub builds: VecDeque<Begun>,
    pub archives: VecDeque<Archive>,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

pub fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 404 where no such build of this project was begun.
pub fn begun(build: &str, project: &ProjectId) -> Result<Begun, Refusal> {
    let kept = kept();
    let found = kept
        .builds
        .iter()
        .find(|one| one.build == build && one.project == *project);
    found.cloned().ok_or_else(|| {
        Refusal::not_found(format!(
            "build {build} was not found: the server was started again, or it never was; build again"
        ))
    })
}
