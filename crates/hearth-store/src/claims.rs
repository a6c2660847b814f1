//! Claims: the hand-over in one transaction.

use std::collections::BTreeMap;

use hearth_api::claim::ClaimReply;
use hearth_api::event::EventKind;
use hearth_api::explain::HandOver;
use hearth_api::ids::{InstanceId, ProjectId, TokenId};
use hearth_api::time;
use hearth_core::state::InstanceState;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::claim_rules::{claims_held, lock_limits, token_claims_held};
use super::dialect::Dialect;
use super::events::Change;
use super::forks::undo_claim;
use super::instances::select_instance;
use super::moves::{delete_rows, move_row};
use super::{
    InstanceRow, Moved, RunOn as _, Store, StoreError, db, from_json, millis, optional_timestamp, parse, timestamp,
    to_json,
};

/// A claim's fields that decide which VM it gets, and a keyed hash of what each said.
pub type AskedFields = BTreeMap<String, String>;

/// A claim that was made.
#[derive(Debug, Clone)]
pub struct ClaimRow {
    /// Whose pool it was made on.
    pub project: ProjectId,
    /// Hash of the request's body.
    pub body_hash: String,
    /// What each field said that decides which VM it is; nothing in claims of earlier versions.
    pub asked: Option<AskedFields>,
    /// The token that claimed.
    pub token: TokenId,
    /// What was answered, with the end of the lease as it is now.
    pub reply: ClaimReply,
    /// The VM became the task's own: the claim was answered, or could have been.
    pub handed_over: bool,
    /// What the hand-over saw and where its time went, once that is written.
    pub hand_over: Option<HandOver>,
    /// Why its VM was last paused, when Hearth did it.
    pub paused_because: Option<String>,
    /// Length of its lease.
    pub lease: SignedDuration,
    /// Whose token claimed; not known of some claims of earlier versions.
    pub owner: Option<String>,
    /// Idempotency key.
    pub key: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was released or ran out.
    pub ended_at: Option<Timestamp>,
}

/// How many instances a claim found ready, for anyone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadyCount {
    pub ready: u32,
    /// Of the target recipe.
    pub current: u32,
}

/// A claim to be made.
#[derive(Debug, Clone)]
pub struct NewClaim<'a> {
    pub project: &'a ProjectId,
    /// Idempotency key.
    pub key: Option<&'a str>,
    /// Hash of the request's body.
    pub body_hash: &'a str,
    /// What each field said that decides which VM it is.
    pub asked: &'a AskedFields,
    /// The token that claims.
    pub token: &'a TokenId,
    /// Whose token it is.
    pub owner: &'a str,
    /// Only an instance of this recipe.
    pub strict_recipe: Option<&'a str>,
    /// Only this instance (one that was made for the claim).
    pub only: Option<&'a InstanceId>,
    /// Length of the lease.
    pub lease: SignedDuration,
}

/// How letting a lease end later ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extended {
    /// It ends then.
    Until(Timestamp),
    /// It would end too late, and ends when it did.
    TooFar {
        /// When that is.
        end: Timestamp,
    },
    /// The instance is not claimed any more.
    NotClaimed,
}

/// How taking an instance ended.
#[derive(Debug, Clone)]
pub enum Taken {
    /// It is claimed, and this is the stored answer.
    Instance(Box<InstanceRow>, Box<ClaimReply>, ReadyCount),
    /// The key was used before.
    Before,
    /// The project's claims, or the token's, hold as many VMs as they may.
    Full,
    /// No instance will do.
    Nothing(ReadyCount),
}

