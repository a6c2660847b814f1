//! Moves of instances: [`Store::move_instance`] is the one function that writes a state, and with each state goes its event.

use hearth_api::event::EventKind;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_core::state::InstanceState;
use hearth_core::world::Failure;
use jiff::Timestamp;
use serde_json::json;

use super::events::{Change, kind_of};
use super::writer::Writing;
use super::{NewInstance, Store, StoreError, db, millis, parse};

/// What is said of an instance that became ready.
const READY: &str = "its set-up is done, and a command ran in it";
/// Why an instance is of no use any more.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// It has failed.
    Failed(&'a Failure),
    /// Its VM goes, for this reason; its record stays.
    Retired(&'a str),
}

impl<'a> End<'a> {
    fn state(self) -> InstanceState {
        match self {
            Self::Failed(_) => InstanceState::Failed,
            Self::Retired(_) => InstanceState::Retiring,
        }
    }

    fn why(self) -> &'a str {
        match self {
            Self::Failed(failure) => failure.reason.as_str(),
            Self::Retired(why) => why,
        }
    }
}

/// How a move ended. Losing the race is normal: another task decided first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// The row is in the new state, with this generation.
    To(i64),
    /// The row is gone, in another generation, or in a state from which the move is not legal.
    Lost,
}

/// What a move says of the row.
#[derive(sqlx::FromRow)]
struct MovedRow {
    generation: i64,
    project_id: String,
    purpose: String,
    recipe: String,
}

/// The states from which a move is legal, each between blanks: both databases can look for one in that.
fn legal_sources(to: InstanceState) -> String {
    let sources = to.legal_sources().iter();
    sources.fold(" ".to_owned(), |all, state| all + state.as_str() + " ")
}

/// Moves a row within a transaction, and tells of it: state, legal sources and generation are checked in the same statement.
pub(super) async fn move_row(
    tx: &mut Writing,
    id: &InstanceId,
    to: InstanceState,
    generation: Option<i64>,
    why: &str,
    now: Timestamp,
) -> Result<Moved, StoreError> {
    let moved: Option<MovedRow> = db::query_as(
        "UPDATE instance SET state = $2, generation = generation + 1, state_since = $3,
                             provisioned_at = CASE WHEN $2 = 'ready' THEN $3 ELSE provisioned_at END
         WHERE id = $1 AND ($4 IS NULL OR generation = $4) AND $5 LIKE '% ' || state || ' %'
         RETURNING generation, project_id, purpose, recipe",
    )
    .bind(id.as_str())
    .bind(to.as_str())
    .bind(millis(now))
    .bind(generation)
    .bind(legal_sources(to))
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = moved else {
        return Ok(Moved::Lost);
    };
    let detail = json!({ "purpose": row.purpose, "recipe": row.recipe });
    let change = Change::of_instance(kind_of(to), &row.project_id, id, now);
    tx.tell(change.because(why).with(detail)).await?;
    Ok(Moved::To(row.generation))
}

/// Moves rows to `deleting` within a transaction; those that were moved.
pub(super) async fn delete_rows(
    tx: &mut Writing,
    ids: Vec<String>,
    why: &str,
    now: Timestamp,
) -> Result<Vec<InstanceId>, StoreError> {
    let mut moved = Vec::with_capacity(ids.len());
    for id in ids {
        let id: InstanceId = parse("instance.id", &id)?;
        if move_row(tx, &id, InstanceState::Deleting, None, why, now).await? != Moved::Lost {
            moved.push(id);
        }
    }
    Ok(moved)
}

/// Ends the claim of an instance, if it has one that has not ended.
pub(super) async fn end_claim(tx: &mut Writing, id: &InstanceId, why: &str, now: Timestamp) -> Result<(), StoreError> {
    let ended: Option<String> = db::query_scalar(
        "UPDATE claim SET ended_at = $2 WHERE instance_id = $1 AND ended_at IS NULL RETURNING project_id",
    )
    .bind(id.as_str())
    .bind(millis(now))
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(project) = ended {
        let change = Change::of_instance(EventKind::ClaimEnded, &project, id, now);
        tx.tell(change.because(why)).await?;
    }
    Ok(())
}

