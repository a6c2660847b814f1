//! Forks of a claimed VM: copies that run, with its processes, memory and disk as at one instant, each claimed by the same owner.
//!
//! Their rows are written first, then the VM is frozen for a moment, then all forks are made; either all of them are handed over, or
//! none is. Whatever happens, the VM itself continues. The checkpoint between is nobody's template: it has no row, and its files go when
//! nothing is based on them any more.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use hearth_api::claim::{ClaimReply, ClaimSource};
use hearth_api::fork::{ForkReply, ForkedClaim};
use hearth_api::ids::{InstanceId, ProjectId, VmId};
use hearth_api::values::TaskId;
use hearth_core::redact::Redactor;
use hearth_core::time::millis;
use hearth_drivers::{CheckpointKey, ForkPurpose, ForkSpec, ForkStart, SnapshotSpec};
use hearth_guest::client::AgentClient;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::fork_error::ForkError;
use super::handoff::agent_paths;
use super::{Claims, ReservedRoom};
use crate::store::{BegunForks, ClaimRow, ForksOrder, InstanceRow, MadeFork, NewFork};
use crate::templates::gc::{INSTANCE_LABEL, PROJECT_LABEL, STAGE_LABEL};
use crate::vms::identity;
use crate::vms::pause::{PausedIn, ResumedVm};

/// Made at a time; each takes a processor.
const AT_ONCE: usize = 4;
/// How long a fork has until its agent answers: it booted long ago, and the host may be busy.
const ANSWER_BUDGET: Duration = Duration::from_secs(60);
/// One try of them.
const CONNECT_TRY: Duration = Duration::from_secs(5);
/// Between two tries.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// So often other names are tried where another request takes them at the same moment.
const NAMING_TRIES: usize = 5;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct ForkOrder {
    /// When the request came.
    pub came: Instant,
    /// How many.
    pub count: usize,
    /// What their tasks are named after.
    pub task: Option<TaskId>,
    /// Length of their leases, when not the VM's own.
    pub lease: Option<SignedDuration>,
}

/// Forks that have rows and are to be made.
pub(super) struct Batch {
    pub(super) project: ProjectId,
    pub(super) from: CheckpointKey,
    pub(super) forks: Vec<NewFork>,
    /// Without keys no request can ask for them again: when theirs is gone they are taken back.
    pub(super) keyed: bool,
    /// Cancelled when the request is gone.
    pub(super) gone: CancellationToken,
    /// What guests say is shown through it.
    pub(super) redactor: Redactor,
}

impl Claims {
    /// Forks a claimed VM.
    pub async fn fork(&self, row: &InstanceRow, order: ForkOrder) -> Result<ForkReply, ForkError> {
        let name = self.driver.capabilities().name;
        if !self.driver.capabilities().memory_checkpoints {
            return Err(ForkError::Unable(name));
        }
        let body_hash = order.body_hash(row);
        let _alone = match &order.task {
            Some(task) => Some(self.keys.lock((row.project.clone(), format!("fork {task}"))).await),
            None => None,
        };
        let claim = self.claim_of_owner(row).await?;
        if let Some(task) = &order.task
            && let Some(reply) = self.repeated(row, &names_after(task, order.count)?, &body_hash).await?
        {
            return Ok(reply);
        }
        // Before a VM is resumed for nothing; the rows are counted again when they are written.
        let held = self.store.claims_held(&row.project).await?;
        if let Some(held) = held.filter(|held| !held.has_room_for(order.count as u64)) {
            return Err(ForkError::TooManyHeld {
                held,
                count: order.count,
            });
        }
        let held = self.store.token_claims_held(&claim.token).await?;
        if let Some(held) = held.filter(|held| !held.has_room_for(order.count as u64)) {
            return Err(ForkError::TokenFull {
                held,
                count: order.count,
            });
        }
        let _resumed = self.resume_saved(&row.vm).await?;
        let room = self.room(row, order.count).await?;
        let is_paused = self.pause.is_paused(&row.vm).await;
        let stops = (!is_paused).then(|| row.vm.clone());
        let batch = self.begin(row, &claim, &order, &body_hash, stops.as_ref()).await?;
        drop(room);
        let gone = batch.gone.clone().drop_guard();
        let tasks: Vec<Option<String>> = batch.forks.iter().map(|fork| fork.key.clone()).collect();
        let (this, vm, id) = (self.clone(), row.vm.clone(), row.id.clone());
        let labels = labels_of(row, "fork");
        // To its end, also when the request goes away meanwhile: the VM must not stay frozen, nor half of the forks stay.
        let work = tokio::spawn(
            async move {
                let frozen = this.freeze(&vm, &batch.from, labels, false, stops.as_ref()).await;
                let paused_ms = match frozen {
                    Ok(info) => info.paused_ms,
                    Err(error) => {
                        this.undo(&batch.forks).await;
                        return Err(error);
                    }
                };
                let made = this.make_and_hand_over(&batch, order.came).await?;
                tracing::info!(instance = %id, forks = made.len(), paused_ms, "forked by its owner");
                Ok((paused_ms, made))
            }
            .in_current_span(),
        );
        let (paused_ms, made) = work.await.map_err(|error| ForkError::Broken(error.to_string()))??;
        drop(gone.disarm());
        let items = tasks.into_iter().zip(made).map(|(task_id, made)| ForkedClaim {
            task_id,
            claim: made.reply,
        });
        Ok(ForkReply {
            parent: row.id.clone(),
            paused_ms,
            items: items.collect(),
        })
    }

