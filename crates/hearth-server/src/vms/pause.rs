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
use tracing::Instrument as _;

use super::admission::Admission;
use super::connections::Connections;
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
    /// When a call of an owner last began or ended in a VM, or it was used otherwise.
    used_at: Arc<Mutex<HashMap<VmId, Instant>>>,
    /// VMs that were resumed for their owner, and whose clock is not set yet.
    clock_due: Arc<Mutex<HashSet<VmId>>>,
    /// Lets VMs have memory again that are paused to the disk.
    admission: Admission,
    connections: Connections,
}

/// Where the memory of a paused VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausedIn {
    Memory,
    Disk,
}

/// How a claimed VM is to be paused.
#[derive(Debug, Clone, Default)]
pub struct PauseOrder {
    /// Also when calls are under way in it: they wait until it is resumed, or end when it is paused to the disk.
    pub force: bool,
    /// Its memory goes to the disk.
    pub to_disk: bool,
    /// Why Hearth pauses it; `None`: its owner wants it.
    pub because: Option<String>,
    /// Only when it was not used since.
    pub unused_since: Option<Instant>,
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
            Whose::Owner => {
                self.pause.note_use(&self.vm);
                self.pause.calls_ended.notify_waiters();
            }
        }
    }
}

/// Whether a VM is paused, and where its memory is then; not known is no.
pub(super) async fn paused_in(driver: &dyn Driver, vm: &VmId) -> Option<PausedIn> {
    if !driver.capabilities().pause {
        return None;
    }
    match tokio::time::timeout(HOST_CHECK, driver.inspect(vm)).await {
        Ok(Ok(Some(VmState::Paused))) => Some(PausedIn::Memory),
        Ok(Ok(Some(VmState::Saved))) => Some(PausedIn::Disk),
        _ => None,
    }
}

