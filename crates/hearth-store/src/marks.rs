//! Marks on the rows of instances that decide no state: reserved for a claim, worked in, restarted, ended.

use hearth_api::event::EventKind;
use hearth_api::ids::InstanceId;
use jiff::Timestamp;

use super::events::Change;
use super::writer::Writing;
use super::{RunOn as _, Store, StoreError, db, millis, parse};

/// Tells of instances (id, project) that belong to the pool from now on.
async fn tell_pooled(tx: &mut Writing, pooled: Vec<(String, String)>) -> Result<(), StoreError> {
    for (id, project) in pooled {
        let id = parse("instance.id", &id)?;
        let change = Change::of_instance(EventKind::InstancePooled, &project, &id, Timestamp::now());
        tx.tell(change.because("the claim that it was made for is gone"))
            .await?;
    }
    Ok(())
}

impl Store {
    /// Gives a reserved instance to the pool, or (when it is not needed there) to garbage collection.
    pub async fn unreserve_instance(&self, id: &InstanceId) -> Result<(), StoreError> {
        let mut tx = self.write.begin_shared().await?;
        let pooled: Vec<(String, String)> = db::query_as(
            "UPDATE instance SET purpose = 'pool' WHERE id = $1 AND purpose = 'claim' RETURNING id, project_id",
        )
        .bind(id.as_str())
        .fetch_all(&mut *tx)
        .await?;
        tell_pooled(&mut tx, pooled).await?;
        tx.commit().await?;
        Ok(())
    }

    /// At start: no claim waits for this server any more.
    pub async fn unreserve_all(&self) -> Result<(), StoreError> {
        self.freeing(|| self.unreserve_all_once()).await
    }

    async fn unreserve_all_once(&self) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        let pooled: Vec<(String, String)> = db::query_as(
            "UPDATE instance SET purpose = 'pool' WHERE server = $1 AND purpose = 'claim' RETURNING id, project_id",
        )
        .bind(self.server())
        .fetch_all(&mut *tx)
        .await?;
        tell_pooled(&mut tx, pooled).await?;
        tx.commit().await?;
        Ok(())
    }

    /// A client begins to work in the VM of an instance that is not claimed.
    pub async fn note_work(&self, id: &InstanceId) -> Result<(), StoreError> {
        db::query("UPDATE instance SET worked_in = TRUE WHERE id = $1 AND state <> 'claimed'")
            .bind(id.as_str())
            .run_on(&self.write)
            .await?;
        Ok(())
    }

    /// Notes that the guest of an instance has restarted. False when that is known.
    pub async fn note_reboot(&self, id: &InstanceId, boot_id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write.begin_shared().await?;
        let noted: Option<String> = db::query_scalar(
            "UPDATE instance SET boot_id = $2, rebooted_at = $3 WHERE id = $1 AND boot_id IS DISTINCT FROM $2 RETURNING project_id",
        )
        .bind(id.as_str())
        .bind(boot_id)
        .bind(millis(now))
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(project) = &noted {
            tx.tell(Change::of_instance(EventKind::InstanceRebooted, project, id, now))
                .await?;
        }
        tx.commit().await?;
        Ok(noted.is_some())
    }

    /// Notes that the VM of a claimed instance has ended by itself. False when that is known, or nobody has claimed it any more.
    pub async fn note_vm_ended(&self, id: &InstanceId, why: &str, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write.begin_shared().await?;
        let noted: Option<String> = db::query_scalar(
            "UPDATE instance SET vm_ended_at = $2, vm_ended_why = $3
             WHERE id = $1 AND state = 'claimed' AND vm_ended_at IS NULL RETURNING project_id",
        )
        .bind(id.as_str())
        .bind(millis(now))
        .bind(why)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(project) = &noted {
            let change = Change::of_instance(EventKind::InstanceEnded, project, id, now);
            tx.tell(change.because(why)).await?;
        }
        tx.commit().await?;
        Ok(noted.is_some())
    }
}