impl Store {
    /// Writes a row in the state `provisioning`. Refused where another server has the project's pool by now.
    pub async fn insert_instance(&self, new: &NewInstance, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write.begin_shared().await?;
        let done = db::query(
            "INSERT INTO instance (id, project_id, vm_id, state, generation, purpose, recipe, memory_mib,
                                   started_by, created_at, state_since, server)
             SELECT $1, $2, $3, 'provisioning', 1, $4, $5, $6, $7, $8, $8, $9
             WHERE $9 = '' OR EXISTS (SELECT 1 FROM home WHERE project_id = $2 AND server = $9)",
        )
        .bind(new.id.as_str())
        .bind(new.project.as_str())
        .bind(new.vm.as_str())
        .bind(new.purpose.as_str())
        .bind(&new.recipe)
        .bind(i64::try_from(new.memory_mib).unwrap_or(i64::MAX))
        .bind(&new.started_by)
        .bind(millis(now))
        .bind(self.server())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::NotAtHome);
        }
        let detail = json!({ "purpose": new.purpose.as_str(), "recipe": new.recipe });
        let change = Change::of_instance(EventKind::InstanceProvisioning, new.project.as_str(), &new.id, now);
        tx.tell(change.because(new.reason.as_str()).with(detail)).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Records that this server begins to make an instance, by this recipe. False when it is too late.
    pub async fn start_instance(&self, id: &InstanceId, session: &str, recipe: &str) -> Result<bool, StoreError> {
        let mut tx = self.write.begin_shared().await?;
        let started: Option<String> = db::query_scalar(
            "UPDATE instance SET started_by = $2, recipe = $3
             WHERE id = $1 AND state = 'provisioning' AND started_by IS NULL RETURNING project_id",
        )
        .bind(id.as_str())
        .bind(session)
        .bind(recipe)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(project) = &started {
            let change = Change::of_instance(EventKind::InstanceStarted, project, id, Timestamp::now());
            tx.tell(change.with(json!({ "recipe": recipe }))).await?;
        }
        tx.commit().await?;
        Ok(started.is_some())
    }

    /// The one function that writes a state. `generation` is the one the decision was made on, if any; `why` is for people, and says nothing
    /// that is not redacted.
    pub async fn move_instance(
        &self,
        id: &InstanceId,
        to: InstanceState,
        generation: Option<i64>,
        why: &str,
        now: Timestamp,
    ) -> Result<Moved, StoreError> {
        match to {
            InstanceState::Retiring | InstanceState::Archived | InstanceState::Deleting => {
                self.freeing(|| self.move_instance_once(id, to, generation, why, now))
                    .await
            }
            _ => self.move_instance_once(id, to, generation, why, now).await,
        }
    }

    /// An instance is made: it can be claimed.
    pub async fn instance_ready(&self, id: &InstanceId, now: Timestamp) -> Result<Moved, StoreError> {
        self.move_instance(id, InstanceState::Ready, None, READY, now).await
    }

    async fn move_instance_once(
        &self,
        id: &InstanceId,
        to: InstanceState,
        generation: Option<i64>,
        why: &str,
        now: Timestamp,
    ) -> Result<Moved, StoreError> {
        let mut tx = self.write.begin_shared().await?;
        let moved = move_row(&mut tx, id, to, generation, why, now).await?;
        if moved != Moved::Lost && to == InstanceState::Ready {
            db::query(
                "UPDATE pool SET last_provisioned_at = $2
                 WHERE project_id = (SELECT project_id FROM instance WHERE id = $1 AND serves_claims)",
            )
            .bind(id.as_str())
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
        }
        if moved != Moved::Lost && to == InstanceState::Deleting {
            end_claim(&mut tx, id, why, now).await?;
        }
        tx.commit().await?;
        Ok(moved)
    }

    /// Moves to `failed` or `retiring` with the reason, in one transaction. `generation` is the one the decision was made on, if any.
    pub async fn end_instance(
        &self,
        id: &InstanceId,
        generation: Option<i64>,
        end: End<'_>,
        now: Timestamp,
    ) -> Result<Moved, StoreError> {
        self.freeing(|| self.end_instance_once(id, generation, end, now)).await
    }

    async fn end_instance_once(
        &self,
        id: &InstanceId,
        generation: Option<i64>,
        end: End<'_>,
        now: Timestamp,
    ) -> Result<Moved, StoreError> {
        // The disk was full, say: no VM has ended that never was.
        let ends_vm = matches!(end, End::Retired(_)) && self.made_vm(id).await?;
        let mut tx = self.write.begin_shared().await?;
        let moved = move_row(&mut tx, id, end.state(), generation, end.why(), now).await?;
        if moved != Moved::Lost {
            match end {
                End::Failed(failure) => {
                    db::query("UPDATE instance SET failure_kind = $2, failure_reason = $3 WHERE id = $1")
                        .bind(id.as_str())
                        .bind(failure.kind.as_str())
                        .bind(failure.reason.as_str())
                        .execute(&mut *tx)
                        .await?;
                }
                End::Retired(why) if ends_vm => {
                    db::query("UPDATE instance SET vm_ended_at = $2, vm_ended_why = $3 WHERE id = $1")
                        .bind(id.as_str())
                        .bind(millis(now))
                        .bind(why)
                        .execute(&mut *tx)
                        .await?;
                }
                End::Retired(_) => {}
            }
        }
        tx.commit().await?;
        Ok(moved)
    }

    /// Removes the row of an instance whose VM is gone.
    pub async fn forget_instance(&self, id: &InstanceId) -> Result<(), StoreError> {
        self.freeing(|| self.forget_instance_once(id)).await
    }

    async fn forget_instance_once(&self, id: &InstanceId) -> Result<(), StoreError> {
        let mut tx = self.write.begin_shared().await?;
        let gone: Option<String> =
            db::query_scalar("DELETE FROM instance WHERE id = $1 AND state = 'deleting' RETURNING project_id")
                .bind(id.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        if let Some(project) = &gone {
            let change = Change::of_instance(EventKind::InstanceRemoved, project, id, Timestamp::now());
            tx.tell(change.because("its VM is gone")).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Marks for deletion everything `clear` removes, and says which.
    pub async fn clear_instances(&self, project: &ProjectId, now: Timestamp) -> Result<Vec<InstanceId>, StoreError> {
        self.freeing(|| self.clear_instances_once(project, now)).await
    }

    async fn clear_instances_once(&self, project: &ProjectId, now: Timestamp) -> Result<Vec<InstanceId>, StoreError> {
        let mut tx = self.write.begin().await?;
        let ids: Vec<String> = db::query_scalar(
            "SELECT id FROM instance
             WHERE project_id = $1 AND (purpose <> 'claim' OR failure_reason IS NOT NULL) AND state NOT IN ('claimed', 'deleting')",
        )
        .bind(project.as_str())
        .fetch_all(&mut *tx)
        .await?;
        let cleared = delete_rows(&mut tx, ids, "the pool was cleared", now).await?;
        tx.commit().await?;
        Ok(cleared)
    }
}
