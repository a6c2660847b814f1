//! What follows a build of a template: its tags and its pool when it is ready, the set-up before it when it fails.

use std::time::Duration;

use axum::http::Method;
use hearth_api::ids::InstanceId;
use hearth_api::pool::SetupCommand;
use hearth_core::state::InstanceState;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::access::Key;
use super::builds::{Api, Begun, kept};
use super::fault::Refusal;
use super::tags;
use crate::http::AppState;

/// How often a build is looked at.
const ROUND: Duration = Duration::from_millis(500);
/// How long the log of a build that succeeded can be read.
const LOG_PATIENCE: Duration = Duration::from_secs(30);

/// A build that is under way.
pub(super) struct Settling {
    pub(super) state: AppState,
    pub(super) api: Api,
    pub(super) key: Key,
    /// The path of its pool.
    pub(super) pool: String,
    pub(super) begun: Begun,
    pub(super) boot: InstanceId,
    /// The set-up until now.
    pub(super) before: Option<Vec<SetupCommand>>,
}

impl Settling {
    /// Once it is ready it has its tags, and sandboxes are kept ready of it; one that fails leaves the template as it was.
    pub(super) async fn run(self) {
        let succeeded = self.is_ready().await;
        let done = match succeeded {
            true => self.keep().await,
            false => self.undo().await,
        };
        if let Err(refusal) = done {
            let why = refusal.message();
            tracing::warn!(
                pool = self.pool,
                "what follows a build of a template could not be done: {why}"
            );
        }
        for one in kept().builds.iter_mut().filter(|one| one.build == self.begun.build) {
            one.succeeded = Some(succeeded);
        }
        if succeeded {
            // Its client reads the log to its end. Then its VM makes room: nobody who builds so would look into it.
            tokio::time::sleep(LOG_PATIENCE).await;
            let path = format!("/instances/{}", self.boot);
            // It may have been removed already.
            drop(self.api.ask(&self.key, Method::DELETE, &path, &Value::Null).await);
        }
    }

    async fn is_ready(&self) -> bool {
        loop {
            match self.state.store.instance(&self.boot).await {
                Ok(Some(row)) if row.state == InstanceState::Provisioning => tokio::time::sleep(ROUND).await,
                Ok(Some(row)) => return row.failure_reason.is_none(),
                Ok(None) => return false,
                // It is looked again.
                Err(_) => tokio::time::sleep(ROUND).await,
            }
        }
    }

    async fn keep(&self) -> Result<(), Refusal> {
        let Begun {
            project, build, tags, ..
        } = &self.begun;
        tags::give(&self.state, project, build, Timestamp::now(), tags).await?;
        let enabled = json!({ "enabled": true });
        self.api.ask(&self.key, Method::PATCH, &self.pool, &enabled).await?;
        Ok(())
    }

    async fn undo(&self) -> Result<(), Refusal> {
        let builds = kept().builds.clone();
        let is_newest = builds
            .iter()
            .rfind(|one| one.project == self.begun.project && one.boot.is_some())
            .is_none_or(|newest| newest.build == self.begun.build);
        // The first build of a template leaves its steps, to be looked at; another one has changed them since.
        if let Some(before) = self.before.as_ref().filter(|_| is_newest) {
            let before = json!({ "setupCommands": before });
            self.api.ask(&self.key, Method::PATCH, &self.pool, &before).await?;
        }
        Ok(())
    }
}