impl Pause {
    /// No client works in any VM yet.
    #[must_use]
    pub fn new(
        store: Store,
        driver: Arc<dyn Driver>,
        wake: Wake,
        admission: Admission,
        connections: Connections,
    ) -> Self {
        Self {
            store,
            driver,
            wake,
            locks: Locks::default(),
            used: Arc::default(),
            calls: Arc::default(),
            calls_ended: Arc::default(),
            running: Arc::default(),
            used_at: Arc::default(),
            clock_due: Arc::default(),
            admission,
            connections,
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

    fn used_at(&self) -> MutexGuard<'_, HashMap<VmId, Instant>> {
        self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock_due(&self) -> MutexGuard<'_, HashSet<VmId>> {
        self.clock_due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VM is gone.
    pub fn forget(&self, vm: &VmId) {
        self.running().remove(vm);
        self.used_at().remove(vm);
        self.clock_due().remove(vm);
    }

    /// A claimed VM is used, though no call is under way in it.
    pub fn note_use(&self, vm: &VmId) {
        self.used_at().insert(vm.clone(), Instant::now());
    }

    /// Since when nobody uses a claimed VM, as far as this server knows; `None` while a call is under way in it.
    pub fn idle_since(&self, vm: &VmId) -> Option<Instant> {
        let used = *self.used_at().entry(vm.clone()).or_insert_with(Instant::now);
        (!self.counts(Whose::Owner).contains_key(vm)).then_some(used)
    }

    /// The clock of a VM that was resumed for its owner is set.
    pub fn clock_is_set(&self, vm: &VmId) {
        self.clock_due().remove(vm);
    }

    fn count(&self, vm: &VmId, whose: Whose) -> ResumedVm {
        if whose == Whose::Owner {
            self.note_use(vm);
        }
        *self.counts(whose).entry(vm.clone()).or_default() += 1;
        ResumedVm {
            pause: self.clone(),
            vm: vm.clone(),
            whose,
        }
    }

    /// Whether a VM is paused, as far as the host says it in time.
    pub async fn is_paused(&self, vm: &VmId) -> bool {
        self.paused_in(vm).await.is_some()
    }

    /// The same, and where its memory is.
    pub async fn paused_in(&self, vm: &VmId) -> Option<PausedIn> {
        paused_in(&*self.driver, vm).await
    }

    /// Something is done in a claimed VM that is not to be paused meanwhile.
    #[must_use]
    pub fn begin_call(&self, vm: &VmId) -> ResumedVm {
        self.count(vm, Whose::Owner)
    }

    /// A call into a claimed VM begins, which resumes it; whether it was paused, and its clock is to be set.
    pub async fn enter_claimed(&self, vm: &VmId) -> Result<(ResumedVm, bool), DriverError> {
        let call = self.begin_call(vm);
        // A pause that has not seen this call is waited for; the ones after it see it.
        let alone = self.locks.lock(vm.clone()).await;
        if self.driver.capabilities().pause && !self.running().contains(vm) {
            match tokio::time::timeout(HOST_CHECK, self.driver.inspect(vm)).await {
                Ok(Ok(Some(state @ (VmState::Paused | VmState::Saved)))) => {
                    // To its end, under the lock, also when the client goes away meanwhile.
                    let (this, vm) = (self.clone(), vm.clone());
                    let resumed = tokio::spawn(
                        async move {
                            let _alone = alone;
                            this.resume_claimed(&vm, state == VmState::Saved).await
                        }
                        .in_current_span(),
                    );
                    resumed
                        .await
                        .map_err(|error| DriverError::unknown(format!("the resume was broken off: {error}")))??;
                }
                Ok(Ok(Some(VmState::Running))) => drop(self.running().insert(vm.clone())),
                _ => {}
            }
        }
        let clock_is_due = self.clock_due().contains(vm);
        Ok((call, clock_is_due))
    }

    async fn resume_claimed(&self, vm: &VmId, from_disk: bool) -> Result<(), DriverError> {
        let _admitted = match from_disk {
            true => Some(self.admission.admit(vm).await?),
            false => None,
        };
        self.driver.resume(vm).await?;
        self.clock_due().insert(vm.clone());
        self.running().insert(vm.clone());
        Ok(())
    }

    /// Pauses the VM of a claimed instance.
    pub async fn pause_claimed(&self, id: &InstanceId, vm: &VmId, order: PauseOrder) -> Result<(), NotPaused> {
        let can = self.driver.capabilities();
        if !can.pause || (order.to_disk && !can.pause_to_disk) {
            let what = if can.pause {
                "pause VMs to the disk"
            } else {
                "pause VMs"
            };
            return Err(DriverError::permanent(format!("the driver `{}` cannot {what}", can.name)).into());
        }
        let deadline = Instant::now() + CALLS_END;
        loop {
            let mut ended = std::pin::pin!(self.calls_ended.notified());
            ended.as_mut().enable();
            let alone = self.locks.lock(vm.clone()).await;
            let calls = self.counts(Whose::Owner).get(vm).copied().unwrap_or_default();
            let used_since = |since: Instant| self.used_at().get(vm).is_some_and(|used| *used != since);
            if order.unused_since.is_some_and(used_since) {
                return Err(NotPaused::InUse(calls));
            }
            if order.force || calls == 0 {
                // Again: it may have been released while we waited.
                let row = self.store.instance(id).await?;
                if row.is_none_or(|row| row.state != InstanceState::Claimed) {
                    return Err(NotPaused::NotClaimed);
                }
                // To its end, under the lock, also when the client goes away meanwhile.
                let (this, id, vm) = (self.clone(), id.clone(), vm.clone());
                let paused = tokio::spawn(
                    async move {
                        let _alone = alone;
                        this.do_pause(&id, &vm, &order).await
                    }
                    .in_current_span(),
                );
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

    async fn do_pause(&self, id: &InstanceId, vm: &VmId, order: &PauseOrder) -> Result<(), DriverError> {
        self.running().remove(vm);
        // Before it is paused: only then it is shown, also when this server ends in the middle.
        if let Err(error) = self.store.note_paused(id, order.because.as_deref()).await {
            tracing::warn!(%error, instance = %id, "why a VM is paused could not be recorded");
        }
        if order.to_disk {
            self.driver.save(vm).await?;
            self.admission.note_saved(vm);
            self.connections.renew(vm);
            self.wake.wake();
        } else {
            self.driver.pause(vm).await?;
        }
        Ok(())
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
