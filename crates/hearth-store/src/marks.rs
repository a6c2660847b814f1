//! Marks on the rows of instances that decide no state: reserved for a claim, worked in, restarted, ended.

use hearth_api::ids::InstanceId;
use jiff::Timestamp;

use super::{RunOn as _, Store, StoreError, millis};

impl Store {
    /// Gives a reserved instance to the pool, or (when it is not needed there) to garbage collection.
    pub async fn unreserve_instance(&self, id: &InstanceId) -> Result<(), StoreError> {
        sqlx::query("UPDATE instance SET purpose = 'pool' WHERE id = ?1 AND purpose = 'claim'")
            .bind(id.as_str())
            .run_on(&self.write)
            .await?;
        Ok(())
    }

    /// At start: no claim waits any more.
    pub async fn unreserve_all(&self) -> Result<(), StoreError> {
        self.freeing(|| self.unreserve_all_once()).await
    }

    async fn unreserve_all_once(&self) -> Result<(), StoreError> {
        sqlx::query("UPDATE instance SET purpose = 'pool' WHERE purpose = 'claim'")
            .run_on(&self.write)
            .await?;
        Ok(())
    }

    /// A client begins to work in the VM of an instance that is not claimed.
    pub async fn note_work(&self, id: &InstanceId) -> Result<(), StoreError> {
        sqlx::query("UPDATE instance SET worked_in = 1 WHERE id = ?1 AND state <> 'claimed'")
            .bind(id.as_str())
            .run_on(&self.write)
            .await?;
        Ok(())
    }

    /// Notes that the guest of an instance has restarted. False when that is known.
    pub async fn note_reboot(&self, id: &InstanceId, boot_id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let done =
            sqlx::query("UPDATE instance SET boot_id = ?2, rebooted_at = ?3 WHERE id = ?1 AND boot_id IS NOT ?2")
                .bind(id.as_str())
                .bind(boot_id)
                .bind(millis(now))
                .run_on(&self.write)
                .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Notes that the VM of a claimed instance has ended by itself. False when that is known, or nobody has claimed it any more.
    pub async fn note_vm_ended(&self, id: &InstanceId, why: &str, now: Timestamp) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE instance SET vm_ended_at = ?2, vm_ended_why = ?3 WHERE id = ?1 AND state = 'claimed' AND vm_ended_at IS NULL",
        )
        .bind(id.as_str())
        .bind(millis(now))
        .bind(why)
        .run_on(&self.write)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
