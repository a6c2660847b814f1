//! Ready VMs are paused until they are needed. A task that pauses or resumes one holds its lock, and reads its row again: a VM
//! that was claimed meanwhile is left alone.
//!
//! A claimed VM is paused by its owner, and resumed by the next call into it. Whether it is paused the driver knows: that outlives a
//! restart of the server. A call is counted before it looks, and a pause counts under the lock, so a call that has found the VM
//! running is never stopped by a pause that did not know of it. Only this server pauses VMs: one that it has resumed is known to run, and
//! no call asks the host about it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_api::ids::{InstanceId, VmId};
use hearth_core::purpose::Purpose;
use hearth_core::state::InstanceState;
use hearth_drivers::{Driver, DriverError, Locks, VmState};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::store::{Store, StoreError};
use crate::wake::Wake;

/// How long the host may take to say whether a VM is paused; one that does not say it in time is taken to run.
const HOST_CHECK: Duration = Duration::from_secs(2);
/// Calls that are about to end are waited for: a client has its answer a moment before its call is over.
const CALLS_END: Duration = Duration::from_secs(1);

/// Calls under way, by VM.
type Calls = HashMap<VmId, usize>;

/// Pauses and resumes VMs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pause {
    store: Store,
    driver: Arc<dyn Driver>,
    wake: Wake,
    /// One lock per VM, held while it is paused or resumed.
    locks: Locks<VmId>,
    /// How many work in VMs that would be paused otherwise.
    used: Arc<Mutex<Calls>>,
    /// How many calls of owners are under way in claimed VMs.
    calls: Arc<Mutex<Calls>>,
    /// The last call in a claimed VM has ended.
    calls_ended: Arc<Notify>,
    /// VMs that are not paused. Written under the VM's lock.
    running: Arc<Mutex<HashSet<VmId>>>,
}

/// Keeps a VM running for as long as a client works in it. That of a claimed VM is paused all the same when its owner insists.
#[derive(Debug)]
pub struct ResumedVm {
    pause: Pause,
    vm: VmId,
    whose: Whose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Pool,
    Owner,
}

/// Why a claimed VM was not paused.
#[derive(Debug, thiserror::Error)]
pub enum NotPaused {
    /// So many calls are under way in it.
    #[error("{0} calls are under way in the VM")]
    InUse(usize),
    /// The claim has ended.
    #[error("the instance is not claimed any more")]
    NotClaimed,
    /// The driver cannot, or could not.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Drop for ResumedVm {
    fn drop(&mut self) {
        let mut counts = self.pause.counts(self.whose);
        let left = counts.get_mut(&self.vm).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            counts.remove(&self.vm);
        }
        drop(counts);
        match self.whose {
            Whose::Pool => self.pause.wake.wake(),
            Whose::Owner => self.pause.calls_ended.notify_waiters(),
        }
    }
}

/// Whether a VM is paused; not known is no.
pub(super) async fn is_paused(driver: &dyn Driver, vm: &VmId) -> bool {
    if !driver.capabilities().pause {
        return false;
    }
    let seen = tokio::time::timeout(HOST_CHECK, driver.inspect(vm)).await;
    matches!(seen, Ok(Ok(Some(VmState::Paused))))
}

impl Pause {
    /// No client works in any VM yet.
    #[must_use]
    pub fn new(store: Store, driver: Arc<dyn Driver>, wake: Wake) -> Self {
        Self {
            store,
            driver,
            wake,
            locks: Locks::default(),
            used: Arc::default(),
            calls: Arc::default(),
            calls_ended: Arc::default(),
            running: Arc::default(),
        }
    }

    fn counts(&self, whose: Whose) -> MutexGuard<'_, Calls> {
        let counts = match whose {
            Whose::Pool => &self.used,
            Whose::Owner => &self.calls,
        };
        counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, HashSet<VmId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VM is gone.
    pub fn forget(&self, vm: &VmId) {
        self.running().remove(vm);
    }

    fn count(&self, vm: &VmId, whose: Whose) -> ResumedVm {
        *self.counts(whose).entry(vm.clone()).or_default() += 1;
        ResumedVm {
            pause: self.clone(),
            vm: vm.clone(),
            whose,
        }
    }

    /// Whether a VM is paused, as far as the host says it in time.
    pub async fn is_paused(&self, vm: &VmId) -> bool {
        is_paused(&*self.driver, vm).await
    }

