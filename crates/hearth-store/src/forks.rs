//! Forks of VMs in use: their rows are written before their VMs exist, claimed from the beginning, and either all of one request
//! are handed over or none.

use hearth_api::claim::ClaimReply;
use hearth_api::event::EventKind;
use hearth_api::ids::{InstanceId, ProjectId, TokenId, VmId};
use hearth_core::checkpoint::CheckpointKey;
use hearth_core::claim::Held;
use hearth_core::state::InstanceState;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::claim_rules::{claims_held, token_claims_held};
use super::claims::handed_over;
use super::events::Change;
use super::moves::move_row;
use super::writer::Writing;
use super::{Moved, Store, StoreError, db, millis, to_json};

/// One fork that is to be made.
#[derive(Debug, Clone)]
pub struct NewFork {
    /// Its VM.
    pub vm: VmId,
    /// Idempotency key of its claim.
    pub key: Option<String>,
    /// What is answered; with its id and the end of its lease.
    pub reply: ClaimReply,
}

/// Forks that are to be made, all or none.
#[derive(Debug, Clone)]
pub struct ForksOrder<'a> {
    pub project: &'a ProjectId,
    /// What the forks hold: the rest of their rows is as this one's. `None` when that is gone: they are made of a kept checkpoint.
    pub parent: Option<&'a InstanceId>,
    /// The checkpoint they are forked from, which may be made later.
    pub from: &'a CheckpointKey,
    /// Of their VMs.
    pub memory_mib: u64,
    /// What the repositories' settings files say, as JSON.
    pub settings: &'a [hearth_api::instance::RepoSettings],
    /// Whose claims they are.
    pub token: &'a TokenId,
    pub owner: &'a str,
    /// What was asked for: a repeated request is told from another one by it.
    pub body_hash: &'a str,
    /// Length of their leases.
    pub lease: SignedDuration,
    /// A VM that runs and is stopped for a moment.
    pub stops: Option<&'a VmId>,
    /// They take the place of a VM that is claimed already: the project's limit of claims does not count them.
    pub replaces: bool,
    pub forks: &'a [NewFork],
}

/// How the beginning ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BegunForks {
    /// The rows are there.
    Begun,
    /// This key is another claim's.
    KeyTaken(String),
    /// What is to be forked is not claimed any more.
    NotClaimed,
    /// With them the project's claims would hold more VMs than they may.
    TooManyHeld(Held),
    /// With them the token's claims would.
    TokenFull(Held),
}

/// A fork whose VM is there.
#[derive(Debug, Clone)]
pub struct MadeFork {
    /// What is answered.
    pub reply: ClaimReply,
    /// The boot that its guest is in.
    pub boot_id: String,
}

async fn is_claimed(tx: &mut db::Tx, id: &InstanceId) -> Result<bool, StoreError> {
    let claimed = db::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM instance JOIN claim ON claim.instance_id = instance.id
                        WHERE id = $1 AND state = 'claimed' AND handed_over AND ended_at IS NULL)",
    );
    Ok(claimed.bind(id.as_str()).fetch_one(tx).await?)
}

/// Notes that a VM is stopped for a moment.
pub(super) async fn note_stopped(tx: &mut db::Tx, vm: &VmId, server: &str) -> Result<(), StoreError> {
    let note = db::query("INSERT INTO stopped_vm (vm_id, server) VALUES ($1, $2) ON CONFLICT DO NOTHING");
    note.bind(vm.as_str()).bind(server).execute(tx).await?;
    Ok(())
}

/// It runs again.
pub(super) async fn forget_stopped(tx: &mut db::Tx, vm: Option<&VmId>) -> Result<(), StoreError> {
    if let Some(vm) = vm {
        let forget = db::query("DELETE FROM stopped_vm WHERE vm_id = $1");
        forget.bind(vm.as_str()).execute(tx).await?;
    }
    Ok(())
}

