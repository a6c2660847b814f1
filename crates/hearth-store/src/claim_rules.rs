//! What projects say of their claims, and what of it is due: how many there may be, when their VMs are paused, when the end of a lease is
//! warned of.

use super::db::On;
use hearth_api::ids::{InstanceId, ProjectId, TokenId, VmId};
use hearth_core::claim::Held;
use jiff::Timestamp;

use super::{RunOn as _, Store, StoreError, db, parse, timestamp};

/// When the end of a lease is warned of where the project does not say it, minutes before.
const LEASE_WARNING_MINUTES: u32 = 10;

/// What a project says of its claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimRules {
    /// Most claims that may hold a VM at once.
    pub max_claims: Option<u32>,
    /// A claimed VM that nobody uses for so long is paused.
    pub idle_pause_minutes: Option<u32>,
    /// To the disk, not in memory.
    pub idle_pause_to_disk: bool,
    /// So long before its end a lease is warned of; 0: not at all.
    pub lease_warning_minutes: u32,
}

impl Default for ClaimRules {
    fn default() -> Self {
        Self {
            max_claims: None,
            idle_pause_minutes: None,
            idle_pause_to_disk: false,
            lease_warning_minutes: LEASE_WARNING_MINUTES,
        }
    }
}

/// A claim that holds a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub id: InstanceId,
    /// Whose token claimed it.
    pub owner: Option<String>,
    /// When its lease ends.
    pub expires_at: Timestamp,
}

/// A claimed VM that is to be paused when nobody uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleRule {
    pub id: InstanceId,
    pub vm: VmId,
    pub minutes: u32,
    pub to_disk: bool,
}

/// How many claims of a project hold a VM, where it has a limit.
pub(super) async fn claims_held<'a>(
    from: impl Into<On<'a>> + Send,
    project: &ProjectId,
) -> Result<Option<Held>, StoreError> {
    let asked = "SELECT (SELECT count(*) FROM claim WHERE project_id = $1 AND ended_at IS NULL), max_claims
         FROM project WHERE id = $1 AND max_claims IS NOT NULL";
    held(from, asked, project.as_str()).await
}

/// How many VMs the claims of a token hold, where it has a limit.
pub(super) async fn token_claims_held<'a>(
    from: impl Into<On<'a>> + Send,
    token: &TokenId,
) -> Result<Option<Held>, StoreError> {
    let asked = "SELECT (SELECT count(*) FROM claim WHERE token_id = $1 AND ended_at IS NULL), max_vms
         FROM token WHERE id = $1 AND max_vms IS NOT NULL";
    held(from, asked, token.as_str()).await
}

/// Whether a project or a token has a limit of claims. Until the transaction ends nobody else counts what is held against it.
pub(super) async fn lock_limits(tx: &mut db::Tx, project: &ProjectId, token: &TokenId) -> Result<bool, StoreError> {
    let lock = tx.dialect().lock_rows();
    let limits = format!(
        "WITH of_project AS (SELECT id FROM project WHERE id = $1 AND max_claims IS NOT NULL {lock}),
              of_token AS (SELECT id FROM token WHERE id = $2 AND max_vms IS NOT NULL {lock})
         SELECT (SELECT count(*) FROM of_project) + (SELECT count(*) FROM of_token)"
    );
    let limits: i64 = db::query_scalar(sqlx::AssertSqlSafe(limits))
        .bind(project.as_str())
        .bind(token.as_str())
        .fetch_one(tx)
        .await?;
    Ok(limits > 0)
}

/// What a statement says of one id: how many there are, and how many there may be.
async fn held<'a>(from: impl Into<On<'a>> + Send, asked: &'static str, id: &str) -> Result<Option<Held>, StoreError> {
    let found: Option<(i64, i64)> = db::query_as(asked).bind(id).fetch_optional(from).await?;
    let number = |number: i64| u64::try_from(number).unwrap_or_default();
    Ok(found.map(|(now, most)| Held {
        now: number(now),
        most: number(most),
    }))
}

impl Store {
    /// How many VMs the claims of a token hold, where it has a limit.
    pub async fn token_claims_held(&self, token: &TokenId) -> Result<Option<Held>, StoreError> {
        token_claims_held(&self.read, token).await
    }

    /// How many claims of a project hold a VM, where it has a limit.
    pub async fn claims_held(&self, project: &ProjectId) -> Result<Option<Held>, StoreError> {
        claims_held(&self.read, project).await
    }

    /// Who holds a project's VMs, those first whose lease ends first.
    pub async fn claim_holders(&self, project: &ProjectId) -> Result<Vec<Holder>, StoreError> {
        let rows: Vec<(String, Option<String>, i64)> = db::query_as(
            "SELECT instance_id, owner, expires_at FROM claim WHERE project_id = $1 AND ended_at IS NULL
             ORDER BY expires_at, instance_id",
        )
        .bind(project.as_str())
        .fetch_all(&self.read)
        .await?;
        rows.into_iter()
            .map(|(id, owner, expires_at)| {
                Ok(Holder {
                    id: parse("claim.instance_id", &id)?,
                    owner,
                    expires_at: timestamp(expires_at)?,
                })
            })
            .collect()
    }

    /// The claimed VMs of this server that are to be paused when nobody uses them.
    pub async fn idle_rules(&self) -> Result<Vec<IdleRule>, StoreError> {
        let rows: Vec<(String, String, i64, bool)> = db::query_as(
            "SELECT claim.instance_id, instance.vm_id, project.idle_pause_minutes, project.idle_pause_to_disk
             FROM project
             JOIN claim ON claim.project_id = project.id AND claim.ended_at IS NULL AND claim.handed_over
             JOIN instance ON instance.id = claim.instance_id AND instance.state = 'claimed' AND instance.vm_ended_at IS NULL
               AND instance.server = $1
             WHERE project.idle_pause_minutes IS NOT NULL",
        )
        .bind(self.server())
        .fetch_all(&self.read)
        .await?;
        rows.into_iter()
            .map(|(id, vm, minutes, to_disk)| {
                Ok(IdleRule {
                    id: parse("claim.instance_id", &id)?,
                    vm: parse("instance.vm_id", &vm)?,
                    minutes: u32::try_from(minutes)
                        .map_err(|error| StoreError::corrupt("project.idle_pause_minutes", error))?,
                    to_disk,
                })
            })
            .collect()
    }

    /// Records why a claimed VM was paused; `None`: its owner wanted it.
    pub async fn note_paused(&self, instance: &InstanceId, because: Option<&str>) -> Result<(), StoreError> {
        db::query("UPDATE claim SET paused_because = $2 WHERE instance_id = $1 AND paused_because IS DISTINCT FROM $2")
            .bind(instance.as_str())
            .bind(because)
            .run_on(&self.write)
            .await?;
        Ok(())
    }
}
