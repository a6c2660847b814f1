//! Who did what.

use super::{Client, ClientError};
use crate::audit::AuditEntry;
use crate::ids::ProjectId;
use crate::page::Items;

impl Client {
    /// Entries of the audit log, newest first: of this project, and older than this one.
    ///
    /// # Errors
    /// As every call; 403 for a token that is no admin's.
    pub async fn audit(
        &self,
        project: Option<&ProjectId>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Items<AuditEntry>, ClientError> {
        let mut call = self.get(&["audit"]).query("limit", &limit.to_string());
        if let Some(project) = project {
            call = call.query("projectId", project.as_str());
        }
        if let Some(before) = before {
            call = call.query("before", &before.to_string());
        }
        call.read().await
    }
}
