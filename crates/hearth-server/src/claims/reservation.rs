//! What a claim holds while it waits, and what becomes of it when its request goes away before it was answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_api::ids::{InstanceId, ProjectId};
use hearth_core::state::InstanceState;
use jiff::Timestamp;
use tracing::Instrument as _;

use super::Claims;
use crate::builds::cause;
use crate::store::{Moved, StoreError};

/// Instances that were handed on to a waiting claim by others that went away.
#[derive(Debug, Clone, Default)]
pub(super) struct Inbox(Arc<Mutex<Inherited>>);

#[derive(Debug, Default)]
struct Inherited {
    ids: Vec<InstanceId>,
    /// The claim is over: nothing more is taken in.
    is_closed: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Inherited> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when the claim is over.
    pub(super) fn put(&self, id: &InstanceId) -> bool {
        let mut inherited = self.lock();
        if !inherited.is_closed {
            inherited.ids.push(id.clone());
        }
        !inherited.is_closed
    }

    fn take(&self) -> Vec<InstanceId> {
        std::mem::take(&mut self.lock().ids)
    }

    fn close(&self) -> Vec<InstanceId> {
        let mut inherited = self.lock();
        inherited.is_closed = true;
        std::mem::take(&mut inherited.ids)
    }
}

/// The instances that are reserved for a claim; those that it did not get are given back when it is dropped.
pub(super) struct Reservation {
    claims: Claims,
    project: ProjectId,
    /// The one that it ordered, then those that others left it.
    ids: Vec<InstanceId>,
    inbox: Inbox,
    /// What is not used goes to the pool or the next claim; else (`miss: bypass`) it is deleted.
    pooled: bool,
}

impl Reservation {
    pub(super) fn new(claims: &Claims, project: &ProjectId, pooled: bool) -> Self {
        Self {
            claims: claims.clone(),
            project: project.clone(),
            ids: Vec::new(),
            inbox: Inbox::default(),
            pooled,
        }
    }

    /// Where others put what they leave it.
    pub(super) fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// Everything that is reserved for the claim now.
    pub(super) fn ids(&mut self) -> Vec<InstanceId> {
        self.ids.extend(self.inbox.take());
        self.ids.clone()
    }

    pub(super) fn add(&mut self, id: InstanceId) {
        self.ids.push(id);
    }

    /// It is not the claim's to give back: it was handed over, or is gone.
    pub(super) fn forget(&mut self, id: &InstanceId) {
        self.ids.retain(|own| own != id);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ids.extend(self.inbox.close());
        let ids = std::mem::take(&mut self.ids);
        if ids.is_empty() {
            return;
        }
        let (claims, project, pooled) = (self.claims.clone(), self.project.clone(), self.pooled);
        tokio::spawn(async move {
            for id in ids {
                cause::forget(&id);
                if let Err(error) = claims.give_back(&project, &id, pooled).await {
                    tracing::warn!(%error, instance = %id, "an instance whose claim is gone could not be given back");
                }
                claims.changed(&project, &id);
            }
        }.in_current_span());
    }
}

impl Claims {
    /// An instance was made, or is being made, for a claim that is gone. An enabled pool takes it; of a disabled one a claim that waits
    /// has it, since that pool keeps none.
    async fn give_back(&self, project: &ProjectId, id: &InstanceId, pooled: bool) -> Result<(), StoreError> {
        let store = &self.store;
        if !pooled {
            return self.delete(id).await;
        }
        let pool = store.pool(project).await?;
        if pool.is_none_or(|pool| !pool.config.enabled) && self.queues.hand_on(project, id) {
            tracing::info!(instance = %id, %project, "an instance whose claim is gone serves the next one");
            return Ok(());
        }
        store.unreserve_instance(id).await
    }

    /// Deletes an instance that was made for a claim which is gone, unless the claim has it by now: then a repeated key gets it.
    async fn delete(&self, id: &InstanceId) -> Result<(), StoreError> {
        let store = &self.store;
        loop {
            let row = store.instance(id).await?;
            let gone = |state| matches!(state, InstanceState::Claimed | InstanceState::Deleting);
            let Some(row) = row.filter(|row| !gone(row.state)) else {
                return Ok(());
            };
            let (to, now) = (InstanceState::Deleting, Timestamp::now());
            let why = "the claim that it was made for is gone";
            // Lost: it became ready, or was claimed, meanwhile.
            if store.move_instance(id, to, Some(row.generation), why, now).await? != Moved::Lost {
                return Ok(());
            }
        }
    }
}

/// Takes a claim back that has no key, when its request is gone before the VM was handed over: no request can ask for it again.
pub(super) struct UndoGuard {
    claims: Claims,
    id: Option<InstanceId>,
}

impl UndoGuard {
    pub(super) fn new(claims: &Claims, id: Option<InstanceId>) -> Self {
        Self {
            claims: claims.clone(),
            id,
        }
    }

    /// The claim was answered, or taken back already.
    pub(super) fn disarm(&mut self) {
        self.id = None;
    }
}

impl Drop for UndoGuard {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let claims = self.claims.clone();
        tokio::spawn(
            async move {
                if let Err(error) = claims.store.undo_claim(&id, Timestamp::now()).await {
                    tracing::warn!(%error, instance = %id, "a claim whose request is gone could not be taken back");
                }
                claims.wake.wake();
            }
            .in_current_span(),
        );
    }
}
