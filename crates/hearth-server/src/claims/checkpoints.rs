//! Named checkpoints of claimed VMs: made, claimed from, and restored.

use hearth_api::claim::ClaimReply;
use hearth_api::ids::{InstanceId, VmId};
use hearth_core::time::millis;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Claims;
use super::claim::ClaimTask;
use super::fork_error::ForkError;
use super::forks::{Batch, labels_of, new_fork, new_key};
use super::handoff::agent_paths;
use crate::store::{BegunForks, ForksOrder, InstanceRow, NamedCheckpoint};

impl Claims {
    /// Makes a checkpoint of a claimed VM, which continues.
    pub async fn checkpoint(
        &self,
        row: &InstanceRow,
        name: String,
        note: Option<String>,
    ) -> Result<NamedCheckpoint, ForkError> {
        let driver = self.driver.capabilities();
        if !driver.memory_checkpoints {
            return Err(ForkError::Unable(driver.name));
        }
        let claim = self.claim_of_owner(row).await?;
        // Before a VM is resumed for nothing.
        if self.store.named_checkpoint(&row.project, &name).await?.is_some() {
            return Err(ForkError::NameTaken);
        }
        let _resumed = self.resume_saved(&row.vm).await?;
        let is_paused = self.pause.is_paused(&row.vm).await;
        let stops = (!is_paused).then(|| row.vm.clone());
        let labels = labels_of(row, &format!("checkpoint {name}"));
        let new = NamedCheckpoint {
            server: self.store.server().to_owned(),
            project: row.project.clone(),
            name,
            key: new_key()?,
            instance: row.id.clone(),
            owner: claim.owner.clone().unwrap_or_default(),
            note,
            reply: claim.reply,
            settings: row.settings.clone(),
            memory_mib: row.memory_mib,
            bytes: None,
            created_at: Timestamp::now(),
        };
        match self.store.begin_checkpoint(&new, stops.as_ref()).await {
            Ok(true) => {}
            Ok(false) => return Err(ForkError::NameTaken),
            Err(error) => {
                // It is not known whether the name is taken now.
                self.give_name_back(&new).await;
                if let Some(vm) = &stops {
                    self.runs_again(vm).await;
                }
                return Err(error.into());
            }
        }
        let (this, vm) = (self.clone(), row.vm.clone());
        // To its end, also when the request goes away meanwhile.
        let work = tokio::spawn(
            async move {
                let ended = match this.freeze(&vm, &new.key, labels, true, stops.as_ref()).await {
                    Ok(info) => match this.store.end_checkpoint(&new.key, info.bytes, stops.as_ref()).await {
                        Ok(true) => {
                            return Ok(NamedCheckpoint {
                                bytes: Some(info.bytes),
                                ..new
                            });
                        }
                        Ok(false) => ForkError::NotClaimed,
                        Err(error) => error.into(),
                    },
                    Err(error) => error,
                };
                this.give_name_back(&new).await;
                Err(ended)
            }
            .in_current_span(),
        );
        let made = work.await.map_err(|error| ForkError::Broken(error.to_string()))??;
        tracing::info!(instance = %row.id, project = %row.project, name = made.name, "a checkpoint was made by its owner");
        Ok(made)
    }

    /// The checkpoint was not made.
    async fn give_name_back(&self, of: &NamedCheckpoint) {
        if let Err(error) = self.store.forget_named_checkpoint(&of.key).await {
            tracing::error!(%error, name = of.name, "a checkpoint that was not made keeps its name until the server starts again");
        }
    }

    fn must_be_here(&self, checkpoint: &NamedCheckpoint) -> Result<(), ForkError> {
        if checkpoint.server == self.store.server() {
            return Ok(());
        }
        Err(ForkError::OtherServer {
            name: checkpoint.name.clone(),
            server: checkpoint.server.clone(),
        })
    }

