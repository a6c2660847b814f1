//! Instances: their rows. `moves.rs` writes their states.

use hearth_api::claim::ClaimedRepo;
use hearth_api::ids::{InstanceId, ProjectId, VmId};
use hearth_api::instance::{InstanceItem, InstanceStatus, RepoSettings};
use hearth_api::pool::Status;
use hearth_core::provisioned::Provisioned;
use hearth_core::purpose::Purpose;
use hearth_core::redact::Redacted;
use hearth_core::state::{FailureKind, InstanceState};
use jiff::{SignedDuration, Timestamp};

use super::{RunOn as _, Store, StoreError, db, from_json, millis, optional_timestamp, parse, timestamp, to_json};

/// One instance as the database knows it.
#[derive(Debug, Clone)]
pub struct InstanceRow {
    pub id: InstanceId,
    pub project: ProjectId,
    /// Its VM.
    pub vm: VmId,
    /// The server that runs it; empty where there can be only one.
    pub server: String,
    pub state: InstanceState,
    /// Counts up with every move.
    pub generation: i64,
    /// What it is made for.
    pub purpose: Purpose,
    /// The recipe it is made by.
    pub recipe: String,
    /// Memory of its VM, MiB.
    pub memory_mib: u64,
    /// The server process that began to make it.
    pub started_by: Option<String>,
    /// Whose fault its failure was.
    pub failure_kind: Option<FailureKind>,
    /// Why it failed.
    pub failure_reason: Option<Redacted>,
    /// Its checkouts.
    pub repos: Vec<ClaimedRepo>,
    /// What its repositories' settings files say.
    pub settings: Vec<RepoSettings>,
    /// Memory that only the paused VM uses, MiB.
    pub private_mib: Option<u64>,
    /// A person worked in its VM before it was claimed.
    pub worked_in: bool,
    /// The boot of its guest, as far as is known.
    pub boot_id: Option<String>,
    /// When it was last noticed that its guest had restarted.
    pub rebooted_at: Option<Timestamp>,
    /// When it was requested.
    pub created_at: Timestamp,
    /// When it came into its state.
    pub state_since: Timestamp,
    /// When it became ready.
    pub provisioned_at: Option<Timestamp>,
    /// End of its claim's lease.
    pub lease_ends_at: Option<Timestamp>,
    /// When its VM was removed whose record stays, or was found to have ended while it is claimed, and why.
    pub vm_ended: Option<(Timestamp, String)>,
    /// A server ended in the middle of its boot; when the next one found it so.
    pub interrupted_at: Option<Timestamp>,
    /// It is a fork of a VM in use, and is being made: there may be no VM yet.
    pub being_forked: bool,
}

impl InstanceRow {
    /// What a client sees of its state; `None` when it is as good as gone.
    #[must_use]
    pub fn status(&self) -> Option<InstanceStatus> {
        self.state.status(self.failure_reason.is_some())
    }

    /// Memory that its VM counts with, MiB: what was measured while it is paused and cannot grow, else its whole size.
    #[must_use]
    pub fn counts_mib(&self) -> u64 {
        match self.state {
            InstanceState::Ready => self.private_mib.unwrap_or(self.memory_mib),
            InstanceState::Archived => 0,
            // Its process is gone.
            InstanceState::Claimed if self.vm_ended.is_some() => 0,
            _ => self.memory_mib,
        }
    }

    /// One line of the list; `None` when it is as good as gone.
    #[must_use]
    pub fn to_item(&self) -> Option<InstanceItem> {
        Some(InstanceItem {
            id: self.id.clone(),
            instance_id: self.vm.clone(),
            status: self.status()?,
            is_test: self.purpose.is_test(),
            failure_reason: self.failure_reason.clone().map(String::from),
            provisioned_at: self.provisioned_at,
            created_at: self.created_at,
        })
    }
}

/// A row to be written before its VM exists.
#[derive(Debug, Clone)]
pub struct NewInstance {
    pub id: InstanceId,
    pub project: ProjectId,
    /// Its VM.
    pub vm: VmId,
    /// What it is made for.
    pub purpose: Purpose,
    /// The recipe it is made by.
    pub recipe: String,
    /// Memory of its VM, MiB.
    pub memory_mib: u64,
    /// The server process that begins at once, if any.
    pub started_by: Option<String>,
    /// Why it is made, for people.
    pub reason: String,
}

impl NewInstance {
    /// One for the pool, whose work has not begun.
    #[must_use]
    pub fn new(project: &ProjectId, recipe: String, memory_mib: u64, reason: &str) -> Self {
        Self {
            id: InstanceId::generate(),
            project: project.clone(),
            vm: VmId::generate(),
            purpose: Purpose::Pool,
            recipe,
            memory_mib,
            started_by: None,
            reason: reason.to_owned(),
        }
    }
}

