//! What keeps pools from having more VMs, for claims that wait.

use async_trait::async_trait;
use hearth_api::ids::ProjectId;

use crate::claims::{BlockerText, Blockers};
use crate::status::PoolStatus;
use crate::store::{ProjectRow, StoreError};

#[async_trait]
impl Blockers for PoolStatus {
    async fn blocker(&self, project: &ProjectRow) -> Result<Option<BlockerText>, StoreError> {
        let blocked = self.blocked(project).await?;
        Ok(blocked.map(|(message, until)| BlockerText { message, until }))
    }

    async fn being_set_up(&self, project: &ProjectId, recipe: &str) -> Result<Option<String>, StoreError> {
        Self::being_set_up(self, project, recipe).await
    }

    fn needs_repair(&self, project: &ProjectId, recipe: &str) -> bool {
        Self::needs_repair(self, project, recipe)
    }
}
