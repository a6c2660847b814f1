//! The warm pool of a project, and claims.

use std::time::Duration;

use reqwest::Method;

use super::call::Repeat;
use super::{Client, ClientError};
use crate::claim::{ClaimReply, ClaimRequest};
use crate::explain::PoolExplained;
use crate::ids::{InstanceId, ProjectId};
use crate::instance::{InstanceDetail, InstanceItem, InstanceStatus};
use crate::page::Items;
use crate::pool::{ClearReply, ClearRequest, PatchPool, PatchPoolReply, PoolView, RetryReply, TestReply, TestRequest};

/// How long the server's process may take to start again.
const RESTART: Duration = Duration::from_secs(4);
/// How long a claim may take beyond the wait it asks for: it may have to make a VM from nothing, set-up included.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);

impl Client {
    /// The pool: configuration, counts, when things last happened.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_pool(&self, id: &ProjectId) -> Result<PoolView, ClientError> {
        self.get(&["projects", id.as_str(), "warm-pool"]).read().await
    }

    /// Changes the configuration.
    ///
    /// # Errors
    /// As every call.
    pub async fn patch_pool(&self, id: &ProjectId, body: &PatchPool) -> Result<PatchPoolReply, ClientError> {
        self.call(Method::PATCH, &["projects", id.as_str(), "warm-pool"])
            .json(body)?
            .read()
            .await
    }

    /// Starts a test boot; without `cache` every step runs, also those whose result is kept from an earlier boot.
    ///
    /// # Errors
    /// As every call.
    pub async fn test_pool(&self, id: &ProjectId, body: &TestRequest, cache: bool) -> Result<TestReply, ClientError> {
        let mut call = self.post(&["projects", id.as_str(), "warm-pool", "test"]).json(body)?;
        if !cache {
            call = call.query("cache", "false");
        }
        call.read().await
    }

    /// Removes every instance that is not claimed.
    ///
    /// # Errors
    /// As every call.
    pub async fn clear_pool(&self, id: &ProjectId, body: &ClearRequest) -> Result<ClearReply, ClientError> {
        self.post(&["projects", id.as_str(), "warm-pool", "clear"])
            .json(body)?
            .read()
            .await
    }

    /// Failures so far do not count against the set-up any more: it is tried again at once.
    ///
    /// # Errors
    /// As every call; 404 when the project has no pool.
    pub async fn retry_pool(&self, id: &ProjectId) -> Result<RetryReply, ClientError> {
        self.post(&["projects", id.as_str(), "warm-pool", "retry"])
            .repeat(Repeat::Harmless)
            .read()
            .await
    }

    /// Why a pool is as it is.
    ///
    /// # Errors
    /// As every call.
    pub async fn explain_pool(&self, id: &ProjectId) -> Result<PoolExplained, ClientError> {
        self.get(&["projects", id.as_str(), "warm-pool", "explain"])
            .read()
            .await
    }

    /// The newest instances.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_instances(
        &self,
        id: &ProjectId,
        limit: Option<u32>,
        status: Option<InstanceStatus>,
    ) -> Result<Items<InstanceItem>, ClientError> {
        let mut call = self.get(&["projects", id.as_str(), "warm-pool", "instances"]);
        if let Some(limit) = limit {
            call = call.query("limit", &limit.to_string());
        }
        if let Some(status) = status {
            call = call.query("status", status.as_str());
        }
        call.read().await
    }

    /// One instance with its steps.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_instance(&self, project: &ProjectId, id: &InstanceId) -> Result<InstanceDetail, ClientError> {
        self.get(&["projects", project.as_str(), "warm-pool", "instances", id.as_str()])
            .read()
            .await
    }

    /// Takes an instance. With a task id a lost answer is asked for again (same key + same body = the same VM); without
    /// one it is not, because that could take a second VM.
    ///
    /// # Errors
    /// As every call; 429 when `miss` is `require` and nothing is ready.
    pub async fn claim(&self, id: &ProjectId, body: &ClaimRequest) -> Result<ClaimReply, ClientError> {
        let wait = Duration::from_millis(body.wait_ms.unwrap_or_default());
        let repeat = if body.task_id.is_some() {
            Repeat::KeyedClaim
        } else {
            Repeat::PlainClaim
        };
        self.post(&["projects", id.as_str(), "warm-pool", "claim"])
            .json(body)?
            .timeout(Some(CLAIM_TIMEOUT.saturating_add(wait)))
            .repeat(repeat)
            .waited_enough(wait.max(RESTART))
            .read()
            .await
    }
}
