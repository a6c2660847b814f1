//! What claimed VMs may connect to. Setting a policy does no more twice than once.

use reqwest::Method;

use super::call::Repeat;
use super::{Client, ClientError};
use crate::egress::{EgressPolicy, InstanceEgress, ProjectEgress};
use crate::ids::{InstanceId, ProjectId};

impl Client {
    /// A project's egress policy.
    ///
    /// # Errors
    /// As every call.
    pub async fn egress(&self, id: &ProjectId) -> Result<ProjectEgress, ClientError> {
        self.get(&["projects", id.as_str(), "egress"]).read().await
    }

    /// Sets a project's egress policy, in VMs that run too.
    ///
    /// # Errors
    /// As every call; 403 when it opens a closed network and the caller may not.
    pub async fn put_egress(&self, id: &ProjectId, policy: &EgressPolicy) -> Result<ProjectEgress, ClientError> {
        self.call(Method::PUT, &["projects", id.as_str(), "egress"])
            .json(policy)?
            .repeat(Repeat::Harmless)
            .read()
            .await
    }

    /// What a claimed VM may connect to, and what it was refused.
    ///
    /// # Errors
    /// As every call.
    pub async fn instance_egress(&self, id: &InstanceId) -> Result<InstanceEgress, ClientError> {
        self.get(&["instances", id.as_str(), "egress"]).read().await
    }
}