    /// The claim of a VM that was handed over and is its owner's still.
    pub(super) async fn claim_of_owner(&self, row: &InstanceRow) -> Result<ClaimRow, ForkError> {
        let claim = self.store.claim(&row.id).await?;
        claim
            .filter(|claim| claim.handed_over && claim.ended_at.is_none())
            .ok_or(ForkError::NotClaimed)
    }

    /// A VM that is paused to the disk has no process that could be frozen: it is resumed, as by every other call into it.
    pub(super) async fn resume_saved(&self, vm: &VmId) -> Result<Option<ResumedVm>, ForkError> {
        if self.pause.paused_in(vm).await != Some(PausedIn::Disk) {
            return Ok(None);
        }
        let (resumed, _) = self.pause.enter_claimed(vm).await?;
        Ok(Some(resumed))
    }

    /// Room for so many more VMs of this one's size; nobody else takes it until this is dropped.
    pub(super) async fn room(&self, row: &InstanceRow, count: usize) -> Result<ReservedRoom, ForkError> {
        let reserved = self.capacity.reserve(&row.project, row.memory_mib, count).await?;
        reserved.map_err(|reason| ForkError::NoRoom { reason, count })
    }

    /// What was answered to the same request before, if it came before.
    async fn repeated(
        &self,
        row: &InstanceRow,
        keys: &[String],
        body_hash: &str,
    ) -> Result<Option<ForkReply>, ForkError> {
        if self.store.used_keys(&row.project, keys).await?.is_empty() {
            return Ok(None);
        }
        let mut items = Vec::new();
        for key in keys {
            let earlier = self.store.claim_of(&row.project, key).await?;
            let same = earlier.filter(|claim| claim.body_hash == body_hash && claim.handed_over);
            let claim = same.ok_or_else(|| ForkError::OtherRequest(key.clone()))?;
            if claim.ended_at.is_some() {
                return Err(ForkError::Ended);
            }
            items.push(ForkedClaim {
                task_id: Some(key.clone()),
                claim: claim.reply,
            });
        }
        Ok(Some(ForkReply {
            parent: row.id.clone(),
            paused_ms: 0,
            items,
        }))
    }