    /// Hands a VM over that continues from a checkpoint.
    pub async fn claim_checkpoint(&self, from: &NamedCheckpoint, task: &ClaimTask) -> Result<ClaimReply, ForkError> {
        let _alone = match &task.key {
            Some(key) => Some(self.keys.lock((from.project.clone(), key.clone())).await),
            None => None,
        };
        if let Some(key) = &task.key
            && let Some(earlier) = self.store.claim_of(&from.project, key).await?
        {
            return match earlier {
                earlier if earlier.body_hash != task.body_hash || earlier.token != task.token => {
                    Err(ForkError::OtherRequest(key.clone()))
                }
                earlier if earlier.ended_at.is_some() || !earlier.handed_over => Err(ForkError::Ended),
                earlier => Ok(earlier.reply),
            };
        }
        self.must_be_here(from)?;
        let reserved = self.capacity.reserve(&from.project, from.memory_mib, 1).await?;
        let room = reserved.map_err(|reason| ForkError::NoRoom { reason, count: 1 })?;
        let now = Timestamp::now();
        let forks = vec![new_fork(task.key.clone(), &from.reply, now + task.lease)];
        let order = ForksOrder {
            project: &from.project,
            parent: None,
            from: &from.key,
            memory_mib: from.memory_mib,
            settings: &from.settings,
            token: &task.token,
            owner: &task.user,
            body_hash: &task.body_hash,
            lease: task.lease,
            stops: None,
            replaces: false,
            forks: &forks,
        };
        match self.begin_rows(&order, now).await? {
            BegunForks::Begun => {}
            BegunForks::KeyTaken(key) => return Err(ForkError::OtherRequest(key)),
            BegunForks::NotClaimed => return Err(ForkError::NotClaimed),
            BegunForks::TooManyHeld(held) => return Err(ForkError::TooManyHeld { held, count: 1 }),
            BegunForks::TokenFull(held) => return Err(ForkError::TokenFull { held, count: 1 }),
        }
        drop(room);
        let batch = Batch {
            project: from.project.clone(),
            from: from.key.clone(),
            forks,
            keyed: task.key.is_some(),
            gone: CancellationToken::new(),
            redactor: self.redactor_of(&from.project, Some(&from.owner)).await?,
        };
        let gone = batch.gone.clone().drop_guard();
        let (this, came) = (self.clone(), task.came);
        let work = tokio::spawn(async move { this.make_and_hand_over(&batch, came).await }.in_current_span());
        let made = work.await.map_err(|error| ForkError::Broken(error.to_string()))??;
        drop(gone.disarm());
        tracing::info!(project = %from.project, name = from.name, "a VM was claimed from a checkpoint");
        let made = made.into_iter().next();
        made.map(|made| made.reply)
            .ok_or_else(|| ForkError::Broken("no VM was made".to_owned()))
    }

    /// Lets a claimed VM continue from a checkpoint: another VM is made of it, and takes the place of the one that is there when it answers.
    pub async fn restore(&self, row: &InstanceRow, from: &NamedCheckpoint) -> Result<ClaimReply, ForkError> {
        let came = tokio::time::Instant::now();
        self.must_be_here(from)?;
        let claim = self.claim_of_owner(row).await?;
        let room = self.room(row, 1).await?;
        let now = Timestamp::now();
        let forks = vec![new_fork(None, &from.reply, claim.reply.expires_at)];
        let order = ForksOrder {
            project: &row.project,
            parent: Some(&row.id),
            from: &from.key,
            memory_mib: from.memory_mib,
            settings: &from.settings,
            token: &claim.token,
            owner: claim.owner.as_deref().unwrap_or_default(),
            body_hash: "",
            lease: claim.lease,
            stops: None,
            replaces: true,
            forks: &forks,
        };
        if self.begin_rows(&order, now).await? != BegunForks::Begun {
            return Err(ForkError::NotClaimed);
        }
        drop(room);
        let batch = Batch {
            project: row.project.clone(),
            from: from.key.clone(),
            forks,
            keyed: true,
            gone: CancellationToken::new(),
            redactor: self.redactor_of(&row.project, claim.owner.as_deref()).await?,
        };
        let (this, id, vm) = (self.clone(), row.id.clone(), row.vm.clone());
        let was = claim.reply;
        let work = tokio::spawn(async move { this.take_place(&batch, came, &id, &vm, &was).await }.in_current_span());
        let reply = work.await.map_err(|error| ForkError::Broken(error.to_string()))??;
        tracing::info!(instance = %row.id, project = %row.project, name = from.name, "restored by its owner");
        Ok(reply)
    }

    async fn take_place(
        &self,
        batch: &Batch,
        came: tokio::time::Instant,
        id: &InstanceId,
        vm: &VmId,
        was: &ClaimReply,
    ) -> Result<ClaimReply, ForkError> {
        let made = self.make_forks(batch, came).await;
        let ended = match made.map(|made| made.into_iter().next()) {
            Ok(Some(made)) => {
                let reply = ClaimReply {
                    id: id.clone(),
                    source: was.source,
                    expires_at: was.expires_at,
                    wait_ms: millis(came.elapsed()),
                    agent: agent_paths(id),
                    ..made.reply.clone()
                };
                match self.store.take_vm_of(id, &made, &reply, Timestamp::now()).await {
                    Ok(true) => {
                        self.hold_again(&batch.project, std::slice::from_ref(&made)).await;
                        self.connections.forget(vm);
                        self.pause.forget(vm);
                        self.guest_requests.run_soon();
                        self.wake.wake();
                        return Ok(reply);
                    }
                    Ok(false) => ForkError::NotClaimed,
                    Err(error) => error.into(),
                }
            }
            Ok(None) => ForkError::Broken("no VM was made".to_owned()),
            Err(error) => error,
        };
        self.undo(&batch.forks).await;
        Err(ended)
    }
}