#[derive(sqlx::FromRow)]
struct Raw {
    id: String,
    project_id: String,
    vm_id: String,
    server: String,
    state: String,
    generation: i64,
    purpose: String,
    recipe: String,
    memory_mib: i64,
    started_by: Option<String>,
    failure_kind: Option<String>,
    failure_reason: Option<String>,
    repos: String,
    settings: String,
    private_mib: Option<i64>,
    worked_in: bool,
    boot_id: Option<String>,
    rebooted_at: Option<i64>,
    created_at: i64,
    state_since: i64,
    provisioned_at: Option<i64>,
    lease_ends_at: Option<i64>,
    vm_ended_at: Option<i64>,
    vm_ended_why: Option<String>,
    interrupted_at: Option<i64>,
    being_forked: bool,
}

impl TryFrom<Raw> for InstanceRow {
    type Error = StoreError;
    fn try_from(raw: Raw) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("instance.id", &raw.id)?,
            project: parse("instance.project_id", &raw.project_id)?,
            vm: parse("instance.vm_id", &raw.vm_id)?,
            server: raw.server,
            state: parse("instance.state", &raw.state)?,
            generation: raw.generation,
            purpose: parse("instance.purpose", &raw.purpose)?,
            recipe: raw.recipe,
            memory_mib: u64::try_from(raw.memory_mib)
                .map_err(|error| StoreError::corrupt("instance.memory_mib", error))?,
            started_by: raw.started_by,
            failure_kind: raw
                .failure_kind
                .map(|kind| parse("instance.failure_kind", &kind))
                .transpose()?,
            failure_reason: raw.failure_reason.map(Redacted::stored),
            repos: from_json("instance.repos", &raw.repos)?,
            settings: from_json("instance.settings", &raw.settings)?,
            private_mib: raw.private_mib.and_then(|mib| u64::try_from(mib).ok()),
            worked_in: raw.worked_in,
            boot_id: raw.boot_id,
            rebooted_at: optional_timestamp(raw.rebooted_at)?,
            created_at: timestamp(raw.created_at)?,
            state_since: timestamp(raw.state_since)?,
            provisioned_at: optional_timestamp(raw.provisioned_at)?,
            lease_ends_at: optional_timestamp(raw.lease_ends_at)?,
            vm_ended: optional_timestamp(raw.vm_ended_at)?.zip(raw.vm_ended_why),
            interrupted_at: optional_timestamp(raw.interrupted_at)?,
            being_forked: raw.being_forked,
        })
    }
}

/// Whole rows of instances, for [`Raw`].
macro_rules! select_where {
    ($condition:literal) => {
        concat!(
            "SELECT instance.*, claim.expires_at AS lease_ends_at,
                    coalesce(fork_of IS NOT NULL AND NOT handed_over, FALSE) AS being_forked
             FROM instance LEFT JOIN claim ON claim.instance_id = instance.id WHERE ",
            $condition
        )
    };
}

/// One instance, on a connection that may be in a transaction.
pub(super) async fn select_instance(
    on: impl Into<db::On<'_>> + Send,
    id: &InstanceId,
) -> Result<Option<InstanceRow>, StoreError> {
    let raw: Option<Raw> = db::query_as(select_where!("instance.id = $1"))
        .bind(id.as_str())
        .fetch_optional(on)
        .await?;
    raw.map(InstanceRow::try_from).transpose()
}

impl Store {
    /// The instances that the server before this one, with its VMs, had begun to make; not those that it happened to too often.
    pub async fn half_made(&self, session: &str, most_restarts: i64) -> Result<Vec<InstanceRow>, StoreError> {
        let raw: Vec<Raw> = db::query_as(select_where!(
            "server = $3 AND state = 'provisioning' AND started_by IS NOT NULL AND started_by <> $1 AND restarts < $2 ORDER BY instance.id"
        ))
        .bind(session)
        .bind(most_restarts)
        .bind(self.server())
        .fetch_all(&self.read)
        .await?;
        raw.into_iter().map(InstanceRow::try_from).collect()
    }

    /// Notes what a finished run left: checkouts, what their settings files say, what the VM costs.
    pub async fn set_instance_made(&self, id: &InstanceId, made: &Provisioned) -> Result<(), StoreError> {
        db::query("UPDATE instance SET repos = $2, settings = $3, private_mib = $4, template_key = $5, boot_id = $6 WHERE id = $1")
            .bind(id.as_str())
            .bind(to_json(&made.repos)?)
            .bind(to_json(&made.settings)?)
            .bind(made.private_mib.and_then(|mib| i64::try_from(mib).ok()))
            .bind(made.template.as_ref().map(|key| key.as_str()))
            .bind(&made.boot_id)
            .run_on(&self.write)
            .await?;
        Ok(())
    }