    /// Writes the rows.
    async fn begin(
        &self,
        row: &InstanceRow,
        claim: &ClaimRow,
        order: &ForkOrder,
        body_hash: &str,
        stops: Option<&VmId>,
    ) -> Result<Batch, ForkError> {
        let now = Timestamp::now();
        let expires_at = order.lease.map_or(claim.reply.expires_at, |lease| now + lease);
        let from = new_key()?;
        for _ in 0..NAMING_TRIES {
            let keys = match (&order.task, &claim.key) {
                (Some(task), _) => names_after(task, order.count)?.into_iter().map(Some).collect(),
                (None, Some(task)) => self.free_names(row, task, order.count).await?,
                (None, None) => vec![None; order.count],
            };
            let keyed = order.task.is_some();
            let forks: Vec<NewFork> = keys
                .into_iter()
                .map(|key| new_fork(key, &claim.reply, expires_at))
                .collect();
            let forks_order = ForksOrder {
                project: &row.project,
                parent: Some(&row.id),
                from: &from,
                memory_mib: row.memory_mib,
                settings: &row.settings,
                token: &claim.token,
                owner: claim.owner.as_deref().unwrap_or_default(),
                body_hash,
                lease: order.lease.unwrap_or(claim.lease),
                stops,
                replaces: false,
                forks: &forks,
            };
            match self.begin_rows(&forks_order, now).await? {
                BegunForks::Begun => {
                    return Ok(Batch {
                        project: row.project.clone(),
                        from,
                        forks,
                        keyed,
                        gone: CancellationToken::new(),
                        redactor: self.redactor_of(&row.project, claim.owner.as_deref()).await?,
                    });
                }
                BegunForks::NotClaimed => return Err(ForkError::NotClaimed),
                BegunForks::TooManyHeld(held) => {
                    return Err(ForkError::TooManyHeld {
                        held,
                        count: order.count,
                    });
                }
                BegunForks::TokenFull(held) => {
                    return Err(ForkError::TokenFull {
                        held,
                        count: order.count,
                    });
                }
                BegunForks::KeyTaken(key) if keyed => return Err(ForkError::OtherRequest(key)),
                // Another request took it this moment.
                BegunForks::KeyTaken(_) => {}
            }
        }
        Err(ForkError::Broken(
            "other requests take the names of the forks".to_owned(),
        ))
    }

    /// Writes the rows of forks. When it is not known whether they are there, they are taken back.
    pub(super) async fn begin_rows(&self, order: &ForksOrder<'_>, now: Timestamp) -> Result<BegunForks, ForkError> {
        let begun = self.store.begin_forks(order, now).await;
        if begun.is_err() {
            self.undo(order.forks).await;
            if let Some(vm) = order.stops {
                self.runs_again(vm).await;
            }
        }
        Ok(begun?)
    }

    /// `task-1`, `task-2` and so on, without those that are taken; nothing where they would be too long.
    async fn free_names(&self, row: &InstanceRow, task: &str, count: usize) -> Result<Vec<Option<String>>, ForkError> {
        let mut free = Vec::new();
        let mut next = 1;
        while free.len() < count {
            let names: Vec<String> = (next..next + count).map(|number| format!("{task}-{number}")).collect();
            if names.iter().any(|name| TaskId::try_from(name.as_str()).is_err()) {
                return Ok(vec![None; count]);
            }
            let used = self.store.used_keys(&row.project, &names).await?;
            free.extend(names.into_iter().filter(|name| !used.contains(name)).map(Some));
            next += count;
        }
        free.truncate(count);
        Ok(free)
    }

    /// Makes the forks of a checkpoint that is there, all or none, and hands them over.
    pub(super) async fn make_and_hand_over(&self, batch: &Batch, came: Instant) -> Result<Vec<MadeFork>, ForkError> {
        let made = self.make_forks(batch, came).await;
        let ended = match made {
            Ok(_) if batch.gone.is_cancelled() && !batch.keyed => ForkError::Broken("the request went away".to_owned()),
            Ok(made) => match self.store.end_forks(&made).await {
                Ok(true) => {
                    self.hold_again(&batch.project, &made).await;
                    self.guest_requests.run_soon();
                    self.wake.wake();
                    return Ok(made);
                }
                Ok(false) => ForkError::NotClaimed,
                Err(error) => error.into(),
            },
            Err(error) => error,
        };
        self.undo(&batch.forks).await;
        Err(ended)
    }

