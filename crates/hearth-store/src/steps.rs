//! The log of an instance: the entries of its steps, in order.

use hearth_api::event::EventKind;
use hearth_api::ids::InstanceId;
use hearth_api::instance::{Step, StepName, StepStatus, failure_with_names};
use hearth_core::step_record::StepRecord;
use jiff::Timestamp;
use serde_json::json;

use super::events::Change;
use super::{InstanceRow, Store, StoreError, db, from_json, millis, to_json};

impl Store {
    /// Appends a step's entry.
    pub async fn append_step(&self, id: &InstanceId, record: &StepRecord) -> Result<(), StoreError> {
        let step = record.to_step();
        let mut tx = self.write.begin_shared().await?;
        let project: Option<String> = db::query_scalar("SELECT project_id FROM instance WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        let Some(project) = project else {
            return Ok(());
        };
        db::query(
            "INSERT INTO step (instance_id, seq, entry)
             SELECT $1, coalesce(max(seq), 0) + 1, $2 FROM step WHERE instance_id = $1",
        )
        .bind(id.as_str())
        .bind(to_json(&step)?)
        .execute(&mut *tx)
        .await?;
        let detail = json!({ "step": step.name, "status": step.status, "durationMs": step.duration_ms });
        let change = Change::of_instance(EventKind::InstanceStep, &project, id, record.timestamp);
        tx.tell(change.because(step.error.as_deref()).with(detail)).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The steps that have ended, in order.
    pub async fn steps(&self, id: &InstanceId) -> Result<Vec<Step>, StoreError> {
        let entries: Vec<String> = db::query_scalar("SELECT entry FROM step WHERE instance_id = $1 ORDER BY seq")
            .bind(id.as_str())
            .fetch_all(&self.read)
            .await?;
        entries.iter().map(|entry| from_json("step.entry", entry)).collect()
    }

    /// Whether the first step made a VM for it.
    pub(super) async fn made_vm(&self, id: &InstanceId) -> Result<bool, StoreError> {
        let is_done = |step: &Step| step.name == StepName::CreateVm.as_str() && step.status == StepStatus::Success;
        Ok(self.steps(id).await?.iter().any(is_done))
    }

    /// Why an instance failed, with the step and the command; `None` when it did not.
    pub async fn failure_of(&self, row: &InstanceRow) -> Result<Option<String>, StoreError> {
        let Some(reason) = &row.failure_reason else {
            return Ok(None);
        };
        let steps = self.steps(&row.id).await?;
        Ok(Some(failure_with_names(&steps, reason)))
    }

    /// No task works on it any more and its VM is gone: it begins again, with a log of its own. False when it is too late.
    pub async fn begin_again(&self, id: &InstanceId, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let again: Option<String> = db::query_scalar(
            "UPDATE instance SET started_by = NULL, restarts = restarts + 1, interrupted_at = $2
             WHERE id = $1 AND state = 'provisioning' AND started_by IS NOT NULL RETURNING project_id",
        )
        .bind(id.as_str())
        .bind(millis(now))
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(project) = &again {
            let change = Change::of_instance(EventKind::InstanceInterrupted, project, id, now);
            tx.tell(change.because("a server ended in the middle of its boot"))
                .await?;
            db::query("DELETE FROM step WHERE instance_id = $1")
                .bind(id.as_str())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(again.is_some())
    }
}
