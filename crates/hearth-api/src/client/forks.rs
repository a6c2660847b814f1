//! Forks and named checkpoints.

use reqwest::Method;

use super::call::Repeat;
use super::{Client, ClientError};
use crate::claim::ClaimReply;
use crate::fork::{CheckpointDeleted, CheckpointRequest, ForkReply, ForkRequest, NamedCheckpointItem, RestoreRequest};
use crate::ids::{InstanceId, ProjectId};
use crate::page::Items;

impl Client {
    /// Forks a claimed VM.
    ///
    /// # Errors
    /// As every call; 409 when it cannot be forked, 429 when there is no room.
    pub async fn fork(&self, id: &InstanceId, body: &ForkRequest) -> Result<ForkReply, ClientError> {
        let repeat = match body.task_id {
            Some(_) => Repeat::Harmless,
            None => Repeat::Once,
        };
        self.post(&["instances", id.as_str(), "fork"])
            .json(body)?
            .timeout(None)
            .repeat(repeat)
            .read()
            .await
    }

    /// Makes a checkpoint of a claimed VM.
    ///
    /// # Errors
    /// As every call; 409 when the name is taken.
    pub async fn create_checkpoint(
        &self,
        id: &InstanceId,
        body: &CheckpointRequest,
    ) -> Result<NamedCheckpointItem, ClientError> {
        self.post(&["instances", id.as_str(), "checkpoint"])
            .json(body)?
            .timeout(None)
            .read()
            .await
    }

    /// Lets a claimed VM continue from a checkpoint: disk and memory become what they were.
    ///
    /// # Errors
    /// As every call.
    pub async fn restore_checkpoint(&self, id: &InstanceId, body: &RestoreRequest) -> Result<ClaimReply, ClientError> {
        self.post(&["instances", id.as_str(), "restore"])
            .json(body)?
            .timeout(None)
            .read()
            .await
    }

    /// The checkpoints of a project, by name.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_checkpoints(&self, project: &ProjectId) -> Result<Items<NamedCheckpointItem>, ClientError> {
        self.get(&["projects", project.as_str(), "checkpoints"]).read().await
    }

    /// Deletes a checkpoint. VMs that were made from it stay.
    ///
    /// # Errors
    /// As every call.
    pub async fn delete_checkpoint(&self, project: &ProjectId, name: &str) -> Result<CheckpointDeleted, ClientError> {
        self.call(Method::DELETE, &["projects", project.as_str(), "checkpoints", name])
            .repeat(Repeat::Harmless)
            .read()
            .await
    }
}