    /// The project's egress policy may have been set, or another one, while the copies were made.
    pub(super) async fn hold_again(&self, project: &ProjectId, made: &[MadeFork]) {
        for vm in made.iter().map(|made| &made.reply.instance_id) {
            if let Err(error) = self.egress.begin(project, vm).await {
                tracing::warn!(%error, %vm, "a copy is not held to its project's egress policy yet; it is tried again");
            }
        }
    }

    /// Makes the VMs of forks.
    pub(super) async fn make_forks(&self, batch: &Batch, came: Instant) -> Result<Vec<MadeFork>, ForkError> {
        let mut making = Vec::new();
        for fork in &batch.forks {
            making.push(self.make_fork(batch, fork, came));
        }
        let made = futures::stream::iter(making).buffered(AT_ONCE).try_collect();
        let made: Result<Vec<MadeFork>, String> = made.await;
        made.map_err(|reason| ForkError::Copy(batch.redactor.redact(&reason)))
    }

    async fn make_fork(&self, batch: &Batch, fork: &NewFork, came: Instant) -> Result<MadeFork, String> {
        // Its processes run from its first moment on: with a policy it waits until it is held to that.
        let is_held = self.egress.is_set(&batch.project, &fork.vm).await;
        let is_held = is_held.map_err(|error| error.to_string())?;
        let spec = ForkSpec {
            id: fork.vm.clone(),
            from: batch.from.clone(),
            purpose: ForkPurpose::Instance,
            shape: None,
            start: match is_held {
                true => ForkStart::Paused,
                false => ForkStart::Running,
            },
        };
        let forked = self.driver.fork(&spec).await;
        forked.map_err(|error| error.to_string())?;
        if is_held {
            let held = self.egress.begin(&batch.project, &fork.vm).await;
            held.map_err(|error| error.to_string())?;
            let resumed = self.driver.resume(&fork.vm).await;
            resumed.map_err(|error| error.to_string())?;
        }
        let agent = self.reach(&fork.vm).await?;
        let activated = identity::assign(&self.connections, &self.host_keys, &fork.vm, &agent).await;
        let activated = activated.map_err(|error| error.to_string())?;
        Ok(MadeFork {
            reply: ClaimReply {
                wait_ms: millis(came.elapsed()),
                ..fork.reply.clone()
            },
            boot_id: activated.boot_id,
        })
    }

    /// The agent of a fork. What it had to do for others' connections ends with the new one.
    async fn reach(&self, vm: &VmId) -> Result<AgentClient, String> {
        let deadline = Instant::now() + ANSWER_BUDGET;
        loop {
            match self.connections.get(vm, CONNECT_TRY).await {
                Ok(agent) => return Ok(agent),
                Err(error) if Instant::now() >= deadline => return Err(error.to_string()),
                Err(_) => tokio::time::sleep(CONNECT_PAUSE).await,
            }
        }
    }

    /// The forks were not all made: they never were.
    pub(super) async fn undo(&self, forks: &[NewFork]) {
        let ids: Vec<InstanceId> = forks.iter().map(|fork| fork.reply.id.clone()).collect();
        for fork in forks {
            self.connections.forget(&fork.vm);
        }
        if let Err(error) = self.store.undo_forks(&ids, Timestamp::now()).await {
            tracing::error!(%error, forks = ids.len(), "forks that were not all made could not be taken back; the next start of the server does it");
        }
        self.wake.wake();
    }

    /// Freezes a VM in use, and notes that it runs again. `stops`: it runs, and the next server is to resume it if this one ends meanwhile.
    pub(super) async fn freeze(
        &self,
        vm: &VmId,
        key: &CheckpointKey,
        labels: BTreeMap<String, String>,
        kept: bool,
        stops: Option<&VmId>,
    ) -> Result<hearth_drivers::CheckpointInfo, ForkError> {
        // Its owner does not pause it meanwhile.
        let call = self.pause.begin_call(vm);
        let spec = SnapshotSpec {
            key: key.clone(),
            labels,
            kept,
        };
        let frozen = self.driver.snapshot(vm, &spec).await;
        if let Some(vm) = stops {
            // The driver may have left it paused.
            if frozen.is_err()
                && let Err(error) = self.pause.resume(vm).await
            {
                tracing::warn!(%error, %vm, "a VM that could not be frozen is not resumed");
            }
            self.runs_again(vm).await;
        }
        drop(call);
        Ok(frozen?)
    }