    /// Something is done in a claimed VM that is not to be paused meanwhile.
    #[must_use]
    pub fn begin_call(&self, vm: &VmId) -> ResumedVm {
        self.count(vm, Whose::Owner)
    }

    /// A call into a claimed VM begins, which resumes it; whether it was paused.
    pub async fn enter_claimed(&self, vm: &VmId) -> Result<(ResumedVm, bool), DriverError> {
        let call = self.begin_call(vm);
        // A pause that has not seen this call is waited for; the ones after it see it.
        let _alone = self.locks.lock(vm.clone()).await;
        if !self.driver.capabilities().pause || self.running().contains(vm) {
            return Ok((call, false));
        }
        let seen = tokio::time::timeout(HOST_CHECK, self.driver.inspect(vm)).await;
        let was_paused = matches!(seen, Ok(Ok(Some(VmState::Paused))));
        if was_paused {
            self.driver.resume(vm).await?;
        }
        if was_paused || matches!(seen, Ok(Ok(Some(VmState::Running)))) {
            self.running().insert(vm.clone());
        }
        Ok((call, was_paused))
    }

    /// Pauses the VM of a claimed instance. `force`: also when calls are under way in it, which then wait until it is resumed.
    pub async fn pause_claimed(&self, id: &InstanceId, vm: &VmId, force: bool) -> Result<(), NotPaused> {
        if !self.driver.capabilities().pause {
            let name = self.driver.capabilities().name;
            return Err(DriverError::permanent(format!("the driver `{name}` cannot pause VMs")).into());
        }
        let deadline = Instant::now() + CALLS_END;
        loop {
            let mut ended = std::pin::pin!(self.calls_ended.notified());
            ended.as_mut().enable();
            let alone = self.locks.lock(vm.clone()).await;
            let calls = self.counts(Whose::Owner).get(vm).copied().unwrap_or_default();
            if force || calls == 0 {
                // Again: it may have been released while we waited.
                let row = self.store.instance(id).await?;
                if row.is_none_or(|row| row.state != InstanceState::Claimed) {
                    return Err(NotPaused::NotClaimed);
                }
                // To its end, under the lock, also when the client goes away meanwhile.
                let (this, vm) = (self.clone(), vm.clone());
                let paused = tokio::spawn(async move {
                    let _alone = alone;
                    this.running().remove(&vm);
                    this.driver.pause(&vm).await
                });
                return match paused.await {
                    Ok(paused) => Ok(paused?),
                    Err(error) => Err(DriverError::unknown(format!("the pause was broken off: {error}")).into()),
                };
            }
            drop(alone);
            if Instant::now() >= deadline || tokio::time::timeout_at(deadline, ended).await.is_err() {
                return Err(NotPaused::InUse(calls));
            }
        }
    }

    /// Resumes a VM, and keeps it running until the guard is dropped.
    pub async fn keep_resumed(&self, vm: &VmId) -> Result<ResumedVm, DriverError> {
        let guard = self.count(vm, Whose::Pool);
        self.resume(vm).await?;
        Ok(guard)
    }

    /// Resumes a VM.
    pub async fn resume(&self, vm: &VmId) -> Result<(), DriverError> {
        if !self.driver.capabilities().pause {
            return Ok(());
        }
        let _alone = self.locks.lock(vm.clone()).await;
        self.driver.resume(vm).await?;
        self.running().insert(vm.clone());
        Ok(())
    }

    /// Pauses the VM of a ready instance, unless a client works in it or has claimed it.
    pub async fn pause(&self, id: &InstanceId) {
        let row = match self.store.instance(id).await {
            Ok(Some(row)) => row,
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, instance = %id, "an instance could not be read"),
        };
        let _alone = self.locks.lock(row.vm.clone()).await;
        let used = self.counts(Whose::Pool).contains_key(&row.vm);
        // Again: it may have been claimed while we waited.
        let ready =
            self.store.instance(id).await.is_ok_and(|row| {
                row.is_some_and(|row| row.state == InstanceState::Ready && row.purpose != Purpose::Claim)
            });
        if used || !ready {
            return;
        }
        self.running().remove(&row.vm);
        if let Err(error) = self.driver.pause(&row.vm).await {
            tracing::warn!(%error, instance = %id, "a ready VM could not be paused; the next pass tries again");
        }
    }
}