#[derive(sqlx::FromRow)]
struct Raw {
    project_id: String,
    body_hash: String,
    asked: Option<String>,
    token_id: String,
    reply: String,
    handed_over: bool,
    hand_over: Option<String>,
    paused_because: Option<String>,
    lease_ms: i64,
    owner: Option<String>,
    key: Option<String>,
    created_at: i64,
    expires_at: i64,
    ended_at: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct Picked {
    id: String,
    recipe: String,
    ready: i64,
    current: i64,
}

impl TryFrom<Raw> for ClaimRow {
    type Error = StoreError;
    fn try_from(raw: Raw) -> Result<Self, StoreError> {
        let asked = raw.asked.map(|text| from_json("claim.asked", &text));
        let hand_over = raw.hand_over.map(|text| from_json("claim.hand_over", &text));
        Ok(Self {
            project: parse("claim.project_id", &raw.project_id)?,
            body_hash: raw.body_hash,
            asked: asked.transpose()?,
            token: parse("claim.token_id", &raw.token_id)?,
            reply: ClaimReply {
                // It was renewed since, perhaps more than once.
                expires_at: timestamp(raw.expires_at)?,
                ..from_json("claim.reply", &raw.reply)?
            },
            handed_over: raw.handed_over,
            hand_over: hand_over.transpose()?,
            paused_because: raw.paused_because,
            lease: SignedDuration::from_millis(raw.lease_ms),
            owner: raw.owner,
            key: raw.key,
            created_at: timestamp(raw.created_at)?,
            ended_at: optional_timestamp(raw.ended_at)?,
        })
    }
}

/// The statement that picks a ready row: nobody else gets it until the transaction ends.
fn pick(dialect: Dialect) -> String {
    /// Of a pool, or the one that was made for the claim; with its VM on this server.
    const FITS: &str = "project_id = $1 AND server = $4 AND state = 'ready' AND serves_claims AND ($2 IS NULL AND purpose = 'pool' OR id = $2)";
    let lock = dialect.skip_locked("instance");
    format!(
        "WITH counted AS (SELECT count(*) AS ready, count(*) FILTER (WHERE recipe = $3) AS current FROM instance WHERE {FITS})
         SELECT id, recipe, ready, current FROM instance, counted
         WHERE {FITS} ORDER BY recipe = $3 DESC, state_since LIMIT 1 {lock}"
    )
}

/// What is told of a claim whose VM is the task's own; `seen` by the hand-over of a VM of the pool.
pub(super) fn handed_over(reply: &ClaimReply, seen: Option<&HandOver>) -> serde_json::Value {
    let phases: BTreeMap<&str, f64> = seen
        .into_iter()
        .flat_map(|seen| &seen.phases)
        .map(|phase| (phase.name.as_str(), phase.ms))
        .collect();
    json!({
        "source": reply.source,
        "waitMs": reply.wait_ms,
        "recipe": reply.recipe,
        "stale": reply.stale,
        "cause": seen.and_then(|seen| seen.cause),
        "totalMs": seen.map(|seen| seen.total_ms),
        "phasesMs": phases,
    })
}

impl Store {
    /// Picks a ready row and writes the claim in one transaction: the oldest of the newest recipe first.
    /// `reply` makes the answer that is stored for a repeated key.
    pub async fn take_ready(
        &self,
        claim: &NewClaim<'_>,
        current_recipe: &str,
        now: Timestamp,
        reply: impl FnOnce(&InstanceRow, Timestamp) -> ClaimReply,
    ) -> Result<Taken, StoreError> {
        let mut tx = self.write.begin_shared().await?;
        if let Some(key) = claim.key {
            let used = db::query_scalar("SELECT EXISTS (SELECT 1 FROM claim WHERE project_id = $1 AND key = $2)")
                .bind(claim.project.as_str())
                .bind(key)
                .fetch_one(&mut *tx)
                .await?;
            if used {
                return Ok(Taken::Before);
            }
        }
        if lock_limits(&mut tx, claim.project, claim.token).await? {
            let held = claims_held(&mut *tx, claim.project).await?;
            let of_token = token_claims_held(&mut *tx, claim.token).await?;
            if held.into_iter().chain(of_token).any(|held| !held.has_room_for(1)) {
                return Ok(Taken::Full);
            }
        }
        let pick = pick(tx.dialect());
        let picked: Option<Picked> = db::query_as(sqlx::AssertSqlSafe(pick))
            .bind(claim.project.as_str())
            .bind(claim.only.map(InstanceId::as_str))
            .bind(claim.strict_recipe.unwrap_or(current_recipe))
            .bind(self.server())
            .fetch_optional(&mut *tx)
            .await?;
        let ready = picked.as_ref().map_or_else(ReadyCount::default, |picked| ReadyCount {
            ready: u32::try_from(picked.ready).unwrap_or(u32::MAX),
            current: u32::try_from(picked.current).unwrap_or(u32::MAX),
        });
        let will_do = |picked: &Picked| claim.strict_recipe.is_none_or(|recipe| picked.recipe == recipe);
        let Some(picked) = picked.filter(will_do) else {
            return Ok(Taken::Nothing(ready));
        };
        let id: InstanceId = parse("instance.id", &picked.id)?;
        if move_row(&mut tx, &id, InstanceState::Claimed, None, "a claim took it", now).await? == Moved::Lost {
            return Ok(Taken::Nothing(ready));
        }
        let row = select_instance(&mut *tx, &id).await?;
        let Some(row) = row else {
            return Ok(Taken::Nothing(ready));
        };
        let expires_at = now + claim.lease;
        let reply = reply(&row, expires_at);
        let written = db::query(
            "INSERT INTO claim (instance_id, project_id, key, body_hash, token_id, reply, lease_ms, created_at,
                                expires_at, handed_over, asked, owner)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, FALSE, $10, $11)",
        )
        .bind(id.as_str())
        .bind(claim.project.as_str())
        .bind(claim.key)
        .bind(claim.body_hash)
        .bind(claim.token.as_str())
        .bind(to_json(&reply)?)
        .bind(i64::try_from(claim.lease.as_millis()).unwrap_or(i64::MAX))
        .bind(millis(now))
        .bind(millis(expires_at))
        .bind(to_json(claim.asked)?)
        .bind(claim.owner)
        .execute(&mut *tx)
        .await;
        match written {
            // Another server, or another request, was quicker with the same key.
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => return Ok(Taken::Before),
            written => written?,
        };
        // Where another claim is just noting its time that is as good: claims of one pool do not wait for each other.
        let noted = format!(
            "UPDATE pool SET last_claimed_at = $2
             WHERE project_id IN (SELECT project_id FROM pool WHERE project_id = $1 {})",
            tx.dialect().skip_locked("pool")
        );
        db::query(sqlx::AssertSqlSafe(noted))
            .bind(claim.project.as_str())
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Taken::Instance(Box::new(row), Box::new(reply), ready))
    }

    /// How many instances of each recipe are ready and not reserved: what `take_ready` picks from.
    pub async fn ready_by_recipe(&self, project: &ProjectId) -> Result<Vec<(String, usize)>, StoreError> {
        let counts: Vec<(String, i64)> = db::query_as(
            "SELECT recipe, count(*) FROM instance
             WHERE project_id = $1 AND server = $2 AND state = 'ready' AND purpose = 'pool'
             GROUP BY recipe",
        )
        .bind(project.as_str())
        .bind(self.server())
        .fetch_all(&self.read)
        .await?;
        let count = |(recipe, count)| (recipe, usize::try_from(count).unwrap_or_default());
        Ok(counts.into_iter().map(count).collect())
    }

    /// The claim of a key.
    pub async fn claim_of(&self, project: &ProjectId, key: &str) -> Result<Option<ClaimRow>, StoreError> {
        let raw: Option<Raw> = db::query_as("SELECT * FROM claim WHERE project_id = $1 AND key = $2")
            .bind(project.as_str())
            .bind(key)
            .fetch_optional(&self.read)
            .await?;
        raw.map(ClaimRow::try_from).transpose()
    }

    /// The claim of an instance.
    pub async fn claim(&self, instance: &InstanceId) -> Result<Option<ClaimRow>, StoreError> {
        let raw: Option<Raw> = db::query_as("SELECT * FROM claim WHERE instance_id = $1")
            .bind(instance.as_str())
            .fetch_optional(&self.read)
            .await?;
        raw.map(ClaimRow::try_from).transpose()
    }

    /// The VM became the task's own: from now on a repeated key gets this answer. A VM that a claim can be lost with outlives
    /// the server and not the host, so this is not synced.
    pub async fn end_hand_over(
        &self,
        project: &ProjectId,
        reply: &ClaimReply,
        hand_over: &HandOver,
    ) -> Result<(), StoreError> {
        let query = db::query("UPDATE claim SET reply = $2, hand_over = $3, handed_over = TRUE WHERE instance_id = $1")
            .bind(reply.id.to_string())
            .bind(to_json(reply)?)
            .bind(to_json(hand_over)?);
        let change = Change::of_instance(
            EventKind::ClaimHandedOver,
            project.as_str(),
            &reply.id,
            Timestamp::now(),
        );
        let change = change.with(handed_over(reply, Some(hand_over)));
        self.write.run_unsynced(query, change.insert()).await?;
        Ok(())
    }

    /// At start: claims without a key that were not answered are taken back, since no request can ask for them again; and forks that
    /// were being made, all of them.
    pub async fn undo_unanswered_claims(&self, now: Timestamp) -> Result<(), StoreError> {
        self.freeing(|| self.undo_unanswered_claims_once(now)).await
    }

    async fn undo_unanswered_claims_once(&self, now: Timestamp) -> Result<(), StoreError> {
        const UNANSWERED: &str = "FROM claim WHERE NOT handed_over AND ended_at IS NULL
            AND instance_id IN (SELECT id FROM instance WHERE server = $1 AND (claim.key IS NULL OR fork_of IS NOT NULL))";
        let mut tx = self.write.begin().await?;
        let ids = db::query_scalar(sqlx::AssertSqlSafe(format!("SELECT instance_id {UNANSWERED}")))
            .bind(self.server())
            .fetch_all(&mut *tx)
            .await?;
        delete_rows(&mut tx, ids, "nobody can ask for its claim again", now).await?;
        let undone: Vec<(String, String)> = db::query_as(sqlx::AssertSqlSafe(format!(
            "DELETE {UNANSWERED} RETURNING instance_id, project_id"
        )))
        .bind(self.server())
        .fetch_all(&mut *tx)
        .await?;
        for (id, project) in undone {
            let id = parse("claim.instance_id", &id)?;
            let change = Change::of_instance(EventKind::ClaimUndone, &project, &id, now);
            tx.tell(change.because("a server ended before it was answered")).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The instance turned out to be unfit while it was handed over: it is deleted, and its claim never was.
    pub async fn undo_claim(&self, instance: &InstanceId, now: Timestamp) -> Result<(), StoreError> {
        self.freeing(|| self.undo_claim_once(instance, now)).await
    }

    async fn undo_claim_once(&self, instance: &InstanceId, now: Timestamp) -> Result<(), StoreError> {
        const WHY: &str = "its VM could not be handed over, or its request is gone";
        let mut tx = self.write.begin().await?;
        undo_claim(&mut tx, instance, WHY, now).await?;
        move_row(&mut tx, instance, InstanceState::Deleting, None, WHY, now).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Renews a lease; the new end, or `None` when the instance is not claimed any more.
    pub async fn renew_lease(&self, instance: &InstanceId, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let mut tx = self.write.begin_shared().await?;
        let end: Option<i64> = db::query_scalar(
            "UPDATE claim SET expires_at = CASE WHEN expires_at > $2 + lease_ms THEN expires_at ELSE $2 + lease_ms END
             WHERE instance_id = $1 AND ended_at IS NULL
               AND EXISTS (SELECT 1 FROM instance WHERE id = $1 AND state = 'claimed')
             RETURNING expires_at",
        )
        .bind(instance.as_str())
        .bind(millis(now))
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        end.map(timestamp).transpose()
    }

    /// Lets a lease end later by this much, if that is at `latest` at the latest.
    pub async fn extend_lease(
        &self,
        instance: &InstanceId,
        by: SignedDuration,
        latest: Timestamp,
    ) -> Result<Extended, StoreError> {
        let mut tx = self.write.begin().await?;
        let now: Option<i64> = db::query_scalar(
            "SELECT expires_at FROM claim
             WHERE instance_id = $1 AND ended_at IS NULL
               AND EXISTS (SELECT 1 FROM instance WHERE id = $1 AND state = 'claimed')",
        )
        .bind(instance.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(end) = now.map(timestamp).transpose()? else {
            return Ok(Extended::NotClaimed);
        };
        let Some(later) = end.checked_add(by).ok().filter(|later| *later <= latest) else {
            return Ok(Extended::TooFar { end });
        };
        let project: String = db::query_scalar(
            "UPDATE claim SET expires_at = $2 WHERE instance_id = $1 AND ended_at IS NULL RETURNING project_id",
        )
        .bind(instance.as_str())
        .bind(millis(later))
        .fetch_one(&mut *tx)
        .await?;
        let change = Change::of_instance(EventKind::ClaimExtended, &project, instance, Timestamp::now());
        tx.tell(change.with(json!({ "expiresAt": time::format(later) })))
            .await?;
        tx.commit().await?;
        Ok(Extended::Until(later))
    }

    /// Removes claims that ended before this time: their keys may be used again.
    pub async fn forget_claims(&self, ended_before: Timestamp) -> Result<(), StoreError> {
        self.freeing(|| self.forget_claims_once(ended_before)).await
    }

    async fn forget_claims_once(&self, ended_before: Timestamp) -> Result<(), StoreError> {
        let some: bool = db::query_scalar("SELECT EXISTS (SELECT 1 FROM claim WHERE ended_at < $1)")
            .bind(millis(ended_before))
            .fetch_one(&self.read)
            .await?;
        if !some {
            // Every pass asks, and hardly any finds one: the writer is left to others.
            return Ok(());
        }
        db::query("DELETE FROM claim WHERE ended_at < $1")
            .bind(millis(ended_before))
            .run_on(&self.write)
            .await?;
        Ok(())
    }
}