    pub async fn instance(&self, id: &InstanceId) -> Result<Option<InstanceRow>, StoreError> {
        select_instance(&self.read, id).await
    }

    /// Every instance of this server that there is something to do about: what the pool loop sees. Of mere records only those that ended before
    /// this time: an outage can leave very many.
    pub async fn all_instances(&self, records_before: Timestamp) -> Result<Vec<InstanceRow>, StoreError> {
        let raw: Vec<Raw> = db::query_as(select_where!(
            "server = $2 AND (state <> 'archived' OR state_since <= $1) ORDER BY instance.id"
        ))
        .bind(millis(records_before))
        .bind(self.server())
        .fetch_all(&self.read)
        .await?;
        raw.into_iter().map(InstanceRow::try_from).collect()
    }

    /// The instances of this server whose VM may be asked whether it answers. One that a claim is about to get is left to that.
    pub async fn instances_with_guests(&self) -> Result<Vec<InstanceRow>, StoreError> {
        let raw: Vec<Raw> = db::query_as(select_where!(
            "server = $1 AND (state IN ('provisioning', 'claimed', 'failed') OR state = 'ready' AND purpose <> 'claim')
             AND NOT coalesce(fork_of IS NOT NULL AND NOT handed_over, FALSE)"
        ))
        .bind(self.server())
        .fetch_all(&self.read)
        .await?;
        raw.into_iter().map(InstanceRow::try_from).collect()
    }

    /// Every instance of one project.
    pub async fn instances_of(&self, project: &ProjectId) -> Result<Vec<InstanceRow>, StoreError> {
        let raw: Vec<Raw> = db::query_as(select_where!("instance.project_id = $1 ORDER BY instance.id"))
            .bind(project.as_str())
            .fetch_all(&self.read)
            .await?;
        raw.into_iter().map(InstanceRow::try_from).collect()
    }

    /// What clients see of a project's instances, newest first.
    pub async fn visible_instances(
        &self,
        project: &ProjectId,
        status: Option<InstanceStatus>,
        limit: i64,
    ) -> Result<Vec<InstanceRow>, StoreError> {
        let raw: Vec<Raw> = db::query_as(
            "SELECT * FROM (
                SELECT instance.*, claim.expires_at AS lease_ends_at,
                    coalesce(fork_of IS NOT NULL AND NOT handed_over, FALSE) AS being_forked,
                    CASE WHEN state IN ('retiring', 'archived') 
                              THEN CASE WHEN failure_reason IS NULL THEN 'ready' ELSE 'failed' END
                         WHEN state = 'deleting' THEN NULL ELSE state END AS status
                FROM instance LEFT JOIN claim ON claim.instance_id = instance.id
                WHERE instance.project_id = $1 AND purpose <> 'renewal') AS seen
             WHERE status IS NOT NULL AND ($2 IS NULL OR status = $2) ORDER BY id DESC LIMIT $3",
        )
        .bind(project.as_str())
        .bind(status.map(InstanceStatus::as_str))
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        raw.into_iter().map(InstanceRow::try_from).collect()
    }

    /// Counts of a pool; test boots and claimed instances apart. Ready is what its home has: a claim gets no other.
    pub async fn pool_status(&self, project: &ProjectId, failed_since: Timestamp) -> Result<Status, StoreError> {
        let (ready, provisioning, failed): (i64, i64, i64) = db::query_as(
            "SELECT count(*) FILTER (WHERE state = 'ready' AND purpose = 'pool' AND server = coalesce(
                        (SELECT home.server FROM home WHERE home.project_id = instance.project_id), server)),
                    count(*) FILTER (WHERE state = 'provisioning'),
                    count(*) FILTER (WHERE state IN ('failed', 'retiring', 'archived')
                                     AND failure_reason IS NOT NULL AND state_since >= $2)
             FROM instance WHERE project_id = $1 AND serves_claims",
        )
        .bind(project.as_str())
        .bind(millis(failed_since))
        .fetch_one(&self.read)
        .await?;
        let count = |n: i64| u64::try_from(n).unwrap_or_default();
        Ok(Status {
            ready: count(ready),
            provisioning: count(provisioning),
            failed: count(failed),
        })
    }

    /// Notes the recipe that a run turned out to follow. What was decided by the other one is decided again.
    pub async fn set_instance_recipe(&self, id: &InstanceId, recipe: &str) -> Result<(), StoreError> {
        db::query(
            "UPDATE instance SET recipe = $2, generation = generation + 1
             WHERE id = $1 AND state = 'provisioning' AND recipe <> $2",
        )
        .bind(id.as_str())
        .bind(recipe)
        .run_on(&self.write)
        .await?;
        Ok(())
    }

    /// Failed records older than this are not counted any more.
    #[must_use]
    pub fn failed_window(now: Timestamp) -> Timestamp {
        now - SignedDuration::from_hours(24)
    }
}
