//! What the claimed VMs of a project may connect to.

use hearth_api::egress::EgressPolicy;
use hearth_api::event::EventKind;
use hearth_api::ids::{InstanceId, ProjectId, VmId};
use jiff::Timestamp;
use serde_json::json;

use super::events::Change;
use super::{RunOn as _, Store, StoreError, db, from_json, millis, timestamp, to_json};

impl Store {
    /// A project's egress policy and when it was set; `None` when it never was.
    pub async fn egress(&self, project: &ProjectId) -> Result<Option<(EgressPolicy, Timestamp)>, StoreError> {
        let row: Option<(String, i64)> = db::query_as("SELECT policy, updated_at FROM egress WHERE project_id = $1")
            .bind(project.as_str())
            .fetch_optional(&self.read)
            .await?;
        row.map(|(policy, at)| {
            let policy = serde_json::from_str(&policy).map_err(|error| StoreError::corrupt("egress.policy", error))?;
            Ok((policy, timestamp(at)?))
        })
        .transpose()
    }

    /// Sets a project's egress policy; false when the project is gone.
    pub async fn put_egress(
        &self,
        project: &ProjectId,
        policy: &EgressPolicy,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let policy = serde_json::to_string(policy).map_err(|error| StoreError::corrupt("egress.policy", error))?;
        let mut tx = self.write.begin().await?;
        let done = db::query(
            "INSERT INTO egress (project_id, policy, updated_at)
             SELECT id, $2, $3 FROM project WHERE id = $1
             ON CONFLICT (project_id) DO UPDATE SET policy = excluded.policy, updated_at = excluded.updated_at",
        )
        .bind(project.as_str())
        .bind(policy)
        .bind(millis(now))
        .execute(&mut *tx)
        .await?;
        let known = done.rows_affected() > 0;
        if known {
            let change = Change::of_project(EventKind::ProjectChanged, project, now);
            tx.tell(change.with(json!({ "what": "egress" }))).await?;
        }
        tx.commit().await?;
        Ok(known)
    }

    /// Whether a project or the claim of one of its VMs has a policy: asked at every hand-over, so in one statement.
    pub async fn has_egress(&self, project: &ProjectId, vm: &VmId) -> Result<bool, StoreError> {
        Ok(db::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM egress WHERE project_id = $1)
                 OR EXISTS (SELECT 1 FROM claim_egress JOIN instance ON instance.id = claim_egress.instance_id WHERE vm_id = $2)",
        )
        .bind(project.as_str())
        .bind(vm.as_str())
        .fetch_one(&self.read)
        .await?)
    }

    /// What one claim may connect to at most; `None` where its project's policy alone says it.
    pub async fn claim_egress(&self, vm: &VmId) -> Result<Option<EgressPolicy>, StoreError> {
        let policy: Option<String> = db::query_scalar(
            "SELECT policy FROM claim_egress JOIN instance ON instance.id = claim_egress.instance_id WHERE vm_id = $1",
        )
        .bind(vm.as_str())
        .fetch_optional(&self.read)
        .await?;
        policy.map(|text| from_json("claim_egress.policy", &text)).transpose()
    }

    /// Sets what one claim may connect to at most, or that its project's policy alone says it.
    pub async fn put_claim_egress(
        &self,
        instance: &InstanceId,
        policy: Option<&EgressPolicy>,
    ) -> Result<(), StoreError> {
        match policy {
            Some(policy) => {
                db::query(
                    "INSERT INTO claim_egress (instance_id, policy) SELECT instance_id, $2 FROM claim WHERE instance_id = $1
                     ON CONFLICT (instance_id) DO UPDATE SET policy = excluded.policy",
                )
                .bind(instance.to_string())
                .bind(to_json(policy)?)
                .run_on(&self.write)
                .await?
            }
            None => {
                db::query("DELETE FROM claim_egress WHERE instance_id = $1")
                    .bind(instance.to_string())
                    .run_on(&self.write)
                    .await?
            }
        };
        Ok(())
    }
}
