//! Claims that end with a session: which session's end releases the VM. A row says it, so that a restart of the server forgets none.

use hearth_api::ids::InstanceId;

use super::{RunOn as _, Store, StoreError, db, parse};

impl Store {
    /// The VM is released when this session ends. Whether no session was named before.
    pub async fn set_release_session(&self, instance: &InstanceId, session: &str) -> Result<bool, StoreError> {
        let done = db::query(
            "UPDATE claim SET release_session = $2 WHERE instance_id = $1 AND ended_at IS NULL AND release_session IS NULL",
        )
        .bind(instance.as_str())
        .bind(session)
        .run_on(&self.write)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The session whose end releases the VM, of a claim that has not ended.
    pub async fn release_session(&self, instance: &InstanceId) -> Result<Option<String>, StoreError> {
        let found: Option<Option<String>> =
            db::query_scalar("SELECT release_session FROM claim WHERE instance_id = $1 AND ended_at IS NULL")
                .bind(instance.as_str())
                .fetch_optional(&self.read)
                .await?;
        Ok(found.flatten())
    }

    /// No session's end releases the VM any more.
    pub async fn forget_release_session(&self, instance: &InstanceId) -> Result<(), StoreError> {
        db::query("UPDATE claim SET release_session = NULL WHERE instance_id = $1")
            .bind(instance.as_str())
            .run_on(&self.write)
            .await?;
        Ok(())
    }

    /// The claimed VMs of this server that the end of a session releases.
    pub async fn release_sessions(&self) -> Result<Vec<InstanceId>, StoreError> {
        let rows: Vec<String> = db::query_scalar(
            "SELECT instance_id FROM claim JOIN instance ON instance.id = claim.instance_id AND instance.server = $1
                 WHERE release_session IS NOT NULL AND ended_at IS NULL",
        )
        .bind(self.server())
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|id| parse("claim.instance_id", id)).collect()
    }
}
