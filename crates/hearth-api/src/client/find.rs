//! Look-ups for people, and the list of claims.

use super::{Client, ClientError};
use crate::find::{ClaimItem, InstanceFound, ProjectFound};
use crate::ids::ProjectId;
use crate::page::Items;

impl Client {
    /// The projects that a text may mean: one by its id or name, or those whose ids begin so.
    ///
    /// # Errors
    /// As every call.
    pub async fn find_projects(&self, text: &str) -> Result<Items<ProjectFound>, ClientError> {
        self.get(&["find", "projects"]).query("text", text).read().await
    }

    /// The instances that a text may mean: by id, task, a part of the id, or `last`; of one project or of all.
    ///
    /// # Errors
    /// As every call.
    pub async fn find_instances(
        &self,
        text: &str,
        project: Option<&ProjectId>,
    ) -> Result<Items<InstanceFound>, ClientError> {
        let mut call = self.get(&["find", "instances"]).query("text", text);
        if let Some(project) = project {
            call = call.query("projectId", project.as_str());
        }
        call.read().await
    }

    /// The claims that have not ended, newest first.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_claims(&self, project: Option<&ProjectId>) -> Result<Items<ClaimItem>, ClientError> {
        let mut call = self.get(&["claims"]);
        if let Some(project) = project {
            call = call.query("projectId", project.as_str());
        }
        call.read().await
    }
}