/// The claim of an instance never was.
pub(super) async fn undo_claim(tx: &mut Writing, id: &InstanceId, why: &str, now: Timestamp) -> Result<(), StoreError> {
    let undone: Option<String> = db::query_scalar("DELETE FROM claim WHERE instance_id = $1 RETURNING project_id")
        .bind(id.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    if let Some(project) = &undone {
        let change = Change::of_instance(EventKind::ClaimUndone, project, id, now);
        tx.tell(change.because(why)).await?;
    }
    Ok(())
}

impl Store {
    /// Which of these keys are claims of a project already.
    pub async fn used_keys(&self, project: &ProjectId, keys: &[String]) -> Result<Vec<String>, StoreError> {
        let mut used = Vec::new();
        for key in keys {
            let found = db::query_scalar("SELECT key FROM claim WHERE project_id = $1 AND key = $2");
            let found: Option<String> = found
                .bind(project.as_str())
                .bind(key)
                .fetch_optional(&self.read)
                .await?;
            used.extend(found);
        }
        Ok(used)
    }

    /// Writes the rows of forks, claimed and not handed over.
    pub async fn begin_forks(&self, order: &ForksOrder<'_>, now: Timestamp) -> Result<BegunForks, StoreError> {
        let mut tx = self.write.begin().await?;
        if let Some(parent) = order.parent
            && !is_claimed(&mut tx, parent).await?
        {
            return Ok(BegunForks::NotClaimed);
        }
        let held = claims_held(&mut *tx, order.project).await?;
        if let Some(held) = held.filter(|held| !order.replaces && !held.has_room_for(order.forks.len() as u64)) {
            return Ok(BegunForks::TooManyHeld(held));
        }
        let of_token = token_claims_held(&mut *tx, order.token).await?;
        if let Some(held) = of_token.filter(|held| !order.replaces && !held.has_room_for(order.forks.len() as u64)) {
            return Ok(BegunForks::TokenFull(held));
        }
        for fork in order.forks {
            if let Some(key) = &fork.key {
                let taken = db::query_scalar("SELECT EXISTS (SELECT 1 FROM claim WHERE project_id = $1 AND key = $2)");
                if taken.bind(order.project.as_str()).bind(key).fetch_one(&mut *tx).await? {
                    return Ok(BegunForks::KeyTaken(key.clone()));
                }
            }
            let reply = &fork.reply;
            db::query(
                "INSERT INTO instance (id, project_id, vm_id, state, generation, purpose, recipe, memory_mib, repos, settings,
                                       fork_of, created_at, state_since, server)
                 VALUES ($1, $2, $3, 'claimed', 1, 'pool', $4, $5, $6, $7, $8, $9, $9, $10)",
            )
            .bind(reply.id.as_str())
            .bind(order.project.as_str())
            .bind(fork.vm.as_str())
            .bind(&reply.recipe)
            .bind(i64::try_from(order.memory_mib).unwrap_or(i64::MAX))
            .bind(to_json(&reply.repos)?)
            .bind(to_json(&order.settings)?)
            .bind(order.from.as_str())
            .bind(millis(now))
            .bind(self.server())
            .execute(&mut *tx)
            .await?;
            db::query(
                "INSERT INTO claim (instance_id, project_id, key, body_hash, token_id, reply, lease_ms, created_at,
                                    expires_at, handed_over, asked, owner)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, FALSE, '{}', $10)",
            )
            .bind(reply.id.as_str())
            .bind(order.project.as_str())
            .bind(&fork.key)
            .bind(order.body_hash)
            .bind(order.token.as_str())
            .bind(to_json(reply)?)
            .bind(i64::try_from(order.lease.as_millis()).unwrap_or(i64::MAX))
            .bind(millis(now))
            .bind(millis(reply.expires_at))
            .bind(order.owner)
            .execute(&mut *tx)
            .await?;
            if let Some(parent) = order.parent {
                // Its processes run in the copy, too.
                db::query("INSERT INTO claim_egress (instance_id, policy) SELECT $1, policy FROM claim_egress WHERE instance_id = $2")
                    .bind(reply.id.as_str())
                    .bind(parent.as_str())
                    .execute(&mut *tx)
                    .await?;
            }
            let detail = json!({ "purpose": "pool", "recipe": reply.recipe, "checkpoint": order.from.as_str() });
            let change = Change::of_instance(EventKind::InstanceClaimed, order.project.as_str(), &reply.id, now);
            tx.tell(change.because("it is forked for a claim").with(detail)).await?;
        }
        if let Some(vm) = order.stops {
            note_stopped(&mut tx, vm, self.server()).await?;
        }
        tx.commit().await?;
        Ok(BegunForks::Begun)
    }

    /// A VM that was stopped for a moment runs again.
    pub async fn forget_stopped_vm(&self, vm: &VmId) -> Result<(), StoreError> {
        self.freeing(|| self.forget_stopped_vm_once(vm)).await
    }

    async fn forget_stopped_vm_once(&self, vm: &VmId) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        forget_stopped(&mut tx, Some(vm)).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The VMs that a server which is gone had stopped for a moment.
    pub async fn stopped_vms(&self) -> Result<Vec<VmId>, StoreError> {
        let vms: Vec<String> = db::query_scalar("SELECT vm_id FROM stopped_vm WHERE server = $1")
            .bind(self.server())
            .fetch_all(&self.read)
            .await?;
        vms.iter().map(|vm| super::parse("stopped_vm.vm_id", vm)).collect()
    }

    /// Hands the forks of a request over. False, and none is, when one of them was released meanwhile.
    pub async fn end_forks(&self, forks: &[MadeFork]) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        for MadeFork { reply, boot_id } in forks {
            let there: Option<String> = db::query_scalar(
                "UPDATE instance SET boot_id = $2 WHERE id = $1 AND state = 'claimed' RETURNING project_id",
            )
            .bind(reply.id.as_str())
            .bind(boot_id)
            .fetch_optional(&mut *tx)
            .await?;
            let answered = db::query(
                "UPDATE claim SET reply = $2, handed_over = TRUE WHERE instance_id = $1 AND ended_at IS NULL",
            )
            .bind(reply.id.as_str())
            .bind(to_json(reply)?)
            .execute(&mut *tx)
            .await?;
            let Some(project) = there.filter(|_| answered.rows_affected() > 0) else {
                return Ok(false);
            };
            let change = Change::of_instance(EventKind::ClaimHandedOver, &project, &reply.id, Timestamp::now());
            tx.tell(change.with(handed_over(reply, None))).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// The forks of a request could not all be made: they are deleted, and their claims never were.
    pub async fn undo_forks(&self, ids: &[InstanceId], now: Timestamp) -> Result<(), StoreError> {
        self.freeing(|| self.undo_forks_once(ids, now)).await
    }

    async fn undo_forks_once(&self, ids: &[InstanceId], now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        for id in ids {
            const WHY: &str = "the forks of its request could not all be made";
            undo_claim(&mut tx, id, WHY, now).await?;
            // One that was released meanwhile is being deleted already.
            let _: Moved = move_row(&mut tx, id, InstanceState::Deleting, None, WHY, now).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Gives an instance the VM of another one, which gets its VM and is deleted. False, and nothing changes, when either is not claimed
    /// any more. `made` is the other one's, and `reply` what the instance's own claim answers from then on.
    pub async fn take_vm_of(
        &self,
        id: &InstanceId,
        made: &MadeFork,
        reply: &ClaimReply,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let other = &made.reply.id;
        let vms: Vec<(String, String)> =
            db::query_as("SELECT id, vm_id FROM instance WHERE id IN ($1, $2) AND state = 'claimed'")
                .bind(id.as_str())
                .bind(other.as_str())
                .fetch_all(&mut *tx)
                .await?;
        let vm_of = |wanted: &InstanceId| vms.iter().find(|(id, _)| id == wanted.as_str()).map(|(_, vm)| vm);
        let (Some(own), Some(new)) = (vm_of(id), vm_of(other)) else {
            return Ok(false);
        };
        // A VM is one instance's: the other one's row is without for a moment.
        let set = "UPDATE instance SET vm_id = $2, fork_of = coalesce($3, fork_of), boot_id = coalesce($4, boot_id) WHERE id = $1";
        let from: Option<String> = db::query_scalar("SELECT fork_of FROM instance WHERE id = $1")
            .bind(other.as_str())
            .fetch_one(&mut *tx)
            .await?;
        for (of, vm, from, boot) in [
            (other, &format!("{own}-"), None, None),
            (id, new, from.as_deref(), Some(made.boot_id.as_str())),
            (other, own, None, None),
        ] {
            db::query(set)
                .bind(of.as_str())
                .bind(vm)
                .bind(from)
                .bind(boot)
                .execute(&mut *tx)
                .await?;
        }
        db::query("UPDATE instance SET vm_ended_at = NULL, vm_ended_why = NULL, rebooted_at = NULL WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await?;
        db::query("UPDATE claim SET reply = $2 WHERE instance_id = $1")
            .bind(id.as_str())
            .bind(to_json(reply)?)
            .execute(&mut *tx)
            .await?;
        const WHY: &str = "another instance got its VM, which continues from a checkpoint";
        undo_claim(&mut tx, other, WHY, now).await?;
        move_row(&mut tx, other, InstanceState::Deleting, None, WHY, now).await?;
        let project: String = db::query_scalar("SELECT project_id FROM instance WHERE id = $1")
            .bind(id.as_str())
            .fetch_one(&mut *tx)
            .await?;
        let change = Change::of_instance(EventKind::ClaimRestored, &project, id, now);
        tx.tell(change.because("its VM continues from a checkpoint")).await?;
        tx.commit().await?;
        Ok(true)
    }
}