    /// A VM is not stopped any more.
    pub(super) async fn runs_again(&self, vm: &VmId) {
        if let Err(error) = self.store.forget_stopped_vm(vm).await {
            // The next server resumes a VM that runs, which changes nothing.
            tracing::warn!(%error, %vm, "that a VM runs again could not be written");
        }
    }

    /// Knows what the VMs of a user's claims may hold.
    pub(super) async fn redactor_of(&self, project: &ProjectId, owner: Option<&str>) -> Result<Redactor, ForkError> {
        use crate::secrets::redactors;
        use crate::store::VariableOwner;
        let mut all = self.store.variables(project, VariableOwner::Shared).await?;
        if let Some(owner) = owner {
            all.extend(self.store.variables(project, VariableOwner::User(owner)).await?);
        }
        all.extend(redactors::of_credentials(&self.store, project).await?);
        Ok(redactors::build(&all).await)
    }

    /// At start: VMs that a server had stopped for a moment, when it ended, run again.
    pub async fn resume_stopped(&self) {
        let stopped = match self.store.stopped_vms().await {
            Ok(stopped) => stopped,
            Err(error) => return tracing::error!(%error, "which VMs are stopped for a checkpoint could not be read"),
        };
        for vm in stopped {
            match self.driver.resume(&vm).await {
                Ok(()) => tracing::info!(%vm, "a VM that was stopped for a checkpoint runs again"),
                // It may be gone.
                Err(error) => {
                    tracing::warn!(%vm, %error, "a VM that was stopped for a checkpoint could not be resumed")
                }
            }
            self.runs_again(&vm).await;
        }
    }
}

impl ForkOrder {
    /// Tells a repeated request from another one.
    fn body_hash(&self, row: &InstanceRow) -> String {
        let lease = self.lease.map_or(0, |lease| lease.as_mins());
        let said = format!("fork {} {} {lease}", row.id, self.count);
        hex::encode(Sha256::digest(said))
    }
}

/// A name for a checkpoint that no other has.
pub(super) fn new_key() -> Result<CheckpointKey, ForkError> {
    let random = uuid::Uuid::new_v4().simple().to_string();
    random.parse().map_err(|error| ForkError::Broken(format!("{error}")))
}

/// What the driver keeps with a checkpoint.
pub(super) fn labels_of(row: &InstanceRow, stage: &str) -> BTreeMap<String, String> {
    let labels = [
        (INSTANCE_LABEL, row.id.to_string()),
        (PROJECT_LABEL, row.project.to_string()),
        (STAGE_LABEL, stage.to_owned()),
    ];
    labels
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The tasks of forks that are named after one: that itself where there is one fork.
fn names_after(task: &TaskId, count: usize) -> Result<Vec<String>, ForkError> {
    if count == 1 {
        return Ok(vec![task.to_string()]);
    }
    let names: Vec<String> = (1..=count).map(|number| format!("{task}-{number}")).collect();
    match names
        .iter()
        .map(|name| TaskId::try_from(name.as_str()))
        .find_map(Result::err)
    {
        Some(fault) => Err(ForkError::Task(fault.to_string())),
        None => Ok(names),
    }
}

/// A fork, whose claim answers as this one.
pub(super) fn new_fork(key: Option<String>, like: &ClaimReply, expires_at: Timestamp) -> NewFork {
    let (id, vm) = (InstanceId::generate(), VmId::generate());
    NewFork {
        key,
        reply: ClaimReply {
            instance_id: vm.clone(),
            source: ClaimSource::Fork,
            age_ms: 0,
            wait_ms: 0,
            expires_at,
            agent: agent_paths(&id),
            id,
            ..like.clone()
        },
        vm,
    }
}
