//! The controller's lease: of several servers on one store one acts on the pools.

use jiff::{SignedDuration, Timestamp};

use super::{RunOn as _, Store, StoreError, db, millis};

impl Store {
    /// Takes the lease, or renews it; its generation, which counts up with every new holder. `None` while another server has it.
    /// `alone`: its earlier holder is known to be gone.
    pub async fn hold_controller(
        &self,
        holder: &str,
        now: Timestamp,
        length: SignedDuration,
        alone: bool,
    ) -> Result<Option<i64>, StoreError> {
        let mut tx = self.write.begin_shared().await?;
        let generation = db::query_scalar(
            "INSERT INTO controller (id, holder, generation, expires_at) VALUES (1, $1, 1, $3)
             ON CONFLICT (id) DO UPDATE
             SET generation = controller.generation + CASE WHEN controller.holder = excluded.holder THEN 0 ELSE 1 END,
                 holder = excluded.holder, expires_at = excluded.expires_at
             WHERE controller.holder = excluded.holder OR controller.expires_at <= $2 OR $4
             RETURNING generation",
        )
        .bind(holder)
        .bind(millis(now))
        .bind(millis(now + length))
        .bind(alone)
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(generation)
    }

    /// Lets go of the lease.
    pub async fn release_controller(&self, holder: &str) -> Result<(), StoreError> {
        db::query("UPDATE controller SET expires_at = 0 WHERE holder = $1")
            .bind(holder)
            .run_on(&self.write)
            .await?;
        Ok(())
    }

    /// The host's clock jumped ahead: leases last as long as they were given, not as long as the clock says.
    pub async fn shift_leases(&self, by: SignedDuration) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        db::query(
            "UPDATE claim SET expires_at = expires_at + $1
             WHERE ended_at IS NULL AND instance_id IN (SELECT id FROM instance WHERE server = $2)",
        )
        .bind(i64::try_from(by.as_millis()).unwrap_or_default())
        .bind(self.server())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Database, Kind, on_both};

    on_both!(one_holds_it_until_it_lets_go_or_its_time_is_up);

    async fn one_holds_it_until_it_lets_go_or_its_time_is_up(kind: Kind) {
        let database = Database::new(kind);
        let (one, other) = (database.open().await, database.open().await);
        let (now, length) = (Timestamp::UNIX_EPOCH, SignedDuration::from_secs(30));
        let late = now + SignedDuration::from_secs(31);
        assert_eq!(one.hold_controller("a", now, length, false).await.unwrap(), Some(1));
        assert_eq!(one.hold_controller("a", now, length, false).await.unwrap(), Some(1));
        assert_eq!(other.hold_controller("b", now, length, false).await.unwrap(), None);
        assert_eq!(other.hold_controller("b", late, length, false).await.unwrap(), Some(2));
        assert_eq!(one.hold_controller("a", late, length, false).await.unwrap(), None);
        other.release_controller("b").await.unwrap();
        assert_eq!(one.hold_controller("a", late, length, false).await.unwrap(), Some(3));
        assert_eq!(other.hold_controller("b", late, length, true).await.unwrap(), Some(4));
    }
}
